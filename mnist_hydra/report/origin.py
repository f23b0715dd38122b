"""What made each trial: code, data, libraries, machine, command, and the split that selected it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mnist_hydra.report.results import Results, TrialRecord, trial_command
from mnist_hydra.tracking.provenance import COMMAND_TAG, COMMIT_TAG, DATA_TAG, DIRTY_TAG
from mnist_hydra.tracking.tracker import PARENT_TAG

SETTINGS = ("precision", "threads")
UNKNOWN = "not read"


def facts(record: TrialRecord, results: Results) -> dict[str, str]:
    """What is known about one trial, by what it is called."""
    tags = record.tags
    command = trial_command(record)
    if not tags:
        return {"commit": UNKNOWN, "command": command}
    if PARENT_TAG not in tags:  # else it is the sweep's command, or its worker's
        command = tags.get(COMMAND_TAG, command)
    commit = tags.get(COMMIT_TAG, "")
    dirty = " with uncommitted changes" if tags.get(DIRTY_TAG) == "true" else ""
    return {
        "selected on": "test set" if results.on_test_set else "hold-out (val)",
        "commit": commit + dirty or "unknown",
        "data SHA-256": tags.get(DATA_TAG, "unknown"),
        "versions": tags.get("versions", "unknown"),
        "hardware": ", ".join(
            [tags.get("device", "unknown")]
            + [f"{key} {record.params[key]}" for key in SETTINGS if key in record.params]
        ),
        "machine": tags.get("host", "unknown"),
        "command": command,
    }


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
