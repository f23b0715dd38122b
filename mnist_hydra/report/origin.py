"""What made each trial: code, data, libraries, machine, command, and the split that selected it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mnist_hydra.report.read import Entry
from mnist_hydra.report.results import Results, trial_command
from mnist_hydra.tracking.provenance import COMMAND_TAG, COMMIT_TAG, DATA_TAG, DIRTY_TAG
from mnist_hydra.tracking.tracker import PARENT_TAG

SETTINGS = ("precision", "threads")
UNKNOWN = "not read"


def facts(entry: Entry, results: Results) -> dict[str, str]:
    """What is known about one trial, by what it is called."""
    tags = entry.tags
    command = trial_command(entry.record)
    if not tags:
        return {"commit": UNKNOWN, "command": command}
    if PARENT_TAG not in tags:  # else it is the sweep's command, or its worker's
        command = tags.get(COMMAND_TAG, command)
    commit = tags.get(COMMIT_TAG, "")
    dirty = " with uncommitted changes" if tags.get(DIRTY_TAG) == "true" else ""
    found = {
        "selected on": "test set" if results.on_test_set else "hold-out (val)",
        "commit": commit + dirty or "unknown",
        "data SHA-256": tags.get(DATA_TAG, "unknown"),
        "versions": tags.get("versions", "unknown"),
        "hardware": ", ".join(
            [tags.get("device", "unknown")]
            + [f"{key} {entry.params[key]}" for key in SETTINGS if key in entry.params]
        ),
        "machine": tags.get("host", "unknown"),
        "command": command,
    }
    return found


def shared(rows: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Facts that all rows have in common, and the names of those that differ."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    common, differing = {}, []
    for name in names:
        values = {row.get(name, "") for row in rows}
        if len(values) == 1:
            common[name] = values.pop()
        else:
            differing.append(name)
    return common, differing
