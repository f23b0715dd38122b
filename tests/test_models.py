"""The published architectures, to the letter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mnist_hydra.models import Model1, Model2, Model3

MODEL1 = """Conv2d 8x28x28, BatchNorm2d 8x28x28, LeakyReLU 8x28x28, Dropout 8x28x28,
Conv2d 8x28x28, BatchNorm2d 8x28x28, LeakyReLU 8x28x28, MaxPool2d 8x14x14, Dropout 8x14x14,
Conv2d 12x14x14, BatchNorm2d 12x14x14, LeakyReLU 12x14x14, Dropout 12x14x14,
Conv2d 12x14x14, BatchNorm2d 12x14x14, LeakyReLU 12x14x14, MaxPool2d 12x7x7, Dropout 12x7x7,
Conv2d 16x7x7, BatchNorm2d 16x7x7, LeakyReLU 16x7x7, Dropout 16x7x7,
Conv2d 16x7x7, BatchNorm2d 16x7x7, LeakyReLU 16x7x7, MaxPool2d 16x3x3, Dropout 16x3x3,
AvgPool2d 16x1x1, Flatten 16"""

MODEL2 = """Conv2d 12x26x26, ReLU 12x26x26, BatchNorm2d 12x26x26, Dropout 12x26x26,
Conv2d 16x24x24, ReLU 16x24x24, BatchNorm2d 16x24x24, Dropout 16x24x24,
Conv2d 10x24x24, MaxPool2d 10x12x12,
Conv2d 12x10x10, ReLU 12x10x10, BatchNorm2d 12x10x10, Dropout 12x10x10,
Conv2d 12x8x8, ReLU 12x8x8, BatchNorm2d 12x8x8, Dropout 12x8x8,
Conv2d 12x6x6, ReLU 12x6x6, BatchNorm2d 12x6x6, Dropout 12x6x6,
Conv2d 12x6x6, ReLU 12x6x6, BatchNorm2d 12x6x6, Dropout 12x6x6,
AvgPool2d 12x1x1, Conv2d 10x1x1, Flatten 10"""


@pytest.mark.parametrize(
    ("model", "parameters", "expected"),
    [(Model1(), 6984, MODEL1), (Model2(), 7236, MODEL2), (Model3(), 7236, MODEL2)],
)
def test_each_architecture_is_the_published_one(
    model: nn.Module, parameters: int, expected: str
) -> None:
    seen: list[str] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda module, _, output: seen.append(
                    f"{type(module).__name__} {'x'.join(str(n) for n in output.shape[1:])}"
                )
            )
    model(torch.zeros(2, 1, 28, 28))
    assert seen == [layer.strip() for layer in expected.split(",")]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert all(m.eps == 1e-5 and m.momentum == 0.1 for m in _norms(model))


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_only_the_third_architecture_drops_by_default() -> None:
    rates = [{m.p for m in model.modules() if hasattr(m, "threshold")}
             for model in (Model1(), Model2(), Model3(), Model2(0.1))]  # fmt: skip
    assert rates == [{0.0}, {0.0}, {0.04}, {0.1}]


@pytest.mark.parametrize("model", [Model1(0.1), Model2(0.1), Model3()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_float32_log_probabilities_of_ten_classes(
    model: nn.Module, dtype: torch.dtype
) -> None:
    images = torch.randn(5, 1, 28, 28)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = model(images)
    assert output.dtype == torch.float32 and output.shape == (5, 10)
    total = output.exp().sum(1)
    assert (total <= 1 + 1e-5).all()
    if not isinstance(model, Model1):
        torch.testing.assert_close(total, torch.ones(5))


def test_the_six_scores_that_are_no_digit_are_never_predicted_but_count_in_the_loss() -> None:
    model = Model1()
    scores = torch.zeros(3, 16)
    scores[:, 12] = 9.0
    model.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 16))
    linear = model.layers[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(scores[0])
    output = model(torch.zeros(3, 1, 28, 28))
    assert (output.argmax(1) < 10).all()
    torch.testing.assert_close(output, scores.log_softmax(1)[:, :10])


@pytest.mark.parametrize("model", [Model1(0.1), Model3()])
def test_memory_format_changes_nothing_but_rounding(model: nn.Module) -> None:
    images = torch.randn(8, 1, 28, 28)
    plain = model(images)
    last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, atol=1e-4, rtol=1e-4)


def test_an_evaluated_model_can_be_exported() -> None:
    model = Model3().eval()
    program = torch.export.export(
        model, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    images = torch.randn(7, 1, 28, 28)
    torch.testing.assert_close(program.module()(images), model(images))
