"""The typed configuration: defaults filled in, every range checked, the fingerprint taken.

It never imports torch, MLflow or albumentations, so that `--help` and a sweep's own process start
fast. What needs them (a device that exists, a class that can be built) is checked in `build.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_hydra.errors import UserError, wrong_value
from mnist_hydra.secrets import remember_variables
from mnist_hydra.typed import Limits, Pattern, check_setting, read_settings

GROUPS = ("data", "model", "aug", "optimizer", "scheduler", "tracking")
AT_THE_ROOT = ("lr", "dropout", "momentum", "weight_decay")
"""Settings of a model or an optimizer that have a short name at the root."""
NO_EFFECT_ON_RESULT = (
    "device",
    "threads",
    "output_dir",
    "resume",
    "trusted",
    "tracking",
    "sweep",
    "data.root",
    "data.offline",
)
"""Settings that change no run's result, by dotted name; with all that stands below them."""
MOST_EPOCHS = 1_000_000

Seed = Annotated[int, Limits(at_least=0, at_most=2**63 - 1)]
Count = Annotated[int, Limits(at_least=1)]
Number = Annotated[int, Limits(at_least=0)]
Positive = Annotated[float, Limits(above=0)]
NotNegative = Annotated[float, Limits(at_least=0)]
Fraction = Annotated[float, Limits(at_least=0, below=1)]
Name = Annotated[str, Pattern(r"(?=.*\S).{1,200}", "a name of at most 200 characters")]
Word = Annotated[str, Pattern(r"[\w.-]+", "letters, digits, _, . and -")]
Folder = Annotated[str, Pattern(r".*\S.*", "a folder")]


@dataclass(frozen=True)
class DataConfig:
    """Which MNIST-format data to load, from where, and how it is split."""

    name: str
    dataset: Literal["MNIST", "FashionMNIST", "KMNIST"]
    """torchvision's class and folder name."""
    mean: Annotated[float, Limits(at_least=0, at_most=1)]
    std: Positive
    root: str | None = None
    offline: bool = False
    val_size: Number = 0
    split_seed: Seed = 0
    limit: Count | None = None
    sha256: dict[str, Annotated[str, Pattern("[0-9a-f]{64}", "64 hexadecimal digits")]] | None = (
        None
    )
    """SHA-256 (hex) of the four uncompressed files by name; `None` where they are not known."""


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
    experiment_name: Name


@dataclass(frozen=True)
class Place:
    """Where runs are kept: all that some commands need of a `Config`."""

    output_dir: Folder
    tracking: TrackingConfig

    @property
    def folder(self) -> Path:
        """`output_dir`, absolute; a `~` is the home, which no shell has put in if it is quoted."""
        return Path(os.path.expanduser(self.output_dir)).absolute()

    @property
    def cache_dir(self) -> Path:
        """Where data is looked for, and kept that was fetched."""
        return self.folder / "data"


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep is run; none of it changes a trial's result."""

    name: Name | None = None
    fresh: bool = False
    dry_run: bool = False
    retries: Number = 1
    fail_fast: bool = False
    trial_timeout_s: Annotated[float, Limits(above=0, at_most=10**9)] | None = None
    """No more than a timer takes on any system."""
    keep: Number = 3
    report: bool = True
    """Whether the sweep ends with a report of what it found."""
    workers: Count | None = None
    """How many workers a launcher starts; `None` leaves it to the launcher."""
    trials_per_gpu: Count = 1
    n_trials: Count = 20
    objective: str = "val/acc"
    objective_at: Literal["last", "best"] = "last"
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["none", "median", "halving"] = "none"
    parent: Word | None = None
    """Set by the sweeper for its workers: the sweep's MLflow run."""
    by: str | None = None
    """Set by the sweeper for its workers: which sweeper process started them."""
    worker: Number | None = None
    """Set by the sweeper for its workers: the worker's number."""
    ends_with_stdin: bool = False
    """Set by a launcher for its workers: the end of standard input asks them to stop."""

    def __post_init__(self) -> None:
        of_workers = {key: getattr(self, key) for key in ("parent", "by", "worker")}
        given = [f"sweep.{key}={value}" for key, value in of_workers.items() if value is not None]
        if len(given) in (1, 2):
            missing = next(key for key, value in of_workers.items() if value is None)
            raise UserError(
                f"sweep.{missing}=null beside {' and '.join(given)}; right: none of sweep.parent, "
                "sweep.by and sweep.worker, which a sweep sets for its workers"
            )


