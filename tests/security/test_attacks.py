"""Attacks through files, names and a run's record: each tries to leave a marker file. What a user
types on the command line is the user's own, and is shown to act, so that the attacks are real."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from mnist_hydra.kernel.compile import compiler
from mnist_hydra.kernel.fused import Fused
from mnist_hydra.models import Model3
from tests.commands import Commands, Done
from tests.security.conftest import Store

# One process has the store and what commands are forked from.
pytestmark = pytest.mark.xdist_group("security")

MARKER = "marker"
EVIL = f"""
import pathlib
import torch

pathlib.Path({MARKER!r}).touch()

class Model(torch.nn.Module):
    pass
"""

HYDRA = {
    "callback that runs a command": {
        "callbacks": {"a": {"_target_": "os.system", "command": f"touch {MARKER}"}}
    },
    "callback that opens a file": {
        "callbacks": {"a": {"_target_": "builtins.open", "file": MARKER, "mode": "w"}}
    },
    "callback that copies": {
        "callbacks": {"a": {"_target_": "shutil.copy", "src": "evil.py", "dst": MARKER}}
    },
    "callback that loads a pickle": {
        "callbacks": {"a": {"_target_": "numpy.load", "file": "evil.pkl", "allow_pickle": True}}
    },
    "callback that is imported": {"callbacks": {"a": {"_target_": "evil.Model"}}},
    "log handler that writes": {
        "job_logging": {
            "version": 1,
            "handlers": {"a": {"class": "logging.FileHandler", "filename": MARKER}},
            "root": {"handlers": ["a"]},
        }
    },
    "log handler from a factory": {
        "job_logging": {"version": 1, "handlers": {"a": {"()": "evil.Model"}}}
    },
    "log handler of Hydra": {
        "hydra_logging": {"version": 1, "handlers": {"a": {"()": "evil.Model"}}}
    },
    "git's own variables": {
        "job": {
            "env_set": {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "core.fsmonitor",
                "GIT_CONFIG_VALUE_0": f"touch {MARKER}",
            }
        }
    },
    "another PATH": {"job": {"env_set": {"PATH": ".", "CC": "./evil.sh"}}},
    "another cache folder": {"job": {"env_set": {"XDG_CACHE_HOME": "."}}},
    "a copied variable": {"job": {"env_copy": ["HOME"]}},
    "folder of a run": {"run": {"dir": MARKER}},
    "folder of a run, climbing": {"run": {"dir": "${output_dir}/../" + MARKER}},
    "folder of a sweep": {"mode": "MULTIRUN", "sweep": {"dir": MARKER, "subdir": "x"}},
    "Hydra's own folder": {"output_subdir": MARKER},
    "name of the log": {"job": {"name": "../" + MARKER}, "output_subdir": None},
    "search path": {"searchpath": ["pkg://evil"]},
    "sweeper": {"mode": "MULTIRUN", "sweeper": {"_target_": "evil.Model"}},
    "launcher": {"mode": "MULTIRUN", "launcher": {"_target_": "evil.Model"}},
    "launcher's commands": {
        "mode": "MULTIRUN",
        "launcher": {"slurm_setup": [f"touch {MARKER}"], "cluster": "local"},
    },
    "launcher's cluster": {"mode": "MULTIRUN", "launcher": {"address": "127.0.0.1:1"}},
    "axis that is an object": {
        "mode": "MULTIRUN",
        "sweeper": {
            "params": {"seed": {"_target_": "numpy.load", "file": "evil.pkl", "allow_pickle": True}}
        },
    },
    "axes that are an object": {
        "mode": "MULTIRUN",
        "sweeper": {
            "params": {"_target_": "numpy.load", "file": "evil.pkl", "allow_pickle": True}
        },
    },
    "axis that trusts": {"mode": "MULTIRUN", "sweeper": {"params": {"trusted": "[evil]"}}},
    "axis that is an option": {
        "mode": "MULTIRUN",
        "sweeper": {"params": {"--config-dir": "evil", "seed": "1,2"}},
    },
}
"""What a file would have Hydra do."""

PLACES = ("experiment", "primary", "beside", "package", "defaults", "interpolation", "alone")
"""Where in a folder of configuration files it stands."""


def placed(folder: Path, place: str, hydra: dict[str, Any]) -> list[str]:
    """Write a file that sets Hydra's node; returns the words that bring it in."""
    text = json.dumps(hydra)
    with_dir = ["--config-dir", str(folder)]
    globally = "# @package _global_\n"
    if place == "experiment":
        return with_dir + _written(folder, "experiment=a", f"{globally}hydra: {text}\n")
    if place == "beside":
        return with_dir + _written(folder, "+extra=a", f"{globally}hydra: {text}\n")
    if place == "package":
        return with_dir + _written(folder, "+extra=a", f"# @package hydra\n{text}\n")
    if place == "interpolation":
        raw = f"{globally}evil: {text}\nhydra: ${{evil}}\n"
        return with_dir + _written(folder, "experiment=a", raw)
    if place == "defaults":
        _written(folder, "stuff=b", f"{text}\n")
        raw = f"{globally}defaults:\n  - /stuff@hydra: b\n"
        return with_dir + _written(folder, "experiment=a", raw)
    name = ["--config-name", "mine"]
    if place == "primary":
        (folder / "mine.yaml").write_text(f"defaults: [config, _self_]\nhydra: {text}\n")
        return with_dir + name
    (folder / "mine.yaml").write_text(f"hydra: {text}\n")
    return ["--config-path", str(folder), *name]


