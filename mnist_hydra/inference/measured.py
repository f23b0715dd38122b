"""The images of a data set that a model is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from mnist_hydra.config import DataConfig, resolved
from mnist_hydra.errors import UserError, wrong_value
from mnist_hydra.inference.exported import Exported, Images
from mnist_hydra.typed import read_settings


def data_of(cfg: DictConfig) -> DataConfig:
    """The data set that a command's settings name.

    Raises:
        UserError: naming the key, the value that was got and what would be right.
    """
    raw = resolved(cfg).get("data")
    if not isinstance(raw, dict):
        raise wrong_value("data", raw, "an entry of the group conf/data")
    return read_settings(DataConfig, raw, "data.")


def images_of(
    data: DataConfig, split: str, model: Exported, output_dir: str
) -> tuple[Images, npt.NDArray[np.int64]]:
    """The images uint8 [N, side, side] of a split and their labels [N].

    Args:
        split: `test`, or `val` of data with a hold-out.
        output_dir: below which data is kept.

    Raises:
        UserError: there is no such data, or its images are of another size than the model's.
    """
    from mnist_hydra.data.load import load_dataset

    dataset = load_dataset(data, Path(output_dir).absolute() / "data")
    found = dataset.test if split == "test" else dataset.val
    assert found is not None
    images = found.images[found.index, 0]
    if images.shape[1] != model.side:
        raise UserError(
            f"model={model.name} takes {model.side} pixels a side, data={data.name} has "
            f"{images.shape[1]}; right: the data that it was trained on"
        )
    return images, found.labels[found.index].astype(np.int64)