@dataclass(frozen=True)
class Config(Place):
    """One run, every default filled in but what `auto` stands for (see `runtime.py`)."""

    seed: Seed
    epochs: Annotated[int, Limits(at_least=1, at_most=MOST_EPOCHS)]
    batch_size: Count
    lr: Positive
    dropout: Fraction | None
    """`None` where the model takes none."""
    momentum: Fraction | None
    """SGD's momentum or Adam's beta1; `None` where the optimizer takes none."""
    weight_decay: NotNegative | None
    device: Annotated[
        str, Pattern(r"auto|cpu|mps|cuda(:\d{1,4})?", "auto, cpu, cuda, cuda:N or mps")
    ]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    compile: bool | Literal["auto"]
    threads: Annotated[int, Limits(at_least=1, at_most=4096)] | Literal["auto"]
    deterministic: bool
    resume: Word | None
    data: DataConfig
    model: Component
    aug: dict[str, Any]
    optimizer: Component
    scheduler: Component
    sweep: SweepConfig
    composed: DictConfig = field(repr=False, compare=False)
    """As Hydra composed it, before anything was filled in."""
    trusted: list[Word] = field(default_factory=list)
    """Modules that a `_target_` may name besides the usual ones (see `targets.py`)."""


def refuse_unread_experiment(cfg: DictConfig) -> None:
    """Refuse an experiment whose keys stand below `experiment`, and no other setting refers to.

    Args:
        cfg: as composed, not yet resolved.
    """
    if cfg.get("experiment") and "${experiment" not in OmegaConf.to_yaml(cfg):
        raise UserError(
            "what this experiment sets stands below experiment, where nothing reads it; right: "
            "`# @package _global_` as the first line of its file"
        )


def settle(cfg: DictConfig) -> Config:
    """Turn a composed configuration into a `Config`: fill in defaults, check every range.

    `lr`, `dropout`, `momentum` and `weight_decay` are taken from the root where they stand there
    and from their group where they do not, and end in both places.

    Raises:
        UserError: naming the key, the value that was got and what would be right.
    """
    raw: dict[str, Any] = resolved(cfg)
    raw.pop("experiment", None)
    for group in GROUPS:
        if not isinstance(raw.get(group), dict):
            raise wrong_value(group, raw.get(group), f"an entry of the group conf/{group}")

    model, optimizer, scheduler = raw["model"], raw["optimizer"], raw["scheduler"]
    weight_decay = raw.get("weight_decay")
    settled: dict[str, Any] = {
        "lr": _settle_lr(raw.get("lr"), optimizer, _called(scheduler)),
        "dropout": _settle_value("dropout", raw.get("dropout"), model, "model"),
        "weight_decay": _settle_value("weight_decay", weight_decay, optimizer, "optimizer"),
        "momentum": _settle_momentum(raw.get("momentum"), optimizer),
        "data": read_settings(DataConfig, raw["data"], "data."),
        "model": _component("model", model),
        "optimizer": _component("optimizer", optimizer),
        "scheduler": _component("scheduler", scheduler),
        "tracking": read_settings(TrackingConfig, raw["tracking"], "tracking."),
        "sweep": sweep_settings(raw.get("sweep")),
    }
    for part in ("model", "optimizer", "scheduler"):
        for name, _ in leaves(settled[part].arguments, part):
            if not is_recordable(name):
                raise UserError(
                    f"{name} is no name that MLflow keeps; right: at most 250 letters, digits, "
                    "spaces and _ - . : / in it, and no empty, . or .. between two slashes"
                )
    return read_settings(Config, raw | settled, composed=cfg)


