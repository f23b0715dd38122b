"""A sweep's parent run: found again by the sweep's identity, or made exactly once.

MLflow has one atomic create, an experiment's name, also of a deleted experiment. So a name stands
for each sweep, held by an experiment that is deleted at once and only remembers the parent's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnist_hydra.errors import UserError
from mnist_hydra.tracking.provenance import HIDDEN
from mnist_hydra.tracking.tracker import find_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SWEEP_TAG = HIDDEN + "sweep"
GENERATION_TAG = HIDDEN + "generation"
OBJECTIVE_TAG = "objective"
ELECTED_TAG = "mnist_hydra.parent"
BOOK_TAG = HIDDEN + "book"
"""On the parent: experiment and id of the run that holds the sweep's entries."""
REPORT = "report"
"""Folder of its artifacts that holds the report of the sweep."""
BOOKS = ".ledger"
"""What the experiment of those runs is called behind the name of the sweep's own."""


@dataclass(frozen=True)
class Book:
    """The run of bookkeeping whose parameters are a sweep's entries."""

    experiment_id: str
    run_id: str


@dataclass(frozen=True)
class Parent:
    """A sweep's MLflow run."""

    run_id: str
    generation: int
    """How often the sweep was started over."""
    tags: Mapping[str, str]
    made_now: bool = False
    """Whether this very call made it."""


def find_parent(client: MlflowClient, experiment_id: str, identity: str) -> Parent | None:
    """The newest parent of a sweep, `None` if it has none that is not deleted.

    Args:
        identity: of the sweep: letters, digits and `_ . -` only.
    Raises:
        UserError: an earlier version of this program made it.
    """
    newest = _newest(client, experiment_id, identity)
    return None if newest is None else _parent(newest)


def existing_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run of that id; `None` if it was deleted, for good or not."""
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
    fresh: bool = False,
) -> Parent:
    """Find a sweep's parent or make it; processes that do so at once all get the same one.

    A parent that was deleted in MLflow, for good or not, counts as never made.

    Args:
        name: the run's name if it is made.
        tags: of the run if it is made.
        fresh: pass over the parents that there are.
    Raises:
        UserError: as `find_parent`, or the sweep's experiment was renamed in MLflow.
    """
    newest = _newest(client, experiment_id, identity)
    if newest is not None and not fresh:
        return _parent(newest)
    generation = _generation(newest) + 1 if newest is not None else 0
    while True:
        run, made_now = _elect(client, experiment_id, identity, generation, name, tags)
        if run is not None and fresh and BOOK_TAG not in run.data.tags:
            pass  # an earlier version's
        elif run is not None and run.info.experiment_id == experiment_id:
            return _parent(run, made_now)
        elif run is not None and not fresh:
            there = client.get_experiment(run.info.experiment_id).name
            raise UserError(
                f"this sweep (run {run.info.run_id}) is in the experiment {there}, which had "
                f"another name when it began; right: tracking.experiment_name={there} to go on "
                "with it, or sweep.fresh=true to begin it anew"
            )
        generation += 1


def book_of(parent: Run) -> Book:
    """Where a parent's entries are.

    Raises:
        UserError: it has none: an earlier version of this program made it.
    """
    text = parent.data.tags.get(BOOK_TAG)
    if text is None:
        raise UserError(
            f"this sweep (run {parent.info.run_id}) was begun by an earlier version of "
            "mnist_hydra, which kept its trials in another form; right: sweep.fresh=true to start "
            "over beside it, or another sweep.name"
        )
    experiment_id, _, run_id = text.partition("/")
    return Book(experiment_id, run_id)


def _elect(
    client: MlflowClient,
    experiment_id: str,
    identity: str,
    generation: int,
    name: str,
    tags: Mapping[str, str],
) -> tuple[Run | None, bool]:
    """The parent of one generation, `None` if that was deleted; and whether it was made now."""
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment(experiment_id).name
    register = f"{experiment}.sweep.{identity}.{generation}"
    mine: list[str] = []
    if client.get_experiment_by_name(register) is None:
        book = _make_book(client, experiment, name)
        tags = {**tags, BOOK_TAG: f"{book.experiment_id}/{book.run_id}"}
        parent = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        mine = [parent, book.run_id]
        try:
            client.create_experiment(register, tags={ELECTED_TAG: parent})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                _delete(client, mine)
                raise
    held = client.get_experiment_by_name(register)
    assert held is not None
    if held.lifecycle_stage != "deleted":
        try:
            client.delete_experiment(held.experiment_id)
        except MlflowException:  # another process was faster
            pass
    elected = held.tags[ELECTED_TAG]
    if elected not in mine:
        _delete(client, mine)
    run = existing_run(client, elected)
    if run is not None and SWEEP_TAG not in run.data.tags:
        # Only now can it be found: a candidate that lost never could.
        official = {SWEEP_TAG: identity, GENERATION_TAG: str(generation)}
        client.log_batch(elected, tags=[RunTag(key, value) for key, value in official.items()])
        run = client.get_run(elected)
    return run, elected in mine


def _make_book(client: MlflowClient, experiment: str, name: str) -> Book:
    """A new run of bookkeeping; it has no time of its own, so it is closed at once."""
    note = "The entries by which a sweep knows what is done. Without them it is begun anew."
    books = str(find_experiment(client, experiment + BOOKS).experiment_id)
    run = client.create_run(books, tags={"mlflow.note.content": note}, run_name=name)
    client.set_terminated(run.info.run_id)
    return Book(books, run.info.run_id)


def _delete(client: MlflowClient, run_ids: list[str]) -> None:
    for run_id in run_ids:
        client.delete_run(run_id)


def _newest(client: MlflowClient, experiment_id: str, identity: str) -> Run | None:
    runs = client.search_runs([experiment_id], f"tags.`{SWEEP_TAG}` = '{identity}'")
    return max(runs, key=_generation, default=None)


def _generation(run: Run) -> int:
    return int(run.data.tags[GENERATION_TAG])


def _parent(run: Run, made_now: bool = False) -> Parent:
    book_of(run)
    return Parent(run.info.run_id, _generation(run), dict(run.data.tags), made_now)
