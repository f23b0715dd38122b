"""One run outside of any sweep, from the composed configuration to its summary."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from threading import Thread
from types import FrameType, TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_hydra.build import prepare
from mnist_hydra.config import Config, fingerprint, settle
from mnist_hydra.errors import UserError
from mnist_hydra.run import Outcome, Recording, complete, train_run
from mnist_hydra.tracking import Tracker, check, import_mlflow, provenance
from mnist_hydra.trainer import NonFiniteLoss, StopReason, Trainer

KEPT_ON_RESUME = (
    "output_dir",
    "tracking",
    "device",
    "threads",
    "resume",
    "data.root",
    "data.offline",
)


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(130)
        self.reason = StopReason.INTERRUPTED
        print("stopping after a checkpoint; once more to leave at once", file=sys.stderr)


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
        check(config)
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
                complete(trainer, tracker, run_id)
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
        print(f"run {run_id} stopped in epoch {trainer.progress.epoch + 1}; go on with\n  {again}")
        raise SystemExit(130)
    tracker.end(run_id, "FINISHED")
    _print_summary(outcome, trainer, tracker)
    return outcome.metrics.get("val/acc", outcome.metrics["test/acc_last"])


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
    if run.info.status == "FINISHED":
        raise UserError(f"resume={config.resume}: that run has finished; right: one that has not")
    cfg = OmegaConf.create(tracker.read_text(str(config.resume), "config.yaml"))
    assert isinstance(cfg, DictConfig)
    for key in KEPT_ON_RESUME:
        if any(o.lstrip("+").startswith(key) for o in overrides):
            OmegaConf.update(cfg, key, OmegaConf.select(config.composed, key), merge=False)
    return settle(cfg)


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
    lines = [f"test accuracy {_percent(metrics['test/acc_last'])} after {after}"]
    if "test/acc_best" in metrics:
        best = _percent(metrics["test/acc_best"])
        lines.append(f"best epoch {best} (selected on the test set)")
    else:
        lines.append(f"val accuracy {_percent(metrics['val/acc'])}")
    chosen = trainer.runtime
    how = f"{chosen.device}, {chosen.precision}, {_count(chosen.threads, 'thread')}"
    print("; ".join(lines))
    print(f"{seconds:.0f} s on {how}")
    print(f"run {outcome.run_id} in experiment {tracker.experiment_name}; look at it with")
    print(f"  {tracker.ui_command()}")
    if tracker.is_local:
        print(f"and open\n  {tracker.ui_page()}")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
