"""Builds everything that a run needs, and finds out what is wrong before anything is recorded."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, PolynomialLR

from mnist_hydra import checkpoint, runtime, targets
from mnist_hydra.augment.pipeline import build_augmentation
from mnist_hydra.config import Component, Config, DataConfig
from mnist_hydra.data.idx import LABELS
from mnist_hydra.data.load import Dataset, load_dataset
from mnist_hydra.errors import UserError, shown, wrong_value
from mnist_hydra.kernel.compile import Unavailable
from mnist_hydra.kernel.folder import kernel_folder
from mnist_hydra.kernel.fused import Fused
from mnist_hydra.replay import can_be_replayed
from mnist_hydra.trainer import Parts, Runnable, Trainer, as_stored


@cache
def say_once(line: str) -> None:
    """Print a line on the standard error, the first time in this process."""
    print(line, file=sys.stderr)


def prepare(
    config: Config, state: dict[str, Any] | None = None, say: Callable[[str], None] = say_once
) -> Trainer:
    """Build everything that a run needs; nothing is recorded or left behind if that fails.

    Args:
        config: the run's settings.
        state: a checkpoint to go on from, or `None` to begin.
        say: told why it trains slower than it could, if it does.

    Raises:
        UserError: for settings that this machine, the data or a class does not allow.
    """
    machine, recorded = runtime.capability(config.device), (state or {}).get("runtime")
    where = runtime.choose(config, machine, recorded)
    parts = build(config, where)
    data = parts.dataset.sha256
    began_with = (state or {}).get("data_sha256", data)  # older checkpoints do not tell
    if began_with != data:
        raise UserError(
            f"what is here ({parts.dataset.source}, SHA-256 {data[:12]}...) is not the data that "
            f"the run began with ({began_with[:12]}...); right: the data that it began with, "
            "which data.root= may name; or begin anew, in a sweep with sweep.fresh=true"
        )
    fused = None
    if where.kernel:
        # Only now that nothing can be wrong any more: it is compiled the first time.
        fused = kernel_of(parts.model, kernel_folder(), say)
    if fused is None:
        replay = can_be_replayed(parts.model, parts.optimizer)
        where = runtime.choose(config, machine, recorded, kernel=False, replay=replay)
        _prefer_channels_last(config, parts, where.device)
    trainer = Trainer(config, where, runnable(parts.model, where, fused), parts)
    if state is not None:
        right = "the code that it began with; or begin anew, in a sweep with sweep.fresh=true"
        with targets.blaming("the run's checkpoint does not fit the code that is here", right):
            trainer.restore(state)
    return trainer


def build(config: Config, where: runtime.Runtime) -> Parts:
    """Build the parts of a training and try them; compiles nothing.

    Raises:
        UserError: for settings that this machine, the data or a class does not allow.
    """
    runtime.apply(where)
    torch.manual_seed(config.seed)
    random.seed(config.seed)  # this and NumPy's: a user's own code may draw from them
    np.random.seed(config.seed % 2**32)
    model_class = targets.resolve_class(config.model.target, torch.nn.Module, "model._target_")
    model = targets.construct(model_class, _arguments(config, "model", model_class), "model")
    model.to(where.device)
    data = json.dumps(asdict(config.data), sort_keys=True)
    dataset = _dataset(data, config.cache_dir)
    if config.batch_size > len(dataset.train):
        asked = ("limit", "val_size")
        given = ", ".join(f"data.{key}={shown(getattr(config.data, key))}" for key in asked)
        raise UserError(
            f"batch_size={config.batch_size} is more than the {len(dataset.train)} training "
            f"images ({given}); right: at most that many"
        )
    _insist_on_log_probabilities(config, model, dataset, where.device)
    _insist_on_storable(f"model={config.model.target}", model.state_dict())
    trained = next((one for one in model.parameters() if one.requires_grad), None)
    if trained is None:
        raise UserError(
            f"model={config.model.target} has no parameter to train; right: at least one with "
            "requires_grad=True"
        )
    optimizer = _optimizer(config, model)
    sample = dataset.train.images[dataset.train.index[:4]]
    augmentation = build_augmentation(config.aug, sample=sample)
    steps = config.epochs * -(-len(dataset.train) // config.batch_size)
    scheduler = _scheduler(config, optimizer, steps)
    _try_schedule(config, trained, steps)
    return Parts(model, optimizer, scheduler, augmentation, dataset)


def kernel_of(
    model: torch.nn.Module, folder: Path, say: Callable[[str], None] = say_once
) -> Fused | None:
    """The model's kernel, compiled into `folder` (1 to 3 s the first time).

    `None` if there can be none; `say` is told the reason.
    """
    try:
        fused = Fused(model, folder)
    except Unavailable as error:
        say(f"training at plain PyTorch's speed: {error}")
        return None
    if not fused.kernel.parallel:
        say("training on one thread: the C compiler has no OpenMP")
    return fused


def runnable(model: torch.nn.Module, chosen: runtime.Runtime, fused: Fused | None) -> Runnable:
    """Make a model ready to run as chosen; the caller sees to mixed precision.

    Args:
        fused: its kernel, where `chosen.kernel`.
    """
    if fused is not None:
        return Runnable(fused, fused.evaluate, fused.idle.clear)
    return Runnable(torch.compile(model) if chosen.compile else model, model)


@lru_cache(maxsize=2)
def _dataset(settings: str, cache_dir: Path) -> Dataset:
    """Load data once per process and setting, which come as JSON."""
    dataset = load_dataset(DataConfig(**json.loads(settings)), cache_dir)
    print(f"data: {dataset.source}", file=sys.stderr)
    return dataset


def _prefer_channels_last(config: Config, parts: Parts, device: str) -> None:
    """Lay the weights out as convolutions are fastest, if the model can work with that.

    Some cannot: a `view` of what a convolution returns, or weights of five dimensions. It is tried
    in evaluation, and leaves random state and buffers as they are.
    """
    state = checkpoint.random_state(torch.device(device))
    buffers = {name: buffer.clone() for name, buffer in parts.model.named_buffers()}
    try:
        parts.model.to(memory_format=torch.channels_last)
        _insist_on_log_probabilities(config, parts.model, parts.dataset, device)
    except (RuntimeError, UserError):
        parts.model.to(memory_format=torch.contiguous_format)
    checkpoint.set_random_state(state, torch.device(device))
    with torch.no_grad():
        for name, buffer in parts.model.named_buffers():
            buffer.copy_(buffers[name])


def _arguments(config: Config, group: str, kind: type) -> dict[str, Any]:
    """A component's arguments: the name that its entry gives is one, if the class takes it."""
    component: Component = getattr(config, group)
    is_given = config.composed[group].get("name") is not None and targets.accepts(kind, "name")
    return component.arguments | ({"name": component.name} if is_given else {})


