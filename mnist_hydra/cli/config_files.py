"""What a configuration file may ask of Hydra, which acts on it before this program does.

A command line is its user's own. A file may come from anywhere: it chooses sweepers and launchers,
and sets no callbacks, log handlers, environment variables, search paths or folders of Hydra's.
Nor does it name modules to trust.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra._internal.hydra as hydra_main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import (
    CachingConfigRepository,
    ConfigRepository,
    IConfigRepository,
)
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_hydra.errors import in_one_line, shown

PLUGINS = "hydra_plugins.mnist_hydra."
AS_OURS = {
    "hydra.run.dir": ".",
    "hydra.sweep.dir": ".",
    "hydra.sweep.subdir": ".",
    "hydra.output_subdir": None,
    "hydra.job.name": "mnist_hydra",
}
"""Hydra's settings in conf/config.yaml, by which it writes no files; any file may repeat them."""
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.launcher.folder")
BELOW_OUTPUT_DIR = r"\$\{output_dir\}(/(?!\.\.?(/|$))[\w.-]+)+"
OF_SLURM = ("slurm_account", "slurm_qos", "slurm_constraint", "slurm_gres", "slurm_reservation")
"""submitit's settings that run nothing; some of its others are commands."""


class TextRepository(ConfigRepository):
    """Hydra's configuration files; one that is no text, or would not be read, is named."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """As Hydra's, but for a file that is no text, which is an error of Hydra's own, and one
        behind another of its name, which Hydra would not read.
        """
        try:
            self._insist_on_one(config_path)
            return super().load_config(config_path)
        except UnicodeDecodeError as error:
            folder = next(one.path for one in self.sources if one.is_config(config_path))
            raise ConfigCompositionException(
                f"{folder}/{config_path.removesuffix('.yaml')}.yaml is no text in UTF-8 ({error}); "
                "right: save it as UTF-8"
            ) from None

    def _insist_on_one(self, config_path: str) -> None:
        there = [one for one in self.sources if one.is_config(config_path)]
        for file in (one for one in there[1:] if one.scheme() == "file"):  # the only ones of a user
            first = there[0]
            if file.load_config(config_path).config != first.load_config(config_path).config:
                raise ConfigCompositionException(
                    f"{file.path}/{config_path.removesuffix('.yaml')}.yaml would not be read, "
                    f"since {first.scheme()}://{first.path} has another one of that name; right: "
                    "a name of its own"
                )


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader of configurations, which judges every file before its content counts."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = TextRepository(config_search_path)

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        """As Hydra's, but all that may go wrong is an error of Hydra's own.

        YAML that is none, `model=null` and the like are others' in Hydra.
        """
        try:
            return super().load_configuration(config_name, overrides, *args, **kwargs)
        except (HydraException, OmegaConfBaseException):
            raise
        except Exception as error:
            given = [word for word in overrides if not word.startswith("hydra.mode=")]
            for override in OverridesParser.create().parse_overrides(given):
                is_group = self.repository.group_exists(override.key_or_group)
                if is_group and not isinstance(override.value(), str | list):
                    raise ConfigCompositionException(
                        f"{override.input_line} names no entry of a group; right: an entry's name, "
                        "or without it"
                    ) from None
            raise ConfigCompositionException(
                f"{in_one_line(error)}; right: other files or words than {shown(' '.join(given))}"
            ) from None

    def _process_config_searchpath(
        self,
        config_name: str | None,
        parsed_overrides: list[Override],
        repo: CachingConfigRepository,
    ) -> None:
        """Hydra reads the search path before anything else, and imports what it names."""
        primary = None if config_name is None else repo.load_config(config_name)
        if primary is not None and isinstance(primary.config, DictConfig):
            _judge(primary, OmegaConf.masked_copy(primary.config, "hydra"))
        super()._process_config_searchpath(config_name, parsed_overrides, repo)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """A file's content where its package puts it."""
        result = super()._load_single_config(default, repo)
        _judge(result, result.config)
        return result


def check_files() -> None:
    """Have Hydra load configurations through `CheckedLoader` from now on."""
    vars(hydra_main)["ConfigLoaderImpl"] = CheckedLoader


def refused_settings(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """What a file's content may not set: each such key with its value.

    Args:
        content: by root key, with interpolations as they are written.
    """
    if content.get("trusted") not in (None, []):
        yield "trusted", content["trusted"]
    hydra = content.get("hydra", {})
    if not isinstance(hydra, Mapping):
        yield "hydra", hydra
        return
    for key, value in hydra.items():
        if key in ("sweeper", "launcher", "run", "sweep", "job") and isinstance(value, Mapping):
            for inner, one in value.items():
                if not _may_set(f"hydra.{key}.{inner}", one):
                    yield f"hydra.{key}.{inner}", one
        elif not _may_set(f"hydra.{key}", value):
            yield f"hydra.{key}", value


def _may_set(key: str, value: Any) -> bool:
    """Whether a file may set one of Hydra's own settings."""
    if key in AS_OURS and value == AS_OURS[key]:
        return True
    if key in FOLDERS:
        return isinstance(value, str) and re.fullmatch(BELOW_OUTPUT_DIR, value) is not None
    if key == "hydra.mode":
        return value in (None, "RUN", "MULTIRUN")
    if key in ("hydra.sweeper._target_", "hydra.launcher._target_"):
        return isinstance(value, str) and value.startswith(PLUGINS)
    if key == "hydra.sweeper.params":  # each of them becomes a word of the trials' command lines
        axes = value.items() if isinstance(value, Mapping) else [("", value)]
        return value is None or all(_may_sweep(axis, values) for axis, values in axes)
    if key.startswith("hydra.launcher."):
        name = key.rpartition(".")[2]
        known = _launcher_settings()
        if name == "address" or name not in (*known, *OF_SLURM):
            return value is None and name in known
        return _is_plain(value) or value in known.get(name, [])
    return False


def _may_sweep(key: Any, values: Any) -> bool:
    """Whether a file may bring an axis: Hydra makes objects of what is more than plain values."""
    place = re.fullmatch(r"\+{0,2}([A-Za-z][\w.@/:-]*)", str(key))
    if place is None or re.split(r"[.@/:]", place[1])[0] in ("hydra", "trusted"):
        return False
    return all(map(_is_plain, values if isinstance(values, list) else [values]))


def _is_plain(value: Any) -> bool:
    """Whether it is one value, which refers to no other."""
    if isinstance(value, str):
        return value.isprintable() and "${" not in value
    return value is None or isinstance(value, bool | int | float)


def _judge(result: ConfigResult, config: Container) -> None:
    """Judge what a file holds; what was installed with a package is a part of the program."""
    if not result.path.startswith("file://"):
        return
    content = OmegaConf.to_container(config, resolve=False)
    for key, value in refused_settings(content) if isinstance(content, dict) else ():
        raise ConfigCompositionException(
            f"{key}={shown(value)} stands in a configuration file below "
            f"{result.path.removeprefix('file://')}; right: on the command line, if it is yours"
        )


@cache
def _launcher_settings() -> dict[str, list[Any]]:
    """The settings of this project's launchers, with the values that their files give them."""
    known: dict[str, list[Any]] = {}
    conf = importlib.import_module("mnist_hydra.conf")
    folder = Path(str(conf.__file__)).parent / "hydra" / "launcher"
    for file in folder.glob("*.yaml"):
        entry = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        for key, value in entry.items() if isinstance(entry, dict) else ():
            known.setdefault(str(key), []).append(value)
    return known
