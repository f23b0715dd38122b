"""A SQLite store that another program keeps locked: training goes on, and all arrives once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.commands import Commands
from tests.faults.faulty_sweep import FaultySweep, finish, wait_for
from tests.faults.single_run import OUTPUTS, assert_all_recorded, start
from tests.sweep_entries import claims
from tests.tracking.test_spool import locked

LONG = pytest.param(60.0, marks=pytest.mark.long)


@pytest.mark.parametrize("locked_s", [8.0, LONG])  # SQLite waits for 5
@pytest.mark.usefixtures("alone_folder")
def test_a_run_trains_on_while_its_store_is_locked_and_tells_it_all(
    locked_s: float, commands: Commands, tmp_path: Path, words: list[str]
) -> None:
    epochs = 20 + 2 * int(locked_s)
    small = [word for word in words if not word.startswith("epochs=")]
    command = start(tmp_path, *small, f"epochs={epochs}")
    command.wait_for_line(r"epoch +2/")
    with locked(tmp_path / OUTPUTS):
        time.sleep(locked_s)
        command.wait_for_line(r"epoch +5/")  # it trains on, however slow the machine is
    assert command.finish(within_s=900) == 0, command.said
    assert "Traceback" not in command.said
    if (tmp_path / OUTPUTS / "spool").exists():  # it ended while the store was locked
        again = commands.run_module("sync", cwd=tmp_path)
        assert again.code == 0, again.said
    assert_all_recorded(tmp_path, 1, epochs)


@pytest.mark.parametrize("locked_s", [LONG])
def test_a_sweep_loses_no_trial_to_a_locked_store(
    locked_s: float, tmp_path: Path, mnist: Path
) -> None:
    store = tmp_path / "outputs"
    sweep = FaultySweep(tmp_path, mnist, "locked", ["seed=1,2", f"output_dir={store}"])
    going = sweep.start("hydra/launcher=joblib", "sweep.workers=2")
    wait_for(lambda: any(store.glob("artifacts/*/artifacts/checkpoints/*")), going, 180)
    with locked(store):
        time.sleep(locked_s)
    code, said = finish(going)
    assert code == 0, said
    assert "Traceback" not in said
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    trials = sweep.trials(client)
    assert [len(claims(client, run)) for run in trials] == [1, 1]