def sweep_settings(raw: Any) -> SweepConfig:
    """The settings `sweep.*` from their plain values.

    Raises:
        UserError: naming the key, the value that was got and what would be right.
    """
    if not isinstance(raw, dict):
        raise wrong_value("sweep", raw, "its keys, such as sweep.name=NAME")
    return read_settings(SweepConfig, raw, "sweep.")


def resolved(cfg: DictConfig, only: str | None = None) -> Any:
    """A composed configuration as plain values, without Hydra's own node.

    Args:
        only: the key of which the value alone is wanted; `None` where it is not there.

    Raises:
        UserError: naming the key that is missing, or whose interpolation leads nowhere.
    """
    if "hydra" in cfg.keys():  # `in cfg` makes an error of many words, and drops it
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        if only is not None:
            remember_variables(OmegaConf.to_container(cfg, resolve=False))
            return _plain(cfg[only]) if only in cfg.keys() else None
        return _plain(cfg)
    except OmegaConfBaseException as error:
        why = str(error).partition("\n")[0]  # the rest is for who knows OmegaConf
        right = "a value, or ${...} of a key that has one"
        raise UserError(f"{error.full_key or only or ''}: {why}; right: {right}") from None


def unresolved(cfg: DictConfig) -> dict[str, str]:
    """A composed configuration as text, each value by its dotted name and as it is written."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    return {name: str(value) for name, value in leaves(plain)}


@cache
def is_recordable(name: str) -> bool:
    """Whether MLflow takes `name` as that of a parameter or a metric, on any of its systems."""
    return (
        0 < len(name) <= 250
        and re.fullmatch(r"[/\w.\- :]*", name) is not None
        and not name.startswith(("/", ".."))
        and name != "."
        and str(PurePosixPath(name)) == name
    )


def fingerprint(config: Config) -> str:
    """Hash what can change a run's result: 16 hexadecimal digits.

    Taken before any `auto` is resolved. Device, threads, paths, tracking and `sweep.*` do not
    count; an explicit value that equals the default counts as the default.
    """
    settings = _as_dict(config, without=NO_EFFECT_ON_RESULT)
    canonical = json.dumps(_in_one_form(settings), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(config: Config) -> dict[str, str]:
    """What can change a run's result or its speed, each once, as text: MLflow's parameters.

    What stands at the root and in a group is told by its root name. Where the data and the record
    lie is no parameter.
    """
    places = ("tracking", "output_dir", "data.root", "data.offline", "data.sha256")
    settings = _as_dict(config, without=("sweep", "resume", "trusted", *places))
    for group in ("model", "optimizer", "scheduler"):
        arguments, target = settings[group].pop("arguments"), settings[group].pop("target")
        if _shipped_classes(group).get(settings[group]["name"]) != target:  # else told by its name
            settings[group]["_target_"] = target
        settings[group] |= {k: v for k, v in arguments.items() if k not in AT_THE_ROOT}
    settings["aug"] = {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in settings["aug"].items()
    }
    return {name: "null" if value is None else str(value) for name, value in leaves(settings)}


@cache
def _shipped_classes(group: str) -> dict[str, str]:
    """The class of each entry of a group that comes with this project, by the entry's name."""
    entries = (files("mnist_hydra.conf") / group).iterdir()
    settings = (yaml.safe_load(entry.read_text(encoding="utf-8")) for entry in entries)
    return {each["name"]: each["_target_"] for each in settings}


def has_no_effect(key: str) -> bool:
    """Whether a setting, by its dotted name, is of those that change no result."""
    return any(f"{key}.".startswith(f"{name}.") for name in NO_EFFECT_ON_RESULT)


