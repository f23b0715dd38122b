"""What several test files share: the real data, fetched once and kept below `outputs/`."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mnist_hydra.config import DataConfig
from mnist_hydra.data.load import load_dataset
from mnist_hydra.kernel.compile import Unavailable, compiler

ROOT = Path(__file__).parents[1]


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
    try:
        compiler()
    except Unavailable as error:
        pytest.skip(str(error))
