"""The command `python -m mnist_hydra.to_onnx`: writes a model as ONNX, checked against torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.errors import UserError, first_line
from mnist_hydra.inference import exported, measured, onnx_file
from mnist_hydra.inference.exported import Exported, Images, Probabilities

TOLERANCE = 1e-4
"""The most that a probability of onnxruntime's may differ from torch's."""


def to_onnx(cfg: DictConfig, name: str | None) -> int:
    """Write a model's ONNX file, if onnxruntime answers the test images as torch does; returns 0.

    Args:
        name: what the user calls the model.

    Raises:
        UserError: no such model, no place for the file, data of another size, a package that is
            missing, or see `write_checked`.
    """
    target = entry.file_of("file", cfg.file)
    data, place = measured.data_of(cfg), entry.place_of(cfg)
    onnx_file.check_installed()
    model = exported.find_model(name, place)
    images, _ = measured.images_of(data, "test", model, place.output_dir)
    expected = model(images)
    gap = write_checked(model, images, expected, target)
    print(
        f"{target} takes {onnx_file.IMAGES}, uint8 [N, 1, {model.side}, {model.side}], and returns "
        f"{onnx_file.LOG_PROBABILITIES}, float32 [N, {expected.shape[1]}]\n"
        f"onnxruntime's probabilities of {len(images):,} test images of {data.name} differ by at "
        f"most {gap:.1g} from torch's"
    )
    return 0


def write_checked(
    model: Exported, images: Images, expected: Probabilities, target: Path
) -> float:
    """Write the file where onnxruntime's answers are as expected, else leave what was there.

    Args:
        images: uint8 [N, side, side].
        expected: torch's probabilities of them, float32 [N, classes].

    Returns:
        How far the probabilities are apart at most.

    Raises:
        UserError: the answers differ, or the model cannot be written as ONNX.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            onnx_file.write_onnx(model, beside)
            answers = onnx_file.answers(beside, images)
        except Exception as error:  # what ONNX has no words for, or no room on the disk
            raise UserError(f"model={model.name} cannot be written: {first_line(error)}") from None
        gap = float(np.abs(answers - expected).max())
        if not gap <= TOLERANCE:  # not a number is none of them
            raise UserError(
                f"model={model.name}: onnxruntime's probabilities differ by {gap:.2g} from "
                f"torch's; right: at most {TOLERANCE}"
            )
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    return gap


if __name__ == "__main__":
    name, sys.argv[1:] = entry.take_value(sys.argv[1:], "model")
    entry.start("to_onnx", lambda cfg: to_onnx(cfg, name))
