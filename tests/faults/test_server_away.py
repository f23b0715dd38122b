"""A tracking server that is away, fails or is slow, at any time of a run: the run trains on, and
all that it tells arrives once.
"""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from tests.commands import Commands, Done
from tests.faults.faulty_sweep import FaultySweep, finish
from tests.faults.postgres import free_port, mlflow_server
from tests.faults.proxy import Proxy

pytestmark = [pytest.mark.xdist_group("server"), pytest.mark.usefixtures("alone_folder")]
EPOCHS = 8
SMALL = ("model=model1", "data.limit=2048", "batch_size=64", "threads=1", f"epochs={EPOCHS}")
ANSWERS_AFTER_S = 10.0


class Training:
    """One run of its own, in a folder of its own, against a server.

    Args:
        folder: its own.
    """

    def __init__(self, folder: Path, mnist: Path, address: str, *more: str) -> None:
        self.folder, self.name = folder, f"away-{folder.name}"
        words = [f"data.root={mnist}", "tracking=server", f"tracking.uri={address}"]
        words += [*SMALL, f"tracking.experiment_name={self.name}", *more]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mnist_hydra.train", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        self.epochs_at: list[float] = []
        """When the line of each epoch came, in seconds."""
        self.cpu_s_at: list[float] = []
        """What its process had used of the CPU then."""

    def go_on(self, until: str) -> None:
        """Let it train until it says something like that."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if re.search(r"epoch +\d+/", line):
                self.epochs_at.append(time.monotonic() - self.began)
                used = psutil.Process(self.process.pid).cpu_times()
                self.cpu_s_at.append(used.user + used.system)
            if re.search(until, line):
                return
        raise AssertionError(f"it never said {until}:\n{self.said}")

    def finish(self) -> int:
        """Let it come to its end; its exit code."""
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return self.process.wait(120)

    def undelivered(self) -> bool:
        return (self.folder / "outputs" / "spool").exists()

    def sync(self, commands: Commands) -> Done:
        """Run the command which it has printed for that."""
        found = re.findall(r"^  python -m mnist_hydra\.sync (.*)$", self.said, re.MULTILINE)
        return commands.run_module("sync", *shlex.split(found[-1]), cwd=self.folder)


def assert_whole(training: Training, server: str) -> None:
    """All of one finished run is in MLflow, and nothing of it twice."""
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(training.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "test/acc", "lr", "epoch_s"):
        rows = client.get_metric_history(run.info.run_id, name)
        assert [row.step for row in rows] == list(range(1, EPOCHS + 1)), name
    assert len(client.get_metric_history(run.info.run_id, "test/acc_last")) == 1
    assert run.data.params["epochs"] == str(EPOCHS)
    assert "mlflow.mnist_hydra.fingerprint" in run.data.tags
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "checkpoints", "pictures"} <= names
    assert len(client.list_artifacts(run.info.run_id, "pictures")) == 4
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.status == LoggedModelStatus.READY
    assert model.source_run_id == run.info.run_id
    assert not training.undelivered()


@pytest.fixture
def proxy(mlflow_address: str) -> Iterator[Proxy]:
    with Proxy(mlflow_address) as standing:
        yield standing


def test_a_run_whose_server_never_answers_ends_well_and_is_delivered_by_the_printed_command(
    commands: Commands, tmp_path: Path, mnist: Path, proxy: Proxy, mlflow_address: str
) -> None:
    proxy.go_away()
    training = Training(tmp_path, mnist, proxy.address)
    assert training.finish() == 0, training.said
    assert "Traceback" not in training.said
    assert "does not answer" in training.said and "not delivered" in training.said
    proxy.come_back()
    synced = training.sync(commands)
    assert synced.code == 0, synced.said
    assert_whole(training, mlflow_address)


def _refuse(proxy: Proxy) -> None:
    proxy.go_away()


def _answer_500(proxy: Proxy) -> None:
    proxy.answers_500 = True


def _answer_late(proxy: Proxy) -> None:
    proxy.waits_s = ANSWERS_AFTER_S


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(_refuse, id="refuses"),
        pytest.param(_answer_500, id="answers-500", marks=pytest.mark.long),
        pytest.param(_answer_late, id="answers-after-10-s", marks=pytest.mark.long),
    ],
)
def test_a_server_that_goes_away_in_the_middle_costs_a_run_nothing(
    misbehave: Callable[[Proxy], None],
    commands: Commands,
    tmp_path: Path,
    mnist: Path,
    proxy: Proxy,
    mlflow_address: str,
) -> None:
    training = Training(tmp_path, mnist, proxy.address)
    training.go_on(r"epoch +2/")
    misbehave(proxy)
    training.go_on(rf"epoch +{EPOCHS - 1}/")  # it trains while the server is away
    lasted = [end - start for start, end in pairwise(training.epochs_at[1:])]
    longest_s = ANSWERS_AFTER_S if misbehave is _answer_late else 60
    assert max(lasted) < longest_s, lasted  # not one waited for an answer
    proxy.come_back()
    assert training.finish() == 0, training.said
    if training.undelivered():
        assert training.sync(commands).code == 0
    assert_whole(training, mlflow_address)


@pytest.mark.long
@pytest.mark.parametrize("misbehave", [_refuse, _answer_500, _answer_late])
def test_an_outage_makes_a_training_at_most_five_percent_slower(
    misbehave: Callable[[Proxy], None], tmp_path: Path, mnist: Path, proxy: Proxy
) -> None:
    epochs = 40
    took: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    for away in [False, True] * 3:
        training = Training(tmp_path, mnist, proxy.address, f"epochs={epochs}")
        training.go_on(r"epoch +2/")
        if away:
            misbehave(proxy)
        training.go_on(rf"epoch +{epochs}/")
        proxy.come_back()
        assert training.finish() == 0, training.said
        counted = (training.epochs_at, training.cpu_s_at)
        took[away].append(tuple(clock[-1] - clock[1] for clock in counted))
    print("(seconds, CPU seconds) well:", took[False], "away:", took[True])
    ratios = [
        statistics.median(pair[clock] for pair in took[True])
        / statistics.median(pair[clock] for pair in took[False])
        for clock in (0, 1)
    ]
    print("ratios:", ratios)
    assert min(ratios) < 1.05, (ratios, took)  # a busy machine slows the clock, not the CPU's own


@pytest.mark.long
@pytest.mark.parametrize("misbehave", [_refuse, _answer_500, _answer_late])
@pytest.mark.parametrize("moment", [None, r"epoch +1/", r"epoch +4/", "drawing the pictures"])
def test_a_server_that_stays_away_from_any_moment_on_ends_no_run(
    moment: str | None,
    misbehave: Callable[[Proxy], None],
    commands: Commands,
    tmp_path: Path,
    mnist: Path,
    proxy: Proxy,
    mlflow_address: str,
) -> None:
    if moment is None:
        misbehave(proxy)
    training = Training(tmp_path, mnist, proxy.address)
    if moment is not None:
        training.go_on(moment)
        misbehave(proxy)
    assert training.finish() == 0, training.said
    assert "Traceback" not in training.said
    assert training.undelivered() and "not delivered" in training.said
    proxy.come_back()
    assert training.sync(commands).code == 0
    assert_whole(training, mlflow_address)


@pytest.mark.long
def test_a_server_that_is_killed_and_started_again_has_it_all(
    commands: Commands, tmp_path: Path, mnist: Path
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    database, port = f"sqlite:///{folder / 'mlflow.db'}", free_port()
    with mlflow_server(folder, database, port=port) as address:
        training = Training(tmp_path, mnist, address)
        training.go_on(r"epoch +2/")
    training.go_on(rf"epoch +{EPOCHS}/")
    with mlflow_server(folder, database, port=port):
        assert training.finish() == 0, training.said
        if training.undelivered():
            assert training.sync(commands).code == 0
        assert_whole(training, address)


@pytest.mark.parametrize("what", ["/slot-0.pt", "/last.pt"])
def test_a_file_that_a_proxy_refuses_ends_a_run_and_waits_for_it_with_all_behind(
    what: str, commands: Commands, tmp_path: Path, mnist: Path, proxy: Proxy, mlflow_address: str
) -> None:
    proxy.refuses = what
    training = Training(tmp_path, mnist, proxy.address)
    assert training.finish() == 1, training.said
    assert " failed: HTTPError: 413 Client Error" in training.said
    client = MlflowClient(mlflow_address)
    experiment = client.get_experiment_by_name(training.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert "a higher limit of the proxy" in training.sync(commands).err
    proxy.come_back()
    assert training.sync(commands).code == 0
    folder = "checkpoints"
    there = {file.path for file in client.list_artifacts(run.info.run_id, folder)}
    assert f"{folder}{what}" in there
    if what == "/last.pt":  # it was trained to its end
        assert_whole(training, mlflow_address)


def test_trials_whose_files_a_proxy_refuses_fail_and_are_finished_once_it_takes_them(
    tmp_path: Path, mnist: Path, proxy: Proxy, mlflow_address: str
) -> None:
    proxy.refuses = "/last.pt"
    words = ["seed=1,2", "tracking=server", f"tracking.uri={proxy.address}"]
    sweep = FaultySweep(tmp_path, mnist, "refused-by-proxy", words)
    code, said = finish(sweep.start())
    assert code == 1 and "413 Client Error" in said, said
    proxy.come_back()
    code, said = finish(sweep.start())
    assert code == 0 and "2 of 2 trials done" in said, said
    client = MlflowClient(mlflow_address)
    for run in sweep.trials(client):
        files = client.list_artifacts(run.info.run_id, "checkpoints")
        assert "checkpoints/last.pt" in {file.path for file in files}


def test_a_run_killed_while_its_server_is_away_goes_on_before_that_is_back(
    commands: Commands, tmp_path: Path, mnist: Path, proxy: Proxy, mlflow_address: str
) -> None:
    training = Training(tmp_path, mnist, proxy.address)
    training.go_on(r"epoch +1/")
    proxy.go_away()
    training.go_on(r"epoch +4/")
    training.process.kill()
    training.process.wait()
    (spool,) = (training.folder / "outputs" / "spool").iterdir()
    where = ["tracking=server", f"tracking.uri={proxy.address}"]
    resumed = commands.run(training.folder, *where, f"resume={spool.name}")
    assert resumed.code == 0, resumed.said
    assert not re.search(r"epoch +[123]/", resumed.out)
    training.said = resumed.said
    proxy.come_back()
    assert training.sync(commands).code == 0
    assert_whole(training, mlflow_address)
