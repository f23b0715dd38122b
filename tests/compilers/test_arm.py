"""The kernel compiled for ARM computes what it computes here, given the same workspace."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnist_hydra.kernel import compile as kernel
from mnist_hydra.kernel.compile import Task
from mnist_hydra.kernel.fused import Fused, Workspace
from mnist_hydra.models import Model1, Model3, set_dropout_step

ARM = "aarch64-linux-gnu-gcc"
FOUR_LANES = ["-march=x86-64"]
POINTERS = 9
COUNT = 10
"""Images: two groups of four and a half one."""


def buffers(workspace: Workspace) -> list[Tensor]:
    """Everything that a task may point into."""
    return [
        *(workspace.images, *workspace.y, *workspace.gradients),
        *(workspace.sums, workspace.tables, *workspace.weights, *workspace.gweights),
    ]


def write(workspace: Workspace, path: Path) -> None:
    """The workspace and its tasks, as driver.c reads them."""
    held = buffers(workspace)
    with path.open("wb") as file:
        file.write(struct.pack("=q", len(held)))
        for tensor in held:
            data = tensor.detach().numpy().tobytes()
            file.write(struct.pack("=q", len(data)) + data)
        for task in workspace.tasks:
            for name, _ in Task._fields_[:POINTERS]:
                file.write(struct.pack("=qq", *_place(getattr(task, name), held)))
            file.write(bytes(task)[POINTERS * 8 :])


def _place(pointer: int, held: list[Tensor]) -> tuple[int, int]:
    for number, tensor in enumerate(held):
        if 0 <= pointer - tensor.data_ptr() < tensor.numel() * tensor.element_size():
            return number, pointer - tensor.data_ptr()
    raise AssertionError("a task points outside of its workspace")


def read(path: Path, like: Iterable[Tensor]) -> list[Tensor]:
    """The buffers that driver.c wrote."""
    data, found = path.read_bytes(), []
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        values = np.frombuffer(data[:size], tensor.detach().numpy().dtype).copy()
        found.append(torch.from_numpy(values).view(tensor.shape))
        data = data[size:]
    assert not data
    return found


@pytest.mark.parametrize(("kind", "dropout"), [(Model1, 0.1), (Model3, 0.04)])
@torch.no_grad()
def test_an_arm_cpu_computes_the_same(
    kind: type[nn.Module], dropout: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind(dropout)
    set_dropout_step(model, 1, 2)
    fused = Fused(model, tmp_path, FOUR_LANES)
    assert fused.kernel.lanes == 4
    workspace = fused.workspace(COUNT, backward=True)
    workspace.load(fused.parameters)
    workspace.use_dropout()
    workspace.begin_forward(torch.randn(COUNT, 1, 28, 28))
    scores = workspace.scores(COUNT).shape[1]
    workspace.begin_backward(torch.randn(COUNT, scores) / COUNT)
    for y in workspace.y:
        y.zero_()
    write(workspace, tmp_path / "before")

    command = [ARM, *[f for f in kernel.COMPILER_FLAGS if f not in ("-shared", "-fPIC")], "-static"]
    shapes = [stage.shape for stage in fused.stages]
    vector = kernel.vectors(kernel.predefined(*command))
    assert vector.lanes == 4 and vector.registers > kernel.vectors(set()).registers
    numbers = range(len(shapes))
    subprocess.run(
        [
            *(*command, "-Werror", *kernel.definitions(shapes, vector)),
            f'-DKERNEL="{kernel.SOURCE}"',
            "-DFORWARD=" + ", ".join(f"forward_{i}" for i in numbers),
            "-DBACKWARD=" + ", ".join(f"backward_{i}" for i in numbers),
            *("-o", str(tmp_path / "driver"), str(Path(__file__).with_name("driver.c")), "-lm"),
        ],
        check=True,
    )
    files = [str(tmp_path / name) for name in ("driver", "before", "after")]
    subprocess.run(["qemu-aarch64", *files], check=True, timeout=120)

    for task, call in zip(workspace.tasks, fused.kernel.forward, strict=True):
        call(task)
    for task, call in zip(
        reversed(workspace.tasks), reversed(fused.kernel.backward), strict=True
    ):
        call(task)
    here = buffers(workspace)
    for number, (ours, theirs) in enumerate(zip(here, read(tmp_path / "after", here), strict=True)):
        scale = max(float(ours.abs().max()), 1e-6)
        assert float((ours - theirs).abs().max()) < 1e-4 * scale, number
    assert all(float(w[0].abs().max()) > 0 for w in workspace.gweights)
