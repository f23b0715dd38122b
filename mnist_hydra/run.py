"""A training and its record in MLflow; a sweep, or Ctrl-C, takes part through `Hooks`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import OmegaConf

from mnist_hydra import runtime
from mnist_hydra.config import Config, fingerprint, flatten
from mnist_hydra.progress import Progress
from mnist_hydra.tracking import (
    DATA_TAG,
    FINGERPRINT_TAG,
    OVERRIDES_TAG,
    PREFIX,
    Tracker,
    provenance,
)
from mnist_hydra.trainer import CLASSES, StopReason, Trainer


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

    def insist(self) -> None:
        """Raise what opening or recording raised, if it has by now; waits for nothing."""
        if self._begun.done():
            self._begun.result()


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
        done_steps=trainer.steps,
        enabled=not quiet,
    ) as bar:
        trainer.on_step = bar.step
        while progress.epoch < config.epochs and stopped is None:
            stopped = trainer.train_epoch(should_stop)
            tracker, run_id = recording.begun()
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
    tracker, run_id = recording.begun()
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
    trainer.release()  # torch's exporter needs 200 MiB
    export.log_model(trainer, tracker, run_id)


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
