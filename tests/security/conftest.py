"""What the attacks and the random configurations share: one store."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.commands import Commands


class Store:
    """A store that holds a run, and the words of a command that trains one step into it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.output_dir = folder, folder / "outputs"
        self.words = [f"data.root={data}", "data.limit=64", "epochs=1", "batch_size=64"]
        self.words += [f"output_dir={self.output_dir}", "threads=1"]

    def left(self) -> tuple[set[str], int]:
        """What a refused command must leave as it was: the files, and the number of runs."""
        files = {str(file.relative_to(self.folder)) for file in self.folder.rglob("*")}
        kept = {f for f in files if not f.startswith("outputs/mlflow.db")}
        with closing(sqlite3.connect(self.output_dir / "mlflow.db")) as database:
            (runs,) = database.execute("select count(*) from runs").fetchone()
        return kept, int(runs)


@pytest.fixture(scope="session")
def trained(
    commands: Commands, tmp_path_factory: pytest.TempPathFactory, mnist: Path
) -> Store:
    """The store, with its first run."""
    store = Store(tmp_path_factory.mktemp("store"), mnist)
    done = commands.run(store.folder, *store.words)
    assert done.code == 0, done.said
    return store
