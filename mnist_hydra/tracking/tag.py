"""The names of all tags by which this program marks runs and experiments in MLflow.

Those that begin with `mlflow.` are hidden by MLflow's pages: they are for programs, the others for
people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HIDDEN = "mlflow.mnist_hydra."

# On every run: what it is, and what made it.
FINGERPRINT = HIDDEN + "fingerprint"
OVERRIDES = HIDDEN + "overrides"
FLAGS = HIDDEN + "flags"
"""Of a single run Hydra's own, by which another command finds the same configuration files; of a
trial its sweep's plan has them.
"""
KEY = HIDDEN + "key"
"""A run's own name in this program, by which it is found where MLflow's id was not known yet."""
CHECKPOINT = HIDDEN + "checkpoint"
COMMAND = "command"
COMMIT = "mlflow.source.git.commit"
DIRTY = HIDDEN + "git_dirty"
VERSION = HIDDEN + "version"
DATA = HIDDEN + "data_sha256"
OWN_CODE = HIDDEN + "own_code"
ORIGIN = (COMMIT, DIRTY, VERSION, DATA, OWN_CODE)
"""Runs that differ in one of these were made by other code or from other data."""

# On a sweep's trial.
PARENT = "mlflow.parentRunId"
HEARTBEAT = HIDDEN + "heartbeat"
CREATOR = HIDDEN + "creator"
STATE = "state"
ERROR = "error"

# On a sweep's parent run.
SWEEP = HIDDEN + "sweep"
"""The sweep's identity."""
GENERATION = HIDDEN + "generation"
ENTRIES = HIDDEN + "book"
"""The experiment and, with commas, the ids of the runs that hold the entries."""
BASE = HIDDEN + "base/"
AXES = HIDDEN + "axes"
OBJECTIVE = "objective"
OBJECTIVE_AT = HIDDEN + "objective_at"
BEST = "best"
TOLD = HIDDEN + "told"
"""A hash of the trials and the ranking that the sweep's description is made of, and whether its
report is, too; see `sweep.ending.digest_of`.
"""
NOTE = "mlflow.note.content"
"""A run's description, which MLflow shows as Markdown."""

# On an experiment.
ELECTED = "mnist_hydra.parent"
VIEW = "mlflow.sharedViewState."
"""With a name behind it: a view of the list of runs that MLflow opens by name."""

MAX_NAME, MAX_VALUE = 250, 8_000
"""Characters that MLflow has room for in the name of a run, and in a tag."""


def run_name(text: str) -> str:
    """A text as a run's name, shortened where it is too long for one."""
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "..."


def fitting(tags: Mapping[str, str]) -> dict[str, str]:
    """The same tags, shortened where they are too long: MLflow does not do so for a new run."""
    return {key: text[:MAX_VALUE] for key, text in tags.items()}


def lines(words: Sequence[str]) -> str:
    """Words as the value of a tag, each on a line of its own; `read_lines` reads it."""
    return "".join(f"{word}\n" for word in words)


def read_lines(text: str) -> list[str]:
    """The words that `lines` wrote; none of nothing."""
    return text.rstrip("\n").split("\n") if text else []
