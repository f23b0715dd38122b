"""What a finished run records besides its metrics: pictures and the exported model.

The model is a `torch.export` program that needs none of this package's code.
"""

from __future__ import annotations

import copy
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_hydra.data.idx import LABELS
from mnist_hydra.exported import HOLD_OUT, hold_out_of, lean_models
from mnist_hydra.tracking.spool import Spool
from mnist_hydra.trainer import Trainer


def log_pictures_and_model(trainer: Trainer, spool: Spool) -> None:
    """Record the pictures and the exported model of a run."""
    from mnist_hydra import pictures

    log_probabilities, labels = trainer.predict("test")
    probabilities = log_probabilities.exp()
    confidence, predicted = (x.cpu() for x in probabilities.max(1))
    truth = labels.cpu()
    counts = torch.bincount(truth * LABELS + predicted, minlength=LABELS**2)
    wrong = (predicted != truth).nonzero().flatten()
    test = trainer.dataset.test
    figures = {
        "learning_curves": pictures.learning_curves(trainer.position.history),
        "confusion_matrix": pictures.confusion_matrix(counts.view(LABELS, LABELS).numpy()),
        "misclassified": pictures.misclassified_grid(
            test.images[test.index[wrong.numpy()], 0],
            truth[wrong].numpy(),
            predicted[wrong].numpy(),
            confidence[wrong].numpy(),
        ),
        "augmentation": pictures.augmentation_grid(*_augmented_examples(trainer)),
    }
    for name, figure in figures.items():
        spool.log_figure(figure, f"pictures/{name}.png")
    trainer.release()  # torch's exporter needs 200 MiB
    spool.log_model(lambda path: save_model(trainer, path), trainer.position.epoch)


class Classifier(nn.Module):
    """Raw images in, log-probabilities out: normalisation is part of it.

    `forward(images: uint8 [B, 1, H, W], 0..255)` returns log-probabilities float32 [B, 10].
    """

    def __init__(self, model: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        scaled = (images.to(torch.float32) - self.mean * 255) * (1 / (self.std * 255))
        log_probabilities: Tensor = self.model(scaled)
        return log_probabilities.float()  # a model of one's own may return bfloat16


def save_model(trainer: Trainer, path: Path) -> None:
    """Write the model of the last epoch with signature and input example, as pt2, no pickle."""
    from mlflow.models import Model, infer_signature

    test = trainer.dataset.test
    example = np.asarray(test.images[test.index[:2]])
    data = trainer.config.data
    on_cpu = copy.deepcopy(trainer.model).to("cpu")
    classifier = Classifier(on_cpu, data.mean, data.std).eval()
    answer = np.zeros((len(example), LABELS), np.float32)
    held_out = hold_out_of(data, trainer.dataset.sha256)
    saved = Model(metadata={HOLD_OUT: held_out})
    with warnings.catch_warnings(), lean_models():
        import mlflow.pytorch

        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        mlflow.pytorch.save_model(
            classifier,
            path,
            mlflow_model=saved,
            signature=infer_signature(example, answer),
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[f"torch=={version('torch').partition('+')[0]}"],
        )
    # Such a program stays on the device that it was exported on; MLflow would take a GPU.
    saved.flavors["python_function"]["config"] = {"device": "cpu"}
    saved.save(str(path / "MLmodel"))


def _augmented_examples(trainer: Trainer, rows: int = 8, draws: int = 8) -> tuple[Any, Any]:
    """uint8 [rows, H, W] training images and uint8 [rows, draws, H, W] augmented ones."""
    chosen = trainer.train_index[:rows]
    images = trainer.train_images[chosen]
    augmentation = trainer.augmentation
    drawn = [images if augmentation is None else augmentation(images, seed=i) for i in range(draws)]
    return images[:, 0].cpu().numpy(), torch.stack(drawn, 1)[:, :, 0].cpu().numpy()
