"""What is built of a configuration: the ways to run a model, and parts of one's own."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

from mnist_hydra import build, checkpoint
from mnist_hydra.config import Config, settle
from mnist_hydra.errors import UserError
from mnist_hydra.models import Model2
from mnist_hydra.runtime import Runtime
from mnist_hydra.stopping import StopReason
from mnist_hydra.targets import let_in
from mnist_hydra.trainer import Listener, Trainer
from tests.data.small import mini

PLAIN = Runtime("cpu", "fp32", False, kernel=False, replay=False, threads=1, deterministic=True)
KERNEL = replace(PLAIN, kernel=True)


def test_a_choice_without_the_kernel_runs_the_model_itself() -> None:
    model = Model2()
    ready = build.runnable(model, PLAIN, None)
    assert ready.train is model and ready.evaluate is model


@pytest.mark.usefixtures("kernel_possible")
def test_a_choice_with_the_kernel_trains_and_evaluates_the_same_parameters(tmp_path: Path) -> None:
    model = Model2()
    ready = build.runnable(model, KERNEL, build.kernel_of(model, tmp_path))
    images = torch.randn(4, 1, 28, 28)
    torch.autograd.backward(ready.train(images).sum())
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    torch.testing.assert_close(ready.evaluate(images), model(images), atol=1e-4, rtol=1e-4)


def test_a_model_of_ones_own_has_no_kernel_and_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert build.kernel_of(nn.Linear(2, 3), tmp_path) is None
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("training at plain PyTorch's speed: the compiled kernel is made for")
    assert told.endswith("not Linear")
    assert not list(tmp_path.iterdir())


class Lazy(nn.Module):
    """Its layers learn how many inputs they have from the first images; it counts what it sees."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.LazyLinear(10))
        self.seen = np.int64(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images) if self.training else 0
        scores: torch.Tensor = self.layers(images)
        return scores.log_softmax(1)

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Noisy(Lazy):
    """Draws from the generators of Python and NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.made_with = random.random(), np.random.rand()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * (random.random() + np.random.rand()))


class Unstorable(Lazy):
    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": deque([1])}


class Frozen(Lazy):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = super().forward(images)
        self.requires_grad_(False)
        return scores


class Convolutions(nn.Module):
    """Two layers of them, and the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.Conv2d(4, 8, 3, stride=3))
        self.scores = nn.Linear(72, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.layers(images).flatten(1))
        return scores.log_softmax(1)


class Viewed(Convolutions):
    """Takes it that the channels lie one after another."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.layers(images)
        scores: torch.Tensor = self.scores(seen.view(seen.size(0), -1))
        return scores.log_softmax(1)


class Deep(Convolutions):
    """Has weights of five dimensions behind those of four."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.deep(images[:, None])[:, 0])


