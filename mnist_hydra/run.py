"""A training and its record in MLflow: a run of its own (`run_alone`), or a trial (`train_run`).

A sweep, or Ctrl-C, takes part through `Hooks`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import torch
from omegaconf import DictConfig, OmegaConf

from mnist_hydra import runtime
from mnist_hydra.build import prepare
from mnist_hydra.config import Config, fingerprint, flatten, settle
from mnist_hydra.errors import StoreAway, UserError
from mnist_hydra.export import log_pictures_and_model
from mnist_hydra.progress import Progress, percent
from mnist_hydra.spool import About, Spool, deliver_all, first_line, spools
from mnist_hydra.tracking import (
    DATA_TAG,
    FINGERPRINT_TAG,
    MISTAKES_FILE,
    OVERRIDES_TAG,
    PREFIX,
    Tracker,
    check_store,
    import_mlflow,
    provenance,
    user,
)
from mnist_hydra.trainer import Listener, NonFiniteLoss, StopReason, Trainer

if TYPE_CHECKING:
    from mlflow.entities import Run

KEPT_ON_RESUME = (
    "output_dir",
    "tracking",
    "device",
    "threads",
    "resume",
    "data.root",
    "data.offline",
)


class Hooks(Protocol):
    """How a sweep, or Ctrl-C, takes part in a training."""

    def should_stop(self) -> StopReason | None:
        """Asked after every step: a reason to write a checkpoint and end at once, or `None`."""

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        """Told of every epoch once it is recorded: a reason to end, or `None`."""


def run_alone(cfg: DictConfig, overrides: list[str]) -> float | None:
    """Train one run outside of any sweep, from a composed configuration to its summary.

    Returns:
        The accuracy that the run is judged by: `val/acc`, or `test/acc_last` with no hold-out.

    Raises:
        UserError: before anything is recorded.
        SystemExit: 1 for a training that fails, 130 after Ctrl-C, 143 after SIGTERM.
    """
    config = settle(cfg)
    resumed = config.resume is not None
    if resumed:
        tracker, about, config = _run_to_resume(config, overrides)
        trainer = prepare(config, _checkpoint_to_resume(config, tracker, str(about.run_id)))

        def open_run(about: About) -> tuple[Tracker, str]:
            tracker.reopen(str(about.run_id))
            return tracker, str(about.run_id)
    else:
        try:
            check_store(config)
        except StoreAway as away:
            print(f"{away}; training goes on, and is recorded once it does", file=sys.stderr)
        Thread(target=import_mlflow, daemon=True).start()  # the kernel is compiled beside it
        trainer = prepare(config)
        about = About(
            uuid4().hex,
            config.tracking.experiment_name,
            _run_name(config, overrides),
            {"mlflow.user": user(), "mlflow.source.name": "mnist_hydra.train"},
            now_ms(),
            without_password(config.tracking.uri),
        )

        def open_run(about: About) -> tuple[Tracker, str]:
            tracker = Tracker(config)
            return tracker, tracker.create_run(about)

    spool = Spool(Path(config.output_dir).absolute(), about, open_run)
    again = f"python -m mnist_hydra.train {_same_store(overrides)}resume="
    try:
        with StopOnSignal() as hooks, spool:
            try:
                recording = Recording(config, trainer, spool, overrides=overrides, resumed=resumed)
                outcome = train_run(recording, hooks=hooks)
                ended_ms = now_ms()
            except (Exception, SystemExit) as error:
                _record_failure(spool, error, again)
                if isinstance(error, UserError):
                    raise
                raise SystemExit(1) from None
            if outcome.state == "finished":
                print("drawing the pictures, exporting the model", file=sys.stderr)
                try:
                    log_pictures_and_model(trainer, spool)
                except Exception as error:
                    print(f"no pictures, no exported model: {first_line(error)}", file=sys.stderr)
                spool.end("FINISHED", ended_ms)
            else:
                spool.end("KILLED", ended_ms)
    finally:
        if spool.left:
            _say_what_is_left(spool, _same_store(overrides))
    if outcome.state != "finished":
        at = f"run {spool.run} stopped in epoch {trainer.position.epoch + 1}"
        print(f"{at}; go on with\n  {again}{spool.run}", flush=True)
        raise SystemExit(hooks.exit_code)
    if spool.refusal is not None:
        print(f"run {spool.run}: MLflow refused {first_line(spool.refusal)}", file=sys.stderr)
        raise SystemExit(1)
    _print_summary(outcome, trainer, spool)
    return outcome.metrics.get("val/acc", outcome.metrics["test/acc_last"])


def _record_failure(spool: Spool, error: BaseException, again: str) -> None:
    """Record why a run failed, and say it in one line."""
    with suppress(Exception):  # the disk may be full
        spool.log_text(traceback.format_exc(), "traceback.txt")
        spool.end("FAILED")
    if isinstance(error, UserError):
        return
    if isinstance(error, NonFiniteLoss):  # it would fail again
        print(f"run {spool.run} failed: {error}", file=sys.stderr)
        return
    line = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"run {spool.run} failed: {line}\ngo on with\n  {again}{spool.run}", file=sys.stderr)


def _say_what_is_left(spool: Spool, same_store: str) -> None:
    """Say what the store has not taken, and how it is delivered later."""
    why = spool.away or "it answers slowly"
    print(
        f"{_count(spool.left, 'record')} of run {spool.run} not delivered to the tracking store "
        f"({why}): kept in {spool.folder}; once it is back, deliver with\n"
        f"  python -m mnist_hydra.sync {same_store}".rstrip(),
        file=sys.stderr,
    )


@dataclass
class Outcome:
    """What became of a training."""

    state: str
    """`finished`, `interrupted`, `pruned` or `timeout`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of every metric."""
    history: list[dict[str, Any]] = field(default_factory=list)


class Recording:
    """A training and the spool that it is recorded in.

    A thread records the settings: what they need to know of git and of libraries takes a while,
    and the first epoch need not wait for it.

    Args:
        overrides: the command line's, recorded as a tag.
        resumed: whether the run has been begun before.
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        spool: Spool,
        *,
        overrides: list[str],
        resumed: bool,
    ) -> None:
        self.config, self.trainer, self._spool = config, trainer, spool
        known = list(trainer.position.history)

        def begin() -> None:
            _record_settings(config, trainer, spool, overrides, resumed)
            spool.log_epochs(known)

        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
        self._begun = thread.submit(begin)
        thread.shutdown(wait=False)

    def spool(self) -> Spool:
        """The spool, once the settings are written down; raises what MLflow refuses for good."""
        self._begun.result()
        self._spool.raise_if_refused()
        return self._spool

    def raise_if_failed(self) -> None:
        """Raise what has gone wrong by now; waits for nothing."""
        self._spool.raise_if_refused()
        if self._begun.done():
            self._begun.result()


