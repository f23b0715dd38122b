"""What Hydra refuses, in one line with the nearest name that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from mnist_hydra.cli.commands import override_value
from mnist_hydra.cli.help import CONF, OF_TRAIN, entries_of, groups_of
from mnist_hydra.errors import UserError, did_you_mean

REFUSALS = (HydraException, OmegaConfBaseException, YAMLError)
"""What Hydra raises for a command line or a configuration file that cannot be composed."""
MAX_SHOWN = 400
TAKE_MORE = ("model.", "optimizer.", "scheduler.", "aug.", "hydra.")
"""What takes keys that are not in its file; Hydra tells how to add one, wherever it is."""


def refused(error: Exception, name: str = "config", folders: Sequence[str] = ()) -> UserError:
    """Hydra's words in one line, with the names that are nearest to the one that it does not know.

    Args:
        error: one of `REFUSALS`.
        name: of the command's file in conf/.
        folders: of the user's own, laid out like conf/.
    """
    if isinstance(error, MissingConfigException) and error.options:
        first = str(error).splitlines()[0]
        entry = str(error.missing_cfg_file).rpartition("/")[2]
        near = did_you_mean(entry, error.options)
        return UserError(f"{first}{near}; right: one of {', '.join(error.options)}")
    words = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        words = f"{error.override}: {words.partition(' See https://hydra.cc')[0]}"
        if not _is_key(key):
            words += "; right: a key of the letters a to z, digits, _ and ."
        elif value:
            text = f"\"{key}='{value}'\""
            if set(value) & set("'\"\\$`"):  # which one cannot simply put quotes around
                text = shlex.quote(f"{key}={override_value(value)}")
            words += f"; right, if it is text: {text}"
    unknown = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", words)
    if unknown:
        known = known_names(name, folders)
        if words.startswith("Could not delete") and unknown[1] in known:  # so Hydra says of a null
            return UserError(f"~{unknown[1]} deletes what is null or not there; right: without it")
        entries = " and ".join(known.get(unknown[1], []))
        last = unknown[1].rpartition(".")[2]  # such as lr, of optimizer.lr
        near = f" (a key of {entries})" if entries else did_you_mean(unknown[1], known)
        if unknown[1] not in known and last in known:
            near = f" (did you mean {last}?)"
        if unknown[1] in known and not entries:
            near = " by keys that it does not have"
        words = words.replace(f"'{unknown[1]}'", f"'{unknown[1]}'{near}", 1)
        said, _, append = words.partition(". To append to your config use +")
        if entries and append:  # which would fail with the very entry that has it
            words = f"{said}; right: {entries.replace(' and ', ' or ')} with it"
            words += f", or ++{append} in a sweep over them" if " and " in entries else ""
        elif append and not f"{unknown[1]}.".startswith(TAKE_MORE):
            words = said if near else f"{said}; right: a key that --help shows"
    else:
        cause = " ".join(str(error.__cause__ or "").split()).partition(" full_key: ")[0]
        words = f"{words} {cause}".strip()
    return UserError(words if len(words) <= MAX_SHOWN else words[:MAX_SHOWN] + "...")


def _is_key(key: str) -> bool:
    """Whether what stands before a `=` can stand there."""
    try:
        OverridesParser.create().parse_overrides([f"{key}=1"])
    except OverrideParseException:
        return False
    return True


def known_names(command: str, folders: Sequence[str] = ()) -> dict[str, list[str]]:
    """The keys of a command's configuration, in all their dotted forms, and its groups.

    Each with the entries of a group that have it, such as `optimizer=adamw`.

    Args:
        command: the name of its file in conf/.
        folders: of the user's own, laid out like conf/; what is no YAML in them is left out.
    """
    names: dict[str, list[str]] = {}

    def collect(prefix: str, text: str, entries: list[str]) -> None:
        def walk(prefix: str, settings: Any) -> None:
            for key, value in settings.items() if isinstance(settings, dict) else ():
                if not str(key).startswith("_"):
                    names.setdefault(f"{prefix}{key}", []).extend(entries)
                    walk(f"{prefix}{key}.", value)

        with suppress(*REFUSALS, OSError):
            walk(prefix, OmegaConf.to_container(OmegaConf.create(text)))

    root = files(CONF)
    content = root.joinpath(f"{command}.yaml").read_text(encoding="utf-8")
    collect("", content, [])
    for group in groups_of(content) | (OF_TRAIN if command == "config" else {}):
        names.setdefault(group, [])
        of_group = {} if group == "experiment" else entries_of([root, *map(Path, folders)], group)
        for name, text in of_group.items():
            collect(f"{group.replace('/', '.')}.", text, [f"{group}={name}"])
    return names