class Turned(Lazy):
    """Has a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(28, 28, dtype=torch.complex64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward((images * self.turn).real)


class Flat(nn.Module):
    """One matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(784, 10, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(images.flatten(1))
        return scores.log_softmax(1)


class Named(Lazy):
    """Makes what it is called."""

    def __init__(self, name: str = "narrow") -> None:
        super().__init__()
        self.made = name


class Noted(torch.optim.SGD):
    """Keeps a number of NumPy's."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["norm"] = np.float64(1.5)
        return super().step(closure)


class NotedInArrays(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["norm"] = np.ones(3)
        return super().step(closure)


class Renamed(torch.optim.SGD):
    def __init__(self, chosen: Any, lr: float, **others: Any) -> None:
        super().__init__(chosen, lr, **others)


class ByName(torch.optim.SGD):
    def __init__(self, **by_name: Any) -> None:
        super().__init__(**by_name)


class Cosine(torch.optim.lr_scheduler.LRScheduler):
    """Learning rates as NumPy computes them."""

    def get_lr(self) -> list[Any]:
        return [lr * (1 + np.cos(self.last_epoch / 10)) for lr in self.base_lrs]


class RenamedCosine(Cosine):
    def __init__(self, of: torch.optim.Optimizer, total_steps: int) -> None:
        super().__init__(of)
        self.total = total_steps


class InADeque(Cosine):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"last": deque([1.0])}


class StopsAfter(Listener):
    """Stops after so many steps; keeps the state."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def should_stop(self) -> StopReason | None:
        self.left -= 1
        return None if self.left else StopReason.INTERRUPTED

    def save(self, state: dict[str, Any]) -> None:
        self.state = state


def of_ones_own(mnist: Path, *words: str) -> Config:
    let_in([], [__name__])
    own = {"model": "Lazy", "optimizer": "Noted", "scheduler": "Cosine"}
    targets = [f"{group}._target_={__name__}.{kind}" for group, kind in own.items()]
    less = ["~model.dropout", *(f"~scheduler.{k}" for k in ONE_CYCLE)]
    data = (f"data.root={mnist}", "data.limit=640", "threads=1", "epochs=2", "lr=0.01")
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        return settle(compose("config", overrides=[*data, *targets, *less, *words]))


ONE_CYCLE = ("pct_start", "div_factor", "final_div_factor", "base_momentum")


def trained(trainer: Trainer, listener: Listener | None = None) -> dict[str, torch.Tensor]:
    trainer.train(listener or Listener())
    return {k: v.clone() for k, v in trainer.model.state_dict().items() if "extra" not in k}


def test_a_training_with_lazy_layers_and_numbers_of_numpy_goes_on_from_its_checkpoint(
    mnist: Path, tmp_path: Path
) -> None:
    config, stopped = of_ones_own(mnist), StopsAfter(3)
    whole = build.prepare(config)
    expected = trained(whole)
    trained(build.prepare(config), stopped)
    path = tmp_path / "state.pt"
    checkpoint.save(path, stopped.state)
    state = checkpoint.load(path, hashlib.sha256(path.read_bytes()).hexdigest())
    resumed = build.prepare(config, state)
    torch.testing.assert_close(trained(resumed), expected, rtol=0, atol=0)
    assert isinstance(resumed.model, Lazy) and resumed.model.seen == 2 * 640


@pytest.mark.parametrize("seed", [5, 2**32 + 5])
def test_a_seed_is_of_what_draws_from_python_and_numpy_too(mnist: Path, seed: int) -> None:
    config = of_ones_own(mnist, f"model._target_={__name__}.Noisy", f"seed={seed}")
    stopped = StopsAfter(3)
    whole = build.prepare(config)
    expected = trained(whole)
    again = build.prepare(config)
    assert isinstance(whole.model, Noisy) and isinstance(again.model, Noisy)
    assert whole.model.made_with == again.model.made_with
    trained(again, stopped)
    resumed = build.prepare(config, stopped.state)
    torch.testing.assert_close(trained(resumed), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("group", "kind"),
    [("model", "Unstorable"), ("optimizer", "NotedInArrays"), ("scheduler", "InADeque")],
)
def test_a_part_whose_state_no_checkpoint_could_hold_is_refused(
    mnist: Path, group: str, kind: str
) -> None:
    config = of_ones_own(mnist, f"{group}._target_={__name__}.{kind}")
    with pytest.raises(UserError, match=f"^{group}={__name__}.{kind}: its state .* right: a state"):
        build.prepare(config)


def test_a_model_with_nothing_to_train_is_refused_before_a_run_begins(mnist: Path) -> None:
    with pytest.raises(UserError, match="Frozen has no parameter to train; right: at least one"):
        build.prepare(of_ones_own(mnist, f"model._target_={__name__}.Frozen"))


def test_a_scheduler_that_waits_for_a_metric_is_refused_in_words_that_say_so(mnist: Path) -> None:
    plateau = "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"
    with pytest.raises(UserError, match="'metrics'; right: one that steps by itself, with other"):
        build.prepare(of_ones_own(mnist, plateau, "+scheduler.patience=2"))


def test_a_scheduler_that_takes_no_base_momentum_is_not_given_one_in_silence(mnist: Path) -> None:
    with pytest.raises(UserError, match="Cosine: .*'base_momentum'; right: the arguments of"):
        build.prepare(of_ones_own(mnist, "+scheduler.base_momentum=0.5"))


@pytest.mark.parametrize("kind", ["ConstantLR", "PolynomialLR"])
def test_what_a_scheduler_does_for_some_steps_it_does_for_all_of_the_run(
    mnist: Path, kind: str
) -> None:
    words = ["scheduler=constant", f"scheduler._target_=torch.optim.lr_scheduler.{kind}"]
    words.append("scheduler.factor=0.5" if kind == "ConstantLR" else "~scheduler.factor")
    data = (f"data.root={mnist}", "data.limit=1280", "batch_size=64", "epochs=2", "lr=0.01")
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        config = settle(compose("config", overrides=["threads=1", *data, *words]))
    trainer = build.prepare(config)
    trained(trainer)
    rates = [row["lr"] for row in trainer.position.history]
    assert rates == pytest.approx([0.005 if kind == "ConstantLR" else 0.01, 0.005])
    last = trainer.optimizer.param_groups[0]["lr"]  # after the last step
    assert last == pytest.approx(0.01 if kind == "ConstantLR" else 0.0)


@pytest.mark.parametrize(
    ("name", "device", "fused"),
    [("SGD", "mps", True), ("AdamW", "cuda", True), ("Adagrad", "cpu", True)]
    + [("Adagrad", "mps", False), ("Adagrad", "cuda", False), ("RMSprop", "cpu", False)],
)
def test_an_optimizer_is_fused_where_every_version_of_torch_has_it_so(
    name: str, device: str, fused: bool
) -> None:
    assert build.is_fused(getattr(torch.optim, name), device) == fused


def test_a_checkpoint_that_does_not_fit_the_code_is_refused(mnist: Path) -> None:
    stopped = StopsAfter(1)
    trained(build.prepare(of_ones_own(mnist)), stopped)
    with pytest.raises(UserError, match="does not fit the code.*size mismatch.*right: the code"):
        build.prepare(of_ones_own(mnist, "+model.width=5"), stopped.state)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "channels_last"), [("Convolutions", True), ("Viewed", False), ("Deep", False)]
)
def test_a_model_that_works_with_channels_first_alone_is_trained_so(
    mnist: Path, kind: str, channels_last: bool, precision: str
) -> None:
    model = f"model._target_={__name__}.{kind}"
    trainer = build.prepare(of_ones_own(mnist, model, f"precision={precision}"))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    after = trained(trainer)
    assert all(not torch.equal(before[name], weights) for name, weights in after.items())
    assert isinstance(trainer.model, Convolutions)
    weights = trainer.model.layers[1].weight
    assert isinstance(weights, torch.Tensor)
    assert weights.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_complex_parameter_is_trained_by_an_optimizer_that_is_not_fused(
    mnist: Path, kind: str
) -> None:
    words = [f"model._target_={__name__}.Turned", f"optimizer._target_=torch.optim.{kind}"]
    words += ["~optimizer.momentum"] if kind == "AdamW" else []
    trainer = build.prepare(of_ones_own(mnist, *words))
    assert isinstance(trainer.model, Turned)
    trained(trainer)
    assert not torch.equal(trainer.model.turn, torch.ones(28, 28, dtype=torch.complex64))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="before torch 2.9")
