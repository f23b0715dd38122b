"""Runs a sweep: launches workers until no trial is left to train, and shows the results.

It may be killed at any moment: the same command goes on from the ledger.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from rich.console import Console

from mnist_hydra.cli import entry
from mnist_hydra.cli.commands import same_command, ui_command
from mnist_hydra.config import settle
from mnist_hydra.errors import Stopped, UserError, first_line
from mnist_hydra.ledger.ledger import LOOK_EVERY_S, Ledger, View, wait_for_store
from mnist_hydra.ledger.next_action import TO_DO, Action, actions_of
from mnist_hydra.ledger.owner import Observer, new_token
from mnist_hydra.ledger.plan import plan_file
from mnist_hydra.ledger.trial import DONE, RUNNING
from mnist_hydra.report import results
from mnist_hydra.secrets import without_password
from mnist_hydra.stopping import OF_SIGNAL, StopOnSignal, on_signals
from mnist_hydra.sweep import ending, launchers, show, torch_tasks, worker
from mnist_hydra.sweep.command import Command, Job, begin_sweep, find_sweep, read_command
from mnist_hydra.sweep.show import Display, Follower
from mnist_hydra.targets import folders_of, let_in
from mnist_hydra.tracking import provenance, tag
from mnist_hydra.tracking.tracker import (
    NothingRecorded,
    Tracker,
    check_store,
    import_mlflow,
    is_away,
)

MAX_IDLE_LAUNCHES = 3
"""The command ends after so many launches in a row that changed nothing."""
SUCCESS, FAILURE = 0, 1


def run_and_exit(job: Job, arguments: Sequence[str]) -> None:
    """Run the sweep of a command line.

    Raises:
        SystemExit: 1 with failed trials, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    hooks = StopOnSignal()
    try:
        # While it checks and completes trials, a user's own code may run.
        with on_signals(hooks.handle, [signal.SIGINT]):
            # A library that is being imported may make another error of what a signal raises.
            code = run_sweep(job, arguments) or hooks.exit_code
    except UserError as error:
        entry.leave(error)
    except torch_tasks.Died as died:
        print(f"error: the process that checks the trials died ({died})", file=sys.stderr)
        code = FAILURE
    except Exception as error:
        if not is_away(error):
            raise
        code = _left_undone(error, FAILURE, begun=False)
    if code != SUCCESS:
        raise SystemExit(code)


def _left_undone(error: Exception, code: int, *, begun: bool) -> int:
    """Say that the store is away, and with which command to go on; returns the exit code."""
    print(f"error: the store takes nothing now: {first_line(error)}", file=sys.stderr)
    _say_how_to_go_on(begun=begun)
    return code


def _say_how_to_go_on(*, begun: bool) -> None:
    print(f"go on with the same command:\n  {same_command(begun=begun)}", file=sys.stderr)


def run_sweep(job: Job, arguments: Sequence[str]) -> int:
    """Check a sweep's command line, then run the sweep; returns the exit code.

    Raises:
        UserError: before any trial starts.
    """
    console = Console(stderr=True)
    command = read_command(job, arguments)
    let_in(folders_of(job.config.hydra.runtime.config_sources), command.config.trusted)
    if (twins := command.trials.same_as_others()) is not None:
        _say(console, twins)
    launcher = launchers.make_launcher(job.context, job.task, job.config)
    chosen = job.config.hydra.runtime.choices["hydra/launcher"]
    launchers.check_shared_store(launcher, chosen, command.config.tracking.uri)
    if not command.config.sweep.dry_run:
        check_store(command.config)  # as one who writes; the first look below only reads
    tracker: Tracker | None = None
    view = View({})
    with suppress(NothingRecorded):  # a store that does not exist is not made yet
        tracker = Tracker(command.config, make=False)
    if tracker is not None and (begun := find_sweep(command, tracker)) is not None:
        view = Ledger(tracker.client, begun.info.run_id).read()
    if command.config.sweep.dry_run:
        _list(command, view)
        return SUCCESS
    room = launchers.count_workers(launcher, command.config.sweep)
    _check_with_torch(command, launcher, view)
    del view  # it may be large, and the sweep reads its own
    sweep = Sweep(command, launcher, room, tracker or Tracker(command.config), console)
    try:
        return sweep.run()
    except Stopped:
        _say_how_to_go_on(begun=True)
        raise
    except Exception as error:
        if not is_away(error):
            raise
        code = OF_SIGNAL + sweep.signals[0] if sweep.signals else FAILURE
        return _left_undone(error, code, begun=True)


