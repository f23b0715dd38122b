"""How workers are placed on a machine's GPUs and cores."""

from __future__ import annotations

import os

import pytest
from omegaconf import OmegaConf

from hydra_plugins.mnist_hydra.joblib_launcher import JoblibLauncher, placement, visible_gpus
from mnist_hydra.config import SweepConfig
from mnist_hydra.sweep.launchers import count_workers


def slots(device: str, **settings: int) -> int:
    """How many workers a launcher of trials on a device runs side by side here."""
    launcher = JoblibLauncher(**settings)
    config = OmegaConf.create({"device": device, "output_dir": "outputs"})
    launcher.setup(hydra_context=None, task_function=None, config=config)  # type: ignore
    return count_workers(launcher, SweepConfig())


def test_without_gpus_there_is_room_for_a_worker_a_core() -> None:
    assert 1 <= slots("cpu", trials_per_gpu=3) <= len(os.sched_getaffinity(0))
    assert slots("cpu", workers=5) == 5


def test_with_gpus_there_is_room_for_so_many_trials_on_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert slots("cuda") == 2
    assert slots("cuda", trials_per_gpu=3) == 6


def test_workers_take_turns_on_the_gpus() -> None:
    gpus = ["4", "GPU-7f"]
    chosen = [placement(k, 4, gpus=gpus, cores=8) for k in range(4)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in chosen] == ["4", "GPU-7f", "4", "GPU-7f"]


def test_one_gpu_needs_no_choosing() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in placement(1, 2, gpus=["0"], cores=8)


@pytest.mark.parametrize(
    ("workers", "cores", "threads"), [(2, 2, 1), (1, 2, 2), (3, 8, 2), (16, 2, 1)]
)
def test_the_cores_are_divided_among_the_workers(workers: int, cores: int, threads: int) -> None:
    placed = placement(workers - 1, workers, gpus=[], cores=cores)
    assert placed == {"OMP_NUM_THREADS": str(threads)}


@pytest.mark.parametrize(
    ("device", "listed", "gpus"),
    [
        ("auto", "0,1", ["0", "1"]),
        ("cuda", "GPU-8a, MIG-1b", ["GPU-8a", "MIG-1b"]),
        ("cuda:1", "4,5,6", ["5"]),
        ("cuda:3", "4,5", []),
        ("cuda", "2,-1,3", ["2"]),
        ("cuda", "", []),
        ("cuda", "none", []),
        ("cpu", "0,1", []),
    ],
)
def test_the_visible_gpus_follow_the_device_and_the_environment(
    device: str, listed: str, gpus: list[str]
) -> None:
    assert visible_gpus(device, {"CUDA_VISIBLE_DEVICES": listed}) == gpus
