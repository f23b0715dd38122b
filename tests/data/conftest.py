"""A small data set in a folder of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mnist_hydra.config import DataConfig
from tests.data.small import FASHION, mini


@pytest.fixture
def fashion(tmp_path: Path) -> DataConfig:
    """A configuration whose `root` holds four small files."""
    mini(tmp_path / "root" / "FashionMNIST" / "raw")
    return replace(FASHION, root=str(tmp_path / "root"))


@pytest.fixture
def raw(tmp_path: Path, fashion: DataConfig) -> Path:
    """The folder that those files lie in."""
    return tmp_path / "root" / "FashionMNIST" / "raw"
