"""What several test files share: the real data, fetched once and kept below `outputs/`, and a cache
folder for compiled kernels."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mnist_hydra.cli.entry import share_cores
from mnist_hydra.config import DataConfig
from mnist_hydra.data.load import load_dataset
from tests.commands import Commands
from tests.empty_store import migrate_once

ROOT = Path(__file__).parents[1]

# As in the commands before torch is loaded, which nothing above does: in tests side by side
# OpenMP's threads would spend half of all work on waiting actively.
share_cores()

# Started in the background of a script, the tests and all that they start would ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of a session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache_folder(shared_folder: Path) -> Iterator[None]:
    """A cache folder that the workers of a session share: the developer's own is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_folder / "cache"))
        yield


@pytest.fixture(autouse=True)
def migrated_once() -> None:
    """A process that has imported MLflow's stores migrates an empty one once."""
    if "mlflow.store.db.utils" in sys.modules:
        migrate_once()


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Commands that start fast, forked from a process that has imported everything."""
    running = Commands(OMP_NUM_THREADS="1")
    yield running
    running.close()


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The folder that holds the real data, to be given as `data.root`."""
    entry = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / "mnist.yaml"))
    assert isinstance(entry, dict)
    folder = ROOT / "outputs" / "data"
    load_dataset(DataConfig(**{str(key): value for key, value in entry.items()}), folder)
    return folder


@pytest.fixture
def kernel_possible() -> None:
    """Skips where there is no C compiler; a kernel that fails to compile is a failure."""
    from mnist_hydra.kernel.compile import Unavailable, compiler

    try:
        compiler()
    except Unavailable as error:
        pytest.skip(str(error))
