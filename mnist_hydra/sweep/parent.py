"""A sweep's parent run: found again by the sweep's identity, or made exactly once.

MLflow has one atomic create, an experiment's name, also of a deleted experiment. So a name stands
for each sweep, held by an experiment that is deleted at once and only remembers the parent's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnist_hydra.sweep.trial import GENERATION_TAG, OWN, SWEEP_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ELECTED_TAG = OWN + "parent"


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
    """
    runs = client.search_runs([experiment_id], f"tags.`{SWEEP_TAG}` = '{identity}'")
    found = [_parent(run) for run in runs]
    return max(found, key=lambda parent: parent.generation, default=None)


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

    A parent that was deleted in MLflow counts as never made.

    Args:
        name: the run's name if it is made.
        tags: of the run if it is made.
        fresh: pass over the parents that there are.
    """
    newest = find_parent(client, experiment_id, identity)
    if newest is not None and not fresh:
        return newest
    generation = newest.generation + 1 if newest is not None else 0
    while True:
        elected = _elect(client, experiment_id, identity, generation, name, tags)
        if elected is not None:
            return elected
        generation += 1


def _elect(
    client: MlflowClient,
    experiment_id: str,
    identity: str,
    generation: int,
    name: str,
    tags: Mapping[str, str],
) -> Parent | None:
    """The parent of one generation; `None` if that was deleted."""
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    register = f"{client.get_experiment(experiment_id).name}.sweep.{identity}.{generation}"
    mine = None
    if client.get_experiment_by_name(register) is None:
        mine = client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id
        try:
            client.create_experiment(register, tags={ELECTED_TAG: mine})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                client.delete_run(mine)
                raise
    held = client.get_experiment_by_name(register)
    assert held is not None
    if held.lifecycle_stage != "deleted":
        try:
            client.delete_experiment(held.experiment_id)
        except MlflowException:  # another process was faster
            pass
    elected = held.tags[ELECTED_TAG]
    if mine is not None and mine != elected:
        client.delete_run(mine)
    run = client.get_run(elected)
    if run.info.lifecycle_stage == "deleted":
        return None
    if SWEEP_TAG not in run.data.tags:
        # Only now can it be found: a candidate that lost never could.
        official = {SWEEP_TAG: identity, GENERATION_TAG: str(generation)}
        client.log_batch(elected, tags=[RunTag(key, value) for key, value in official.items()])
        run = client.get_run(elected)
    return _parent(run, made_now=mine == elected)


def _parent(run: Run, made_now: bool = False) -> Parent:
    tags = dict(run.data.tags)
    return Parent(run.info.run_id, int(tags[GENERATION_TAG]), tags, made_now)
