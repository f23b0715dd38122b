"""A wall clock that is set back and forward by a day, again and again, while a search runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mnist_hydra.kernel.compile import compiler
from mnist_hydra.tracking import tag
from tests.faults.faulty_sweep import FaultySweep, wait_for
from tests.sweep_entries import claims, entries

DAY_S = 86_400
AXES = [
    *("hydra/sweeper=search", "sweep.n_trials=9", "sweep.pruner=median", "data.val_size=250"),
    *("lr=tag(log,interval(0.0001,5))", "sweep.keep=0"),
]


@pytest.mark.long
def test_a_search_proposes_prunes_and_goes_on_as_if_the_clock_stood_right(
    tmp_path: Path, store: Path, mnist: Path, client: MlflowClient, kernel_possible: None
) -> None:
    shim, offset = tmp_path / "clock.so", tmp_path / "offset"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([*compiler(), "-shared", "-fPIC", "-o", shim, source], check=True)
    offset.write_text("0")
    set_wrong = {"LD_PRELOAD": str(shim), "CLOCK_OFFSET_FILE": str(offset)}
    now = [sys.executable, "-c", "import time; print(time.time())"]
    offset.write_text(str(-DAY_S))
    told = subprocess.run(now, env={**os.environ, **set_wrong}, capture_output=True, check=True)
    assert abs(float(told.stdout) + DAY_S - time.time()) < 60

    axes = [*AXES, f"output_dir={store}"]
    right = FaultySweep(tmp_path / "right", mnist, "clock-right", axes)
    code, said = _finish(right.start(environment={"FAULTS_SLOW": "0.02"}))
    assert code == 0, said

    wrong = FaultySweep(tmp_path / "wrong", mnist, "clock-wrong", axes)
    environment = {**set_wrong, "FAULTS_SLOW": "0.02"}
    killed = wrong.start(environment={**environment, "FAULTS_VICTIMS": "1"})
    os.kill(_victim(wrong, killed, offset), signal.SIGKILL)
    killed.communicate()
    offset.write_text(str(-DAY_S))
    code, said = _finish(wrong.start(environment=environment), offset)
    assert code == 0, said
    assert "1 to be continued" in said

    expected, found = _told(client, "clock-right"), _told(client, "clock-wrong")
    assert [len(trial.pop("claims")) for trial in expected] == [1] * 9
    assert sorted(len(trial.pop("claims")) for trial in found) == [1] * 8 + [2]
    assert {"pruned", "finished"} <= {trial["state"] for trial in expected}
    assert found == expected


def _victim(sweep: FaultySweep, going: subprocess.Popen[str], offset: Path) -> int:
    days = cycle((DAY_S, 0, -DAY_S))

    def found() -> bool:
        offset.write_text(str(next(days)))
        return (sweep.faults / "victim-0").exists()

    wait_for(found, going, 180)
    return sweep.victim(going)


def _finish(sweep: subprocess.Popen[str], offset: Path | None = None) -> tuple[int, str]:
    """Wait for the end, and set the clock meanwhile where there is one to set."""
    days = cycle((DAY_S, 0, -DAY_S))
    until = time.monotonic() + 200
    while True:
        try:
            said, _ = sweep.communicate(timeout=0.5)
            return sweep.returncode, said
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                sweep.kill()
            if offset is not None:
                offset.write_text(str(next(days)))


def _told(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """What is known of a search's trials, in the order in which they were proposed."""
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    points = {
        int(key.removeprefix("point/")): json.loads(text)
        for key, text in entries(client, parent).items()
        if key.startswith("point/")
    }
    by_key = {run.data.tags.get(tag.FINGERPRINT): run for run in runs if run != parent}
    told = []
    for _, point in sorted(points.items()):
        run = by_key[point["fingerprint"]]
        history = client.get_metric_history(run.info.run_id, "val/acc")
        told.append(
            {
                "values": point["values"],
                "state": run.data.tags["state"],
                "val/acc": sorted((row.step, row.value) for row in history),
                "claims": claims(client, run),
            }
        )
    return told