def train_run(
    recording: Recording, *, hooks: Hooks | None = None, label: str = "", quiet: bool = False
) -> Outcome:
    """Train to the end and record it; to set the run's status is the caller's.

    Args:
        quiet: show no progress.

    Raises:
        UserError, NonFiniteLoss: and whatever a user's own code raises.
    """
    config, trainer = recording.config, recording.trainer
    with Progress(
        config.epochs,
        trainer.steps_per_epoch,
        len(trainer.dataset.train),
        label or config.model.name,
        done_steps=trainer.steps,
        enabled=not quiet,
    ) as bar:
        stopped = trainer.train(_Recorder(recording, bar, hooks))
    spool, history = recording.spool(), trainer.position.history
    outcome = Outcome(
        "finished" if stopped is None else stopped.value,
        {name: value for name, value in (history or [{}])[-1].items() if "/" in name},
        history,
    )
    if stopped is None:
        outcome.metrics |= _record_end(trainer, spool)
    return outcome


class _Recorder(Listener):
    """Records a training, shows its progress and asks the hooks."""

    def __init__(self, recording: Recording, bar: Progress, hooks: Hooks | None) -> None:
        self.recording, self.bar, self.hooks = recording, bar, hooks

    def should_stop(self) -> StopReason | None:
        self.bar.step()
        self.recording.raise_if_failed()
        return None if self.hooks is None else self.hooks.should_stop()

    def save(self, state: dict[str, Any]) -> None:
        mark = {"fingerprint": fingerprint(self.recording.config)}
        self.recording.spool().save_checkpoint(state | mark)

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        self.recording.spool().log_epochs(self.recording.trainer.position.history[-1:])
        self.bar.epoch(epoch, metrics)
        return None if self.hooks is None else self.hooks.after_epoch(epoch, metrics)


