"""The training loop: epoch, step, checkpoint and metrics (`Trainer.train`).

The data are arrays on the device, where batches are gathered; within an epoch the host waits for no
result. All randomness depends on the seed and the epoch or step alone, so that a run goes on from
any step as if it had never stopped. This file knows nothing of MLflow, Hydra or files.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mnist_hydra import checkpoint, models
from mnist_hydra.augment import Augmentation, Change
from mnist_hydra.config import Config
from mnist_hydra.data.load import Dataset, Split
from mnist_hydra.metrics import of_epoch
from mnist_hydra.replay import Replay
from mnist_hydra.runtime import Runtime
from mnist_hydra.stopping import Hooks, StopReason

EVALUATION_BATCH = {"cpu": 512, "cuda": 4096, "mps": 512}
"""Images that are evaluated at once."""
BATCHES_AHEAD = {"cpu": 1, "cuda": 32, "mps": 1}
"""Training batches that are gathered and changed at once: on a GPU launches cost more than work."""


class NonFiniteLoss(Exception):
    """The loss became infinite or NaN."""


class Listener(Hooks):
    """Is told how a training goes, and may end it; this base class does nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Called with `Trainer.state()` after every epoch and before an early end."""


@dataclass(frozen=True)
class Runnable:
    """A model as it is run: images float32 [B, 1, H, W] -> log-probabilities float32 [B, 10].

    It computes what the plain PyTorch model computes, perhaps faster. That model keeps the
    parameters, and checkpoints and exports are made from it.
    """

    train: Callable[[Tensor], Tensor]
    """With gradients; changes BatchNorm's running statistics."""
    evaluate: Callable[[Tensor], Tensor]
    """Without; takes any number of images, and expects the model in evaluation mode."""
    release: Callable[[], None] = lambda: None
    """Frees memory that is only kept for the next step."""


@dataclass
class Position:
    """How far a training is: what a checkpoint holds besides weights and random state."""

    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps finished in the current epoch."""
    losses: Tensor | None = None
    """float32 [steps]: the losses of the current epoch, on the device."""
    correct: Tensor | None = None
    """int64 []: how many of its training images were classified correctly, on the device."""
    lr: float = 0.0
    """Learning rate at the current epoch's first step."""
    elapsed_s: float = 0.0
    """Seconds spent in the current epoch before this process."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Per finished epoch: epoch, timestamp_ms and metrics by name."""
    best: dict[str, Any] | None = None
    """`{"epoch", "value", "model"}` of the epoch with the best accuracy."""


