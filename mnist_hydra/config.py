"""The typed configuration: defaults filled in, every range checked, the fingerprint taken.

It never imports torch, MLflow or albumentations, so that `--help` and a sweep's own process start
fast. What needs them (a device that exists, a class that can be built) is checked in `build.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_hydra.errors import UserError, wrong_value

GROUPS = ("data", "model", "aug", "optimizer", "scheduler", "tracking", "sweep")
AT_THE_ROOT = ("lr", "dropout", "momentum", "weight_decay")
"""Settings of a model or an optimizer that have a short name at the root."""
NO_EFFECT_ON_RESULT = ("device", "threads", "output_dir", "resume", "tracking", "sweep")


@dataclass(frozen=True)
class DataConfig:
    """Which MNIST-format data to load, from where, and how it is split."""

    name: str
    dataset: str
    """torchvision's class and folder name: `MNIST`, `FashionMNIST` or `KMNIST`."""
    mean: float
    std: float
    root: str | None = None
    offline: bool = False
    val_size: int = 0
    split_seed: int = 0
    limit: int | None = None
    sha256: dict[str, str] | None = None
    """SHA-256 (hex) of the four uncompressed files by name; `None` where they are not known."""

    def __post_init__(self) -> None:
        _one_of("data.dataset", self.dataset, ("MNIST", "FashionMNIST", "KMNIST"))
        if self.root is not None and not isinstance(self.root, str):
            raise wrong_value("data.root", self.root, "null or a folder")
        for name, digest in (self.sha256 or {}).items():
            if not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
                raise wrong_value(f"data.sha256.{name}", digest, "64 hexadecimal digits")
        _whole("data.val_size", self.val_size, at_least=0)
        _whole("data.split_seed", self.split_seed, at_least=0)
        _whole("data.limit", self.limit, at_least=1, also=(None,))
        _number("data.mean", self.mean)
        _number("data.std", self.std, above=0.0)
        _flag("data.offline", self.offline)


@dataclass(frozen=True)
class Component:
    """A class to build and the keyword arguments to build it with."""

    name: str
    target: str
    """Dotted path of the class, judged by the object it resolves to (see `build.py`)."""
    arguments: dict[str, Any]


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are recorded."""

    name: str
    uri: str | None
    """MLflow tracking URI; `None` is SQLite below `output_dir`."""
    experiment_name: str

    def __post_init__(self) -> None:
        if not str(self.experiment_name or "").strip():
            raise wrong_value("tracking.experiment_name", self.experiment_name, "a name")


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep is run; none of it changes a trial's result."""

    name: str | None = None
    fresh: bool = False
    dry_run: bool = False
    retries: int = 1
    fail_fast: bool = False
    trial_timeout_s: float | None = None
    keep: int = 3
    report: bool = True
    """Whether the sweep ends with a report of what it found."""
    workers: int | None = None
    """How many workers a launcher starts; `None` leaves it to the launcher."""
    trials_per_gpu: int = 1
    n_trials: int = 20
    objective: str = "val/acc"
    objective_at: str = "last"
    sampler: str = "tpe"
    pruner: str = "none"
    parent: str | None = None
    """Set by the sweeper for its workers: the sweep's MLflow run."""
    by: str | None = None
    """Set by the sweeper for its workers: which sweeper process started them."""
    worker: int | None = None
    """Set by the sweeper for its workers: the worker's number."""
    ends_with_stdin: bool = False
    """Set by a launcher for its workers: the end of standard input asks them to stop."""

    def __post_init__(self) -> None:
        _flag("sweep.fresh", self.fresh)
        _flag("sweep.dry_run", self.dry_run)
        _flag("sweep.fail_fast", self.fail_fast)
        _flag("sweep.report", self.report)
        _whole("sweep.retries", self.retries, at_least=0)
        _whole("sweep.keep", self.keep, at_least=0)
        _whole("sweep.trials_per_gpu", self.trials_per_gpu, at_least=1)
        _whole("sweep.n_trials", self.n_trials, at_least=1)
        _whole("sweep.workers", self.workers, at_least=1, also=(None,))
        _number("sweep.trial_timeout_s", self.trial_timeout_s, above=0.0, also=(None,))
        _one_of("sweep.objective_at", self.objective_at, ("last", "best"))
        _one_of("sweep.sampler", self.sampler, ("tpe", "random"))
        _one_of("sweep.pruner", self.pruner, ("none", "median", "halving"))


