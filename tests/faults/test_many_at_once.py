"""Many runs at once in one store: a SQLite file, or a database whose server is started again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialTables

from mnist_hydra.config import Place, TrackingConfig
from mnist_hydra.tracking.tracker import Tracker
from tests.commands import Commands
from tests.faults.conftest import need
from tests.faults.postgres import BINARIES, free_port, postgres
from tests.faults.single_run import Command, assert_all_recorded, start
from tests.sweep_process import ended, processes

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

EPOCHS = 4
MANY = pytest.param(32, marks=pytest.mark.long)
AWAY_S = 10.0
pytestmark = pytest.mark.usefixtures("alone_folder")


def _start(folder: Path, words: list[str], runs: int, *more: str) -> list[Command]:
    small = [word for word in words if not word.startswith("epochs=")] + [f"epochs={EPOCHS}"]
    return [start(folder, *small, *more, f"seed={seed}") for seed in range(runs)]


def _finish(commands: list[Command]) -> None:
    codes = [command.finish(within_s=900) for command in commands]
    said = "\n".join(command.said for command in commands)
    assert codes == [0] * len(commands) and "Traceback" not in said, said


@pytest.mark.parametrize("runs", [MANY])
def test_runs_at_once_on_sqlite_lose_nothing(runs: int, tmp_path: Path, words: list[str]) -> None:
    _finish(_start(tmp_path, words, runs))
    assert_all_recorded(tmp_path, runs, EPOCHS)


@pytest.mark.parametrize("runs", [3, MANY])
def test_runs_at_once_on_a_database_that_is_started_again_lose_nothing(
    runs: int, commands: Commands, tmp_path: Path, short_folder: Path, words: list[str]
) -> None:
    need("postgresql", *(str(BINARIES / name) for name in ("initdb", "postgres", "pg_isready")))
    port = free_port()
    with postgres(short_folder, port) as database:
        where = ["tracking=server", f"tracking.uri={database}"]
        started = _start(tmp_path, words, runs, *where)
        started[0].wait_for_line("epoch +1/")
    time.sleep(AWAY_S)
    with postgres(short_folder, port):
        _finish(started)
        if (tmp_path / "outputs" / "spool").exists():
            again = commands.run_module("sync", *where, cwd=tmp_path)
            assert again.code == 0, again.said
        assert_all_recorded(tmp_path, runs, EPOCHS, client=MlflowClient(database))


def _open(database: str, folder: str, start: Barrier) -> None:
    start.wait()
    Tracker(Place(folder, TrackingConfig("server", database, "e")))


def test_four_first_starts_at_once_on_an_empty_database_all_succeed(
    tmp_path: Path, short_folder: Path
) -> None:
    need("postgresql", *(str(BINARIES / name) for name in ("initdb", "postgres", "pg_isready")))
    context = processes()
    start = context.Barrier(4)
    with postgres(short_folder) as database:
        at_once = [
            context.Process(target=_open, args=(database, str(tmp_path), start)) for _ in range(4)
        ]
        for process in at_once:
            process.start()
        assert [ended(process, 300) for process in at_once] == [0] * 4


def test_a_database_whose_making_was_cut_off_is_made_whole(
    tmp_path: Path, short_folder: Path
) -> None:
    need("postgresql", *(str(BINARIES / name) for name in ("initdb", "postgres", "pg_isready")))
    context = processes()
    with postgres(short_folder) as database:
        engine = sqlalchemy.create_engine(database)
        InitialTables.metadata.create_all(engine)  # MLflow's first step, before its migrations
        engine.dispose()
        alone = context.Barrier(1)
        opening = context.Process(target=_open, args=(database, str(tmp_path), alone))
        opening.start()
        try:
            assert ended(opening, 300) == 0
        finally:
            opening.kill()
