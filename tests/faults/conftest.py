"""The machinery of the fault tests; a test is skipped only where a Debian package is missing."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from tests.faults.faulty_sweep import FaultySweep
from tests.faults.postgres import BINARIES, mlflow_server, postgres
from tests.faults.single_run import SMALL, start, weights
from tests.faults.slurm import Slurm


def need(package: str, *programs: str) -> None:
    """Skip unless the programs of a Debian package can be started by this user."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip(f"{package} is started as root here")


@contextmanager
def _short_folder() -> Iterator[Path]:
    """An empty folder with a path short enough for sockets, which any user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="mnist_hydra_", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for one test's servers."""
    with _short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `output_dir` that the sweeps share; each has an MLflow experiment of its own."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def client(store: Path) -> MlflowClient:
    """MLflow's client for what the sweeps left."""
    return MlflowClient(f"sqlite:///{store / 'mlflow.db'}")


@pytest.fixture(scope="session")
def on_server(store: Path) -> Iterator[list[str]]:
    """The overrides by which a sweep reaches that store through an MLflow server.

    Tests of the short form that use it have the mark `xdist_group("on_server")`, and share it.
    """
    folder = store / "server"
    folder.mkdir()
    with mlflow_server(folder, f"sqlite:///{store / 'mlflow.db'}") as address:
        yield ["tracking=server", f"tracking.uri={address}"]


@pytest.fixture
def nine_trials(
    tmp_path: Path, store: Path, mnist: Path, request: pytest.FixtureRequest
) -> FaultySweep:
    """The sweep that every launcher has to bring to its end, not yet started."""
    name = re.sub(r"\W+", "-", request.node.name)
    axes = ["dropout=0.0,0.02,0.04", "lr=0.05,0.1,0.15", f"output_dir={store}"]
    return FaultySweep(tmp_path, mnist, name, axes, raises_at=0.04)


@pytest.fixture(scope="session")
def words(mnist: Path) -> list[str]:
    """The overrides of a small run."""
    return [f"data.root={mnist}", *SMALL]


@pytest.fixture(scope="session")
def alone_folder(shared_folder: Path, words: list[str]) -> Path:
    """Where such a run was started that nothing was done to; runs after it find the kernel.

    One process of the session makes it, the others wait for that.
    """
    folder, ended = shared_folder / "alone", shared_folder / "alone-ended"
    with FileLock(shared_folder / "alone.lock"):
        if not ended.exists():
            command = start(folder, *words)
            assert command.finish() == 0, command.said
            ended.touch()
    return folder


@pytest.fixture(scope="session")
def alone(alone_folder: Path) -> dict[str, torch.Tensor]:
    """The weights of that run."""
    return weights(alone_folder)


@pytest.fixture
def slurm(short_folder: Path) -> Iterator[Slurm]:
    """A real Slurm of one node with two CPUs."""
    need("slurm-wlm", "slurmctld", "slurmd", "sbatch")
    need("munge", "munged")
    with Slurm(short_folder) as running:
        yield running


@pytest.fixture
def ray_folder(short_folder: Path) -> Path:
    """Where a Ray cluster of two nodes may be started."""
    pytest.importorskip("ray")
    need("iproute2", "ip")
    need("util-linux", "unshare", "nsenter")
    return short_folder


@pytest.fixture(scope="session")
def mlflow_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on a real PostgreSQL."""
    need("postgresql", *(str(BINARIES / name) for name in ("initdb", "postgres", "pg_isready")))
    with _short_folder() as folder, postgres(folder) as database:
        with mlflow_server(folder, database, workers=2) as address:
            yield address