def _written(folder: Path, word: str, text: str) -> list[str]:
    group, _, name = word.lstrip("+").partition("=")
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)
    return [word]


class Payload:
    """Unpickled, it leaves the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARKER),)


@pytest.fixture
def victim(trained: Store, tmp_path: Path) -> Iterator[Path]:
    """The folder that the command is started in, with what the attacks would use."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "evil.sh").write_text(f"#!/bin/sh\ntouch {MARKER}\n")
    (tmp_path / "evil.sh").chmod(0o755)
    (tmp_path / "conf").mkdir()
    before = trained.left()
    yield tmp_path
    assert not list(tmp_path.rglob(f"*{MARKER}*"))
    assert trained.left() == before
    assert {file.name for file in tmp_path.iterdir()} <= {
        "evil.py", "evil.pkl", "evil.sh", "conf", "__pycache__"
    }  # fmt: skip


def insist_refused(done: Done, key: str) -> None:
    """A refusal in one line that names the key."""
    assert done.code == 2 and len(done.errors) == 1, done.said
    assert key in done.errors[0] and "Traceback" not in done.said, done.said


def attack_through_hydra(
    commands: Commands, trained: Store, victim: Path, what: str, place: str
) -> None:
    """Try it with the words that train a step."""
    words = placed(victim / "conf", place, HYDRA[what])
    mine = [] if place == "alone" else trained.words
    insist_refused(commands.run(victim, *mine, *words), "hydra")


@pytest.mark.parametrize(
    ("what", "place"),
    [(what, PLACES[i % len(PLACES)]) for i, what in enumerate(HYDRA)],
)
def test_a_file_has_hydra_do_nothing(
    commands: Commands, trained: Store, victim: Path, what: str, place: str
) -> None:
    attack_through_hydra(commands, trained, victim, what, place)


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", HYDRA)
def test_a_file_has_hydra_do_nothing_wherever_it_stands(
    commands: Commands, trained: Store, victim: Path, what: str, place: str
) -> None:
    attack_through_hydra(commands, trained, victim, what, place)


TARGETS = (
    "evil.Model",
    "evil.Missing",
    "antigravity.fly",
    "venv.__main__.rc",
    "numpy.f2py.__main__.main",
    "torch.utils.model_dump.__main__.main",
    "torch.testing._internal.common_utils.TestCase",
    "os.system",
    "builtins.exec",
    "conf.model.evil.Model",
    "mnist_hydra.targets.sys.modules",
    "torch.load",
    "torch.hub.load",
    "mlflow.pytorch.load_model",
)
PARTS = ("model", "optimizer", "scheduler", "aug")


def attack_through_target(
    commands: Commands, trained: Store, victim: Path, part: str, target: str
) -> None:
    """Name the target in a file, with a variable that a browser is started by."""
    step = f"{{_target_: {target}, f: evil.pkl}}"
    text = f"steps: [{step}]\n" if part == "aug" else f"_target_: {target}\n"
    words = _written(victim / "conf", f"{part}=a", text)
    done = commands.run(
        victim, *trained.words, "--config-dir", "conf", *words, BROWSER=f"touch {MARKER} #%s"
    )
    insist_refused(done, part)


