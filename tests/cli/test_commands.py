"""Commands as they are printed: what they need, and that a shell and Hydra read them back."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mnist_hydra.cli.commands import (
    config_words,
    folder_words,
    place_words,
    refuse_moving_folder,
    shell_command,
)
from mnist_hydra.cli.entry import share_cores
from mnist_hydra.errors import UserError


def place(
    output_dir: str = "outputs", uri: str | None = None, name: str = "mnist_hydra"
) -> DictConfig:
    tracking = {"uri": uri, "experiment_name": name}
    return OmegaConf.create({"output_dir": output_dir, "tracking": tracking})


def hydra(*sources: tuple[str, str, str], config_name: str = "config") -> DictConfig:
    return OmegaConf.create(
        {
            "job": {"config_name": config_name},
            "runtime": {
                "config_sources": [
                    {"provider": provider, "schema": schema, "path": path}
                    for provider, schema, path in sources
                ]
            },
        }
    )


OURS = ("main", "pkg", "mnist_hydra.conf")


def test_what_is_as_by_default_is_not_said() -> None:
    assert place_words(place()) == []
    assert config_words(hydra(OURS)) == folder_words(hydra(OURS)) == []


@pytest.mark.parametrize(
    "folder",
    ["/tmp/x", "mine", "a b", "it's", 'say "so"', "50%", "what?", "a,b", "k=v", "ö", "true", "7"]
    + ["me@here", "back\\slash", "end\\", "{a}", "[a]", "~home", "$HOME", "a(b)", " blank "]
    + ["a;b&c|d"],
)
def test_any_folder_is_read_back_as_it_is(folder: str) -> None:
    command = shell_command("train", place_words(place(folder)))
    [word] = shlex.split(command)[3:]
    [override] = OverridesParser.create().parse_overrides([word])
    assert override.get_key_element() == "output_dir"
    assert str(override.value()) == folder


def test_the_store_is_named_without_its_password() -> None:
    words = place_words(place(uri="http://me:secret@host:5000", name="mine"))
    assert words == ["tracking.uri=http://me@host:5000", "tracking.experiment_name=mine"]


def test_a_store_that_a_variable_names_is_named_by_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORE", "postgresql://me:secret@host/runs")
    assert place_words(place(uri="${oc.env:STORE}")) == ["tracking.uri=${oc.env:STORE}"]


def test_the_flags_that_chose_the_configuration_files_are_repeated(tmp_path: Path) -> None:
    sources = [
        ("main", "file", "/conf"),
        ("command-line", "file", "/a b"),
        ("hydra.searchpath in main", "file", "/more"),
        ("hydra.searchpath in main", "pkg", "other.conf"),
        ("schema", "structured", ""),
    ]
    node = hydra(*sources, config_name="mine")
    assert config_words(node) == [
        *("--config-name", "mine", "--config-path", "/conf", "--config-dir", "/a b"),
        "hydra.searchpath=[/more,pkg://other.conf]",
    ]
    assert folder_words(node) == ["--config-dir", "/conf", "hydra.searchpath=['/a b',/more]"]


@pytest.mark.parametrize("folder", ["outputs", "of_${seed}", "${there}"])
def test_a_folder_that_a_changed_current_folder_would_move_is_refused(folder: str) -> None:
    config = OmegaConf.create({"output_dir": folder, "seed": 7, "there": "a"})
    refuse_moving_folder(config, chdir=False, multirun=True)
    with pytest.raises(UserError, match="moves the relative output_dir=") as error:
        refuse_moving_folder(config, chdir=True, multirun=False)
    config.output_dir = str(error.value).rpartition("output_dir=")[2]
    refuse_moving_folder(config, chdir=True, multirun=True)


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_openmps_threads_wait_a_short_time_unless_the_user_says_how(
    own: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_home_that_cannot_be_written_is_not_complained_of() -> None:
    code = "from mnist_hydra.cli import entry; entry.call(lambda: __import__('matplotlib'))"
    home = {key: text for key, text in os.environ.items() if not key.startswith(("MPL", "XDG"))}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env=home | {"HOME": "/proc/0"})
    assert (done.returncode, done.stderr) == (0, "")
