"""Reads the entries of a sweep's ledger out of MLflow, as they were written."""

from __future__ import annotations

import json
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from mnist_hydra.tracking import tag


def entries(client: MlflowClient, parent: Run) -> dict[str, str]:
    """All entries of the sweep that has this parent run."""
    pages = parent.data.tags[tag.ENTRIES].partition("/")[2].split(",")
    return {key: text for page in pages for key, text in client.get_run(page).data.params.items()}


def claims(client: MlflowClient, trial: Run) -> list[dict[str, Any]]:
    """The claims of a trial's attempts, the first one first; of a run that is no trial, none."""
    if "mlflow.parentRunId" not in trial.data.tags:
        return []
    parent = client.get_run(trial.data.tags["mlflow.parentRunId"])
    found = {k: v for k, v in entries(client, parent).items() if k.startswith("claim/")}
    read = [json.loads(found[key]) for key in sorted(found)]
    return [claim for claim in read if claim["run_id"] == trial.info.run_id]


def ends(client: MlflowClient, trial: Run) -> list[str]:
    """How a trial's attempts ended, the first one first."""
    parent = client.get_run(trial.data.tags["mlflow.parentRunId"])
    prefix = f"end/{trial.data.tags['mlflow.mnist_hydra.fingerprint']}/"
    found = {k: v for k, v in entries(client, parent).items() if k.startswith(prefix)}
    return [json.loads(found[key])["state"] for key in sorted(found)]
