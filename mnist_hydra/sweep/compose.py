"""Composes a sweep's trials as Hydra would, and checks each of them before any starts.

Hydra composes once per combination of group choices; the values are set on a copy of what came out.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from mnist_hydra import secrets
from mnist_hydra.cli.refusals import refused
from mnist_hydra.config import Config, fingerprint, refuse_unread_experiment, settle
from mnist_hydra.cores import on_all_cores
from mnist_hydra.errors import UserError
from mnist_hydra.ledger.plan import Arguments, Axis, Planned, title
from mnist_hydra.sweep.torch_tasks import kind_of
from mnist_hydra.tracking.tracker import import_mlflow

MAX_KINDS = 100
POINTS_A_PROCESS = 200
"""So many at least are worth a process to check them in."""
ALMOST = 1 - 1e-9
MODEL2, MODEL3 = "mnist_hydra.models.Model2", "mnist_hydra.models.Model3"
"""They differ in their default dropout alone."""


class Composer:
    """Composes trials from the configuration sources of one Hydra application.

    Args:
        loader: Hydra's configuration loader; it knows the search path, `--config-dir` included.
        composed: what Hydra composed of the command, its own node included. All trials share its
            overrides of Hydra's settings and its resolved values, such as `now:`.
    """

    def __init__(self, loader: ConfigLoaderImpl, composed: DictConfig) -> None:
        hydra_overrides = OmegaConf.to_container(composed.hydra.overrides.hydra, resolve=False)
        self._loader, self._composed = loader, composed
        self._config_name = composed.hydra.job.config_name
        self._hydra_overrides = cast(list[str], hydra_overrides)
        self._parser = OverridesParser.create()
        self._parse = lru_cache(1_000)(self._parse_anew)  # each point of a search is new
        self._of_groups = cache(self._compose_anew)
        # Hydra's own `get_group_options` reads `config.yaml` anew for each name that it is asked.
        self._files = loader._parse_overrides_and_create_caching_repo(
            self._config_name, self._hydra_overrides
        )[1]
        self._is_group = cache(lambda name: bool(self._files.get_group_options(name, None)))

    @classmethod
    def here(cls) -> Composer:
        """The composer of the job that Hydra runs in this process."""
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        return cls(loader, cast(DictConfig, HydraConfig.instance().cfg))

    def options(self, group: str) -> list[str]:
        """The entries of a config group; none where there is no such group."""
        return self._files.get_group_options(group, ObjectType.CONFIG)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one trial, without Hydra's own node.

        Args:
            overrides: all of the trial's overrides, in the order of the command line.
        Raises:
            UserError: with Hydra's message, where Hydra would refuse the overrides.
        """
        with _refusing():
            parsed = [(text, *self._parse(text)) for text in overrides]
            groups = tuple(text for text, _, sets_value in parsed if not sets_value)
            values = [override for _, override, sets_value in parsed if sets_value]
            # Unpickling is seven times as fast as a deep copy.
            cfg = cast(DictConfig, pickle.loads(self._of_groups(groups)))
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            return cfg

    def base(self, overrides: Sequence[str]) -> DictConfig:
        """What all trials share; a group that only an axis chooses may be missing.

        Raises:
            UserError: with Hydra's message, where Hydra would refuse the overrides.
        """
        with _refusing():
            return self._load(overrides, RunMode.MULTIRUN)

    def _load(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        words = [*self._hydra_overrides, *overrides]
        return self._loader.load_configuration(self._config_name, words, run_mode=mode)

    def _parse_anew(self, text: str) -> tuple[Override, bool]:
        """An override, and whether Hydra applies it after composition, not in the defaults list."""
        override = self._parser.parse_overrides([text])[0]
        is_group = self._is_group(override.key_or_group)
        return override, not is_group or isinstance(override.value(), dict)

    def _compose_anew(self, groups: tuple[str, ...]) -> bytes:
        """What Hydra makes of overrides that choose entries of groups, pickled."""
        cfg = self._load(groups, RunMode.RUN)
        known = _axes_of(self._composed)
        own = {k: v for k, v in _axes_of(cfg).items() if known.get(k) != v}
        if own:
            axes = ", ".join(f"{key}={value}" for key, value in own.items())
            raise UserError(
                f"{' '.join(groups)} brings axes of its own ({axes}), which would be lost "
                "in a sweep over it; right: those axes on the command line, or it alone"
            )
        OmegaConf.copy_cache(from_config=self._composed, to_config=cfg)
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            del cfg["hydra"]
        return pickle.dumps(cfg)


@contextmanager
def _refusing() -> Iterator[None]:
    """A context in which what Hydra refuses is bad input."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise refused(error) from None


def _axes_of(cfg: DictConfig) -> dict[str, Any]:
    """`hydra.sweeper.params` of a composed configuration."""
    params = OmegaConf.select(cfg, "hydra.sweeper.params")
    return {} if params is None else cast(dict[str, Any], OmegaConf.to_container(params))


@dataclass
class Trials:
    """The trials of a sweep, and what is known of them before any is trained."""

    planned: dict[str, Planned] = field(default_factory=dict)
    """By fingerprint, in the sweep's order."""
    kinds: dict[str, str] = field(default_factory=dict)
    """By fingerprint, which trials need the same check with torch, see `torch_tasks.kind_of`."""
    repeated: list[tuple[str, str]] = field(default_factory=list)
    """Name of each point that is the same trial as an earlier one, and that one's name."""
    as_model2: dict[str, str] = field(default_factory=dict)
    """The fingerprint of a trial of model3, to that of the same trial with model2."""
    samples: dict[str, tuple[str, Config]] = field(default_factory=dict)
    """By kind, the name and the configuration of one trial; of `MAX_KINDS` at most."""
    holdout: bool = True
    """Whether every trial has a hold-out (`val`)."""

    @property
    def first(self) -> Config:
        """The configuration of the first trial."""
        return next(iter(self.samples.values()))[1]

    @property
    def epochs(self) -> int:
        """The most that a trial has."""
        return max(planned.epochs or 0 for planned in self.planned.values())

    def twins(self) -> dict[str, str]:
        """The trials that train the same as an earlier one, and that one, both by fingerprint."""
        place = {key: number for number, key in enumerate(self.planned)}
        pairs = (pair for pair in self.as_model2.items() if pair[1] in place)
        in_order = (sorted(pair, key=place.__getitem__) for pair in pairs)
        return {later: earlier for earlier, later in in_order}

    def same_as_others(self) -> str | None:
        """A line that says which points would train the same; `None` if none do."""
        twins = [(self.planned[a].name, self.planned[b].name) for a, b in self.twins().items()]
        same = self.repeated + twins
        if not same:
            return None
        count, (one, other) = len(same), same[0]
        are = "is the same training as another" if count == 1 else "are the same as others"
        points = len(self.repeated) + len(self.planned)
        return f"{count} of {points} points {are}, such as {one} and {other}"

    def add(self, point: Sequence[str], config: Config) -> None:
        """Add the trial at a point, unless another point is the same trial."""
        key, kind = fingerprint(config), kind_of(config)
        planned = Planned(key, tuple(point), title(point), config.epochs)
        one = Trials({key: planned}, {key: kind}, samples={kind: (planned.name, config)})
        one.holdout = config.data.val_size > 0
        if config.model.target == MODEL3:
            model2 = replace(config.model, name="model2", target=MODEL2)
            one.as_model2[key] = fingerprint(replace(config, model=model2))
        self.join(one)

    def join(self, later: Trials) -> None:
        """Add the trials of points that come later in the sweep."""
        for key, planned in later.planned.items():
            twin = self.planned.setdefault(key, planned)
            if twin is not planned:
                self.repeated.append((planned.name, twin.name))
        self.repeated += later.repeated
        self.kinds |= later.kinds
        self.as_model2 |= later.as_model2
        for kind, sample in later.samples.items():
            if len(self.samples) < MAX_KINDS:
                self.samples.setdefault(kind, sample)
        self.holdout = self.holdout and later.holdout


def check_points(
    arguments: Arguments, points: Iterable[Sequence[str]], composer: Composer
) -> Trials:
    """Compose and range-check every trial, on all cores where there are many; MLflow, which the
    sweep needs next, is imported meanwhile.

    Raises:
        UserError: naming the trial that is wrong, or that would be recorded in another place.
    """

    def settled(point: Sequence[str]) -> Config:
        try:
            composed = composer.compose(arguments.overrides(point))
            refuse_unread_experiment(composed)
            config = settle(composed)
        except UserError as error:
            trial = f"trial {title(point)}: " if point else ""
            raise UserError(f"{trial}{error}") from None
        if config.resume is not None:
            raise UserError(
                f"resume={config.resume} goes on with one run and has no place in a sweep; "
                "right: the same --multirun command again, which goes on with the whole sweep"
            )
        return config

    def check(part: Sequence[Sequence[str]]) -> tuple[Trials, set[str]]:
        trials = Trials()
        for point in part:
            config = settled(point)
            _insist_on_place(title(point), config, first)
            trials.add(point, config)
        return trials, secrets.READ

    every = list(points)
    first = settled(every[0])
    trials = Trials()
    importing = partial(import_mlflow, first)
    for later, variables in on_all_cores(check, every, POINTS_A_PROCESS, importing):
        secrets.READ.update(variables)
        trials.join(later)
    return trials


def _insist_on_place(name: str, config: Config, first: Config) -> None:
    """Refuse a trial that would be recorded in another place than the first one."""
    for key in ("output_dir", "tracking", "sweep"):
        if getattr(config, key) != getattr(first, key):
            raise UserError(
                f"trial {name} has another {key} than the first trial; right: the same "
                "for the whole sweep, on the command line"
            )


def corners(arguments: Arguments) -> list[tuple[str, ...]]:
    """Points that are checked before a search: each value or end of each axis once.

    The other axes are at their first value.
    """
    ends = [_ends(axis) for axis in arguments.axes]
    first = tuple(values[0] for values in ends)
    found = [first]
    for place, values in enumerate(ends):
        found += [(*first[:place], value, *first[place + 1 :]) for value in values[1:]]
    return found


def _ends(axis: Axis) -> list[str]:
    if axis.values:
        return [f"{axis.key}={value}" for value in axis.values]
    assert axis.span is not None
    low, high = axis.span.low, axis.span.high
    # An interval ends just below its upper end.
    last = high if axis.span.integer else low + (high - low) * ALMOST
    return [axis.override(low), axis.override(last)]
