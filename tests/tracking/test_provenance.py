"""What made a run: told the same wherever it is asked for, by a git that runs nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mnist_hydra import targets
from mnist_hydra.data.load import load_dataset
from mnist_hydra.tracking import provenance, tag
from tests.commands import Commands
from tests.data.small import FASHION, mini, zip_up

ROOT = Path(__file__).parents[2]
MODEL = """
import torch
class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Linear(784, 10)
    def forward(self, images):
        return self.scores(images.flatten(1)).log_softmax(1)
"""
ASK = (
    "import json; from mnist_hydra.tracking.provenance import git_state; "
    "print(json.dumps(git_state()))"
)


def told(**variables: str) -> dict[str, str]:
    """What a process with these environment variables says about git."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    said: dict[str, str] = json.loads(done.stdout)
    return said


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path]:
    """A program that leaves a trace when it is run, and the trace."""
    program, trace = tmp_path / "git", tmp_path / "trace"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    return program, trace


def test_git_runs_nothing_that_an_environment_variable_names(trap: tuple[Path, Path]) -> None:
    program, trace = trap
    settings = ("core.fsmonitor", "core.pager", "core.sshCommand", "diff.external")
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, setting in enumerate(settings):
        variables[f"GIT_CONFIG_KEY_{number}"] = setting
        variables[f"GIT_CONFIG_VALUE_{number}"] = str(program)
    usual = told()
    git = ["git", "-C", str(ROOT), "status"]
    subprocess.run(git, env=os.environ | variables, capture_output=True, check=True)
    assert trace.exists(), "a git that is called without care does run it"
    trace.unlink()
    assert told(**variables) == usual
    assert not trace.exists()


def test_git_reads_no_settings_of_the_user_or_the_system(
    trap: tuple[Path, Path], tmp_path: Path
) -> None:
    program, trace = trap
    (tmp_path / ".gitconfig").write_text(f"[core]\n  fsmonitor = {program}\n")
    config = str(tmp_path / ".gitconfig")
    usual = told()
    assert told(HOME=str(tmp_path), GIT_CONFIG_SYSTEM=config, GIT_CONFIG_GLOBAL=config) == usual
    assert not trace.exists()


def test_git_is_the_one_that_was_there_before_a_configuration_set_another_path(
    trap: tuple[Path, Path], tmp_path: Path
) -> None:
    _, trace = trap
    provenance.git_state.cache_clear()
    before = os.environ["PATH"]
    os.environ["PATH"] = str(tmp_path)
    try:
        provenance.git_state()
    finally:
        os.environ["PATH"] = before
    assert not trace.exists()


def test_git_is_not_asked_about_another_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    usual = told()
    assert told(GIT_DIR=str(tmp_path / ".git"), GIT_WORK_TREE=str(tmp_path)) == usual
    assert tag.COMMIT in usual


def test_the_record_names_the_code_the_libraries_and_what_it_is_given() -> None:
    made = provenance.record(data={"sha256": "abc"})
    assert made["commit"] == provenance.git_state()[tag.COMMIT]
    assert set(provenance.LIBRARIES) < set(made["versions"])
    assert made["data"] == {"sha256": "abc"}
    json.dumps(made)


def test_the_hash_of_ones_own_code_follows_from_its_files_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "LET_IN", targets.LetIn([], []))
    monkeypatch.setattr(provenance, "LET_IN", targets.LET_IN)
    assert provenance.own_code() == {}

    def of(name: str, **files: str) -> dict[str, str]:
        for path, text in {"mine.yaml": "a: 1", **files}.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        targets.LET_IN.folders[:] = [str(tmp_path / name)]
        return provenance.own_code()

    code = {"a.py": "1", "package/__init__.py": "", "package/inner/b.py": "2"}
    first = of("first", **code)
    assert len(first[tag.OWN_CODE]) == 64
    assert of("second", **code, **{"notes.txt": "x", "no_package/c.py": "3"}) == first
    assert of("third", **code | {"package/inner/b.py": "3"}) != first
    assert of("no code", **{"notes.txt": "x"}) == {}


def test_files_of_ones_own_are_known_by_their_content(tmp_path: Path) -> None:
    config = replace(FASHION, root=str(tmp_path))
    assert tag.DATA not in provenance.origin(config)
    raw = tmp_path / "FashionMNIST" / "raw"
    mini(raw)
    first = provenance.origin(config)[tag.DATA]
    assert first == load_dataset(config, tmp_path).sha256
    zip_up(raw)
    assert provenance.origin(config)[tag.DATA] == first
    shutil.rmtree(raw)
    mini(raw, seed=1)
    assert provenance.origin(config)[tag.DATA] != first


def test_a_sweep_says_that_its_finished_trials_were_made_with_other_code_of_ones_own(
    commands: Commands, mnist: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "own.yaml").write_text("_target_: own.Mine\n")
    words = ("--multirun", "--config-dir", "mine", "model=own", "seed=1,2", "epochs=1")
    words += ("sweep.report=false",)
    words += (f"data.root={mnist}", "data.limit=256", "batch_size=128", "sweep.keep=0")
    (mine / "own.py").write_text(MODEL)
    said = [commands.run_module("train", *words, cwd=tmp_path) for _ in range(2)]
    (mine / "own.py").write_text(MODEL.replace("784, 10", "784, 10, bias=False"))
    said.append(commands.run_module("train", *words, cwd=tmp_path))
    assert [done.code for done in said] == [0, 0, 0], said[-1].said
    assert ["made with something else" in done.said for done in said] == [False, False, True]
    assert "own_code" in said[-1].said
