"""Which way a model is run, decided and prepared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_hydra import fast
from mnist_hydra.fast import Plan
from mnist_hydra.models import Model2


@pytest.mark.parametrize(
    ("device", "precision", "compile_", "bf16", "no_kernel", "expected"),
    [
        ("cpu", "auto", "auto", True, None, Plan(True, False, "fp32")),
        ("cpu", "fp32", "auto", False, None, Plan(True, False, "fp32")),
        ("cpu", "bf16", "auto", True, None, Plan(False, False, "bf16")),
        ("cpu", "auto", False, True, None, Plan(False, False, "bf16")),
        ("cpu", "auto", True, False, None, Plan(False, True, "fp32")),
        ("cuda", "auto", "auto", True, None, Plan(False, False, "bf16")),
        ("cuda:1", "auto", "auto", False, "none", Plan(False, False, "fp32")),
        ("mps", "auto", True, False, "none", Plan(False, True, "fp32")),
        ("cuda", "fp16", "auto", True, None, Plan(False, False, "fp16")),
    ],
)
def test_the_kernel_is_taken_where_it_is_and_nothing_else_was_asked_for(
    device: str,
    precision: str,
    compile_: bool | str,
    bf16: bool,
    no_kernel: str | None,
    expected: Plan,
) -> None:
    assert fast.plan(device, precision, compile_, fast_bf16=bf16, no_kernel=no_kernel) == expected


def test_a_cpu_without_the_kernel_trains_plainly_and_says_why() -> None:
    plan = fast.plan("cpu", "auto", "auto", fast_bf16=True, no_kernel="there is no C compiler")
    assert (plan.kernel, plan.precision) == (False, "bf16")
    assert "no C compiler" in plan.note


def test_a_plan_without_the_kernel_runs_the_model_itself(tmp_path: Path) -> None:
    model = Model2()
    prepared = fast.prepare(model, Plan(False, False, "fp32"), tmp_path)
    assert prepared.train is model and prepared.evaluate is model
    assert not list(tmp_path.iterdir())


def test_a_plan_with_the_kernel_trains_and_evaluates_the_same_parameters(tmp_path: Path) -> None:
    model = Model2()
    missing = fast.why_no_kernel(model, tmp_path)
    if missing is not None:
        pytest.skip(missing)
    prepared = fast.prepare(model, Plan(True, False, "fp32"), tmp_path)
    images = torch.randn(4, 1, 28, 28)
    torch.autograd.backward(prepared.train(images).sum())
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    torch.testing.assert_close(prepared.evaluate(images), model(images), atol=1e-4, rtol=1e-4)


def test_a_model_of_ones_own_has_no_kernel(tmp_path: Path) -> None:
    assert "not Linear" in str(fast.why_no_kernel(nn.Linear(2, 3), tmp_path))
