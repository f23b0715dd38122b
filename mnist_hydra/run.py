"""A training and its record in MLflow: a run of its own (`run_alone`), or a trial (`train_run`).

A sweep, or Ctrl-C, takes part through `Hooks`.
"""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf

from mnist_hydra import runtime
from mnist_hydra.build import prepare
from mnist_hydra.config import Config, fingerprint, flatten, settle
from mnist_hydra.errors import UserError
from mnist_hydra.export import log_pictures_and_model
from mnist_hydra.progress import Progress, percent
from mnist_hydra.tracking import (
    DATA_TAG,
    FINGERPRINT_TAG,
    OVERRIDES_TAG,
    PREFIX,
    Tracker,
    check_store,
    import_mlflow,
    provenance,
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
        SystemExit: 1 for a non-finite loss, 130 after Ctrl-C.
    """
    config = settle(cfg)
    resumed = config.resume is not None
    if config.resume is not None:
        run_id = str(config.resume)
        tracker = Tracker(config, make=False)
        config = _resumed_config(config, tracker, overrides)
        trainer = prepare(config, _checkpoint_to_resume(config, tracker, run_id))

        def open_run() -> tuple[Tracker, str]:
            tracker.reopen(run_id)
            return tracker, run_id
    else:
        check_store(config)
        Thread(target=import_mlflow, daemon=True).start()  # the kernel is compiled beside it
        trainer = prepare(config)

        def open_run() -> tuple[Tracker, str]:
            tracker = Tracker(config)
            return tracker, tracker.create_run(_run_name(config, overrides), provenance())

    with StopOnSignal() as hooks:
        recording = Recording(config, trainer, open_run, overrides=overrides, resumed=resumed)
        try:
            outcome = train_run(recording, hooks=hooks)
            tracker, run_id = recording.opened()
            if outcome.state == "finished":
                print("drawing the pictures, exporting the model", file=sys.stderr)
                log_pictures_and_model(trainer, tracker, run_id)
        except BaseException as error:
            tracker, run_id = recording.opened()
            tracker.log_text(run_id, traceback.format_exc(), "traceback.txt")
            tracker.end(run_id, "FAILED")
            if isinstance(error, NonFiniteLoss):
                print(f"run {run_id} failed: {error}", file=sys.stderr)
                raise SystemExit(1) from None
            raise
    if outcome.state != "finished":
        tracker.end(run_id, "KILLED")
        again = f"python -m mnist_hydra.train {_same_store(overrides)}resume={run_id}"
        print(f"run {run_id} stopped in epoch {trainer.position.epoch + 1}; go on with\n  {again}")
        raise SystemExit(130)
    tracker.end(run_id, "FINISHED")
    _print_summary(outcome, trainer, tracker)
    return outcome.metrics.get("val/acc", outcome.metrics["test/acc_last"])


@dataclass
class Outcome:
    """What became of a training."""

    run_id: str
    state: str
    """`finished`, `interrupted`, `pruned` or `timeout`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of every metric."""
    history: list[dict[str, Any]] = field(default_factory=list)


class Recording:
    """A training and the MLflow run that it is recorded in.

    A thread opens the run: to import MLflow and to make a run takes a second or two, and the first
    epoch need not wait for it.

    Args:
        open_run: opens the store, makes or finds the run, and returns both.
        overrides: the command line's, recorded as a tag.
        resumed: whether the run has been begun before.
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        open_run: Callable[[], tuple[Tracker, str]],
        *,
        overrides: list[str],
        resumed: bool,
    ) -> None:
        self.config, self.trainer = config, trainer
        known = list(trainer.position.history)

        def begin() -> tuple[Tracker, str]:
            tracker, run_id = self.opened()
            _record_settings(config, trainer, tracker, run_id, overrides, resumed)
            tracker.log_epochs(run_id, known)
            return tracker, run_id

        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
        self._opened = thread.submit(open_run)
        self._begun = thread.submit(begin)
        thread.shutdown(wait=False)

    def opened(self) -> tuple[Tracker, str]:
        """The store and the run's id, waited for; raises what opening them raised."""
        return self._opened.result()

    def begun(self) -> tuple[Tracker, str]:
        """The same, once the settings are recorded; raises what that raised."""
        return self._begun.result()

    def raise_if_failed(self) -> None:
        """Raise what the thread has raised by now; waits for nothing."""
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
    tracker, run_id = recording.begun()
    history = trainer.position.history
    outcome = Outcome(
        run_id,
        "finished" if stopped is None else stopped.value,
        {name: value for name, value in (history or [{}])[-1].items() if "/" in name},
        history,
    )
    if stopped is None:
        outcome.metrics |= _record_end(trainer, tracker, run_id)
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
        tracker, run_id = self.recording.begun()
        mark = {"fingerprint": fingerprint(self.recording.config)}
        tracker.save_checkpoint(run_id, state | mark)

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        tracker, run_id = self.recording.begun()
        tracker.log_epochs(run_id, self.recording.trainer.position.history[-1:])
        self.bar.epoch(epoch, metrics)
        return None if self.hooks is None else self.hooks.after_epoch(epoch, metrics)


class StopOnSignal:
    """As `Hooks`: the first Ctrl-C (or SIGTERM) ends a training at its next step, after a
    checkpoint; the second leaves at once.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
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
            os._exit(130)
        self.reason = StopReason.INTERRUPTED
        print("stopping after a checkpoint; once more to leave at once", file=sys.stderr)


def _record_settings(
    config: Config,
    trainer: Trainer,
    tracker: Tracker,
    run_id: str,
    overrides: list[str],
    resumed: bool,
) -> None:
    chosen = {name: str(value) for name, value in runtime.as_record(trainer.runtime).items()}
    tracker.log_settings(run_id, flatten(config) | chosen)
    tracker.set_tags(
        run_id,
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
        tracker.log_text(run_id, OmegaConf.to_yaml(config.composed), "config.yaml")


def _record_end(trainer: Trainer, tracker: Tracker, run_id: str) -> dict[str, float]:
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
    tracker.log_epochs(run_id, [at | final])
    tracker.set_tags(run_id, tags)
    tracker.log_state(run_id, trainer.state()["model"], "checkpoints/last.pt")
    tracker.log_state(run_id, position.best["model"], "checkpoints/best.pt")
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


def _resumed_config(config: Config, tracker: Tracker, overrides: list[str]) -> Config:
    """The configuration that a run began with, in the place where it goes on."""
    changed = [o for o in overrides if not o.lstrip("+").startswith(KEPT_ON_RESUME)]
    if changed:
        raise UserError(
            f"resume={config.resume} goes on with the run's own settings, got {changed[0]}; right: "
            f"without it (allowed: {', '.join(KEPT_ON_RESUME)})"
        )
    run = tracker.find_run(str(config.resume))
    _refuse_a_trial(tracker, run)
    if run.info.status == "FINISHED":
        raise UserError(f"resume={config.resume}: that run has finished; right: one that has not")
    cfg = OmegaConf.create(tracker.read_text(str(config.resume), "config.yaml"))
    assert isinstance(cfg, DictConfig)
    for key in KEPT_ON_RESUME:
        if any(o.lstrip("+").startswith(key) for o in overrides):
            OmegaConf.update(cfg, key, OmegaConf.select(config.composed, key), merge=False)
    return settle(cfg)


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


def _print_summary(outcome: Outcome, trainer: Trainer, tracker: Tracker) -> None:
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
    print(f"run {outcome.run_id} in experiment {tracker.experiment_name}; look at it with")
    print(f"  {tracker.ui_command()}")
    if tracker.is_local:
        print(f"and open\n  {tracker.ui_page()}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