def changes_result(override: str) -> bool:
    """Whether an override, such as `++lr=0.1` or `db@source=x`, can change what comes out."""
    key = override.lstrip("+~").partition("=")[0]
    return not has_no_effect(key.replace("/", ".").replace("@", "."))


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, each value with its dotted name; an empty mapping is a value."""
    if isinstance(value, Mapping) and (value or not prefix):
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _in_one_form(value: Any) -> Any:
    """The same nested value, keys in order, first those that are numbers, and 1.0 written as 1."""
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: (isinstance(key, str), key))
        return {key: _in_one_form(value[key]) for key in keys}
    if isinstance(value, list | tuple):
        return [_in_one_form(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_dict(config: Config, without: Sequence[str]) -> dict[str, Any]:
    """All settings as plain values, but those `without`, which are dotted names."""
    plain = {
        key: dict(vars(value)) if is_dataclass(value) else value
        for key, value in vars(config).items()
        if key != "composed"
    }
    for name in without:
        group, _, key = name.rpartition(".")
        del (plain[group] if group else plain)[key]
    return plain


def _plain(node: Any) -> Any:
    if not OmegaConf.is_config(node):
        return node
    written = OmegaConf.to_container(node, resolve=False)
    if not re.search(r"\$\{|\?\?\?", str(written)):
        return written  # nothing to resolve, nothing missing
    remember_variables(written)
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


def _settle_lr(root: Any, optimizer: dict[str, Any], scheduler_name: str) -> Any:
    default = optimizer.pop("default_lr", None)
    if isinstance(default, dict):
        default = default.get(scheduler_name)
    if root is not None:
        key, lr = "lr", root
    elif "lr" in optimizer:
        key, lr = "optimizer.lr", optimizer["lr"]
    else:
        key, lr = "optimizer.default_lr", default
    if lr is None:
        raise UserError(
            f"lr=null, and optimizer={_called(optimizer)} has no default for "
            f"scheduler={scheduler_name}; right: lr=NUMBER above 0"
        )
    optimizer["lr"] = check_setting(key, lr, Positive)
    return lr


def _called(group: dict[str, Any]) -> str:
    """What an entry of a group is called in words: its name, or its class where it has none."""
    return str(group.get("name") or group.get("_target_"))


def _settle_value(key: str, root: Any, group: dict[str, Any], group_name: str) -> Any:
    if root is None:
        value = group.get(key)
        if isinstance(value, list | dict):
            right = f"one number, as {key} at the root is, or another name for that argument"
            raise wrong_value(f"{group_name}.{key}", value, right)
        return value
    if key not in group:
        raise UserError(
            f"{key}={root}: {group_name}={_called(group)} takes no "
            f"{key}; right: {key}=null, or name it in the {group_name}'s file"
        )
    group[key] = root
    return root


def _settle_momentum(root: Any, optimizer: dict[str, Any]) -> Any:
    betas = optimizer.get("betas")
    if "momentum" in optimizer or "betas" not in optimizer:
        return _settle_value("momentum", root, optimizer, "optimizer")
    is_torchs = str(optimizer.get("_target_")).startswith("torch.")  # which may drop a third
    if not isinstance(betas, list) or not betas or (is_torchs and len(betas) != 2):
        right = "two numbers, such as [0.9,0.999], or as many as an optimizer of your own takes"
        raise wrong_value("optimizer.betas", betas, right)
    betas = [check_setting("optimizer.betas", beta, Fraction) for beta in betas]
    if root is not None:
        betas[0] = check_setting("momentum", root, Fraction | None)
    optimizer["betas"] = [float(beta) for beta in betas]  # torch takes no 0 beside a 0.999
    return optimizer["betas"][0]


def _component(group: str, raw: dict[str, Any]) -> Component:
    arguments = {k: v for k, v in raw.items() if k not in ("_target_", "name")}
    target = raw.get("_target_")
    if not isinstance(target, str):
        raise wrong_value(f"{group}._target_", target, "the dotted path of a class")
    name = check_setting(f"{group}.name", raw.get("name"), Name | None)
    return Component(name or target.rsplit(".", 1)[-1], target, arguments)
