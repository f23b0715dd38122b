"""A disk that is full at a checkpoint, an artifact or the store, and has room again later."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.commands import Commands
from tests.faults.single_run import WAITS, assert_equal, printed, start, the_runs, weights


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave not a byte of a file system."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    return filler


@pytest.mark.parametrize(
    "moment",
    [
        r"epoch +2/",
        pytest.param("stopping after", marks=pytest.mark.long),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    moment: str,
    commands: Commands,
    tmp_path: Path,
    small_disk: Path,
    words: list[str],
    alone: dict[str, torch.Tensor],
) -> None:
    output_dir = small_disk / "outputs"
    command = start(tmp_path, *words, f"output_dir={output_dir}", first=WAITS)
    command.wait_for_line(r"epoch +2/")
    if moment == "stopping after":
        command.process.send_signal(signal.SIGTERM)
        command.go_on()
        command.wait_for_line(moment)
    filler = fill(small_disk)
    command.go_on()
    assert command.finish() != 0, command.said
    assert "Traceback" not in command.said
    if moment != "stopping after":
        assert "No space left on device" in command.said
    filler.unlink()
    again = commands.run(tmp_path, *printed(command))
    assert again.code == 0, again.said
    assert_equal(weights(tmp_path, output_dir), alone)


@pytest.mark.long
def test_a_disk_that_is_full_after_the_last_epoch_costs_the_pictures_and_the_model_alone(
    tmp_path: Path, small_disk: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    output_dir = small_disk / "outputs"
    command = start(tmp_path, *words, f"output_dir={output_dir}")
    command.wait_for_line("drawing the pictures")
    filler = fill(small_disk)
    assert command.finish() == 0, command.said
    assert "pictures and exported model are not complete: OSError" in command.said
    assert "Traceback" not in command.said
    filler.unlink()
    if (output_dir / "spool").exists():
        again = start(tmp_path, f"output_dir={output_dir}", module="mnist_hydra.sync")
        assert again.finish() == 0, again.said
    client, (run,) = the_runs(tmp_path, output_dir)
    assert run.info.status == "FINISHED" and "test/acc_last" in run.data.metrics
    last = client.download_artifacts(run.info.run_id, "checkpoints/last.pt")
    state = torch.load(last, weights_only=True)
    assert_equal({name: state[name] for name in alone}, alone)
