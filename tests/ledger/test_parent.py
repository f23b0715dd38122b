"""A sweep's parent run: made exactly once, found again, refused where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from mnist_hydra.errors import UserError
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.parent import elect_parent, find_parent
from mnist_hydra.tracking import tag
from tests.ledger.others import again, delete_for_good
from tests.sweep_process import race_four


def _elect(client: MlflowClient, experiment: str, path: str) -> None:
    parent = elect_parent(client, experiment, "feedfeedfeedfeed", name="s", tags={"k": "v"})
    with open(path, "a") as file:
        file.write(f"{parent.info.run_id}\n")


def test_of_processes_that_race_one_makes_the_parent_and_all_get_it(
    store: tuple[str, MlflowClient], experiment: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    race_four(store[0], _elect, experiment, str(journal))
    given = journal.read_text().splitlines()
    assert len(given) == 4
    assert [run.info.run_id for run in store[1].search_runs([experiment])] == list(set(given))
    name = store[1].get_experiment(experiment).name
    books = store[1].get_experiment_by_name(f"{name}.ledger")
    assert books is not None
    assert len(store[1].search_runs([books.experiment_id])) == 1, "the losers' are deleted"
    names = [e.name for e in store[1].search_experiments(view_type=ViewType.ACTIVE_ONLY)]
    assert not [name for name in names if ".sweep." in name]


def test_a_sweep_may_have_a_name_longer_than_mlflow_keeps(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    tags = {tag.COMMAND: "seed=" + "1," * 5_000}
    parent = elect_parent(store[1], experiment, "10ad", name="over " + "lr, " * 99, tags=tags)
    run = store[1].get_run(parent.info.run_id)
    assert run.info.run_name.startswith("over lr, ") and len(run.info.run_name) == 250
    assert len(run.data.tags[tag.COMMAND]) == 8_000


def test_a_sweep_that_is_stopped_as_it_begins_leaves_no_run(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    class Stopping(MlflowClient):
        made = 0

        def create_run(self, *args: Any, **more: Any) -> Run:
            Stopping.made += 1
            if Stopping.made == 3:
                raise KeyboardInterrupt
            return super().create_run(*args, **more)

    with pytest.raises(KeyboardInterrupt):
        elect_parent(Stopping(store[0]), experiment, "dead", name="s", tags={}, trials=2_000)
    name = store[1].get_experiment(experiment).name
    books = store[1].get_experiment_by_name(f"{name}.ledger")
    assert books is not None and Stopping.made == 3
    assert not store[1].search_runs([experiment, books.experiment_id])


def test_starting_over_passes_over_the_parent_that_there_is(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    def elect(anew: bool = False) -> Run:
        return elect_parent(store[1], experiment, "abc", name="s", tags={}, anew=anew)

    assert find_parent(store[1], experiment, "abc") is None
    first = elect()
    assert elect().info.run_id == first.info.run_id
    second = elect(anew=True)
    found = find_parent(store[1], experiment, "abc")
    assert found is not None
    assert found.info.run_id == second.info.run_id
    assert found.info.run_id != first.info.run_id


def test_a_parent_that_was_deleted_is_made_anew(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    first = elect_parent(store[1], experiment, "abc", name="s", tags={})
    store[1].delete_run(first.info.run_id)
    second = elect_parent(store[1], experiment, "abc", name="s", tags={})
    assert second.info.run_id != first.info.run_id


def test_an_elected_parent_whose_maker_died_at_once_is_still_the_parent(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    made = elect_parent(store[1], experiment, "abc", name="s", tags={})
    store[1].delete_tag(made.info.run_id, tag.SWEEP)  # as if it had died before
    assert find_parent(store[1], experiment, "abc") is None
    later = elect_parent(store[1], experiment, "abc", name="s", tags={})
    assert later.info.run_id == made.info.run_id
    found = find_parent(store[1], experiment, "abc")
    assert found is not None
    assert found.info.run_id == made.info.run_id


def test_a_sweep_that_the_version_before_began_is_refused_and_can_be_begun_anew(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    name = store[1].get_experiment(experiment).name
    tags = {"mnist_hydra.sweep": "abc", "mnist_hydra.generation": "0"}
    old = store[1].create_run(experiment, tags=tags, run_name="s").info.run_id
    tag = {"mnist_hydra.parent": old}
    register = store[1].create_experiment(f"{name}.sweep.abc.0", tags=tag)
    store[1].delete_experiment(register)
    store[1].log_param(old, "trial/0123456789abcdef", "0" * 32)
    for ask in (
        lambda: elect_parent(store[1], experiment, "abc", name="s", tags={}),
        lambda: Ledger(store[1], old),
    ):
        with pytest.raises(UserError, match="earlier version.*right: sweep.fresh=true"):
            ask()
    anew = elect_parent(store[1], experiment, "abc", name="s", tags={}, anew=True)
    assert anew.info.run_id != old
    found = find_parent(store[1], experiment, "abc")
    assert found is not None and found.info.run_id == anew.info.run_id


def test_a_parent_that_is_gone_for_good_is_made_anew(
    store: tuple[str, MlflowClient], ledger: Ledger, experiment: str
) -> None:
    ledger.read()
    delete_for_good(store[1], ledger.parent_id)
    parent = elect_parent(store[1], experiment, "0123456789abcdef", name="sweep", tags={})
    assert parent.info.run_id != ledger.parent_id
    with pytest.raises(UserError, match=f"{ledger.parent_id}. was deleted in MLflow"):
        again(ledger)
    with pytest.raises(UserError, match="was deleted in MLflow"):
        ledger.read(up_to_date=True)


def test_a_sweep_whose_experiment_was_renamed_says_which_name_goes_on_with_it(
    store: tuple[str, MlflowClient], ledger: Ledger, experiment: str
) -> None:
    client, name = store[1], store[1].get_experiment(experiment).name
    client.rename_experiment(experiment, "renamed")
    other = client.create_experiment(name)
    with pytest.raises(UserError, match="tracking.experiment_name=renamed"):
        elect_parent(client, other, "0123456789abcdef", name="sweep", tags={})
    anew = elect_parent(client, other, "0123456789abcdef", name="sweep", tags={}, anew=True)
    assert client.get_run(anew.info.run_id).info.experiment_id == other