@pytest.mark.parametrize(
    ("part", "target"), [(PARTS[i % 4], target) for i, target in enumerate(TARGETS)]
)
def test_a_target_is_judged_before_its_module_is_imported(
    commands: Commands, trained: Store, victim: Path, part: str, target: str
) -> None:
    attack_through_target(commands, trained, victim, part, target)


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_judged_in_every_group(
    commands: Commands, trained: Store, victim: Path, part: str, target: str
) -> None:
    attack_through_target(commands, trained, victim, part, target)


@pytest.mark.parametrize(
    "text",
    [
        f"!!python/object/apply:os.system ['touch {MARKER}']\n",
        "_target_: mnist_hydra.models.Model3\ndropout: !!python/name:os.system\n",
        "{" * 2000,
        "_target_: mnist_hydra.models.Model3\ndropout: {_target_: os.system, command: ls}\n",
        "# @package _global_\ntrusted: [evil]\nmodel: {_target_: evil.Model}\n",
        "_target_: ${oc.create:{_target_:evil.Model}}\n",
        "\x00\xff",
    ],
)
def test_a_file_that_is_more_than_values_is_refused(
    commands: Commands, trained: Store, victim: Path, text: str
) -> None:
    words = _written(victim / "conf", "model=a", text)
    done = commands.run(victim, *trained.words, "--config-dir", "conf", *words)
    assert done.code == 2 and len(done.errors) == 1, done.said
    assert "Traceback" not in done.said


