"""Runs `python -m mnist_hydra.train` as a user does and reads what it recorded, from MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measure import Finished, run


@dataclass(frozen=True)
class Trained:
    """One run of the product."""

    finished: Finished
    test_acc: float
    """After the last epoch, in %."""
    epoch_s: list[float]


def train(overrides: Sequence[str], data: Path, output_dir: Path | None = None) -> Trained:
    """Train once; with no `output_dir` in an empty one, so that nothing is left over from before.

    Args:
        overrides: the command line's.
        data: holds `MNIST/raw`; made-up files need `data.sha256=null` among the overrides.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = output_dir or Path(folder)
        finished = command(overrides, data, output)
        return Trained(finished, *_newest(output))


def command(overrides: Sequence[str], data: Path, output_dir: Path) -> Finished:
    """Run the command and read nothing, so that no MLflow is held by this process."""
    where = (f"data.root={data.absolute()}", f"output_dir={output_dir}")
    return run(["python", "-m", "mnist_hydra.train", *overrides, *where])


def _newest(output_dir: Path) -> tuple[float, list[float]]:
    """The newest run's last test accuracy (%) and its epochs' seconds."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output_dir / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    newest = client.search_runs(experiments, order_by=["attributes.start_time DESC"])[0]
    history = client.get_metric_history(newest.info.run_id, "epoch_s")
    in_order = sorted(history, key=lambda metric: metric.step)
    return 100 * newest.data.metrics["test/acc_last"], [metric.value for metric in in_order]
