"""The training loop itself: what it computes, what it never does, and its checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mnist_hydra import checkpoint
from mnist_hydra.build import prepare
from mnist_hydra.config import settle
from mnist_hydra.stopping import StopReason
from mnist_hydra.targets import let_in
from mnist_hydra.trainer import Listener, Trainer, stable_seed


def trainer(mnist: Path, *overrides: str) -> Trainer:
    words = (f"data.root={mnist}", "threads=1", "data.limit=1000", "batch_size=256", *overrides)
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        return prepare(settle(compose("config", overrides=list(words))))


class NoHostSync(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        assert func not in waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class Moved(TorchFunctionMode):
    """Keeps the sizes of all that is put on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


class OnlyTheStepsOfAnEpoch(Listener):
    """Watches from the first step of the epoch to the one before its last."""

    def __init__(self, watched: Trainer) -> None:
        self.watched, self.mode, self.steps = watched, NoHostSync(), 0

    def should_stop(self) -> StopReason | None:
        self.steps += 1
        if self.steps == 1:
            self.mode.__enter__()
        if self.steps == self.watched.steps_per_epoch - 1:
            self.mode.__exit__(None, None, None)
        return None


class Seen(torch.nn.Module):
    """A model that keeps the images it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Linear(784, 10)
        self.batches: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(images.detach().cpu().clone())
        return self.scores(images.flatten(1)).log_softmax(1)


def trained_on_what_is_seen(mnist: Path, *overrides: str) -> tuple[Trainer, list[torch.Tensor]]:
    let_in([], [__name__])
    own = (f"model._target_={__name__}.Seen", "~model.dropout", "compile=false", "precision=fp32")
    ours = trainer(mnist, *own, *overrides)
    ours.train(Listener())
    assert isinstance(ours.model, Seen)
    return ours, ours.model.batches


def test_no_step_of_an_epoch_waits_for_the_device(mnist: Path) -> None:
    ours = trainer(mnist, "aug=ssr", "optimizer=sgd", "dropout=0.1", "compile=false", "epochs=1")
    listener = OnlyTheStepsOfAnEpoch(ours)
    ours.train(listener)
    assert listener.steps == ours.steps_per_epoch == 4


def test_a_hold_out_is_measured_without_a_copy_of_the_training_images(mnist: Path) -> None:
    with Moved() as moved:
        ours = trainer(mnist, "data.val_size=700", "epochs=1")
        log_probabilities, labels = ours.predict("val")
    assert len(log_probabilities) == len(labels) == 700
    moved_images = [size // 784 for size in moved.sizes if size > 60_000]
    assert moved_images == [60_000, 10_000]  # of the training set and of the test set


def test_every_training_image_is_seen_once_an_epoch_and_the_last_batch_is_kept(
    mnist: Path,
) -> None:
    ours, batches = trained_on_what_is_seen(mnist, "epochs=1")
    assert [len(batch) for batch in batches] == [256, 256, 256, 232]
    given = torch.from_numpy(np.array(ours.dataset.train.images[ours.dataset.train.index]))
    data = ours.config.data
    seen = torch.cat(batches) * data.std + data.mean  # 0 to 1
    brightness = (seen * 255).round().long().flatten(1).sum(1)
    assert torch.equal(brightness.sort().values, given.long().flatten(1).sum(1).sort().values)


def test_epochs_differ_in_their_order(mnist: Path) -> None:
    _, batches = trained_on_what_is_seen(mnist, "epochs=2")
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    assert not torch.equal(first, second)


def test_the_training_loss_is_the_mean_over_images_not_over_batches(mnist: Path) -> None:
    still = ("scheduler=constant", "lr=1e-30", "weight_decay=0")
    ours, _ = trained_on_what_is_seen(mnist, "epochs=1", *still)
    train = ours.dataset.train
    pixels = torch.from_numpy(np.array(train.images[train.index])).float() / 255
    labels = torch.from_numpy(np.array(train.labels[train.index])).long()
    with torch.inference_mode():
        scaled = (pixels - ours.config.data.mean) / ours.config.data.std
        log_probabilities = ours.model(scaled.to(ours.device)).cpu()
    loss = torch.nn.functional.nll_loss(log_probabilities, labels)
    right = (log_probabilities.argmax(1) == labels).sum()
    measured = ours.position.history[-1]
    assert measured["train/loss"] == pytest.approx(float(loss), rel=1e-4)
    assert measured["train/acc"] == pytest.approx(int(right) / 1000, abs=0.0021)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("scheduler", ["onecycle", "constant", "cosine"])
def test_the_learning_rate_and_momentum_follow_the_scheduler(
    mnist: Path, optimizer: str, scheduler: str
) -> None:
    ours = trainer(
        mnist, f"optimizer={optimizer}", f"scheduler={scheduler}", "lr=0.1", "momentum=0.8"
    )
    rates, momenta = [], []
    for _ in range(15 * 4):
        group = ours.optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["momentum"] if "momentum" in group else group["betas"][0])
        ours.optimizer.step()
        ours.scheduler.step()
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert max(momenta) == pytest.approx(0.8)
    if scheduler == "onecycle":
        assert rates[0] == pytest.approx(0.1 / 25)
        assert rates[-1] == pytest.approx(0.1 / 25 / 175, rel=0.01)
    if scheduler == "constant":
        assert set(rates) == {0.1}
    if scheduler == "cosine":
        assert rates == sorted(rates, reverse=True)


def test_the_published_learning_rates_of_exp3_come_out(mnist: Path) -> None:
    published = [0.006, 0.022906, 0.065684, 0.114246, 0.145787, 0.149134, 0.142492, 0.129854]
    ours = trainer(mnist, "data.limit=null", "batch_size=512")
    got = []
    for step in range(8 * 118):
        if step % 118 == 0:
            got.append(ours.optimizer.param_groups[0]["lr"])
        ours.optimizer.step()
        ours.scheduler.step()
    assert got == pytest.approx(published, abs=1e-6)


def test_a_damaged_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"weights": torch.arange(1000.0)})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(checkpoint.load(path, sha256)["weights"], torch.arange(1000.0))
    for broken in (path.read_bytes()[:-1], b"", path.read_bytes()[:-9] + b"x" * 9):
        path.write_bytes(broken)
        with pytest.raises(checkpoint.DamagedCheckpoint, match="SHA-256"):
            checkpoint.load(path, sha256)


def test_a_checkpoint_that_is_a_pickle_of_code_is_not_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / "last.pt"
    torch.save({"format": checkpoint.FORMAT, "weights": Attack()}, path)
    with pytest.raises(checkpoint.DamagedCheckpoint, match="last.pt holds .*pathlib"):
        checkpoint.load(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not (tmp_path / "owned").exists()


def test_the_state_of_every_global_generator_comes_back() -> None:
    import random

    cpu = torch.device("cpu")
    state = checkpoint.random_state(cpu)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    checkpoint.set_random_state(state, cpu)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


def test_seeds_depend_on_seed_purpose_and_number() -> None:
    purposes = ("order", "augment")
    seeds = {stable_seed(s, p, n) for s in range(10) for p in purposes for n in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stable_seed(14596, "order", 0) == stable_seed(14596, "order", 0)


class PredictsAfterEachEpoch(Listener):
    """Keeps each epoch's state and what the model says of the test set then."""

    def __init__(self, watched: Trainer) -> None:
        self.watched = watched
        self.states: list[dict[str, Any]] = []
        self.said: list[torch.Tensor] = []

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(state)
        self.said.append(self.watched.predict("test")[0])


def test_what_is_predicted_is_always_of_the_present_weights(mnist: Path) -> None:
    ours = trainer(mnist, "epochs=2", "data.val_size=100")
    listener = PredictsAfterEachEpoch(ours)
    ours.train(listener)
    first, second = listener.said
    assert not torch.equal(first, second)
    assert torch.equal(ours.predict("test")[0], second)
    assert len(ours.predict("val")[0]) == 100
    ours.restore(listener.states[0])
    assert torch.equal(ours.predict("test")[0], first)
