"""A run trains on where the kernel cannot be kept: the folder's disk is full, or read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN = "training at plain PyTorch's speed: "


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """`output_dir` with its folder of kernels on a file system of 16 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    kernels = tmp_path / "outputs" / "kernels"
    kernels.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", kernels], check=True)
    yield kernels
    subprocess.run(["umount", kernels], check=True)


def train(kernels: Path) -> str:
    """What a short run that ends well says on stderr."""
    words = ["epochs=1", "data.limit=512", f"data.root={ROOT / 'outputs' / 'data'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mnist_hydra.train", *words, f"output_dir={kernels.parent}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.usefixtures("mnist")
def test_a_full_disk_is_said_in_one_line_and_nothing_is_left_on_it(tmpfs: Path) -> None:
    (said,) = [line for line in train(tmpfs).splitlines() if line.startswith(PLAIN)]
    assert "No space left on device" in said
    assert not list(tmpfs.iterdir())


@pytest.mark.usefixtures("mnist")
def test_a_read_only_folder_is_said_and_a_kernel_that_lies_in_it_is_used(tmpfs: Path) -> None:
    mount = ["mount", "-o", "remount,size=16m", tmpfs]
    subprocess.run(mount, check=True)
    assert PLAIN not in train(tmpfs)
    subprocess.run([*mount[:2], "remount,ro", tmpfs], check=True)
    shutil.rmtree(tmpfs.parent, ignore_errors=True)  # all but the kernel
    assert PLAIN not in train(tmpfs)

    subprocess.run([*mount[:2], "remount,rw", tmpfs], check=True)
    for path in tmpfs.iterdir():
        path.unlink()
    subprocess.run([*mount[:2], "remount,ro", tmpfs], check=True)
    (said,) = [line for line in train(tmpfs).splitlines() if line.startswith(PLAIN)]
    assert "Read-only file system" in said
