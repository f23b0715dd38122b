"""Thousands of trials in one process, which must not grow with them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import mnist_files

TRIALS = int(os.environ.get("FAULTS_TRIALS", "10000"))
SETTLED_AFTER = 100
MAX_GROWTH_MIB = 50


@pytest.mark.long
def test_memory_and_open_files_stay_flat_after_the_first_hundred_trials(tmp_path: Path) -> None:
    mnist_files.write(tmp_path, train=128, test=128)
    words = ["-m", "mnist_hydra.train", "--multirun", f"seed=range(0,{TRIALS})", "epochs=1"]
    words += ["batch_size=128", "sweep.keep=0", "sweep.report=false", "data.sha256=null"]
    words += [f"data.root={tmp_path}", "threads=1"]
    log = tmp_path / "log"
    with log.open("w") as file:
        sweep = subprocess.Popen([sys.executable, *words], cwd=tmp_path, stdout=file, stderr=file)
    process = psutil.Process(sweep.pid)
    seen: list[tuple[int, float, int]] = []  # trials done, MiB, open files
    while sweep.poll() is None:
        time.sleep(1)
        done = log.read_text().count(": finished after epoch 1")
        try:
            memory_mib = process.memory_info().rss / 2**20
            seen.append((done, memory_mib, process.num_fds()))
        except psutil.NoSuchProcess:
            break
    assert sweep.wait() == 0, log.read_text()[-3000:]
    settled = [each for each in seen if SETTLED_AFTER <= each[0] <= 2 * SETTLED_AFTER]
    last = [each for each in seen if TRIALS - SETTLED_AFTER <= each[0] < TRIALS]
    assert settled and last, seen
    grown_mib = _median(last, 1) - _median(settled, 1)
    told = f"(trials, MiB, open files): {settled[0]}, ..., {last[-1]}"
    print(told, *seen[:: max(1, len(seen) // 20)], sep="\n")
    assert grown_mib < MAX_GROWTH_MIB, told
    assert _median(last, 2) <= _median(settled, 2) + 2, told


def _median(seen: list[tuple[int, float, int]], place: int) -> float:
    return sorted(each[place] for each in seen)[len(seen) // 2]
