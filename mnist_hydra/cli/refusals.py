"""What Hydra refuses, in one line with the nearest name that there is."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from mnist_hydra.errors import UserError, did_you_mean

REFUSALS = (HydraException, OmegaConfBaseException, YAMLError)
"""What Hydra raises for a command line or a configuration file that cannot be composed."""
CONF = "mnist_hydra.conf"
MAX_SHOWN = 400


def refused(error: Exception) -> UserError:
    """Hydra's words in one line, with the names that are nearest to the one that it does not know.

    Args:
        error: one of `REFUSALS`.
    """
    if isinstance(error, MissingConfigException) and error.options:
        first = str(error).splitlines()[0]
        entry = str(error.missing_cfg_file).rpartition("/")[2]
        near = did_you_mean(entry, error.options)
        return UserError(f"{first}{near}; right: one of {', '.join(error.options)}")
    words = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        words = f"{error.override}: {words}"
    unknown = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", words)
    if unknown:
        near = did_you_mean(unknown[1], known_names())
        words = words.replace(f"'{unknown[1]}'", f"'{unknown[1]}'{near}", 1)
    else:
        cause = " ".join(str(error.__cause__ or "").split()).partition(" full_key: ")[0]
        words = f"{words} {cause}".strip()
    return UserError(words if len(words) <= MAX_SHOWN else words[:MAX_SHOWN] + "...")


def known_names() -> list[str]:
    """The keys of this project's own configuration, in all their dotted forms, and its groups."""
    names: set[str] = set()

    def collect(prefix: str, text: str) -> None:
        def walk(prefix: str, settings: Any) -> None:
            for key, value in settings.items() if isinstance(settings, dict) else ():
                names.add(f"{prefix}{key}")
                walk(f"{prefix}{key}.", value)

        walk(prefix, OmegaConf.to_container(OmegaConf.create(text)))

    root = files(CONF)
    collect("", root.joinpath("config.yaml").read_text(encoding="utf-8"))
    for group in root.iterdir():
        if group.is_dir() and group.name not in ("hydra", "experiment"):
            for entry in group.iterdir():
                if entry.name.endswith(".yaml"):
                    collect(f"{group.name}.", entry.read_text(encoding="utf-8"))
                    names.add(group.name)
    names |= {"experiment", "hydra/launcher", "hydra/sweeper"}
    return sorted(name for name in names if not name.endswith("_target_"))
