"""What other processes and people do to a ledger: read it anew, delete a run for good."""

from __future__ import annotations

from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.cli import gc

from mnist_hydra.ledger.ledger import Ledger


def again(ledger: Ledger) -> Ledger:
    """The same ledger as a process reads it that knows nothing yet."""
    return Ledger(ledger.client, ledger.parent_id)


def delete_for_good(client: MlflowClient, run_id: str) -> None:
    """What a person does in MLflow's UI, and then with `mlflow gc`."""
    client.delete_run(run_id)
    words = ["--backend-store-uri", client.tracking_uri, "--run-ids", run_id]
    done = CliRunner(env={"MLFLOW_TRACKING_URI": client.tracking_uri}).invoke(gc, words)
    assert done.exit_code == 0, done.output
