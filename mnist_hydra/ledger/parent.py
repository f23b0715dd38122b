"""A sweep's parent run: found again by the sweep's identity, or made exactly once.

The only thing that MLflow creates atomically is an experiment's name, even a deleted experiment's.
So each sweep has such a name: its experiment is deleted at once and only keeps the parent's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from mnist_hydra.errors import UserError
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.tracker import ENTRIES_SUFFIX, find_experiment, tag_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ENTRIES_NOTE = "The entries by which a sweep knows what is done. Without them it is begun anew."
TRIALS_PER_PAGE = 500
"""To read a page takes time and memory by its length, and there are several in a larger sweep."""
MAX_PAGES = 200
"""So many ids there is room for in a tag."""
REPORT = "report"
"""Folder of the parent's artifacts that holds the sweep's report."""


def find_parent(client: MlflowClient, experiment_id: str, identity: str) -> Run | None:
    """The newest parent of a sweep; `None` if there is none, or all were deleted.

    Args:
        identity: of the sweep: letters, digits and `_ . -` only.
    Raises:
        UserError: an earlier version of this program made it.
    """
    newest = _newest(client, experiment_id, identity)
    return None if newest is None else _checked(newest)


def existing_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run with that id; `None` if it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run: Run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if run.info.lifecycle_stage == "deleted" else run


def elect_parent(
    client: MlflowClient,
    experiment_id: str,
    identity: str,
    *,
    name: str,
    tags: Mapping[str, str],
    trials: int = 1,
    anew: bool = False,
) -> Run:
    """Find a sweep's parent or make it; processes that ask at the same time get the same one.

    A parent that was deleted in MLflow, even for good, counts as never made.

    Args:
        name: the run's name if it is made.
        tags: of the run if it is made.
        trials: about how many the sweep has.
        anew: ignore the parents that there are, and make another (`sweep.fresh=true`).
    Raises:
        UserError: as `find_parent`, or the sweep's experiment was renamed in MLflow.
    """
    newest = _newest(client, experiment_id, identity)
    if newest is not None and not anew:
        return _checked(newest)
    generation = _generation(newest) + 1 if newest is not None else 0
    while True:
        run = _elect(client, experiment_id, identity, generation, name, tags, trials)
        if run is None or (anew and tag.ENTRIES not in run.data.tags):
            pass  # deleted, or of an earlier version: try the next generation
        elif run.info.experiment_id == experiment_id:
            return _checked(run)
        elif not anew:
            there = client.get_experiment(run.info.experiment_id).name
            raise UserError(
                f"this sweep (run {run.info.run_id}) is in the experiment {there}, which had "
                f"another name when it began; right: tracking.experiment_name={there} to go on "
                "with it, or sweep.fresh=true to begin it anew"
            )
        generation += 1


def pages_of(parent: Run) -> tuple[str, list[str]]:
    """The experiment and the ids of the runs whose parameters are a parent's entries.

    Raises:
        UserError: it has none: an earlier version of this program made it.
    """
    text = parent.data.tags.get(tag.ENTRIES)
    if text is None:
        raise UserError(
            f"this sweep (run {parent.info.run_id}) was begun by an earlier version of "
            "mnist_hydra, which kept its trials in another form; right: sweep.fresh=true to start "
            "over beside it, or another sweep.name"
        )
    experiment_id, _, run_ids = text.partition("/")
    return experiment_id, run_ids.split(",")


def _elect(
    client: MlflowClient,
    experiment_id: str,
    identity: str,
    generation: int,
    name: str,
    tags: Mapping[str, str],
    trials: int,
) -> Run | None:
    """One generation's parent; `None` if that was deleted."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment(experiment_id).name
    register = f"{experiment}.sweep.{identity}.{generation}"
    mine: list[str] = []

    def make_run(where: str, tags: dict[str, str]) -> str:
        run = client.create_run(where, tags=tag.fitting(tags), run_name=tag.run_name(name))
        mine.append(str(run.info.run_id))
        return mine[-1]

    if client.get_experiment_by_name(register) is None:
        count = min(-(-trials // TRIALS_PER_PAGE), MAX_PAGES)
        try:
            entries_in = str(find_experiment(client, experiment + ENTRIES_SUFFIX).experiment_id)
            for _ in range(count):  # they measure no time, so they are closed at once
                client.set_terminated(make_run(entries_in, {tag.NOTE: ENTRIES_NOTE}))
            entries = {tag.ENTRIES: f"{entries_in}/{','.join(mine)}"}
            parent = make_run(experiment_id, {**tags, **entries})
            client.create_experiment(register, tags={tag.ELECTED: parent})
        except BaseException as error:  # noqa: B036  Ctrl-C leaves none of them behind, either
            code = error.error_code if isinstance(error, MlflowException) else None
            if code != "RESOURCE_ALREADY_EXISTS":
                with suppress(MlflowException):
                    _delete(client, mine)
                raise
    held = client.get_experiment_by_name(register)
    assert held is not None
    if held.lifecycle_stage != "deleted":
        with suppress(MlflowException):  # another process was faster
            client.delete_experiment(held.experiment_id)
    elected = held.tags[tag.ELECTED]
    if elected not in mine:
        _delete(client, mine)
    run = existing_run(client, elected)
    if run is not None and tag.SWEEP not in run.data.tags:
        # Only the elected run gets the tag by which a parent is found.
        official = {tag.SWEEP: identity, tag.GENERATION: str(generation)}
        tag_run(client, elected, official)
        run = client.get_run(elected)
    return run


def _delete(client: MlflowClient, run_ids: list[str]) -> None:
    for run_id in run_ids:
        client.delete_run(run_id)


def _newest(client: MlflowClient, experiment_id: str, identity: str) -> Run | None:
    runs = client.search_runs([experiment_id], f"tags.`{tag.SWEEP}` = '{identity}'")
    return max(runs, key=_generation, default=None)


def _generation(run: Run) -> int:
    return int(run.data.tags[tag.GENERATION])


def _checked(parent: Run) -> Run:
    """The same run, unless an earlier version made it."""
    pages_of(parent)
    return parent
