"""A step that is recorded and replayed on a GPU computes what it computes launch by launch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from mnist_hydra.build import prepare
from mnist_hydra.config import settle
from mnist_hydra.models import Model1, Model2, Model3
from mnist_hydra.replay import can_be_replayed
from mnist_hydra.runtime import without_dynamo
from mnist_hydra.stopping import StopReason
from mnist_hydra.targets import let_in
from mnist_hydra.trainer import Listener, Trainer

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that runs CUDA here")


class Moody(Model2):
    """A model that does not launch the same kernels at every step."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return super().forward(images * (1 + self.calls % 2))


def trained(mnist: Path, *overrides: str, listener: Listener | None = None) -> Trainer:
    """1,000 images in batches of 256, the last of 232."""
    words = (f"data.root={mnist}", "device=cuda", "data.limit=1000", "batch_size=256", *overrides)
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        ours = prepare(settle(compose("config", overrides=["epochs=2", *words])))
    ours.train(listener or Listener())
    return ours


def assert_same(one: Trainer, other: Trainer) -> None:
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    for mine, theirs in zip(one.position.history, other.position.history, strict=True):
        for name in ("train/loss", "train/acc", "test/loss", "test/acc", "lr"):
            assert mine[name] == theirs[name], name


class Replacing(torch.optim.SGD):
    """An optimizer that puts new tensors in the place of the weights, as some do."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.data = parameter.data - self.param_groups[0]["lr"] * parameter.grad


def test_a_model_or_an_optimizer_of_ones_own_is_not_replayed() -> None:
    for model in (Model1(), Model2(), Model3()):
        ours = without_dynamo(torch.optim.SGD)(model.parameters(), lr=0.1)
        assert can_be_replayed(model, ours)
        assert not can_be_replayed(model, Replacing(model.parameters(), lr=0.1))
        assert not can_be_replayed(torch.nn.Sequential(model, Moody()), ours)


@cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "recipe",
    [
        ("model=model1", "aug=none", "scheduler=constant"),
        ("model=model3", "aug=ssr"),
        ("model=model2", "dropout=0.1", "optimizer=adamw"),
    ],
)
def test_a_replayed_training_is_the_same_to_the_bit(
    mnist: Path, recipe: tuple[str, ...], precision: str
) -> None:
    words = (*recipe, f"precision={precision}")
    replayed, launched = trained(mnist, *words), trained(mnist, *words, "compile=false")
    assert replayed.runtime.replay and not launched.runtime.replay
    assert_same(replayed, launched)


@cuda
def test_a_model_whose_steps_differ_trains_as_it_is_written(mnist: Path) -> None:
    let_in([], [__name__])
    ours = trained(mnist, f"model._target_={__name__}.Moody", "~model.dropout")
    assert not ours.runtime.replay
    assert isinstance(ours.model, Moody) and ours.model.calls == 8


class StopsAfter(Listener):
    """Ends a training after some steps and keeps its state."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def should_stop(self) -> StopReason | None:
        self.left -= 1
        return StopReason.INTERRUPTED if self.left == 0 else None

    def save(self, state: dict[str, object]) -> None:
        self.state = state


@cuda
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_replayed_training_goes_on_from_any_step(mnist: Path, steps: int) -> None:
    whole, stopped = trained(mnist, "aug=ssr"), StopsAfter(steps)
    resumed = trained(mnist, "aug=ssr", listener=stopped)
    resumed.restore(stopped.state)
    resumed.train(Listener())
    assert_same(whole, resumed)


@cuda
def test_the_gpu_holds_no_more_after_many_trainings_than_after_two(mnist: Path) -> None:
    held = []
    for _ in range(5):
        trained(mnist)
        held.append(torch.cuda.memory_reserved())
    assert max(held[2:]) <= max(held[:2])


ON_THE_CPU = """
import sys
import torch
from mnist_hydra import train

try:
    train.main()
except SystemExit as end:
    assert not end.code
assert not torch.cuda.is_initialized()
"""


@cuda
def test_a_run_on_the_cpu_leaves_the_gpu_alone(mnist: Path, tmp_path: Path) -> None:
    words = ("device=cpu", "epochs=1", "data.limit=512", f"data.root={mnist}")
    command = [sys.executable, "-c", ON_THE_CPU, *words]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
