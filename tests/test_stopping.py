"""A signal ends a command wherever it arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from mnist_hydra.errors import Stopped
from mnist_hydra.sweep import sweeper

DYING = """
import os, signal, sys, time
from mnist_hydra.stopping import StopOnSignal, insist_on_signals, on_signals

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM if by_sigterm else signal.SIGINT)
        time.sleep(0.1)  # Python drops what is raised here

by_sigterm, with_hooks = "SIGTERM" in sys.argv, "hooks" in sys.argv
insist_on_signals()
with on_signals(StopOnSignal().handle if with_hooks else signal.default_int_handler):
    try:
        Dying()
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(7)
"""


@pytest.mark.parametrize(
    ("words", "code"), [(["hooks"], 130), (["hooks", "SIGTERM"], 143), (["plain"], 7)]
)
def test_a_signal_whose_exception_python_drops_is_handled_again(
    words: list[str], code: int
) -> None:
    command = [sys.executable, "-c", DYING, *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_what_else_python_drops_is_shown_as_ever() -> None:
    script = """
from mnist_hydra.stopping import insist_on_signals

class Failing:
    def __del__(self):
        raise ValueError("in a finalizer")

insist_on_signals()
Failing()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0 and "ValueError: in a finalizer" in ended.stderr


@pytest.mark.parametrize(("arrives", "code"), [(True, 130), (False, None)])
def test_a_sweep_that_goes_on_though_it_was_stopped_does_not_end_as_a_success(
    arrives: bool, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def goes_on(*_: Any) -> int:
        try:
            if arrives:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        except Stopped:  # as pybind11 does where a module is being imported
            pass
        return sweeper.SUCCESS

    monkeypatch.setattr(sweeper, "run_sweep", goes_on)
    job: Any = None
    ended = None
    try:
        sweeper.run_and_exit(job, [])
    except SystemExit as end:
        ended = end.code
    assert ended == code
