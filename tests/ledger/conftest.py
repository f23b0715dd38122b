"""A store, an experiment of its own for each test, and a ledger in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.parent import elect_parent
from tests.sweep_process import new_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MlflowClient]:
    client = new_store(tmp_path_factory.mktemp("store"))
    return client.tracking_uri, client


@pytest.fixture
def experiment(
    store: tuple[str, MlflowClient], request: pytest.FixtureRequest, tmp_path: Path
) -> str:
    return store[1].create_experiment(request.node.name, artifact_location=tmp_path.as_uri())


@pytest.fixture
def ledger(store: tuple[str, MlflowClient], experiment: str) -> Ledger:
    parent = elect_parent(store[1], experiment, "0123456789abcdef", name="sweep", tags={})
    return Ledger(store[1], parent.info.run_id)
