"""The notebook's way of training: a DataLoader over per-image albumentations, float32, eager, and
the loss and accuracy read at every step. A baseline; it must never be made faster than it was.

    python -m tests.benchmarks.notebook --experiment exp3 --epochs 15 --data outputs/data
    python -m tests.benchmarks.notebook --experiment exp2 --model model1 --dropout 0.02 --lr 0.1
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from tests.benchmarks.published import BATCH_SIZE, MODELS, RECIPES, SEED, Images


def train(
    experiment: str,
    epochs: int,
    data: Path,
    workers: int,
    seed: int,
    limit: int | None = None,
    model_name: str | None = None,
    dropout: float | None = None,
    lr: float | None = None,
) -> dict[str, object]:
    """Train one experiment; return its last test accuracy (%) and each epoch's seconds.

    Args:
        limit: train on the first images only; `None` for all.
        model_name, dropout, lr: in place of the experiment's; `lr` is the peak of a OneCycleLR.
    """
    torch.manual_seed(seed)
    recipe = RECIPES[experiment]
    if model_name is not None:
        options = {} if dropout is None else {"dropout": dropout}
        recipe = replace(recipe, model=partial(MODELS[model_name], **options))
    if lr is not None:
        recipe = replace(recipe, max_lr=lr)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pin = device.type == "cuda"
    loading = {"batch_size": BATCH_SIZE, "num_workers": workers, "pin_memory": pin}
    dataset = Images(data, True, recipe.augmented)
    chosen = dataset if limit is None else Subset(dataset, range(limit))
    train_loader = DataLoader(chosen, shuffle=True, **loading)
    test_loader = DataLoader(Images(data, False, False), shuffle=False, **loading)
    model = recipe.model().to(device)
    optimizer = recipe.optimizer(model)
    scheduler = recipe.scheduler(optimizer, epochs, len(train_loader))

    epoch_s = []
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        correct = seen = 0
        losses = []
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            output = model(images)
            loss = F.nll_loss(output, labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
            correct += output.argmax(dim=1).eq(labels).sum().item()
            seen += len(labels)
        train_acc = 100 * correct / seen

        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in test_loader:
                images, labels = images.to(device), labels.to(device)
                correct += model(images).argmax(dim=1).eq(labels).sum().item()
        test_acc = 100 * correct / len(test_loader.dataset)  # type: ignore[arg-type]
        epoch_s.append(time.perf_counter() - started)
    return {"test_acc": test_acc, "train_acc": train_acc, "epoch_s": epoch_s}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", choices=RECIPES, default="exp3")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--data", type=Path, default=Path("outputs/data"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--limit", type=int, help="train on the first images only")
    parser.add_argument("--model", choices=MODELS, dest="model_name", help="another model")
    parser.add_argument("--dropout", type=float, help="its dropout; needs --model")
    parser.add_argument("--lr", type=float, help="another peak of OneCycleLR: not for exp1")
    given = parser.parse_args()
    if given.dropout is not None and given.model_name is None:
        parser.error("--dropout needs --model")
    if given.lr is not None and not RECIPES[given.experiment].onecycle:
        parser.error(f"--lr is for OneCycleLR, which {given.experiment} has not")
    print(json.dumps(train(**vars(given))))
