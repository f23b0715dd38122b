"""The ways in which a model can be run compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_hydra import fast
from mnist_hydra.models import Model2
from mnist_hydra.runtime import Runtime

PLAIN = Runtime("cpu", "fp32", compile=False, kernel=False, threads=1, deterministic=True)
KERNEL = Runtime("cpu", "fp32", compile=False, kernel=True, threads=1, deterministic=True)


def test_a_choice_without_the_kernel_runs_the_model_itself(tmp_path: Path) -> None:
    model = Model2()
    prepared = fast.prepare(model, PLAIN, tmp_path)
    assert prepared.train is model and prepared.evaluate is model
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("kernel_possible")
def test_a_choice_with_the_kernel_trains_and_evaluates_the_same_parameters(tmp_path: Path) -> None:
    model = Model2()
    assert fast.try_kernel(model, tmp_path)[0] is None
    prepared = fast.prepare(model, KERNEL, tmp_path)
    images = torch.randn(4, 1, 28, 28)
    torch.autograd.backward(prepared.train(images).sum())
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    torch.testing.assert_close(prepared.evaluate(images), model(images), atol=1e-4, rtol=1e-4)


def test_a_model_of_ones_own_has_no_kernel(tmp_path: Path) -> None:
    assert "not Linear" in str(fast.try_kernel(nn.Linear(2, 3), tmp_path)[0])