def test_an_optimizer_of_matrices_trains_a_model_of_matrices(mnist: Path) -> None:
    muon = "optimizer._target_=torch.optim.Muon"
    trained(build.prepare(of_ones_own(mnist, f"model._target_={__name__}.Flat", muon)))
    with pytest.raises(UserError, match="^optimizer: Muon: .*2D parameters"):
        build.prepare(of_ones_own(mnist, muon))


@pytest.mark.parametrize(("word", "made"), [("model.name=wide", "wide"), ("~model.name", "narrow")])
def test_a_name_is_an_argument_too_where_the_class_takes_one(
    mnist: Path, word: str, made: str
) -> None:
    model = build.prepare(of_ones_own(mnist, f"model._target_={__name__}.Named", word)).model
    assert isinstance(model, Named) and model.made == made


@pytest.mark.parametrize("kind", ["Renamed", "ByName"])
def test_the_parameters_may_have_any_name_in_an_optimizer_of_ones_own(
    mnist: Path, kind: str
) -> None:
    words = [f"optimizer._target_={__name__}.{kind}"]
    words += [f"scheduler._target_={__name__}.RenamedCosine"]
    trainer = build.prepare(of_ones_own(mnist, *words))
    assert len(trainer.optimizer.param_groups[0]["params"]) == 4
    assert isinstance(trainer.scheduler, RenamedCosine) and trainer.scheduler.total == 4
    with pytest.raises(UserError, match="optimizer: .*'rate'; right: the arguments of"):
        build.prepare(of_ones_own(mnist, *words, "+optimizer.rate=1"))


def test_a_run_does_not_go_on_with_other_data(mnist: Path, tmp_path: Path) -> None:
    stopped = StopsAfter(1)
    trained(build.prepare(of_ones_own(mnist, "data.sha256=null")), stopped)
    mini(tmp_path / "MNIST" / "raw", train=700)
    other = of_ones_own(tmp_path, "data.sha256=null")
    with pytest.raises(UserError, match="is not the data .*right: the data .*sweep.fresh=true"):
        build.prepare(other, stopped.state)
    build.prepare(other, {k: v for k, v in stopped.state.items() if k != "data_sha256"})