class StopOnSignal:
    """As `Hooks`: the first Ctrl-C (or SIGTERM) ends a training at its next step, after a
    checkpoint; the second leaves at once.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self.exit_code = 130
        """What a shell expects of a process that such a signal ended."""
        self._before: dict[int, Any] = {}

    def should_stop(self) -> StopReason | None:
        return self.reason

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        return self.reason

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(self.exit_code)
        self.reason = StopReason.INTERRUPTED
        self.exit_code = 128 + number
        print("stopping after a checkpoint; once more to leave at once", file=sys.stderr)


def _record_settings(
    config: Config, trainer: Trainer, spool: Spool, overrides: list[str], resumed: bool
) -> None:
    chosen = {name: str(value) for name, value in runtime.as_record(trainer.runtime).items()}
    spool.log_settings(flatten(config) | chosen)
    spool.set_tags(
        provenance()
        | ({} if resumed else {OVERRIDES_TAG: " ".join(overrides)})
        | {
            FINGERPRINT_TAG: fingerprint(config),
            DATA_TAG: trainer.dataset.sha256,
            PREFIX + "data_source": trainer.dataset.source,
            PREFIX + "device": _device_name(trainer.device),
            PREFIX + "parameters": str(sum(p.numel() for p in trainer.model.parameters())),
        },
    )
    if not resumed:
        spool.log_text(OmegaConf.to_yaml(config.composed), "config.yaml")


def _record_end(trainer: Trainer, spool: Spool) -> dict[str, float]:
    """Record the final metrics and the last and best checkpoint; returns those metrics."""
    position = trainer.position
    assert position.best is not None
    log_probabilities, labels = trainer.predict("test")
    right = log_probabilities.argmax(1) == labels
    last = position.history[-1]
    loss = torch.nn.functional.nll_loss(log_probabilities, labels)
    final = {"test/acc_last": int(right.sum()) / len(labels), "test/loss_last": float(loss)}
    for digit in range(trainer.dataset.classes):
        of_class = right[labels == digit]
        if len(of_class):
            final[f"test/acc_class/{digit}"] = int(of_class.sum()) / len(of_class)
    tags = {PREFIX + "best_epoch": str(position.best["epoch"])}
    if trainer.monitored == "test":
        final["test/acc_best"] = position.best["value"]
        tags[PREFIX + "selected_on"] = "test (test/acc_best is the best epoch's accuracy on it)"
    else:
        final |= {"test/acc": final["test/acc_last"], "test/loss": final["test/loss_last"]}
        final["val/acc_best"] = position.best["value"]
        tags[PREFIX + "selected_on"] = "val"
    at = {"epoch": last["epoch"], "timestamp_ms": last["timestamp_ms"]}
    spool.log_epochs([at | final])
    spool.set_tags(tags)
    wrong = (~right).nonzero().flatten()
    mistakes = {str(i): int(log_probabilities[i].argmax()) for i in wrong.tolist()}
    spool.log_text(json.dumps(mistakes), MISTAKES_FILE)
    spool.log_state(trainer.state()["model"], "checkpoints/last.pt")
    spool.log_state(position.best["model"], "checkpoints/best.pt")
    return final


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({_processor()})"


def _processor() -> str:
    """The CPU's own name, or its architecture where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _run_name(config: Config, overrides: list[str]) -> str:
    return ", ".join(o for o in overrides if not o.startswith(KEPT_ON_RESUME)) or config.model.name


def _same_store(overrides: list[str]) -> str:
    """The overrides that say where the run is kept, ready to paste."""
    kept = [o for o in overrides if o.startswith(KEPT_ON_RESUME) and not o.startswith("resume")]
    return "".join(shlex.quote(override) + " " for override in kept)


