"""What is built of a configuration: here, the ways in which a model can be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_hydra import build
from mnist_hydra.models import Model2
from mnist_hydra.runtime import Runtime

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
    assert told.startswith("training at plain PyTorch's speed:") and "not Linear" in told
    assert not list(tmp_path.iterdir())
