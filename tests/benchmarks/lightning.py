"""The same training through PyTorch Lightning's Trainer with torchmetrics, laid out as the
Lightning-Hydra template lays it out. A baseline; it must never be made slower than users have it.

    python -m tests.benchmarks.lightning --experiment exp3 --epochs 15 --data outputs/data
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from tests.benchmarks.published import BATCH_SIZE, RECIPES, SEED, Images


class Module(L.LightningModule):
    """A classifier with the template's metrics; `val` is the test set, as in the published runs."""

    def __init__(self, experiment: str) -> None:
        super().__init__()
        self.recipe = RECIPES[experiment]
        self.net = self.recipe.model()
        classes = 16 if experiment == "exp1" else 10
        self.train_acc = MulticlassAccuracy(classes, average="micro")
        self.val_acc = MulticlassAccuracy(classes, average="micro")
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.val_acc_best = MaxMetric()

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.net(images)
        return output

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = batch
        output = self(images)
        return F.nll_loss(output, labels), output.argmax(dim=1), labels

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss, predicted, labels = self.step(batch)
        self.train_loss(loss)
        self.train_acc(predicted, labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        loss, predicted, labels = self.step(batch)
        self.val_loss(loss)
        self.val_acc(predicted, labels)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer(self.net)
        trainer = self.trainer
        assert trainer.max_epochs is not None
        steps = int(trainer.estimated_stepping_batches) // trainer.max_epochs
        scheduler = self.recipe.scheduler(optimizer, trainer.max_epochs, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class EpochSeconds(Callback):
    """Notes when each epoch, its validation included, has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.ends:
            self.ends.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.ends.append(time.perf_counter())


def train(experiment: str, epochs: int, data: Path, workers: int, seed: int) -> dict[str, object]:
    """Train one experiment; return its last test accuracy (%) and each epoch's seconds."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(seed, workers=True)
    recipe = RECIPES[experiment]
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "num_workers": workers}
    clock = EpochSeconds()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            max_epochs=epochs,
            callbacks=[ModelCheckpoint(monitor="val/acc", mode="max", save_last=True), clock],
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            Module(experiment),
            DataLoader(Images(data, True, recipe.augmented), shuffle=True, **options),
            DataLoader(Images(data, False, False), shuffle=False, **options),
        )
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        "test_acc": 100 * metrics["val/acc"],
        "train_acc": 100 * metrics["train/acc"],
        "epoch_s": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", choices=RECIPES, default="exp3")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--data", type=Path, default=Path("outputs/data"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=SEED)
    print(json.dumps(train(**vars(parser.parse_args()))))