def _run_to_resume(config: Config, overrides: list[str]) -> tuple[Tracker, About, Config]:
    """The run that `resume=` names, and the configuration that it began with, in the place where
    it goes on.

    What its last process could not deliver is delivered first.
    """
    tracker = Tracker(config, make=False)
    changed = [o for o in overrides if not o.lstrip("+").startswith(KEPT_ON_RESUME)]
    if changed:
        raise UserError(
            f"resume={config.resume} goes on with the run's own settings, got {changed[0]}; right: "
            f"without it (allowed: {', '.join(KEPT_ON_RESUME)})"
        )
    deliver_left(config, tracker, str(config.resume))
    run = tracker.find_run(str(config.resume))
    _refuse_a_trial(tracker, run)
    run_id = str(run.info.run_id)
    if run.info.status == "FINISHED":
        raise UserError(f"resume={config.resume}: that run has finished; right: one that has not")
    cfg = OmegaConf.create(tracker.read_text(run_id, "config.yaml"))
    assert isinstance(cfg, DictConfig)
    for key in KEPT_ON_RESUME:
        if any(o.lstrip("+").startswith(key) for o in overrides):
            OmegaConf.update(cfg, key, OmegaConf.select(config.composed, key), merge=False)
    return tracker, about_run(config, run_id), settle(cfg)


def about_run(config: Config, run_id: str) -> About:
    """A run that MLflow has."""
    store = without_password(config.tracking.uri)
    return About(run_id, config.tracking.experiment_name, None, {}, 0, store, run_id)


def deliver_left(config: Config, tracker: Tracker, run: str) -> None:
    """Deliver what a dead process of a run could not.

    Raises:
        Exception: MLflow's, if the store does not take it.
    """
    for folder, about in spools(Path(config.output_dir).absolute()):
        if about.is_called(run):
            deliver_all(folder, about, lambda about: (tracker, tracker.create_run(about)))


def without_password(uri: str | None) -> str | None:
    """An address less the user and the password that may stand in it."""
    return uri if uri is None else re.sub(r"//[^/@]*@", "//", uri)


def now_ms() -> int:
    """The time, in milliseconds since 1970."""
    return int(time.time() * 1000)


def _refuse_a_trial(tracker: Tracker, run: Run) -> None:
    """A trial is its sweep's: who trains it without a claim trains beside the sweep's workers."""
    parent = run.data.tags.get("mlflow.parentRunId")
    if parent is not None:
        command = tracker.find_run(parent).data.tags.get(PREFIX + "command", "")
        raise UserError(
            f"resume={run.info.run_id} is a trial of the sweep {parent}; right: the sweep's own "
            f"command again, which goes on with all of its trials: {command}"
        )


def _checkpoint_to_resume(config: Config, tracker: Tracker, run_id: str) -> dict[str, Any] | None:
    state = tracker.load_checkpoint(run_id)
    if state is not None and state["fingerprint"] != fingerprint(config):
        raise UserError(
            f"resume={run_id}: its checkpoint is of other settings (fingerprint "
            f"{state['fingerprint']}, now {fingerprint(config)}); right: the version of "
            f"mnist_hydra that made it"
        )
    return state


def _print_summary(outcome: Outcome, trainer: Trainer, spool: Spool) -> None:
    metrics, history = outcome.metrics, outcome.history
    seconds = sum(epoch["epoch_s"] for epoch in history)
    after = _count(len(history), "epoch")
    lines = [f"test accuracy {percent(metrics['test/acc_last'])} after {after}"]
    if "test/acc_best" in metrics:
        lines.append(f"best epoch {percent(metrics['test/acc_best'])} (selected on the test set)")
    else:
        lines.append(f"val accuracy {percent(metrics['val/acc'])}")
    chosen = trainer.runtime
    how = f"{chosen.device}, {chosen.precision}, {_count(chosen.threads, 'thread')}"
    print("; ".join(lines))
    print(f"{seconds:.0f} s on {how}")
    print(f"run {spool.run} in experiment {spool.about.experiment}", end="")
    if spool.tracker is None:
        print()
        return
    print(f"; look at it with\n  {spool.tracker.ui_command()}")
    if spool.tracker.is_local:
        print(f"and open\n  {spool.tracker.ui_page()}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
