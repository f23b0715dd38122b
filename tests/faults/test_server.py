"""Sweeps over machines that share nothing but an MLflow server, which stands on PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mnist_hydra.config import Place, TrackingConfig
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.owner import SILENT_S
from mnist_hydra.ledger.parent import elect_parent
from mnist_hydra.sweep.worker import Worker
from mnist_hydra.tracking.journal import SpooledRun
from mnist_hydra.tracking.tracker import Tracker, import_mlflow, is_away
from tests.commands import Commands
from tests.faults.faulty_sweep import FaultySweep, finish, wait_for
from tests.faults.proxy import Proxy
from tests.sweep_entries import claims
from tests.sweep_process import TinyTrial, plan, settings_of

pytestmark = pytest.mark.xdist_group("server")
CHECKPOINT_TAG = "mlflow.mnist_hydra.checkpoint"


@pytest.fixture
def client(mlflow_address: str) -> MlflowClient:
    return MlflowClient(mlflow_address)


def test_sixteen_trials_write_at_once_and_other_processes_join(
    tmp_path: Path, mnist: Path, mlflow_address: str, client: MlflowClient, commands: Commands
) -> None:
    axes = ["dropout=0.0,0.02,0.04,0.06", "lr=0.05,0.1,0.15,0.2"]
    sweep = FaultySweep(tmp_path, mnist, "sixteen", axes, together=16)
    server = ["tracking=server", f"tracking.uri={mlflow_address}"]
    spread = ["hydra/launcher=joblib", "sweep.workers=3"]
    first = sweep.start(*server, *spread, f"output_dir={tmp_path / 'first'}")
    wait_for(lambda: any(sweep.faults.glob("here-*")), first, 300)
    words = [sweep.command(*server, f"output_dir={tmp_path / str(n)}")[3:] for n in range(13)]
    others = commands.run_at_once("train", words, [tmp_path] * 13)
    assert [other.code for other in others] == [0] * 13, [other.said for other in others]
    code, said = finish(first, 400)
    assert code == 0, said
    assert all(_table(other.said) == _table(said) for other in others)

    trials = sweep.trials(client)
    assert len(trials) == 16
    attempts = [claims(client, run) for run in trials]
    assert {len(each) for each in attempts} == {1}, "none was trained twice"
    assert len({each[0]["by"] for each in attempts}) == 14, "all took part"
    for run in trials[:3]:
        tag = json.loads(run.data.tags[CHECKPOINT_TAG])
        name = f"checkpoints/slot-{tag['slot']}.pt"
        kept = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path)))
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == tag["sha256"]


def test_the_trial_of_a_machine_that_is_gone_is_finished_by_another(
    tmp_path: Path, mnist: Path, mlflow_address: str, client: MlflowClient
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "machines", ["dropout=0.0,0.02,0.04"])
    server = ["tracking=server", f"tracking.uri={mlflow_address}"]
    disk = tmp_path / "disk"  # another one on each machine
    disk.mkdir()
    command = [*server, f"output_dir={disk}"]
    mount = f'mount -t tmpfs none "{disk}" && exec "$@"'
    other_machine = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    other_machine += ["sh", "-c", mount, "sh"]
    dies = sweep.start(*command, inside=other_machine, environment={"FAULTS_VICTIMS": "1"})
    sweep.victim(dies)
    lives = sweep.start(*command)
    two_done = _Done(sweep, client, 2)
    wait_for(two_done, lives, 200)
    dies.kill()
    code, said = finish(lives)
    assert code == 0, said
    trials = sweep.trials(client)
    assert len(trials) == 3
    [taken_over] = [run for run in trials if len(claims(client, run)) == 2]
    before, after = claims(client, taken_over)
    assert before["owner"]["host"] != after["owner"]["host"]
    assert after["from_step"] > -1, "it went on from the other machine's checkpoint"


def test_a_worker_whose_claim_was_recorded_and_never_answered_trains_that_trial(
    tmp_path: Path, mlflow_address: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    experiment = client.create_experiment("unanswered")
    parent = elect_parent(client, experiment, "abc", name="sweep", tags={}).info.run_id
    with Proxy(mlflow_address) as proxy:
        ledger = Ledger(MlflowClient(proxy.address), parent)
        proxy.loses, proxy.loses_from = 2, b"claim/"  # also when it asks which claim stands
        train = TinyTrial(client, tmp_path / "journal", epochs=3)
        settings = settings_of(parent, "sweeper", retries=0)
        Worker(ledger, plan("do=train"), train, settings, threading.Event()).pull()
        assert proxy.loses == 0
    [trial] = Ledger(client, parent).read().trials.values()
    assert [attempt.state for attempt in trial.attempts] == ["finished"]
    runs = client.search_runs([experiment])
    assert {run.info.run_id for run in runs} == {parent, trial.run_id}


def test_a_server_that_hangs_is_given_up_before_the_next_heartbeat_is_too_late(
    mlflow_address: str, client: MlflowClient
) -> None:
    import_mlflow()
    parent = elect_parent(client, client.create_experiment("hangs"), "abc", name="s", tags={})
    with Proxy(mlflow_address) as proxy:
        ledger = Ledger(MlflowClient(proxy.address), parent.info.run_id)
        proxy.waits_s = 600

        def took() -> float:
            began = time.monotonic()
            with pytest.raises(MlflowException) as hung:
                ledger.stopped("sweeper")
            assert is_away(hung.value)
            return time.monotonic() - began

        assert took() < SILENT_S or took() < SILENT_S, "also where the machine was busy once"


def test_a_request_for_a_run_whose_answer_was_lost_leaves_no_second_run(
    tmp_path: Path, mlflow_address: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    with Proxy(mlflow_address) as proxy:
        place = Place(str(tmp_path), TrackingConfig("server", proxy.address, "lost"))
        tracker = Tracker(place)
        proxy.loses, proxy.loses_from = 1, b"start_time"
        run_id = tracker.create_run(SpooledRun("c" * 32, "lost", "a run", {}, 1, proxy.address))
        assert proxy.loses == 0
    [run] = client.search_runs([tracker.experiment_id])
    assert run.info.run_id == run_id


class _Done:
    """Whether so many of a sweep's trials are finished."""

    def __init__(self, sweep: FaultySweep, client: MlflowClient, count: int) -> None:
        self.sweep, self.client, self.count = sweep, client, count

    def __call__(self) -> bool:
        experiment = self.client.get_experiment_by_name(self.sweep.name)
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id])
        ended = [run for run in runs if run.info.status == "FINISHED"]
        return len(ended) == self.count


def _table(said: str) -> list[str]:
    """The results, as one of the processes printed them."""
    lines = said.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("Configurations by"))
    return lines[start : start + 20]
