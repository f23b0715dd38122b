"""Who completes a sweep's best trials, against real SQLite."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mnist_hydra.ledger.ledger import Ledger, View
from mnist_hydra.ledger.owner import Owner, myself, working
from mnist_hydra.ledger.parent import elect_parent
from mnist_hydra.ledger.trial import Attempt, Claim, End, Trial
from mnist_hydra.sweep import ending
from mnist_hydra.sweep.ending import COMPLETE, COMPLETED, claim_completion, digest_of
from tests.sweep_process import new_store

CLAIM = Claim("run", "lr=0.1", myself(), "sweeper", -1)

pytestmark = pytest.mark.xdist_group("sweep_ending")  # they share a store, which is slow to make


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    client = new_store(tmp_path_factory.mktemp("store"))
    experiment = client.create_experiment("completing")
    run = elect_parent(client, experiment, "0123456789abcdef", name="sweep", tags={})
    return Ledger(client, run.info.run_id)


@pytest.fixture
def owner() -> Iterator[Owner]:
    with working() as owner:
        yield owner


@pytest.fixture
def rival() -> Iterator[Owner]:
    with working() as owner:
        yield owner


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """One that stands for a trial of this test alone."""
    return str(request.node.name)[-40:].strip("_")


def again(ledger: Ledger) -> Ledger:
    """The same ledger as another process reads it."""
    other = Ledger(ledger.client, ledger.parent_id)
    other.read(up_to_date=True)
    return other


def test_of_two_that_finish_together_one_completes(
    parent: Ledger, owner: Owner, rival: Owner, run_id: str
) -> None:
    mine, other = again(parent), again(parent)  # both read before either of them claims
    assert claim_completion(mine, run_id, owner)
    assert not claim_completion(other, run_id, rival)
    assert not claim_completion(again(parent), run_id, rival)


def test_a_completed_trial_is_completed_for_good(
    parent: Ledger, owner: Owner, rival: Owner, run_id: str
) -> None:
    mine = again(parent)
    assert claim_completion(mine, run_id, owner)
    mine.write_once(COMPLETED + run_id, owner.token)
    gone = replace(owner, pid=_ended_process(), token="gone")
    mine.write_once(f"{COMPLETE}{run_id}/2", gone.text())
    assert not claim_completion(again(parent), run_id, rival)


def test_who_died_while_completing_is_taken_over_from(
    parent: Ledger, owner: Owner, run_id: str
) -> None:
    gone = replace(owner, pid=_ended_process(), token="gone")
    assert claim_completion(again(parent), run_id, gone)
    assert claim_completion(again(parent), run_id, owner)


def test_a_silent_process_of_another_machine_is_taken_over_from(
    parent: Ledger, owner: Owner, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_hydra.ledger.owner.SILENT_S", 0.3)
    monkeypatch.setattr(ending, "LOOK_EVERY_S", 0.1)
    elsewhere = replace(owner, host="another machine", token="elsewhere")
    assert claim_completion(again(parent), run_id, elsewhere)
    assert claim_completion(again(parent), run_id, owner)


def test_a_process_of_another_machine_that_comes_to_its_end_is_waited_for(
    parent: Ledger, owner: Owner, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "LOOK_EVERY_S", 0.1)
    elsewhere = replace(owner, host="another machine", token="elsewhere")
    theirs, mine = again(parent), again(parent)
    assert claim_completion(theirs, run_id, elsewhere)
    mine.read(up_to_date=True)
    theirs.write_once(COMPLETED + run_id, elsewhere.token)
    assert not claim_completion(mine, run_id, owner)


def _ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_report_is_outdated_once_trials_or_ranking_are_others() -> None:
    trial = Trial("abc", "run", "lr=0.1", (Attempt(1, CLAIM, None),))
    ended = replace(trial, attempts=(Attempt(1, CLAIM, End("finished")),))
    views = [View({}), View({"abc": trial}), View({"abc": ended})]
    views.append(View({"abc": replace(ended, run_id="another")}))
    views.append(View({"abc": ended, "def": replace(ended, fingerprint="def")}))
    rankings = ({"objective": "val/acc"}, {"objective": "val/loss"})
    digests = [digest_of(view, ranking) for view in views for ranking in rankings]
    assert len(set(digests)) == len(digests) == 10
    two = [("def", ended), ("abc", ended)]
    other_order = View({key: replace(trial, fingerprint=key) for key, trial in two})
    assert digest_of(other_order, rankings[0]) == digests[8]
