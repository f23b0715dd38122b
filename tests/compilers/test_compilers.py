"""gcc and clang compile the kernel for every CPU of this kind, with no warning, and it computes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_hydra.kernel import compile as kernel
from mnist_hydra.kernel.fused import Fused, stages
from mnist_hydra.models import Model1, Model3, set_dropout_step

COMPILERS = ["gcc", "clang"]
CPUS = ["-march=x86-64-v4", "-march=x86-64-v3", "-march=x86-64"]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("openmp", [["-fopenmp"], []])
@pytest.mark.parametrize("kind", [Model1, Model3])
def test_it_compiles_without_a_warning(
    compiler: str, cpu: str, openmp: list[str], kind: type[nn.Module], tmp_path: Path
) -> None:
    command = [compiler, *kernel.COMPILER_FLAGS, cpu]
    shapes = [stage.shape for stage in stages(kind())]
    defined = kernel.definitions(shapes, kernel.vectors(kernel.predefined(*command)))
    out = ["-o", str(tmp_path / "kernel.so"), str(kernel.SOURCE)]
    done = subprocess.run(
        [*command, *openmp, "-Werror", *defined, *out], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", [Model1, Model3])
def test_what_clang_makes_computes_what_gcc_makes_does_and_uses_all_threads(
    kind: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(40, 1, 28, 28)
    found = {}
    for compiler in COMPILERS:
        monkeypatch.setenv("CC", compiler)
        torch.manual_seed(0)
        model = kind(0.1)
        set_dropout_step(model, 1, 2)
        fused = Fused(model, tmp_path / compiler)
        assert fused.kernel.parallel
        found[compiler] = fused(images)
        torch.autograd.backward(found[compiler].sum())
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    torch.testing.assert_close(found["gcc"], found["clang"], atol=1e-5, rtol=1e-5)
