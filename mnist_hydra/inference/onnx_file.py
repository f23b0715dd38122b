"""A model as an ONNX file, and what onnxruntime answers with it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np

from mnist_hydra.errors import UserError
from mnist_hydra.inference.exported import Exported, Images, Probabilities, batches

NEEDED = ("onnx", "onnxruntime", "onnxscript")
IMAGES, LOG_PROBABILITIES = "images", "log_probabilities"


def check_installed() -> None:
    """Raise a `UserError` unless everything that ONNX needs is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}, not installed here; right: "
            "pip install 'mnist_hydra[onnx]'"
        )


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