class Sweep:
    """One process's part in a sweep, from its parent run to its exit code."""

    def __init__(
        self, command: Command, launcher: Launcher, room: int, tracker: Tracker, console: Console
    ) -> None:
        self.command, self.launcher, self.room = command, launcher, room
        self.tracker, self.console = tracker, console
        self.token = new_token()
        self.parent = begin_sweep(command, tracker)
        self.parent_id: str = self.parent.info.run_id
        self.ledger = Ledger(tracker.client, self.parent_id)
        self.observer = Observer()
        self.follower: Follower | None = None
        self.signals: list[int] = []
        self.stop = threading.Event()
        self.problem: str | None = None
        self.plan_is_written = False
        if launchers.in_process(launcher):
            job = command.job
            launcher.setup(
                hydra_context=job.context,
                task_function=lambda cfg: worker.work(settle(cfg), self.stop),
                config=job.config,
            )
        if isinstance(launcher, launchers.CommandLauncher):
            launcher.stopping = self.stop
            launcher.log_folder = f"{command.config.folder}/workers/{self.parent_id}"

    def run(self) -> int:
        """Train what is missing, wait for what others train, show the results."""
        actions, total = self._begin()
        if len(actions) < total or set(actions.values()) - {Action.DONE}:
            display = Display(self.console, total, self.command.trials.epochs)
            with on_signals(self._on_signal):
                ledger = Ledger(self.tracker.client, self.parent_id)
                planned = self.command.plan.trials
                following = Follower(ledger, display, planned, self.token, self.stop)
                try:
                    with display, following as self.follower:
                        self._run_what_is_missing()
                except UserError:  # such as of the engine: nobody trains for this command
                    if self.plan_is_written:
                        with suppress(Exception):
                            self.tracker.end(self.parent_id, "FAILED")
                    raise
            self.ledger = Ledger(self.tracker.client, self.parent_id)  # runs may have been deleted
        return self._end()

    def _begin(self) -> tuple[dict[str, Action], int]:
        """Print which sweep it is and what will be done; returns that, and how many trials there
        will be, as far as this first look at the ledger tells.
        """
        view = self.ledger.mark_dead(self.observer)
        actions, total = self._actions(view), self.command.total(view.points)
        known = {key: view.trials[key] for key in actions if key in view.trials}
        _say(self.console, f"sweep {self.command.identity}, run {self.parent_id}")
        _say(self.console, show.overview(actions, total))
        warning = show.other_origin(known, provenance.origin(self.command.config.data))
        if warning is not None:
            _say(self.console, warning)
        return actions, total

    def _end(self) -> int:
        """Show and record the results; returns the exit code."""
        with suppress(Exception):  # of killed workers; the same command does it again
            wait_for_store(self.stop, self.ledger.finish_half_done, self.observer)
        view = wait_for_store(self.stop, self.ledger.read)
        actions = self._actions(view)
        found = ending.results_of(self.command, self.tracker, view)
        interrupted, parent = bool(self.signals), self.parent_id
        _say(self.console, show.outcome(actions))
        results.print_table(found)
        print("\n".join(results.footer(found)))
        try:
            ending.record_results(self.tracker, parent, found, actions.values(), interrupted)
        except Exception as error:  # the ledger has them: the same command records them again
            _say(self.console, f"the results are not recorded: {first_line(error)}")
        report, digest = None, ending.digest_of(view, self.command.ranking)
        if not interrupted:
            in_process = launchers.in_process(self.launcher)
            ending.complete_best(self.command, self.ledger, found, in_process)
        told = self._told(digest)
        if not interrupted and self.command.config.sweep.report and found.rows and told != digest:
            report = ending.report_on(self.command, self.tracker, parent, view)
        if report is not None or not told.startswith(digest):
            try:
                ending.describe(self.tracker, parent, found, report, digest)
            except Exception as error:
                _say(self.console, f"the description is not recorded: {first_line(error)}")
        ui = ui_command(self.command.config.composed, parent)
        print(f"look at the trials with\n  {ui}")
        if interrupted:
            _say_how_to_go_on(begun=True)
            return OF_SIGNAL + self.signals[0]
        done = all(action is Action.DONE for action in actions.values())
        # A search may end with fewer, where its axes have no more points.
        all_there = self.problem is None or len(actions) >= self.command.total(view.points)
        return SUCCESS if done and all_there else FAILURE

    def _told(self, digest: str) -> str:
        """What the sweep's report and description are of now: nothing known where this process has
        trained anything, since its own terminal and folder are to have the report, too.
        """
        if self.plan_is_written:
            return ""
        tags = self.parent.data.tags
        with suppress(Exception):  # the store is away: what is made then will say so
            tags = self.tracker.client.get_run(self.parent_id).data.tags
        # Until 2026-11-27 a sweep that was described did not tell of what.
        is_ranked_so = self.command.ranking.items() <= self.parent.data.tags.items()
        return str(tags.get(tag.TOLD, digest if tag.NOTE in tags and is_ranked_so else ""))

    def _run_what_is_missing(self) -> None:
        idle_launches = 0
        while not self.stop.is_set():
            view = self._look()
            if self.token in view.stops:
                return
            actions = self._actions(view)
            known = sum(action in TO_DO for action in actions.values())
            to_do = known + max(0, self.command.total(view.points) - len(actions))
            # A search whose workers proposed nothing has tried every point of its axes.
            exhausted = bool(idle_launches) and not known and self.problem is None
            if to_do == 0 or exhausted or idle_launches == MAX_IDLE_LAUNCHES:
                if Action.WAIT not in actions.values():
                    return
                time.sleep(LOOK_EVERY_S)
                continue
            before = _work_done(view)
            problem_before, self.problem = self.problem, self._launch(min(self.room, to_do))
            if self.problem is not None and self.problem != problem_before:
                _say(self.console, self.problem)
            idle = _work_done(self._look()) == before
            idle_launches = idle_launches + 1 if idle else 0
            time.sleep(idle_launches)

    def _look(self) -> View:
        mark_dead = self.ledger.mark_dead
        return wait_for_store(self.stop, mark_dead, self.observer, up_to_date=True)

    def _launch(self, workers: int) -> str | None:
        """Launch workers and wait for them; returns what went wrong, if anything did."""
        if not self.plan_is_written:
            text = replace(self.command.plan, written_ms=int(time.time() * 1000)).text()
            # Workers read it: a short password of MLflow's may be a word in it by chance.
            shown = without_password(text)
            self.tracker.client.log_text(self.parent_id, shown, plan_file(self.token))
            self.tracker.client.update_run(self.parent_id, status="RUNNING")
            self.plan_is_written = True
        overrides = [
            self.command.worker_overrides(self.parent_id, self.token, number)
            for number in range(workers)
        ]
        try:
            returned = self.launcher.launch(overrides, initial_job_idx=0)
        except UserError:
            raise
        except Exception as error:  # an engine may raise anything; the ledger knows what is missing
            return f"the launcher failed: {type(error).__name__}: {error}"
        failed = [r._return_value for r in returned if r.status is JobStatus.FAILED]
        if not failed:
            return None
        refused = [problem for problem in failed if isinstance(problem, UserError)]
        if len(refused) == len(returned):
            raise refused[0]
        if refused:
            return f"a worker could not begin: {refused[0]}"
        return f"a worker ended early: {type(failed[0]).__name__}: {failed[0]}"

    def _actions(self, view: View) -> dict[str, Action]:
        wanted = view.wanted(self.command.plan.trials)
        return actions_of(view.trials, wanted, self.token, self.command.config.sweep.retries)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        if len(self.signals) > 1:
            _leave_at_once(OF_SIGNAL + number)
        self.stop.set()
        if self.follower is not None:
            self.follower.stop_trials("Ctrl-C" if number == signal.SIGINT else "SIGTERM")