@dataclass(frozen=True)
class Parts:
    """What a training is made of."""

    model: nn.Module
    """Takes images float [B, 1, H, W], returns log-probabilities float32 [B, 10]."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    """Steps once a batch."""
    augmentation: Augmentation | None
    """Applied to every training batch."""
    dataset: Dataset
    """Evaluated on `val` where there is one, else on `test`."""


class Trainer:
    """One model, its data on the device, and the steps between them.

    Args:
        config: the run's settings.
        runtime: where and how to compute.
        runnable: the model as it is run.
        parts: what it trains, on what and by what.
    """

    def __init__(self, config: Config, runtime: Runtime, runnable: Runnable, parts: Parts) -> None:
        self.config, self.runtime, self.runnable = config, runtime, runnable
        self.model, self.optimizer, self.scheduler = parts.model, parts.optimizer, parts.scheduler
        self.augmentation, self.dataset = parts.augmentation, parts.dataset
        self.device = torch.device(runtime.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=runtime.precision == "fp16")
        self.train_images, self.train_labels, self.train_index = self._moved(self.dataset.train)
        self.held_out = {"test": self._moved(self.dataset.test)}
        if self.dataset.val is not None:  # its images and labels are the training set's
            index = tensors(self.dataset.val)[2].to(self.device)
            self.held_out["val"] = (self.train_images, self.train_labels, index)
        self.monitored = "test" if self.dataset.val is None else "val"
        self.steps_per_epoch = math.ceil(len(self.train_index) / config.batch_size)
        self.position = Position()
        self._predicted: tuple[str, int, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps since the training began."""
        return self.position.epoch * self.steps_per_epoch + self.position.step

    def train(self, listener: Listener) -> StopReason | None:
        """Train from the current step to the last epoch, or until `listener` gives a reason.

        Returns:
            The reason for ending early, or `None` after the last epoch.

        Raises:
            NonFiniteLoss: naming epoch, step and learning rate.
        """
        position = self.position
        compute: Callable[..., tuple[Tensor, ...]] = self._gradients
        if self.runtime.replay:
            compute = Replay(self._gradients, self.model)
        while position.epoch < self.config.epochs:
            began = time.perf_counter()
            if position.losses is None or position.correct is None:
                position.losses = torch.zeros(self.steps_per_epoch, device=self.device)
                position.correct = torch.zeros((), dtype=torch.int64, device=self.device)
                position.lr = float(self.optimizer.param_groups[0]["lr"])
            self.model.train()
            for images, labels in self._batches():
                loss, correct = self._step(compute, images, labels)
                position.losses[position.step].copy_(loss)
                position.correct.add_(correct)
                position.step += 1
                reason = listener.should_stop()
                if reason is not None and position.step < self.steps_per_epoch:
                    position.elapsed_s += time.perf_counter() - began
                    listener.save(self.state())
                    return reason
            metrics = self._measure_epoch(began - position.elapsed_s)
            listener.save(self.state())
            reason = listener.after_epoch(position.epoch, metrics)
            if reason is not None and position.epoch < self.config.epochs:
                return reason
        return None

    def _step(
        self, compute: Callable[..., tuple[Tensor, ...]], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        """One optimizer step with the gradients that `compute` leaves; returns what it returns."""
        models.set_dropout_step(self.model, self.config.seed, self.steps)
        measured = compute(images, labels)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with warnings.catch_warnings():  # fp16 may skip its first steps
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()
        return measured

    def _gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a batch, uint8 [B, 1, H, W] and int64 [B], in the parameters' `grad`.

        Returns:
            The loss float32 [] and how many images were classified correctly, int64 [].
        """
        with self._autocast():
            log_probabilities = self.runnable.train(self._normalise(images))
        loss = F.nll_loss(log_probabilities.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        return loss.detach(), (log_probabilities.detach().argmax(1) == labels).sum()

    def _measure_epoch(self, began: float) -> dict[str, float]:
        """Evaluate and finish the current epoch; returns its metrics by name."""
        position = self.position
        train_loss, train_accuracy = self._training_metrics()
        training_s = time.perf_counter() - began
        loss, accuracy = self.evaluate(self.monitored)
        speed = len(self.dataset.train) / training_s
        epoch_s = time.perf_counter() - began
        values = (accuracy, loss, train_accuracy, train_loss, position.lr, speed, epoch_s)
        metrics = dict(zip(of_epoch(self.monitored), values, strict=True))
        position.epoch += 1
        now_ms = int(time.time() * 1000)
        position.history.append({"epoch": position.epoch, "timestamp_ms": now_ms, **metrics})
        if position.best is None or accuracy > position.best["value"]:
            weights = as_stored(self.model.state_dict())
            position.best = {"epoch": position.epoch, "value": accuracy, "model": weights}
        position.step, position.elapsed_s = 0, 0.0
        position.losses = position.correct = None
        return metrics

    def _training_metrics(self) -> tuple[float, float]:
        """Mean loss and accuracy over the images of the current epoch, as it was trained."""
        position, images = self.position, len(self.dataset.train)
        assert position.losses is not None and position.correct is not None
        losses: list[float] = position.losses.tolist()
        for step, loss in enumerate(losses):
            if not math.isfinite(loss):
                finer = "" if self.runtime.precision == "fp32" else ", or precision=fp32"
                raise NonFiniteLoss(
                    f"the loss is {loss} in epoch {position.epoch + 1}, step {step + 1} of "
                    f"{self.steps_per_epoch}, with lr={self.config.lr:g} "
                    f"(now {self.optimizer.param_groups[0]['lr']:.3g}); "
                    f"right: a smaller lr{finer}"
                )
        sizes = [self.config.batch_size] * len(losses)
        sizes[-1] = images - sum(sizes[:-1])
        mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / images
        return mean, int(position.correct) / images

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 [B, 1, H, W] images and int64 [B] labels, from the current step of the epoch on.

        An augmentation that works on the CPU runs one batch ahead in a thread.
        """
        epoch, size = self.position.epoch, self.config.batch_size
        generator = torch.Generator().manual_seed(stable_seed(self.config.seed, "order", epoch))
        shuffled = torch.randperm(len(self.train_index), generator=generator).to(self.device)
        index = self.train_index.index_select(0, shuffled)
        # index_select: seven times as fast on a CPU as indexing with rows
        labels = self.train_labels.index_select(0, index)
        change: Change | None = None
        if self.augmentation is not None:
            shape = (len(index), *self.train_images.shape[1:])
            seed = stable_seed(self.config.seed, "augment", epoch)
            change = self.augmentation.plan(shape, seed=seed)
        in_thread = self.augmentation is not None and not self.augmentation.on_device
        together = size * (1 if in_thread else BATCHES_AHEAD[self.device.type])

        def changed(first: int) -> Tensor:
            images = self.train_images.index_select(0, index[first : first + together])
            return images if change is None else change(images, first)

        firsts = range(self.position.step * size, len(index), together)
        several = map(changed, firsts)
        ready = one_ahead(several) if in_thread else several
        for first, images in zip(firsts, ready, strict=True):
            there = labels[first : first + together]
            yield from zip(torch.split(images, size), torch.split(there, size), strict=True)

    def evaluate(self, split: str) -> tuple[float, float]:
        """Mean negative log-likelihood and accuracy (0..1) on `val` or `test`."""
        log_probabilities, labels = self.predict(split)
        loss = F.nll_loss(log_probabilities, labels)
        right = (log_probabilities.argmax(1) == labels).sum()
        measured: list[float] = torch.stack([loss, right.float()]).tolist()
        return measured[0], measured[1] / len(labels)

    def predict(self, split: str) -> tuple[Tensor, Tensor]:
        """Log-probabilities float32 [n, 10] and labels int64 [n] of `val` or `test`, in order.

        They are kept until the next step, since the accuracy after the last epoch, the final
        metrics and the pictures need the same ones.
        """
        images, labels, index = self.held_out[split]
        if self._predicted is None or self._predicted[:2] != (split, self.steps):
            self.model.eval()
            parts = []
            with torch.inference_mode(), self._autocast():
                for rows in torch.split(index, EVALUATION_BATCH[self.device.type]):
                    batch = images.index_select(0, rows)
                    parts.append(self.runnable.evaluate(self._normalise(batch)).float())
            self._predicted = (split, self.steps, torch.cat(parts))
        return self._predicted[2], labels[index]

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds, to go on exactly here; tensors are on the CPU."""
        state: dict[str, Any] = as_stored(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": checkpoint.random_state(self.device),
                "runtime": asdict(self.runtime),
                "data_sha256": self.dataset.sha256,
                "steps": self.steps,
                **vars(self.position),
            }
        )
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        position = Position(**{name: state[name] for name in Position.__dataclass_fields__})
        if position.losses is not None and position.correct is not None:
            position.losses = position.losses.to(self.device)
            position.correct = position.correct.to(self.device)
        self.position = position
        self._predicted = None
        checkpoint.set_random_state(state["random"], self.device)

    def release(self) -> None:
        """Free the memory that only training needs; it is allocated again on use."""
        self.runnable.release()
        self.dataset.train.release()

    def _moved(self, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """`tensors` of a split, on the device."""
        images, labels, index = tensors(split)
        return images.to(self.device), labels.to(self.device), index.to(self.device)

    def _normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 1, H, W] in 0..255 to float32 of mean 0 and deviation 1, channels last."""
        mean, std = self.config.data.mean, self.config.data.std
        scaled = images.to(torch.float32).sub_(mean * 255).mul_(1 / (std * 255))
        return scaled.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.runtime.precision == "fp32":
            return nullcontext()
        half = torch.bfloat16 if self.runtime.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=half)


def one_ahead(images: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same images; while one is worked with, a thread already computes the next."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="augment") as ahead:
        waiting = ahead.submit(next, images, None)
        while (now := waiting.result()) is not None:
            waiting = ahead.submit(next, images, None)
            yield now


def tensors(split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """A split's images uint8, labels int64 and index int64, on the CPU.

    The images stay the memory-mapped file that all processes share.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images = torch.from_numpy(np.asarray(split.images))
    labels = torch.from_numpy(np.array(split.labels, dtype=np.int64))
    return images, labels, torch.from_numpy(np.array(split.index, dtype=np.int64))


def stable_seed(seed: int, purpose: str, number: int) -> int:
    """A seed in 0..2^63-1 that depends on all three and is the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def as_stored(value: Any) -> Any:
    """The same nested state as a checkpoint holds it: every tensor copied to the CPU, numbers of
    NumPy as Python's, and no functions.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.generic):  # such as a learning rate by `np.cos`
        return value.item()
    if isinstance(value, dict):
        return {key: as_stored(inner) for key, inner in value.items() if not callable(inner)}
    if isinstance(value, list | tuple):
        return type(value)(as_stored(inner) for inner in value)
    return value
