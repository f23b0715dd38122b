"""What a user's own code raises: at the start one line, later a run that failed and says why."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from mnist_hydra import targets
from tests.commands import Commands
from tests.security.conftest import Store

# One process has the store and what commands are forked from.
pytestmark = pytest.mark.xdist_group("security")

TOKEN = "s3cr3t-word"
STEP = """
import sys
import albumentations
def stop():
    raise KeyboardInterrupt
class Mine(albumentations.ImageOnlyTransform):
    def __init__(self): {at_once}; super().__init__(p=1)
    def apply(self, img, **_): {later}; return img
"""
LATER = """
import torch
class Mine(torch.nn.Module):
    def __init__(self, token):
        super().__init__()
        self.scores, self.calls, self.token = torch.nn.Linear(784, 10), 0, token
    def forward(self, images):
        self.calls += 1
        if self.calls > 1:
            raise {error}
        return self.scores(images.flatten(1)).log_softmax(1)
"""


def written(store: Store, group: str, source: str, entry: str) -> list[str]:
    """Write the code and an entry of a group that names it; returns the words that choose it."""
    mine = store.folder / "mine"
    (mine / group).mkdir(parents=True, exist_ok=True)
    # Of another source of the same second and size Python takes the compiled one.
    shutil.rmtree(mine / "__pycache__", ignore_errors=True)
    (mine / "own.py").write_text(source)
    (mine / group / "own.yaml").write_text(entry)
    return ["--config-dir", "mine", f"{group}=own"]


def insist_on_nothing_left(store: Store, before: tuple[set[str], int]) -> None:
    """Insist that a refused command left what there was before it."""
    kept, runs = store.left()
    assert ({f for f in kept if "__pycache__" not in f}, runs) == (
        {f for f in before[0] if "__pycache__" not in f},
        before[1],
    )


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('a')", "BaseException: a"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise OSError('a\\nb')", "a b"),
        ("1 +", "SyntaxError"),
        ("import torch\nclass Mine(torch.nn.Module):\n    def __init__(self): exit(3)", "exit"),
        (
            "import torch\nclass Mine(torch.nn.Flatten):\n    def forward(self, x): return x, x",
            "tuple",
        ),
    ],
)
def test_what_a_module_of_the_users_own_raises_is_one_line(
    commands: Commands, trained: Store, source: str, named: str
) -> None:
    words = written(trained, "model", source, "_target_: own.Mine\n")
    before = trained.left()
    done = commands.run(trained.folder, *trained.words, *words)
    assert done.code == 2 and len(done.errors) == 1, done.said
    assert named.lower() in done.errors[0].lower() and "own.Mine" in done.said
    assert "Traceback" not in done.said
    insist_on_nothing_left(trained, before)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("group", ["model", "aug"])
def test_a_signal_that_comes_while_a_users_own_code_runs_is_not_taken_for_its_failure(
    commands: Commands, trained: Store, group: str, name: str, code: int
) -> None:
    comes = f"__import__('os').kill(__import__('os').getpid(), __import__('signal').{name})"
    source = STEP.format(at_once=comes, later="0") if group == "aug" else comes
    entry = "steps: [{_target_: own.Mine}]\n" if group == "aug" else "_target_: own.Mine\n"
    done = commands.run(trained.folder, *trained.words, *written(trained, group, source, entry))
    assert done.code == code and not done.errors, done.said


def test_the_folder_of_a_users_own_code_may_be_reached_by_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "by_link.py").write_text("import torch\nMine = torch.nn.Flatten\n")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(targets, "LET_IN", targets.LetIn([], []))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "real"), *sys.path])
    targets.let_in([str(tmp_path / "link")], [])
    found = targets.resolve_class("by_link.Mine", torch.nn.Module, "model._target_")
    assert found is torch.nn.Flatten


@pytest.mark.parametrize("raised", ["sys.exit(0)", "[][1]", "stop()"])
@pytest.mark.parametrize("when", ["at_once", "later"])
def test_what_a_transform_of_the_users_own_raises_is_one_line(
    commands: Commands, trained: Store, raised: str, when: str
) -> None:
    source = STEP.format(**{"at_once": "0", "later": "0", when: raised})
    words = written(trained, "aug", source, "steps: [{_target_: own.Mine}]\n")
    before = trained.left()
    done = commands.run(trained.folder, *trained.words, *words)
    assert done.code == 2 and len(done.errors) == 1, done.said
    assert "aug.steps.0" in done.errors[0] and "Traceback" not in done.said
    insist_on_nothing_left(trained, before)


@pytest.mark.parametrize(
    "error", ["ValueError", "SystemExit", "KeyboardInterrupt", "BaseException"]
)
def test_what_fails_in_mid_training_is_recorded_and_told_without_what_the_environment_holds(
    commands: Commands, trained: Store, error: str
) -> None:
    source = LATER.format(error=f"{error}(f'bad {{self.token}}')")
    words = written(trained, "model", source, "_target_: own.Mine\ntoken: ${oc.env:TOKEN}\n")
    experiment = f"fails-{error}"
    words += [f"tracking.experiment_name={experiment}", "data.limit=128"]
    done = commands.run(trained.folder, *trained.words[:1], *trained.words[2:], *words, TOKEN=TOKEN)
    assert done.code == 1 and "Traceback" not in done.said, done.said
    assert f"failed: {error}: bad ${{oc.env:TOKEN}} (own.py:" in done.said
    assert "go on with\n" in done.said
    client = MlflowClient(f"sqlite:///{trained.output_dir / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert run.info.status == "FAILED" and run.data.params["model.token"] == "${oc.env:TOKEN}"
    assert not {f for f in trained.folder.rglob("*") if holds(f, TOKEN)}


def holds(file: Path, text: str) -> bool:
    """Whether a text is in a file."""
    return file.is_file() and text.encode() in file.read_bytes()
