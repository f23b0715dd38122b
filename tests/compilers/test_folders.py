"""A run trains on where the kernel cannot be kept: the cache's disk is full, or read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    subprocess.run(["umount", home], check=True)


def train(home: Path) -> list[str]:
    """The lines in which a short run that ends well says that it has no kernel."""
    words = ["device=cpu", "epochs=1", "data.limit=512", f"data.root={ROOT / 'outputs' / 'data'}"]
    variables = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "mnist_hydra.train", *words],
        env=variables | {"HOME": str(home), "MPLCONFIGDIR": str(home.parent)},
        capture_output=True,
        text=True,
        cwd=home.parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith(PLAIN)]


@pytest.mark.usefixtures("mnist")
def test_a_full_disk_is_said_in_one_line_and_nothing_is_left_on_it(tmpfs: Path) -> None:
    (said,) = train(tmpfs)
    assert "No space left on device" in said and "XDG_CACHE_HOME=" in said
    assert not list(tmpfs.iterdir())


@pytest.mark.usefixtures("mnist")
def test_a_read_only_folder_is_said_and_a_kernel_that_lies_in_it_is_used(tmpfs: Path) -> None:
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


@pytest.mark.usefixtures("mnist")
def test_a_home_that_is_missing_is_said_and_not_made(tmp_path: Path) -> None:
    (said,) = train(tmp_path / "home")
    assert "No such file or directory" in said and "XDG_CACHE_HOME=" in said
    assert not (tmp_path / "home").exists()
