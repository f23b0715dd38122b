"""Where a command meets its sweep in MLflow: looks for the parent run, makes it, describes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from mnist_hydra.sweep import identity
from mnist_hydra.sweep.command import Command
from mnist_hydra.sweep.ledger import Ledger, View
from mnist_hydra.sweep.parent import Parent, elect_parent, find_parent
from mnist_hydra.sweep.plan import plan_file
from mnist_hydra.tracking import PREFIX, Tracker, provenance

BASE_TAG = "mlflow.mnist_hydra.base/"
AXES_TAG = PREFIX + "axes"
OBJECTIVE_TAG = PREFIX + "objective"
PART = 4_000
"""Characters of a tag that every MLflow store keeps."""


def look(command: Command, tracker: Tracker) -> tuple[Parent, View] | None:
    """The command's sweep as it is in MLflow; `None` if it has not been begun.

    Raises:
        UserError: the sweep's name is taken by a sweep with another base configuration.
    """
    if command.settings.fresh:
        return None
    parent = find_parent(tracker.client, tracker.experiment_id, command.identity)
    if parent is None:
        return None
    _check_base(command, parent)
    return parent, ledger_of(tracker, parent).read()


def enter(command: Command, tracker: Tracker) -> Parent:
    """The command's sweep in MLflow, begun now if it was not.

    Raises:
        UserError: as `look`.
    """
    mine = {axis.key: axis.text for axis in command.arguments.axes}
    base = json.dumps(dict(command.base), sort_keys=True)
    parts = {f"{BASE_TAG}{n}": part for n, part in enumerate(_parts(base))}
    about = {AXES_TAG: json.dumps(mine)[:PART], OBJECTIVE_TAG: command.objective}
    parent = elect_parent(
        tracker.client,
        tracker.experiment_id,
        command.identity,
        name=command.settings.name or "sweep over " + ", ".join(mine),
        tags=provenance() | parts | about,
        fresh=command.settings.fresh,
    )
    if not parent.made_now:
        _check_base(command, parent)
        about[AXES_TAG] = json.dumps({**_axes(parent), **mine})[:PART]
        tracker.set_tags(parent.run_id, about)
        tracker.reopen(parent.run_id)
    return parent


def write_plan(command: Command, tracker: Tracker, parent: Parent, by: str) -> None:
    """Put the plan where the command's workers find it.

    Args:
        by: the command's sweeper.
    """
    tracker.log_text(parent.run_id, command.plan().text(), plan_file(by))


def ledger_of(tracker: Tracker, parent: Parent) -> Ledger:
    """A ledger of its own, since one must not be shared between threads."""
    return Ledger(tracker.client, parent.run_id)


def _check_base(command: Command, parent: Parent) -> None:
    """Without a name the base is part of the identity, so there is nothing to check."""
    if command.settings.name is None:
        return
    swept = _axes(parent).keys() | {axis.key for axis in command.arguments.axes}
    identity.check_same_base(command.settings.name, _base(parent), command.base, swept)


def _parts(text: str) -> Iterable[str]:
    return (text[start : start + PART] for start in range(0, len(text), PART))


def _base(parent: Parent) -> dict[str, str]:
    parts = [key for key in parent.tags if key.startswith(BASE_TAG)]
    in_order = sorted(parts, key=lambda key: int(key.removeprefix(BASE_TAG)))
    settings: dict[str, str] = json.loads("".join(parent.tags[key] for key in in_order) or "{}")
    return settings


def _axes(parent: Parent) -> Mapping[str, str]:
    """The axes of all commands of the sweep so far, by key."""
    try:
        axes: dict[str, str] = json.loads(parent.tags.get(AXES_TAG, "{}"))
    except json.JSONDecodeError:  # cut off: too long for a tag
        return {}
    return axes
