"""What all launchers of workers have in common, tried with processes of this machine that do not
train: a small script stands in for the worker's command.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf

from hydra_plugins.mnist_hydra import joblib_launcher, register_plugins
from hydra_plugins.mnist_hydra.joblib_launcher import JoblibLauncher
from mnist_hydra.config import SweepConfig
from mnist_hydra.errors import UserError
from mnist_hydra.sweep.launchers import (
    Ended,
    count_workers,
    last_line,
    make_launcher,
)

SCRIPT = '''
import os, shutil, signal, sys, time
from pathlib import Path

what, here = sys.argv[1], Path(sys.argv[2])
lives = len(list(here.glob(f"{what}-*")))
(here / f"{what}-{os.getpid()}").write_text(f"{os.getsid(0)} {os.environ['OMP_NUM_THREADS']}")
if what == "dies-once-without-its-log" and lives == 0:
    shutil.rmtree(here / "workers")
    os.kill(os.getpid(), signal.SIGKILL)
if what == "dies-once" and lives == 0 or what == "dies":
    print("almost there", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
while what == "waits-for-dies-once" and len(list(here.glob("dies-once-*"))) < 2:
    time.sleep(0.05)
if what == "raises":
    raise KeyError("oh no")
if what == "bad-input":
    print("error: lr=-1; right: a number above 0", file=sys.stderr)
    print("good bye")
    sys.exit(2)
if what == "waits-for-stdin":
    sys.stdin.read()
    sys.exit(143)
if what == "is-stopped" or what == "is-stopped-once" and lives == 0:
    sys.exit(143)
'''


class ScriptLauncher(JoblibLauncher):
    """Runs the script instead of a worker; the overrides are its arguments."""

    folder: Path

    def command(self, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
        return ["-c", SCRIPT], [*overrides, str(self.folder)]


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Any]:
    """A function that makes a launcher with settings."""
    register_plugins()

    def made(**settings: Any) -> ScriptLauncher:
        launcher = ScriptLauncher(**settings)
        launcher.folder = tmp_path
        config = OmegaConf.create({"device": "cpu", "output_dir": str(tmp_path)})
        launcher.setup(hydra_context=None, task_function=None, config=config)  # type: ignore
        return launcher

    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        yield made


def launch(launcher: ScriptLauncher, *what: str) -> list[JobReturn]:
    return list(launcher.launch([[each] for each in what], 0))


def test_workers_come_back_in_order_and_have_sessions_of_their_own(
    launcher: Any, tmp_path: Path
) -> None:
    results = launch(launcher(), "one", "two")
    assert [result.overrides for result in results] == [["one"], ["two"]]
    assert {result.status for result in results} == {JobStatus.COMPLETED}
    sessions = {path.read_text().split()[0] for path in tmp_path.glob("*-*[0-9]")}
    assert len(sessions) == 2 and str(os.getsid(0)) not in sessions


def test_a_killed_worker_is_started_again_and_its_neighbours_go_on(
    launcher: Any, tmp_path: Path
) -> None:
    killed, neighbour = launch(launcher(), "dies-once", "waits-for-dies-once")
    assert killed.status is neighbour.status is JobStatus.COMPLETED
    assert len(list(tmp_path.glob("dies-once-*"))) == 2
    assert len(list(tmp_path.glob("waits-for-dies-once-*"))) == 1


def test_a_worker_that_cannot_be_started_again_costs_its_neighbour_nothing(
    launcher: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = launcher()
    started = made.start

    def start(commands: Any) -> Any:
        if len(commands) == 1:  # it is one that has died
            (tmp_path / "dies-once-2").touch()  # which its neighbour waits for
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return started(commands)

    made.start = start
    killed, neighbour = launch(made, "dies-once", "waits-for-dies-once")
    assert neighbour.status is JobStatus.COMPLETED
    assert killed.status is JobStatus.UNKNOWN, "no trial was left, as the other one found"
    assert "worker 0 cannot be started: [Errno 11] Resource temporarily" in capfd.readouterr().err


def test_workers_that_can_be_started_do_the_work_of_those_that_cannot(
    launcher: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left = [joblib_launcher.start_process]

    def start(*arguments: Any) -> Any:
        if not left:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return left.pop()(*arguments)

    monkeypatch.setattr(joblib_launcher, "start_process", start)
    started, never = launch(launcher(), "one", "two")
    assert started.status is JobStatus.COMPLETED and never.status is JobStatus.UNKNOWN
    assert "worker 1 cannot be started: Resource temporarily" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "said"), [(-9, "SIGKILL"), (-35, "signal 35")])
def test_the_end_by_a_signal_is_said_whether_that_has_a_name_or_not(code: int, said: str) -> None:
    assert str(Ended(code)) == said


def test_a_worker_whose_log_was_deleted_is_started_again_as_any_other(
    launcher: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [killed] = launch(launcher(), "dies-once-without-its-log")
    assert killed.status is JobStatus.COMPLETED
    told = capfd.readouterr().err
    assert told.startswith("worker 0 died and is started again: SIGKILL; it last wrote: its log")


def test_a_worker_that_always_dies_comes_back_as_failed_with_what_it_said_last(
    launcher: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [dead] = launch(launcher(restarts=1), "dies")
    assert dead.status is JobStatus.FAILED
    assert len(list(tmp_path.glob("dies-*"))) == 2
    told = capfd.readouterr().err.splitlines()
    how = "SIGKILL; it last wrote: almost there"
    assert told[0].startswith(f"worker 0 died and is started again: {how}")
    assert told[1].startswith(f"worker 0 died: {how}")
    assert str(tmp_path / "workers" / "worker-0.log") in told[1]


def test_a_dead_worker_is_not_told_of_with_the_error_of_one_before_it(
    launcher: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    launch(launcher(), "bad-input")
    launch(launcher(restarts=1), "dies")
    told = capfd.readouterr().err
    assert told.count("SIGKILL; it last wrote: almost there") == 2 and "lr=-1" not in told


def test_what_a_worker_raises_comes_back_as_its_last_line(launcher: Any) -> None:
    [raised] = launch(launcher(restarts=0), "raises")
    assert raised.status is JobStatus.FAILED
    assert str(raised._return_value).startswith("exit code 1: KeyError: 'oh no'")


def test_a_workers_bad_input_comes_back_as_one_line_and_it_is_not_started_again(
    launcher: Any, tmp_path: Path
) -> None:
    [refused] = launch(launcher(), "bad-input")
    assert refused.status is JobStatus.FAILED
    assert isinstance(refused._return_value, UserError)
    assert str(refused._return_value) == "lr=-1; right: a number above 0"
    assert len(list(tmp_path.glob("bad-input-*"))) == 1


def test_workers_that_are_asked_to_stop_see_the_end_of_their_input(
    launcher: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = launcher()

    def stop() -> None:
        while len(list(tmp_path.glob("waits-for-stdin-*"))) < 2:
            time.sleep(0.05)
        made.stopping.set()

    threading.Thread(target=stop, daemon=True).start()
    results = launch(made, "waits-for-stdin", "waits-for-stdin")
    assert JobStatus.FAILED not in {result.status for result in results}
    assert len(list(tmp_path.glob("waits-for-stdin-*"))) == 2
    assert not capfd.readouterr().err


def test_a_worker_that_somebody_else_stops_is_started_again_as_it_has_trials_left(
    launcher: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [stopped] = launch(launcher(), "is-stopped-once")
    assert stopped.status is JobStatus.COMPLETED
    assert len(list(tmp_path.glob("is-stopped-once-*"))) == 2
    assert "worker 0 was stopped and is started again: exit code 143" in capfd.readouterr().err


def test_workers_that_are_all_stopped_before_they_found_a_trial_have_not_come_to_an_end(
    launcher: Any, tmp_path: Path
) -> None:
    results = launch(launcher(restarts=1), "is-stopped", "is-stopped")
    assert {result.status for result in results} == {JobStatus.FAILED}
    assert len(list(tmp_path.glob("is-stopped-*"))) == 4


def test_an_error_counts_as_the_last_line_whatever_follows() -> None:
    assert last_line("error: lr=-1\n\nbye\n") == "error: lr=-1"
    assert last_line("one\n two \n\n") == "two"
    assert last_line("") == ""


def test_a_worker_gets_hydras_own_flags_and_settings_of_the_command_line(tmp_path: Path) -> None:
    sources = [
        {"path": "hydra.conf", "schema": "pkg", "provider": "hydra"},
        {"path": "mnist_hydra.conf", "schema": "pkg", "provider": "main"},
        {"path": str(tmp_path), "schema": "file", "provider": "command-line"},
        {"path": "/more", "schema": "file", "provider": "hydra.searchpath in command-line"},
        {"path": "", "schema": "structured", "provider": "schema"},
    ]
    settings = ["hydra/launcher=joblib", "hydra.mode=MULTIRUN", "+hydra.searchpath=[more]"]
    hydra = {
        "job": {"config_name": "config"},
        "runtime": {"config_sources": sources},
        "overrides": {"hydra": settings},
    }
    made = JoblibLauncher()
    config = OmegaConf.create({"hydra": hydra, "output_dir": "outputs"})
    made.setup(hydra_context=None, task_function=None, config=config)  # type: ignore
    head, rest = made.command(["seed=1"])
    assert head == [
        *("-m", "mnist_hydra.train", "--config-dir", str(tmp_path)),
        "hydra.searchpath=[/more]",
    ]
    mode = "hydra.mode=RUN"
    assert rest == ["hydra/launcher=joblib", mode, "seed=1", "++sweep.ends_with_stdin=true"]


@pytest.mark.parametrize(
    "name", ["ray_launcher.LOCAL", "joblib_launcher.Ended", "ray_launcher.None"]
)
def test_what_is_no_launcher_is_refused_in_one_line(launcher: Any, name: str) -> None:
    chosen = [f"hydra.launcher._target_=hydra_plugins.mnist_hydra.{name}"]
    config = compose("config", chosen, return_hydra_config=True)
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    with pytest.raises(UserError, match="hydra/launcher=.* cannot be used") as caught:
        make_launcher(context, lambda cfg: None, config)
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    launcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, module, None)  # what `import` sees of a missing package
        chosen = [f"hydra/launcher={name}"] + ["hydra.launcher.cluster=local"] * (name == "slurm")
        config = compose("config", chosen, return_hydra_config=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        made: Any = make_launcher(context, lambda cfg: None, config)
        with pytest.raises(UserError, match=rf"pip install 'mnist_hydra\[{name}\]'"):
            count_workers(made, SweepConfig())


@pytest.mark.parametrize("what", ["6379", "true"])
def test_an_address_that_is_a_bare_number_or_a_flag_is_refused_in_one_line(
    launcher: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", Mock(is_initialized=lambda: False))
    words = ["hydra/launcher=ray", f"hydra.launcher.address={what}"]
    config = compose("config", words, return_hydra_config=True)
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    with pytest.raises(UserError, match=f"hydra.launcher.address={what}"):
        count_workers(make_launcher(context, lambda cfg: None, config), SweepConfig())


@pytest.mark.parametrize("name", ["joblib", "ray"])
def test_what_is_no_setting_of_a_launcher_is_refused_with_the_nearest_one(
    launcher: Any, name: str
) -> None:
    words = [f"hydra/launcher={name}", "+hydra.launcher.worker=2"]
    config = compose("config", words, return_hydra_config=True)
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    nearest = r"^hydra.launcher.worker=2 is no setting of .*did you mean workers.*; right: one of "
    with pytest.raises(UserError, match=nearest):
        make_launcher(context, lambda cfg: None, config)


@pytest.mark.parametrize(
    "wrong",
    ["joblib workers=-1", "joblib workers=many", "joblib restarts=1.5", "ray trials_per_gpu=0"]
    + ["ray cpus_per_worker=0", "ray cpus_per_worker=all", "slurm max_requeues=-1"],
)
def test_a_launchers_setting_that_is_no_such_number_is_refused(launcher: Any, wrong: str) -> None:
    name, setting = wrong.split()
    words = [f"hydra/launcher={name}", f"hydra.launcher.{setting}"]
    config = compose("config", words, return_hydra_config=True)
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    with pytest.raises(UserError, match=f"hydra.launcher.{setting} is not valid; right: a"):
        make_launcher(context, lambda cfg: None, config)