@dataclass(frozen=True)
class Config:
    """One run, every default filled in but what `auto` stands for (see `runtime.py`)."""

    seed: int
    epochs: int
    batch_size: int
    lr: float
    dropout: float | None
    """Rate in [0, 1); `None` where the model takes none."""
    momentum: float | None
    """SGD's momentum or Adam's beta1; `None` where the optimizer takes none."""
    weight_decay: float | None
    device: str
    precision: str
    compile: bool | str
    threads: int | str
    deterministic: bool
    output_dir: str
    resume: str | None
    data: DataConfig
    model: Component
    aug: dict[str, Any]
    optimizer: Component
    scheduler: Component
    tracking: TrackingConfig
    sweep: SweepConfig
    composed: DictConfig = field(repr=False, compare=False)
    """As Hydra composed it, before anything was filled in."""

    def __post_init__(self) -> None:
        _whole("seed", self.seed, at_least=0, at_most=2**63 - 1)
        _whole("epochs", self.epochs, at_least=1)
        _whole("batch_size", self.batch_size, at_least=1)
        _number("lr", self.lr, above=0.0)
        _number("dropout", self.dropout, at_least=0.0, below=1.0, also=(None,))
        _number("momentum", self.momentum, at_least=0.0, below=1.0, also=(None,))
        _number("weight_decay", self.weight_decay, at_least=0.0, also=(None,))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(self.device)):
            raise wrong_value("device", self.device, "auto, cpu, cuda, cuda:N or mps")
        _one_of("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if self.compile not in ("auto", True, False):
            raise wrong_value("compile", self.compile, "auto, true or false")
        _whole("threads", self.threads, at_least=1, also=("auto",))
        _flag("deterministic", self.deterministic)
        if not str(self.output_dir or ""):
            raise wrong_value("output_dir", self.output_dir, "a folder")


def settle(cfg: DictConfig) -> Config:
    """Turn a composed configuration into a `Config`: fill in defaults, check every range.

    `lr`, `dropout`, `momentum` and `weight_decay` are taken from the root where they stand there
    and from their group where they do not, and end in both places.

    Raises:
        UserError: naming the key, the value that was got and what would be right.
    """
    raw: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    raw.pop("experiment", None)
    raw.pop("hydra", None)
    known = [f.name for f in fields(Config) if f.name != "composed"]
    for key in raw:
        if key not in known:
            raise UserError(f"{key}={raw[key]!r} is no setting; right: one of {', '.join(known)}")
    for group in GROUPS:
        if not isinstance(raw.get(group), dict):
            raise wrong_value(group, raw.get(group), f"an entry of the group conf/{group}")

    model, optimizer, scheduler = raw["model"], raw["optimizer"], raw["scheduler"]
    filled_in = {
        "lr": _settle_lr(raw["lr"], optimizer, str(scheduler.get("name", "scheduler"))),
        "dropout": _settle_value("dropout", raw["dropout"], model, "model"),
        "weight_decay": _settle_value("weight_decay", raw["weight_decay"], optimizer, "optimizer"),
        "momentum": _settle_momentum(raw["momentum"], optimizer),
    }
    groups = {
        "data": _typed(DataConfig, "data", raw["data"]),
        "model": _component("model", model),
        "optimizer": _component("optimizer", optimizer),
        "scheduler": _component("scheduler", scheduler),
        "tracking": _typed(TrackingConfig, "tracking", raw["tracking"]),
        "sweep": _typed(SweepConfig, "sweep", raw["sweep"]),
    }
    return Config(**raw | filled_in | groups, composed=cfg)


def fingerprint(config: Config) -> str:
    """Hash what can change a run's result: 16 hexadecimal digits.

    Taken before any `auto` is resolved. Device, threads, paths, tracking and `sweep.*` do not
    count; an explicit value that equals the default counts as the default.
    """
    settings = _as_dict(config, without=NO_EFFECT_ON_RESULT)
    for key in ("root", "offline"):
        del settings["data"][key]
    canonical = json.dumps(_same_numbers(settings), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(config: Config) -> dict[str, str]:
    """What can change a run's result or its speed, each once, as text: MLflow's parameters.

    What stands at the root and in a group is told by its root name. Where the data and the record
    lie is no parameter.
    """
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = "null" if value is None else str(value)

    settings = _as_dict(config, without=("sweep", "tracking", "output_dir", "resume"))
    for group in ("model", "optimizer", "scheduler"):
        arguments = settings[group].pop("arguments")
        del settings[group]["target"]  # told by the name; Compare would show both
        settings[group] |= {k: v for k, v in arguments.items() if k not in AT_THE_ROOT}
    for key in ("sha256", "root", "offline"):
        del settings["data"][key]
    settings["aug"] = {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in settings["aug"].items()
    }
    walk("", settings)
    return flat


def _same_numbers(value: Any) -> Any:
    """The same nested value with 1.0 written as 1, so that equal numbers are equal text."""
    if isinstance(value, Mapping):
        return {key: _same_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_same_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_dict(config: Config, without: Sequence[str]) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    for key in ("composed", *without):
        del values[key]
    return {
        key: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for key, value in values.items()
    }


def _settle_lr(root: Any, optimizer: dict[str, Any], scheduler_name: str) -> Any:
    default = optimizer.pop("default_lr", None)
    if isinstance(default, dict):
        default = default.get(scheduler_name)
    lr = optimizer.get("lr", default) if root is None else root
    if lr is None:
        raise UserError(
            f"lr=null, and optimizer={optimizer.get('name')} has no default for "
            f"scheduler={scheduler_name}; right: lr=NUMBER above 0"
        )
    optimizer["lr"] = lr
    return lr


def _settle_value(key: str, root: Any, group: dict[str, Any], group_name: str) -> Any:
    if root is None:
        return group.get(key)
    if key not in group:
        raise UserError(
            f"{key}={root}: {group_name}={group.get('name') or group.get('_target_')} takes no "
            f"{key}; right: {key}=null, or name it in the {group_name}'s file"
        )
    group[key] = root
    return root


def _settle_momentum(root: Any, optimizer: dict[str, Any]) -> Any:
    betas = optimizer.get("betas")
    if "momentum" in optimizer or betas is None:
        return _settle_value("momentum", root, optimizer, "optimizer")
    if root is not None:
        optimizer["betas"] = [root, *betas[1:]]
    return optimizer["betas"][0]


def _component(group: str, raw: dict[str, Any]) -> Component:
    arguments = {k: v for k, v in raw.items() if k not in ("_target_", "name")}
    target = raw.get("_target_")
    if not isinstance(target, str):
        raise wrong_value(f"{group}._target_", target, "the dotted path of a class")
    return Component(str(raw.get("name") or target.rsplit(".", 1)[-1]), target, arguments)


def _typed(kind: Any, group: str, raw: dict[str, Any]) -> Any:
    known = sorted(f.name for f in fields(kind))
    for key in raw:
        if key not in known:
            right = ", ".join(known)
            raise UserError(f"{group}.{key}={raw[key]!r} is no setting; right: one of {right}")
    try:
        return kind(**raw)
    except TypeError as error:
        raise UserError(f"{group}: {error}; right: see conf/{group}") from None


# Checks of one setting: each raises a `UserError` that names the key, the value and the mend.
# `also` are values that are accepted besides. A boolean is no number.


def _whole(
    key: str, value: Any, *, at_least: int, at_most: int | None = None, also: Sequence[Any] = ()
) -> None:
    if value in also:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise wrong_value(key, value, f"a whole number of at least {at_least}" + _or(also))
    if at_most is not None and value > at_most:
        raise wrong_value(key, value, f"a whole number of at most {at_most}")


def _number(
    key: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    also: Sequence[Any] = (),
) -> None:
    if value in also:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and above < value < below and at_least <= value:
        return
    limits = (("above", above), ("at least", at_least), ("below", below))
    words = [f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit)]
    raise wrong_value(key, value, " ".join(["a number", " and ".join(words)]).strip() + _or(also))


def _flag(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise wrong_value(key, value, "true or false")


def _one_of(key: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise wrong_value(key, value, "one of " + ", ".join(choices))


def _or(also: Sequence[Any]) -> str:
    return "".join(f", or {'null' if value is None else value}" for value in also)
