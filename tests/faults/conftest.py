"""The machinery of the fault tests; a test is skipped only where a Debian package is missing."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.nine_trials import NineTrials
from tests.faults.slurm import Slurm


def need(package: str, *programs: str) -> None:
    """Skip unless the programs of a Debian package can be started by this user."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip(f"{package} is started as root here")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """An empty folder with a path short enough for sockets, which any user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="mnist_hydra_", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `output_dir` that the sweeps share; each has an MLflow experiment of its own."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def client(store: Path) -> MlflowClient:
    """MLflow's client for what the sweeps left."""
    return MlflowClient(f"sqlite:///{store / 'mlflow.db'}")


@pytest.fixture
def nine_trials(
    tmp_path: Path, store: Path, mnist: Path, request: pytest.FixtureRequest
) -> NineTrials:
    """The sweep, not yet started."""
    return NineTrials(tmp_path, store, mnist, re.sub(r"\W+", "-", request.node.name))


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
