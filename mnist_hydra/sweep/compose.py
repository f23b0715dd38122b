"""Composes a sweep's trials fast: once per combination of group choices, then value by value.

What comes out is what Hydra itself would hand to the trial; it never decides which trials there
are, and it reads Hydra's own configuration sources only.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Sequence
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

from mnist_hydra.errors import UserError

MAX_KEPT = 512
"""Combinations of group choices that are remembered; about 6 KB each."""


class Composer:
    """Composes trials from the configuration sources of one Hydra application.

    Args:
        loader: Hydra's configuration loader; it knows the search path, `--config-dir` included.
        config_name: the root configuration's name.
        hydra_overrides: the overrides of Hydra's own settings, `hydra.searchpath` among them.
        resolved: a configuration whose resolver results (`now:`) count for every trial.
    """

    def __init__(
        self,
        loader: ConfigLoaderImpl,
        config_name: str | None,
        hydra_overrides: Sequence[str] = (),
        resolved: DictConfig | None = None,
    ) -> None:
        self._loader = loader
        self._config_name = config_name
        self._hydra_overrides = list(hydra_overrides)
        self._resolved = resolved
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._composed: dict[tuple[str, ...], bytes] = {}
        self._before: tuple[str, ...] = ()
        self._stem_of: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._frozen_stem = b""
        # Hydra's own view of the sources, extra search paths included.
        _, self._repository = loader._parse_overrides_and_create_caching_repo(
            config_name, self._hydra_overrides
        )
        self._is_group: dict[str, bool] = {}
        self._independent: dict[tuple[str, ...], bool] = {}

    @classmethod
    def of_master(cls, loader: ConfigLoaderImpl, master: DictConfig) -> Composer:
        """The composer of a sweeper, from the configuration that Hydra gave it."""
        hydra_overrides = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)
        name = master.hydra.job.config_name
        return cls(loader, name, cast(list[str], hydra_overrides), resolved=master)

    @classmethod
    def here(cls) -> Composer:
        """The composer of a job that Hydra is running, in whichever process a launcher put it."""
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        return cls.of_master(loader, cast(DictConfig, HydraConfig.instance().cfg))

    def options(self, group: str) -> list[str]:
        """The entries of a config group; none where there is no such group."""
        return self._repository.get_group_options(group, results_filter=ObjectType.CONFIG)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one trial, without Hydra's own node.

        Args:
            overrides: all of the trial's overrides, in the order of the command line.
        Raises:
            UserError: with Hydra's message, where Hydra would refuse the overrides.
        """
        try:
            groups = tuple(text for text in overrides if not self._sets_value(text))
            values = tuple(text for text in overrides if self._sets_value(text))
            # What neighbouring points share is applied once.
            if self._are_independent(values):
                values = tuple(sorted(values, key=lambda text: text not in self._before))
            shared = len(os.path.commonprefix([values, self._before]))
            self._before = values
            cfg = _thawed(self._stem(groups, values[:shared]))
            self._apply(values[shared:], cfg)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise _refused(error) from None
        return cfg

    def base(self, overrides: Sequence[str]) -> DictConfig:
        """What all trials have in common: a group that only an axis chooses may be missing.

        Raises:
            UserError: with Hydra's message, where Hydra would refuse the overrides.
        """
        try:
            return self._loader.load_configuration(
                self._config_name,
                overrides=[*self._hydra_overrides, *overrides],
                run_mode=RunMode.MULTIRUN,
            )
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise _refused(error) from None

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_overrides([text])[0]
        return self._parsed[text]

    def _sets_value(self, text: str) -> bool:
        """Whether Hydra applies the override after composition, and not in the defaults list."""
        override = self._parse(text)
        group = override.key_or_group
        if group not in self._is_group:
            self._is_group[group] = self._repository.group_exists(group)
        return not self._is_group[group] or isinstance(override.value(), dict)

    def _are_independent(self, values: Sequence[str]) -> bool:
        """Whether the order in which they are applied makes no difference."""
        keys = tuple(self._parse(text).key_or_group for text in values)
        if keys not in self._independent:
            self._independent[keys] = not any(
                f"{other}.".startswith(f"{key}.") for key, other in itertools.permutations(keys, 2)
            )
        return self._independent[keys]

    def _apply(self, values: Sequence[str], cfg: DictConfig) -> None:
        ConfigLoaderImpl._apply_overrides_to_config([self._parse(text) for text in values], cfg)

    def _stem(self, groups: tuple[str, ...], values: tuple[str, ...]) -> bytes:
        if not values:
            return self._of_groups(groups)
        if self._stem_of != (groups, values):
            cfg = _thawed(self._of_groups(groups))
            self._apply(values, cfg)
            self._stem_of, self._frozen_stem = (groups, values), pickle.dumps(cfg)
        return self._frozen_stem

    def _of_groups(self, groups: tuple[str, ...]) -> bytes:
        if groups not in self._composed:
            cfg = self._loader.load_configuration(
                self._config_name,
                overrides=[*self._hydra_overrides, *groups],
                run_mode=RunMode.RUN,
            )
            if self._resolved is not None:
                OmegaConf.copy_cache(from_config=self._resolved, to_config=cfg)
            with flag_override(cfg, ["struct", "readonly"], [False, False]):
                del cfg["hydra"]
            if len(self._composed) >= MAX_KEPT:
                self._composed.pop(next(iter(self._composed)))
            self._composed[groups] = pickle.dumps(cfg)
        return self._composed[groups]


def _thawed(frozen: bytes) -> DictConfig:
    """A configuration of one's own; unpickling is eight times as fast as a deep copy."""
    copied: Any = pickle.loads(frozen)
    return cast(DictConfig, copied)


def _refused(error: Exception) -> UserError:
    """Hydra's words in one line."""
    return UserError(" ".join(f"{error} {error.__cause__ or ''}".split()))
