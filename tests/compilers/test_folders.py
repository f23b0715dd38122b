"""A run trains on where the kernel cannot be kept: the cache's disk is full, or read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import Commands

PLAIN = "training at plain PyTorch's speed: "


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A home on a file system of 16 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", home], check=True)
    yield home
    subprocess.run(["umount", "-l", home], check=True)


Train = Callable[[Path], list[str]]


@pytest.fixture
def train(commands: Commands, mnist: Path) -> Train:
    """A short run that ends well in a home: the lines in which it says that it has no kernel."""
    words = ["device=cpu", "epochs=1", "data.limit=512", f"data.root={mnist}"]

    def run(home: Path) -> list[str]:
        elsewhere = {"MPLCONFIGDIR": str(home.parent), "CUDA_CACHE_PATH": str(home.parent / "nv")}
        env = {"HOME": str(home), "XDG_CACHE_HOME": None, **elsewhere}
        done = commands.run_module("train", *words, cwd=home.parent, env=env)
        assert done.code == 0, done.said
        return [line for line in done.err.splitlines() if line.startswith(PLAIN)]

    return run


def test_a_full_disk_is_said_in_one_line_and_nothing_is_left_on_it(
    tmpfs: Path, train: Train
) -> None:
    (said,) = train(tmpfs)
    assert "No space left on device" in said and "XDG_CACHE_HOME=" in said
    assert not list(tmpfs.iterdir())


def test_a_read_only_folder_is_said_and_a_kernel_that_lies_in_it_is_used(
    tmpfs: Path, train: Train
) -> None:
    mount = ["mount", "-o", "remount,size=16m", tmpfs]
    subprocess.run(mount, check=True)
    assert train(tmpfs) == []
    subprocess.run([*mount[:2], "remount,ro", tmpfs], check=True)
    assert train(tmpfs) == []

    subprocess.run([*mount[:2], "remount,rw", tmpfs], check=True)
    for path in tmpfs.rglob("*.*"):
        if path.is_file():
            path.unlink()
    subprocess.run([*mount[:2], "remount,ro", tmpfs], check=True)
    (said,) = train(tmpfs)
    assert "Read-only file system" in said and "XDG_CACHE_HOME=" in said


def test_a_home_that_is_missing_is_said_and_not_made(tmp_path: Path, train: Train) -> None:
    (said,) = train(tmp_path / "home")
    assert "No such file or directory" in said and "XDG_CACHE_HOME=" in said
    assert not (tmp_path / "home").exists()
