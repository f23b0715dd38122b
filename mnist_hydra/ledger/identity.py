"""Which sweep a command belongs to: a hash of its name, or of its base configuration and its axes.

Pure functions: no store, no disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_hydra.config import has_no_effect, leaves
from mnist_hydra.errors import UserError
from mnist_hydra.ledger.plan import Axis

SWEEPER = "hydra/sweeper"
MAX_CHANGES = 5
"""Differences that an error names."""


def base_settings(master: DictConfig, kind: str) -> dict[str, str]:
    """The settings that all trials of a sweep share, by dotted name, as text.

    Interpolations are not resolved. Settings that change no result are left out.

    Args:
        master: the configuration composed without the axes.
        kind: `grid` or `search`; stands in the result under `hydra/sweeper`.
    """
    raw = OmegaConf.to_container(master, resolve=False)
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in leaves(raw)
        if not has_no_effect(name)
    }
    return {SWEEPER: kind} | texts


def identity_of(name: str | None, base: Mapping[str, str], axes: Sequence[Axis]) -> str:
    """The sweep's identity: 16 hexadecimal digits.

    With a name it follows from that alone, else from the base configuration and the axes. The order
    of axes and values does not count, nor does what the base holds at a swept key.
    """
    content: Any = ["name", name]
    if name is None:
        swept = sorted([_place(axis.key), sorted(axis.values), _span(axis)] for axis in axes)
        content = ["axes", _outside(base, [axis.key for axis in axes]), swept]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_same_base(
    name: str, old: Mapping[str, str], new: Mapping[str, str], swept: Iterable[str]
) -> None:
    """Check that a command has the base configuration of the sweep whose name it gives.

    Args:
        name: the sweep's name.
        old: base settings of the command that began the sweep.
        new: base settings of this command.
        swept: the keys of both sets of axes; what the bases hold there is not compared.
    Raises:
        UserError: the base settings differ; shows where.
    """
    keys = list(swept)
    before, after = _outside(old, keys), _outside(new, keys)
    changed = [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changed:
        more = f" and {len(changed) - MAX_CHANGES} more" if len(changed) > MAX_CHANGES else ""
        raise UserError(
            f"sweep.name={name} is taken by a sweep with another base configuration "
            f"({'; '.join(changed[:MAX_CHANGES])}{more}); right: that configuration, another "
            "sweep.name, or sweep.fresh=true to start over"
        )


def _place(key: str) -> str:
    """Where a key's value ends up: `db/engine` in `db.engine`, `model@teacher` in `teacher`."""
    return key.lstrip("+").split("@")[-1].replace("/", ".")


def _outside(settings: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    places = [_place(key) for key in keys]
    return {
        key: value
        for key, value in settings.items()
        if not any(key == place or key.startswith(place + ".") for place in places)
    }


def _span(axis: Axis) -> list[Any]:
    """Ends and scale of a continuous axis; the scale alone of a discrete one, if it is `log`."""
    if axis.span is None:
        return []
    if axis.values:
        return ["log"] if axis.span.log else []
    return [axis.span.low, axis.span.high, axis.span.integer, axis.span.log]