def _check_with_torch(command: Command, launcher: Launcher, view: View) -> None:
    """Check with torch the trials that are still to be trained."""
    trials = command.trials
    kinds = set(trials.samples)
    if command.plan.kind == "grid":
        done = {key for key, trial in view.trials.items() if trial.state in DONE}
        kinds &= {kind for key, kind in trials.kinds.items() if key not in done}
    elif len(view.points) >= command.total(view.points):
        kinds = set()
    chosen = [sample for kind, sample in trials.samples.items() if kind in kinds]
    samples: dict[str, Any] = {
        name: OmegaConf.to_container(config.composed, resolve=True) for name, config in chosen
    }
    if not samples:
        return
    elsewhere = not launchers.trains_here(launcher)
    check = partial(torch_tasks.run, torch_tasks.check_trials, samples, elsewhere)
    if launchers.in_process(launcher):
        check(here=True)
        return
    importing = threading.Thread(target=import_mlflow, args=[command.config], daemon=True)
    importing.start()  # while another process checks: it is needed next
    check(here=False)
    importing.join()  # two threads that import parts of a library may each see half of it


def _list(command: Command, view: View) -> None:
    """Print what would be done with each trial; nothing is written anywhere."""
    observer = Observer()
    trials = {
        key: trial.as_dead() if trial.state == RUNNING and observer.is_dead(trial.owner) else trial
        for key, trial in view.trials.items()
    }
    wanted = view.wanted(command.plan.trials)
    actions = actions_of(trials, wanted, "", command.config.sweep.retries)
    print(show.overview(actions, command.total(view.points)))
    for planned in wanted:
        action, trial = actions[planned.fingerprint], trials.get(planned.fingerprint)
        print("  " + show.trial_line(planned.name, action, trial, command.objective))


def _work_done(view: View) -> object:
    """What changes whenever a worker has proposed, begun or ended anything."""
    return len(view.points), {key: trial.attempts for key, trial in view.trials.items()}


def _leave_at_once(code: int) -> None:
    """Kill this process and those that it started; nothing is written."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    sys.stderr.write("\x1b[?25h" if sys.stderr.isatty() else "")
    os._exit(code)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
