"""Runs `python -m mnist_hydra.train --multirun` as a user does, and reads what it recorded.

It reads MLflow's SQLite file itself: what this process holds counts as held by every command that
it starts, and MLflow is much.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Finished, run

IN_PROCESS = "in process"
JOBLIB = "joblib, 2 workers"
WORKERS = 2
WAYS: dict[str, tuple[str, ...]] = {
    IN_PROCESS: (),
    JOBLIB: ("hydra/launcher=joblib", f"sweep.workers={WORKERS}"),
}
CHILDREN = """
SELECT runs.run_uuid, runs.start_time FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid
WHERE tags.key = 'mlflow.parentRunId' AND runs.lifecycle_stage = 'active'
"""
OWN_TRAINING = f"""
SELECT SUM(metrics.value) FROM metrics JOIN ({CHILDREN}) trial ON trial.run_uuid = metrics.run_uuid
WHERE metrics.key = 'epoch_s' GROUP BY metrics.run_uuid
"""


def command(
    overrides: Sequence[str], data: Path, output_dir: Path, module: str = "mnist_hydra.train"
) -> list[str]:
    """The words of a sweep's command line, for `measure.run`.

    Args:
        data: holds `MNIST/raw`; made-up files need `data.sha256=null` among the overrides.
    """
    where = (f"data.root={data.absolute()}", f"output_dir={output_dir}")
    return ["python", "-m", module, "--multirun", *overrides, *where]


def fill(overrides: Sequence[str], data: Path, output_dir: Path) -> None:
    """Let all trials of a sweep be finished without training them, and any report be made."""
    run(command(overrides, data, output_dir, "tests.benchmarks.finished_sweep"))
    if "sweep.report=false" not in overrides:
        run(command(overrides, data, output_dir))


def again(overrides: Sequence[str], data: Path, output_dir: Path, trials: int) -> Finished:
    """Run a sweep whose trials are all finished; be sure that it found them so."""
    done = run(command(overrides, data, output_dir))
    if f"{trials} done and skipped" not in done.stderr:
        raise RuntimeError(f"not all trials were finished:\n{done.stderr[-3000:]}")
    return done


def own_training_s(output_dir: Path) -> list[float]:
    """Seconds that each trial spent in its epochs, evaluation included, as MLflow has them."""
    return [seconds for (seconds,) in _ask(output_dir, OWN_TRAINING)]


def first_trial_at(output_dir: Path) -> float | None:
    """When the first trial's run was started, on `time.time()`'s scale; `None`: not yet."""
    try:
        ((_, earliest),) = _ask(output_dir, CHILDREN + " ORDER BY runs.start_time LIMIT 1")
    except (sqlite3.OperationalError, ValueError):  # no file, no table, no trial yet
        return None
    return float(earliest) / 1000


def _ask(output_dir: Path, question: str) -> list[tuple[Any, ...]]:
    address = f"file:{output_dir / 'mlflow.db'}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=10)) as connection:
        return connection.execute(question).fetchall()
