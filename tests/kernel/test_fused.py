"""The compiled kernel, as wide as this CPU allows and narrower, against float64 PyTorch."""

from __future__ import annotations

import copy
import platform
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from mnist_hydra.kernel.compile import Unavailable, cpu_flags
from mnist_hydra.kernel.folder import kernel_folder
from mnist_hydra.kernel.fused import Fused
from mnist_hydra.models import Model1, Model2, Model3, set_dropout_step

pytestmark = pytest.mark.usefixtures("kernel_possible")

MODELS = [Model1, Model2, Model3]
HERE = torch.backends.cpu.get_cpu_capability()
# A CPU with AVX-512 runs AVX2's and SSE's code too.
NARROWER = {"AVX512": ["AVX2", "DEFAULT"], "AVX2": ["DEFAULT"]}.get(HERE, [])
CPUS = [cpu_flags(platform.machine(), capability) for capability in [HERE, *NARROWER]]


@pytest.fixture
def folder() -> Path:
    return kernel_folder()


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def build(kind: type[nn.Module], dropout: float, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    model = kind(dropout)
    for module in model.modules():  # so that no factor is 1 and no shift 0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


def exact(model: nn.Module, images: Tensor) -> Tensor:
    """The plain model in float64, to the last digit."""
    assert isinstance(model, Model1 | Model2)
    return F.log_softmax(model.layers(images.double()), 1)[:, :10]


@pytest.mark.parametrize("cpu", CPUS, ids=" ".join)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 8, 37])
def test_values_gradients_and_statistics_are_those_of_the_plain_model(
    cpu: list[str], kind: type[nn.Module], dropout: float, count: int, folder: Path
) -> None:
    """Of three batches one may have gradients that differ: where two pixels of a pool are equal up
    to rounding, or an activation is zero up to rounding, float32 takes the other branch. Plain
    PyTorch in float32 does so as often: one batch of 40, where all others agree to 1e-5.
    """
    worst = []
    for seed in range(3):
        model = build(kind, dropout)
        reference = copy.deepcopy(model).double()
        images, labels = batch(count, seed)
        for each in (model, reference):
            set_dropout_step(each, 1, 2)
        expected = exact(reference, images)
        torch.autograd.backward(F.nll_loss(expected, labels))
        got = Fused(model, folder, cpu)(images)
        torch.autograd.backward(F.nll_loss(got, labels))
        assert got.dtype == torch.float32 and got.shape == (count, 10)
        torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-5)
        for (name, ours), theirs in zip(model.named_buffers(), reference.buffers(), strict=True):
            assert torch.allclose(ours.double(), theirs.double(), atol=1e-6, rtol=1e-5), name
        worst.append(0.0)
        for here, there in zip(model.parameters(), reference.parameters(), strict=True):
            assert here.grad is not None and there.grad is not None
            scale = max(float(there.grad.abs().max()), 1e-2)
            worst[-1] = max(worst[-1], float((here.grad - there.grad).abs().max()) / scale)
    assert sorted(worst)[1] < 1e-4, worst


@pytest.mark.parametrize("cpu", CPUS, ids=" ".join)
@pytest.mark.parametrize("kind", MODELS)
def test_evaluation_is_that_of_the_plain_model(
    cpu: list[str], kind: type[nn.Module], folder: Path
) -> None:
    model = build(kind, 0.3)
    fused = Fused(model, folder, cpu)
    fused(batch(64)[0])
    images, _ = batch(300, seed=1)
    before = copy.deepcopy(model.state_dict())
    got = fused.evaluate(images)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not got.requires_grad
    expected = exact(copy.deepcopy(model).double().eval(), images)
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("cpu", CPUS, ids=" ".join)
@pytest.mark.parametrize("kind", [Model1, Model3])
def test_steps_are_bit_identical_whatever_the_threads_and_what_ran_before(
    cpu: list[str], kind: type[nn.Module], folder: Path
) -> None:
    def train(threads: int, disturb: bool) -> dict[str, Tensor]:
        torch.set_num_threads(threads)
        model = build(kind, 0.1)
        fused = Fused(model, folder, cpu)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step, count in enumerate((48, 48, 17)):
            if disturb:
                fused.evaluate(batch(200, seed=9)[0])
                fused = Fused(model, folder, cpu)
            set_dropout_step(model, 5, step)
            images, labels = batch(count, seed=step)
            optimizer.zero_grad()
            torch.autograd.backward(F.nll_loss(fused(images), labels))
            optimizer.step()
        return model.state_dict()

    threads = torch.get_num_threads()
    try:
        first = train(1, disturb=False)
        others = [train(1, disturb=True), train(2, disturb=False), train(3, disturb=True)]
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert all(torch.equal(first[name], value) for name, value in other.items())


def test_memory_formats_and_odd_strides_change_nothing(folder: Path) -> None:
    model = build(Model3, 0.1)
    images, labels = batch(9)

    def gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
        set_dropout_step(model, 1, 1)
        torch.autograd.backward(F.nll_loss(Fused(model, folder)(images), labels))
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain = gradients(copy.deepcopy(model), images)
    strided = torch.stack([images, images], -1)[..., 0]
    last = gradients(copy.deepcopy(model).to(memory_format=torch.channels_last), strided)
    assert all(torch.equal(a, b) for a, b in zip(plain, last, strict=True))


def test_two_forward_passes_may_come_before_their_backward_passes(folder: Path) -> None:
    model = build(Model3, 0.0)
    fused = Fused(model, folder)
    (a, labels_a), (b, labels_b) = batch(8, seed=1), batch(8, seed=2)
    apart = copy.deepcopy(model)
    for images, labels in ((a, labels_a), (b, labels_b)):
        torch.autograd.backward(F.nll_loss(Fused(apart, folder)(images), labels))
    (torch.autograd.backward(F.nll_loss(fused(a), labels_a) + F.nll_loss(fused(b), labels_b)))
    for ours, theirs in zip(model.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_forward_pass_without_gradients_keeps_no_memory_busy(folder: Path) -> None:
    model = build(Model3, 0.0)
    fused = Fused(model, folder)
    with torch.no_grad():
        first = fused(batch(8)[0])
        fused(batch(8, seed=1)[0])
    assert len(fused.idle) == 1 and not first.requires_grad
    assert torch.equal(first, Fused(build(Model3, 0.0), folder)(batch(8)[0]).detach())


def test_a_value_that_is_not_finite_reaches_the_loss(folder: Path) -> None:
    images, labels = batch(8)
    images[3, 0, 5, 5] = float("nan")
    assert F.nll_loss(Fused(build(Model3, 0.1), folder)(images), labels).isnan()


def test_it_learns(folder: Path) -> None:
    model = build(Model2, 0.0)
    fused = Fused(model, folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = batch(32)
    losses = []
    for _ in range(20):
        loss = F.nll_loss(fused(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_model_of_ones_own_is_refused_with_the_reason(folder: Path) -> None:
    class Mine(Model3):
        pass

    with pytest.raises(Unavailable, match="not Mine"):
        Fused(Mine(), folder)