def is_fused(kind: type[Optimizer], device: str) -> bool:
    """Whether an optimizer of torch's has a fused step on a kind of device, since torch 2.6.

    Adagrad's came to CUDA after 2.7, and is not on MPS:
    https://github.com/pytorch/pytorch/pull/153038
    """
    return targets.accepts(kind, "fused") and (device == "cpu" or kind is not torch.optim.Adagrad)


def _optimizer(config: Config, model: torch.nn.Module) -> Optimizer:
    kind = targets.resolve_class(config.optimizer.target, Optimizer, "optimizer._target_")
    arguments, parameters = _arguments(config, "optimizer", kind), list(model.parameters())
    if kind.__module__.startswith("torch.optim"):
        others = ("foreach", "differentiable")  # the two that fused refuses beside it
        if all(one.is_floating_point() and is_fused(kind, one.device.type) for one in parameters):
            arguments.setdefault("fused", not any(arguments.get(name) for name in others))
        kind = runtime.without_dynamo(kind)
    return targets.construct(kind, arguments, "optimizer", params=parameters)


def _scheduler(config: Config, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Build the scheduler; what follows from the run itself is filled in where the class takes it.

    `total_steps` and `T_max` are the run's steps, and of torch's `ConstantLR` and `PolynomialLR`
    `total_iters`; `max_lr` is its learning rate, `max_momentum` its momentum, and `base_momentum`
    is never above that.
    """
    kind = targets.resolve_class(config.scheduler.target, LRScheduler, "scheduler._target_")
    arguments = _arguments(config, "scheduler", kind)
    momentum = config.momentum
    follows: dict[str, Any] = {
        "total_steps": steps,
        "T_max": steps,
        "max_lr": config.lr,
        "cycle_momentum": momentum is not None,
    }
    takes_base = targets.accepts(kind, "base_momentum")
    base_momentum = arguments.pop("base_momentum", momentum) if takes_base else momentum
    if momentum is not None:
        if not isinstance(base_momentum, int | float):
            raise wrong_value("scheduler.base_momentum", base_momentum, "a number")
        follows |= {"max_momentum": momentum, "base_momentum": min(base_momentum, momentum)}
    if issubclass(kind, ConstantLR | PolynomialLR):  # by default they end after five steps
        follows["total_iters"] = steps
    given = {
        name: value
        for name, value in follows.items()
        if targets.accepts(kind, name) and name not in arguments
    }
    total = arguments.get("total_steps", steps)
    if isinstance(total, int) and total < steps and targets.accepts(kind, "total_steps"):
        right = f"the run's {steps} steps, or no such key"
        raise wrong_value("scheduler.total_steps", total, right)
    return targets.construct(kind, arguments, "scheduler", optimizer=optimizer, **given)


def _try_schedule(config: Config, like: torch.Tensor, steps: int) -> None:
    """Let the optimizer and the scheduler take the run's steps, 20,000 at most, with no model.

    Args:
        like: a parameter of the model; some optimizers take those of two dimensions alone.

    Raises:
        UserError: one of them fails, a learning rate is none, or a state cannot be kept.
    """
    alone = torch.nn.ParameterList([torch.zeros([min(n, 2) for n in like.shape], dtype=like.dtype)])
    alone[0].grad = torch.zeros_like(alone[0])
    optimizer = _optimizer(config, alone)
    scheduler = _scheduler(config, optimizer, steps)
    with targets.blaming(f"optimizer={config.optimizer.target}", "one that steps by itself"):
        optimizer.step()
    got = ", ".join(f"scheduler.{k}={shown(v)}" for k, v in config.scheduler.arguments.items())
    right = f"one that steps by itself{f', with other values than {got}' if got else ''}"
    with targets.blaming(f"scheduler={config.scheduler.target}", right):
        for step in range(min(steps, 20_000)):
            rate = float(optimizer.param_groups[0]["lr"])
            if not 0.0 <= rate < math.inf:
                raise ValueError(f"the learning rate of step {step + 1} is {rate}")
            scheduler.step()
    _insist_on_storable(f"optimizer={config.optimizer.target}", optimizer.state_dict())
    _insist_on_storable(f"scheduler={config.scheduler.target}", scheduler.state_dict())


def _insist_on_storable(what: str, state: dict[str, Any]) -> None:
    """Raise a `UserError` if no run could go on from a checkpoint with this state."""
    right = "a state_dict() of tensors, Python's numbers, text, lists and dictionaries"
    with targets.blaming(f"{what}: its state cannot be kept in a checkpoint", right):
        checkpoint.insist_on_storable(as_stored(state))


def _insist_on_log_probabilities(
    config: Config, model: torch.nn.Module, dataset: Dataset, device: str
) -> None:
    """Try the model on two blank images before anything is recorded.

    Raises:
        UserError: if it does not return log-probabilities [B, classes].
    """
    shape = (2, *dataset.train.images.shape[1:])
    model.eval()
    name = f"model={config.model.target}"
    right = f"a model for images of shape {shape}"
    with targets.blaming(name, right), torch.no_grad():  # what is made now is trained later
        got: Any = model(torch.zeros(shape, device=device))
    if not isinstance(got, torch.Tensor):
        raise UserError(
            f"{name} returns {type(got).__name__}, no tensor; right: log-probabilities of shape "
            f"(batch, {LABELS})"
        )
    if (
        got.shape != (2, LABELS)
        or not got.is_floating_point()
        or bool((got.exp().sum(1) > 1.01).any())
    ):
        raise UserError(
            f"{name} returns {tuple(got.shape)} that are no log-probabilities; right: end its "
            f"forward with log_softmax(scores, dim=1) of shape (batch, {LABELS})"
        )
