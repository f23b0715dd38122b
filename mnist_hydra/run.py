"""One run from its settings to its record: train, checkpoint, log, finish.

It joins training to tracking; a sweep takes part through `Hooks`.
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
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf

from mnist_hydra import runtime
from mnist_hydra.build import prepare
from mnist_hydra.config import Config, fingerprint, flatten, settle
from mnist_hydra.errors import UserError
from mnist_hydra.progress import Progress
from mnist_hydra.tracking import (
    DATA_TAG,
    FINGERPRINT_TAG,
    OVERRIDES_TAG,
    PREFIX,
    Tracker,
    check,
    provenance,
)
from mnist_hydra.trainer import CLASSES, NonFiniteLoss, StopReason, Trainer

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
        """Asked after every step: a reason to checkpoint and end at once, or `None`."""

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        """Told of every epoch once it is recorded: a reason to end, or `None`."""


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
    """A training and the MLflow run that it is recorded in, which a thread opens meanwhile.

    To import MLflow and to make a run takes a second or two: the first epoch need not wait for it.

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
        known = list(trainer.progress.history)

        def begin() -> tuple[Tracker, str]:
            tracker, run_id = open_run()
            _record_settings(config, trainer, tracker, run_id, overrides, resumed)
            tracker.log_epochs(run_id, known)
            return tracker, run_id

        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
        self._opened = thread.submit(begin)
        thread.shutdown(wait=False)

    def opened(self) -> tuple[Tracker, str]:
        """The store and the run's id, waited for; raises what opening them raised."""
        return self._opened.result()

    def insist(self) -> None:
        """Raise what opening raised, if it has by now; waits for nothing."""
        if self._opened.done():
            self._opened.result()


def train_run(
    recording: Recording, *, hooks: Hooks | None = None, label: str = "", quiet: bool = False
) -> Outcome:
    """Train to the end and record it; the run's status is the caller's.

    Args:
        quiet: show no progress.

    Raises:
        UserError, NonFiniteLoss: and whatever a user's own code raises.
    """
    config, trainer = recording.config, recording.trainer
    progress = trainer.progress

    def should_stop() -> StopReason | None:
        recording.insist()
        return None if hooks is None else hooks.should_stop()

    stopped = None
    with Progress(
        config.epochs,
        trainer.steps_per_epoch,
        len(trainer.dataset.train),
        label or config.model.name,
        done_steps=progress.epoch * trainer.steps_per_epoch + progress.step,
        enabled=not quiet,
    ) as bar:
        trainer.on_step = bar.step
        while progress.epoch < config.epochs and stopped is None:
            stopped = trainer.train_epoch(should_stop)
            tracker, run_id = recording.opened()
            tracker.save_checkpoint(run_id, trainer.state() | {"fingerprint": fingerprint(config)})
            if stopped is None:
                newest = progress.history[-1]
                tracker.log_epochs(run_id, [newest])
                metrics = {k: v for k, v in newest.items() if k not in ("epoch", "timestamp_ms")}
                bar.epoch(progress.epoch, metrics)
                if hooks is not None:
                    stopped = hooks.after_epoch(progress.epoch, metrics)
                    if progress.epoch == config.epochs and stopped is StopReason.INTERRUPTED:
                        stopped = None
    tracker, run_id = recording.opened()
    outcome = Outcome(
        run_id,
        "finished" if stopped is None else stopped.value,
        {k: v for k, v in (progress.history or [{}])[-1].items() if "/" in k},
        progress.history,
    )
    if stopped is None:
        outcome.metrics |= _record_end(trainer, tracker, run_id)
    return outcome


def complete(trainer: Trainer, tracker: Tracker, run_id: str) -> None:
    """Add what only a run worth looking at gets: pictures and the exported model."""
    from mnist_hydra import export, pictures

    log_probabilities, labels = trainer.predict("test")
    trainer.ready.release()  # torch's exporter needs 200 MiB
    probabilities = log_probabilities.exp()
    confidence, predicted = (x.cpu() for x in probabilities.max(1))
    truth = labels.cpu()
    counts = torch.bincount(truth * CLASSES + predicted, minlength=CLASSES**2)
    wrong = (predicted != truth).nonzero().flatten()
    test = trainer.dataset.test
    worst = wrong[confidence[wrong].argsort(descending=True)]
    figures = {
        "learning_curves": pictures.learning_curves(trainer.progress.history),
        "confusion_matrix": pictures.confusion_matrix(
            counts.view(CLASSES, CLASSES).numpy(), "test images"
        ),
        "misclassified": pictures.misclassified_grid(
            test.images[test.index[worst.numpy()], 0],
            truth[worst].numpy(),
            predicted[worst].numpy(),
            confidence[worst].numpy(),
            "test images",
        ),
        "augmentation": pictures.augmentation_grid(*_augmented_examples(trainer)),
    }
    for name, figure in figures.items():
        tracker.log_figure(run_id, figure, f"pictures/{name}.png")
    export.log_model(trainer, tracker, run_id)


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
    """The final measurements, once, and the two checkpoints under their plain names."""
    progress = trainer.progress
    assert progress.best is not None
    log_probabilities, labels = trainer.predict("test")
    right = log_probabilities.argmax(1) == labels
    last = progress.history[-1]
    loss = torch.nn.functional.nll_loss(log_probabilities, labels)
    final = {"test/acc_last": int(right.sum()) / len(labels), "test/loss_last": float(loss)}
    for digit in range(CLASSES):
        of_class = right[labels == digit]
        if len(of_class):
            final[f"test/acc_class/{digit}"] = int(of_class.sum()) / len(of_class)
    tags = {PREFIX + "best_epoch": str(progress.best["epoch"])}
    if trainer.monitored == "test":
        final["test/acc_best"] = progress.best["value"]
        tags[PREFIX + "selected_on"] = "test (test/acc_best is the best epoch's accuracy on it)"
    else:
        final |= {"test/acc": final["test/acc_last"], "test/loss": final["test/loss_last"]}
        final["val/acc_best"] = progress.best["value"]
        tags[PREFIX + "selected_on"] = "val"
    at = {"epoch": last["epoch"], "timestamp_ms": last["timestamp_ms"]}
    tracker.log_epochs(run_id, [at | final])
    tracker.set_tags(run_id, tags)
    tracker.log_state(run_id, trainer.state()["model"], "checkpoints/last.pt")
    tracker.log_state(run_id, progress.best["model"], "checkpoints/best.pt")
    return final


def _augmented_examples(trainer: Trainer, rows: int = 8, draws: int = 8) -> tuple[Any, Any]:
    """uint8 [rows, H, W] training images and uint8 [rows, draws, H, W] augmented ones."""
    chosen = trainer.train_index[:rows]
    images = trainer.train_images[chosen]
    augmentation = trainer.augmentation
    drawn = [images if augmentation is None else augmentation(images, seed=i) for i in range(draws)]
    return images[:, 0].cpu().numpy(), torch.stack(drawn, 1)[:, :, 0].cpu().numpy()


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
