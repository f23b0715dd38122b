"""What made a run: told the same wherever it is asked for, by a git that runs nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_hydra.tracking import provenance, tag

ROOT = Path(__file__).parents[2]
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
