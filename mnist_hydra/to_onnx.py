"""The command `python -m mnist_hydra.to_onnx`: writes a model as ONNX, checked against torch."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.config import DataConfig
from mnist_hydra.errors import UserError, first_line
from mnist_hydra.exported import (
    Exported,
    Images,
    Probabilities,
    batches,
    find_model,
    images_of,
)
from mnist_hydra.whole_file import whole_file

NEEDED = ("onnx", "onnxruntime", "onnxscript")
IMAGES, LOG_PROBABILITIES = "images", "log_probabilities"
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
    data, place = entry.group_of(cfg, "data", DataConfig), entry.place_of(cfg)
    check_installed()
    model = find_model(name, place)
    images, _ = images_of(data, "test", model, place.cache_dir)
    expected = model(images)
    gap = write_checked(model, images, expected, target)
    print(
        f"{target} takes {IMAGES}, uint8 [N, 1, {model.side}, {model.side}], and returns "
        f"{LOG_PROBABILITIES}, float32 [N, {expected.shape[1]}]\n"
        f"onnxruntime's probabilities of {len(images):,} test images of {data.name} differ by at "
        f"most {gap:.1g} from torch's"
    )
    return 0


def check_installed() -> None:
    """Raise a `UserError` unless everything that ONNX needs is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}, not installed here; right: "
            "pip install 'mnist_hydra[onnx]'"
        )


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
    with whole_file(target) as beside:
        try:
            write_onnx(model, beside)
            found = answers(beside, images)
        except Exception as error:  # what ONNX has no words for, or no room on the disk
            raise UserError(f"model={model.name} cannot be written: {first_line(error)}") from None
        gap = float(np.abs(found - expected).max())
        if not gap <= TOLERANCE:  # not a number is none of them
            raise UserError(
                f"model={model.name}: onnxruntime's probabilities differ by {gap:.2g} from "
                f"torch's; right: at most {TOLERANCE}"
            )
    return gap


def write_onnx(model: Exported, path: Path) -> None:
    """Write a model that takes any number of images, as one file.

    Its input is `images`, uint8 [N, 1, side, side], its output `log_probabilities`,
    float32 [N, classes].
    """
    import torch

    example = torch.zeros(2, 1, model.side, model.side, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the program's mode was fixed when it was exported
        torch.onnx.export(
            model.module,
            (example,),
            path,
            input_names=[IMAGES],
            output_names=[LOG_PROBABILITIES],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def answers(path: Path, images: Images) -> Probabilities:
    """onnxruntime's probabilities float32 [N, classes] for images uint8 [N, side, side]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [session.run([LOG_PROBABILITIES], {IMAGES: batch})[0] for batch in batches(images)]
    probabilities: Probabilities = np.exp(np.concatenate(parts))
    return probabilities


if __name__ == "__main__":
    name, sys.argv[1:] = entry.take_value(sys.argv[1:], "model")
    entry.start("to_onnx", lambda cfg: to_onnx(cfg, name))