@pytest.mark.parametrize(
    "words",
    [
        (
            f"tracking.experiment_name='$(touch {MARKER})'",
            f"model.name='`touch {MARKER}`'",
            f"data.name='$(touch {MARKER})'",
            f"aug.name='|touch {MARKER}'",
        ),
        (
            f"tracking.experiment_name='; touch {MARKER} #'",
            f"model.name='../{MARKER}'",
            f"data.name='../../../{MARKER}'",
        ),
    ],
)
def test_a_name_is_only_a_name(
    commands: Commands, trained: Store, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = commands.run(tmp_path, *trained.words, *words)
    assert done.code == 0 and "Traceback" not in done.said, done.said
    assert not list(tmp_path.iterdir()) and not list(trained.folder.rglob(MARKER))


@pytest.mark.usefixtures("kernel_possible")
def test_a_library_in_the_output_dir_that_a_file_names_is_not_loaded(
    commands: Commands, trained: Store, tmp_path: Path
) -> None:
    kernels = tmp_path / "prepared" / "kernels"
    Fused(Model3(), kernels)
    (library,) = kernels.glob("*.so")
    (tmp_path / "evil.c").write_text(
        "#include <stdlib.h>\n"
        f'__attribute__((constructor)) void f(void) {{ system("touch {MARKER}"); }}\n'
    )
    evil = [*compiler(), "-shared", "-fPIC", "-o", str(library), str(tmp_path / "evil.c")]
    subprocess.run(evil, check=True)
    library.with_suffix(".sha256").write_text(sha256(library.read_bytes()).hexdigest())
    text = f"# @package _global_\noutput_dir: {tmp_path / 'prepared'}\n"
    words = _written(tmp_path / "conf", "experiment=a", text)
    mine = [word for word in trained.words if not word.startswith("output_dir=")]
    done = commands.run(tmp_path, *mine, "--config-dir", "conf", *words)
    assert done.code == 0 and not list(tmp_path.rglob(MARKER)), done.said


def test_data_that_are_a_pickle_are_refused(
    commands: Commands, trained: Store, victim: Path
) -> None:
    raw = victim / "conf" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        shutil.copy(victim / "evil.pkl", raw / f"{name}-ubyte")
    words = [word for word in trained.words if not word.startswith("data.root")]
    done = commands.run(victim, *words, "data.root=conf", "data.offline=true")
    assert "Traceback" not in done.said and done.code in (0, 2), done.said
    shutil.rmtree(raw)


@pytest.mark.parametrize("change", ["target", "trusted", "hydra", "yaml", "checkpoint"])
def test_a_tampered_record_runs_nothing_on_resume(
    commands: Commands, trained: Store, tmp_path: Path, change: str
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    run_id = unfinished(trained)
    (artifacts,) = trained.output_dir.rglob(f"{run_id}/artifacts")
    record = artifacts / "config.yaml"
    text = record.read_text()
    if change in ("target", "trusted"):
        text = text.replace("mnist_hydra.models.Model3", "evil.Model")
    if change == "trusted":
        text = text.replace("trusted: []", "trusted: [evil]")
    if change == "hydra":
        text += f"hydra: {json.dumps(HYDRA['callback that runs a command'])}\n"
    if change == "yaml":
        text += f"a: !!python/object/apply:os.system ['touch {MARKER}']\n"
    if change == "checkpoint":
        for file in artifacts.rglob("*.pt"):
            torch.save(Payload(), file)
    record.write_text(text)
    output_dir = f"output_dir={trained.output_dir}"
    done = commands.run(tmp_path, output_dir, f"resume={run_id}")
    assert not list(tmp_path.rglob(MARKER)) and "Traceback" not in done.said, done.said
    if change in ("target", "trusted", "yaml"):
        assert done.code == 2 and len(done.errors) == 1, done.said


def test_a_record_does_not_say_where_its_run_goes_on(
    commands: Commands, trained: Store, tmp_path: Path
) -> None:
    run_id = unfinished(trained)
    (artifacts,) = trained.output_dir.rglob(f"{run_id}/artifacts")
    text = (artifacts / "config.yaml").read_text()
    elsewhere = text.replace(f"output_dir: {trained.output_dir}", f"output_dir: {tmp_path / 'a'}")
    assert elsewhere != text
    (artifacts / "config.yaml").write_text(elsewhere)
    done = commands.run(trained.folder, f"resume={run_id}")
    assert done.code == 0 and not list(tmp_path.iterdir()), done.said


def unfinished(trained: Store) -> str:
    """A run of the store that looks as if it had been killed after its last epoch."""
    client = MlflowClient(f"sqlite:///{trained.output_dir / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "mnist_hydra")
    run = client.search_runs([experiment.experiment_id])[-1]
    copy = client.create_run(experiment.experiment_id)
    source = next(trained.output_dir.rglob(f"{run.info.run_id}/artifacts"))
    client.log_artifacts(copy.info.run_id, str(source))
    for key, value in run.data.tags.items():
        client.set_tag(copy.info.run_id, key, value)
    client.set_terminated(copy.info.run_id, "KILLED")
    return copy.info.run_id


def test_a_python_file_that_no_target_names_is_not_imported(trained: Store, victim: Path) -> None:
    for module in ("torch", "mlflow", "albumentations", "sklearn", "rich"):
        (victim / "conf" / f"{module}.py").write_text(EVIL)
    words = ["-m", "mnist_hydra.train", "--config-dir", "conf", *trained.words, "aug=ssr"]
    done = subprocess.run(
        [sys.executable, *words, "batch_size=2000"], cwd=victim, capture_output=True, text=True
    )
    insist_refused(Done(done.returncode, done.stdout, done.stderr), "batch_size")


def test_a_module_of_ones_own_has_a_name_of_its_own(
    commands: Commands, trained: Store, victim: Path
) -> None:
    (victim / "conf" / "model").mkdir()
    (victim / "conf" / "model" / "a.yaml").write_text("_target_: json.Model\n")
    (victim / "conf" / "json.py").write_text(EVIL)
    words = ["--config-dir", "conf", "model=a"]
    done = commands.run(victim, *trained.words, *words)
    insist_refused(done, "json.py has the name of another module")


def test_what_is_typed_is_the_users_own(
    commands: Commands, trained: Store, tmp_path: Path
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    typed = "+hydra.callbacks.a={_target_:evil.Model}"
    commands.run(tmp_path, *trained.words, typed, "epochs=0")
    assert (tmp_path / MARKER).exists()


def test_a_module_that_the_command_line_trusts_is_imported(
    commands: Commands, trained: Store, tmp_path: Path
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    words = ["model._target_=evil.Model", "~model.dropout"]
    refused = commands.run(tmp_path, *trained.words, *words)
    assert "trusted=[evil]" in refused.said and not (tmp_path / MARKER).exists()
    commands.run(tmp_path, *trained.words, *words, "trusted=[evil]")
    assert (tmp_path / MARKER).exists()
