"""What a run tells MLflow arrives once and in order, whatever becomes of store, process or disk."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from hydra import compose, initialize_config_module
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run

from mnist_hydra import checkpoint
from mnist_hydra.checkpoint import DamagedCheckpoint
from mnist_hydra.config import Place, TrackingConfig, settle
from mnist_hydra.errors import ClaimLost, InUse, UserError
from mnist_hydra.exported import find_model
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.owner import myself
from mnist_hydra.ledger.parent import elect_parent
from mnist_hydra.sweep.attempt import Watch
from mnist_hydra.tracking import journal
from mnist_hydra.tracking import spool as spools
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.journal import Record, SpooledRun, line_of, record_of
from mnist_hydra.tracking.spool import Spool, spooled_run
from mnist_hydra.tracking.store import sqlite_uri
from mnist_hydra.tracking.tracker import Tracker, is_away
from tests.commands import Commands
from tests.sweep_process import ended, processes, settings_of

SPOOLED = SpooledRun("a" * 32, "spooled", "a run", {"note": "first"}, 1_700_000_000_000, None)


def place(folder: Path) -> Place:
    return Place(str(folder), TrackingConfig("local", None, SPOOLED.experiment))


def opened(folder: Path, spooled: SpooledRun = SPOOLED) -> Spool:
    """A spool into the store below a folder."""
    return Spool(folder, spooled, lambda: Tracker(place(folder)))


def the_run(folder: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(sqlite_uri(folder / "mlflow.db"))
    experiment = client.get_experiment_by_name(SPOOLED.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, "timestamp_ms": number, "train/loss": 1 / number, "epoch_s": 1.0}


def state(step: int) -> dict[str, Any]:
    return {"epoch": step, "steps": step, "weight": torch.full((3,), float(step))}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While it is open nothing else can write to the store."""
    with sqlite3.connect(folder / "mlflow.db", timeout=120, isolation_level=None) as store:
        store.execute("BEGIN EXCLUSIVE")
        yield
        store.execute("ROLLBACK")
    store.close()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a store."""
    Tracker(place(tmp_path))
    return tmp_path


def _tell(folder: Path, told: Sequence[str]) -> None:
    """Tell this while the store is locked, and end."""
    spools.PATIENCE_S = spools.PATIENCE_AWAY_S = 0.3
    with locked(folder), opened(folder) as spool:
        for each in told:
            eval(each, globals() | {"spool": spool})
        os._exit(0)


def tell_while_locked(folder: Path, *told: str) -> Path:
    """What a process leaves that tells this while the store is locked, and ends; the spool."""
    process = processes().Process(target=_tell, args=(folder, told))
    process.start()
    assert ended(process) == 0
    return folder / "spool" / SPOOLED.key


def test_a_line_gives_its_record_back_and_no_damaged_one_does() -> None:
    record = Record(3, "metrics", [{"epoch": 1, "train/loss": float("inf")}], "a.pt", "0" * 64)
    line = line_of(record)
    assert line.count(b"\n") == 1 and record_of(line) == record
    for at in range(len(line) - 1):
        assert record_of(line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]) is None
        assert record_of(line[:at]) is None


def test_all_that_a_run_tells_arrives_and_nothing_stays(made: Path) -> None:
    with opened(made) as spool:
        spool.log_settings({"lr": "0.1", "dropout": "0"})
        spool.set_tags({"note": "second", "other": "x"})
        spool.log_epochs([epoch(n) for n in range(1, 251)])
        spool.log_text("hello", "folder/words.txt")
        spool.save_checkpoint(state(7))
        spool.end("FINISHED", 1_700_000_009_000)
    client, run = the_run(made)
    assert run.info.run_name == "a run" and run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_009_000)
    assert run.data.params == {"lr": "0.1", "dropout": "0"}
    assert run.data.tags["note"] == "second" and run.data.tags["other"] == "x"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history] == list(range(1, 251))
    words = client.download_artifacts(run.info.run_id, "folder/words.txt")
    assert Path(words).read_text() == "hello"
    loaded = Tracker(place(made)).load_checkpoint(run.info.run_id)
    assert loaded is not None and loaded["steps"] == 7
    assert not (made / "spool").exists() and spool.left == 0


def test_nothing_is_left_in_a_queue_of_mlflows_though_it_is_asked_for_one(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS", "5")
    with opened(made) as spool:
        spool.log_settings({"lr": "0.1"})
        spool.set_tags({"other": "x"})
        spool.log_epochs([epoch(1)])
        spool.save_checkpoint(state(7))
    _, run = the_run(made)
    assert (run.data.params, run.data.metrics["train/loss"]) == ({"lr": "0.1"}, 1.0)
    assert run.data.tags["other"] == "x" and tag.CHECKPOINT in run.data.tags


def test_a_file_among_the_spools_is_none_and_stays(made: Path) -> None:
    spool = tell_while_locked(made, "spool.log_text('hello', 'words.txt')")
    stray = spool.parent / ".DS_Store"
    stray.write_text("of a Mac")
    assert [folder for folder, _ in journal.spools(made)] == [spool]
    journal.remove(spool)
    assert journal.spools(made) == [] and stray.exists()


def test_a_run_may_have_a_name_longer_than_mlflow_keeps(made: Path) -> None:
    with opened(made, dataclasses.replace(SPOOLED, name="lr=0.1, " * 99)) as spool:
        spool.end("FINISHED")
    name = the_run(made)[1].info.run_name
    assert name.startswith("lr=0.1, lr=0.1") and len(name) == 250


def test_a_locked_store_costs_a_run_nothing_and_gets_it_all_afterwards(made: Path) -> None:
    with opened(made) as spool:
        with locked(made):
            began = time.monotonic()
            for number in range(1, 6):
                spool.save_checkpoint(state(number))
                spool.log_epochs([epoch(number)])
            assert time.monotonic() - began < 20, "less than one wait for the lock"
            assert spool.left > 0
            kept = list(spool.folder.glob("*/state.pt"))
            assert len(kept) <= spools.CHECKPOINTS_KEPT + 1, "older ones made room"
            spool.end("FINISHED")
    client, run = the_run(made)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history] == [1, 2, 3, 4, 5]
    loaded = Tracker(place(made)).load_checkpoint(run.info.run_id)
    assert loaded is not None and loaded["steps"] == 5


def test_what_is_left_when_a_run_ends_is_delivered_by_hand_once(
    made: Path, commands: Commands
) -> None:
    end = 'spool.end("FINISHED", 1_700_000_001_000)'
    checkpoint = "spool.save_checkpoint(state(1))"
    left = tell_while_locked(made, "spool.log_epochs([epoch(1)])", checkpoint, end)
    with (left / "journal").open("ab") as journal:
        journal.write(b"half a li")  # as a process that is killed while it writes
    command = [sys.executable, "-m", "mnist_hydra.sync", f"output_dir={made}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"(begun as {left.name}): 3 records delivered" in done.stdout and not done.stderr
    again = commands.run_module("sync", f"output_dir={made}", cwd=made)
    assert again.code == 0 and "everything was delivered already" in again.out and not again.err
    client, run = the_run(made)
    assert run.info.status == "FINISHED" and run.info.end_time == 1_700_000_001_000
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 1
    assert Tracker(place(made)).find_run(SPOOLED.key).info.run_id == run.info.run_id


def test_a_folder_that_is_not_there_is_no_folder_of_which_all_is_delivered(
    tmp_path: Path, commands: Commands
) -> None:
    done = commands.run_module("sync", f"output_dir={tmp_path / 'typo'}", cwd=tmp_path)
    assert done.code == 2 and "typo holds no runs; right: " in done.err
    assert done.err.count("\n") == 1 and not done.out and not list(tmp_path.iterdir())


def test_a_command_without_standard_output_says_nothing_of_that(made: Path) -> None:
    words = shlex.join([sys.executable, "-m", "mnist_hydra.sync", f"output_dir={made}"])
    done = subprocess.run(["bash", "-c", f"{words} >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_store_that_does_not_answer_keeps_what_is_left(made: Path, commands: Commands) -> None:
    left = tell_while_locked(made, "spool.log_epochs([epoch(1)])")
    journal.write_run(left, dataclasses.replace(SPOOLED, store="http://127.0.0.1:9"))
    done = commands.run_module("sync", f"output_dir={made}", cwd=made)
    assert done.code == 1
    assert done.err.startswith(f"run {SPOOLED.key} stays: ") and done.err.count("\n") == 1
    assert len(list(journal.records(left))) == 1


def test_no_run_is_delivered_to_a_store_that_it_is_not_of(made: Path, commands: Commands) -> None:
    left = tell_while_locked(made, "spool.log_epochs([epoch(1)])")
    elsewhere = f"tracking.uri=sqlite:///{made / 'other.db'}"
    done = commands.run_module("sync", f"output_dir={made}", elsewhere, cwd=made)
    assert done.code == 1 and "right: tracking=local" in done.err
    assert len(list(journal.records(left))) == 1 and not (made / "other.db").exists()


@pytest.mark.parametrize("what", ["run.json", "position"])
def test_a_flipped_bit_in_what_a_spool_says_of_itself_is_found(made: Path, what: str) -> None:
    left = tell_while_locked(made, "spool.log_epochs([epoch(1)])", "spool.log_epochs([epoch(2)])")
    spools.skip_next(left)
    assert len(list(journal.records(left))) == 1
    whole = (left / what).read_bytes()
    for place in range(len(whole)):
        (left / what).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if what == "run.json":
            assert journal.read_run(left) is None
        else:
            assert len(list(journal.records(left))) == 2, "all of it is delivered again"


def test_the_next_process_of_a_run_goes_on_behind_what_the_last_one_left(made: Path) -> None:
    tell_while_locked(made, "spool.log_epochs([epoch(1)])")
    with opened(made) as spool:
        spool.log_epochs([epoch(1), epoch(2)])
    client, run = the_run(made)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history] == [1, 2]


def test_a_process_killed_as_it_tells_loses_nothing_that_it_wrote_down(made: Path) -> None:
    code = f"""
import time
from tests.tracking import test_spool as t
from pathlib import Path
with t.locked(Path({str(made)!r})), t.opened(Path({str(made)!r})) as spool:
    for number in range(1, 1000):
        spool.log_epochs([t.epoch(number)])
        spool.save_checkpoint(t.state(number))
        print(number, flush=True)
"""
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line == "30\n":
            killed.kill()
            break
    told = 30 + len(killed.stdout.read().splitlines())
    killed.wait()
    with opened(made):
        pass
    client, run = the_run(made)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    steps = [m.step for m in history]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= told
    loaded = Tracker(place(made)).load_checkpoint(run.info.run_id)
    assert loaded is not None and loaded["steps"] >= told - 1


def test_what_a_killed_process_left_half_made_is_made_anew(made: Path) -> None:
    def save(path: Path) -> None:
        path.mkdir()  # as MLflow, which refuses a folder that is there and not empty
        (path / "MLmodel").write_text("- no model")

    half = made / journal.FOLDER / SPOOLED.key / "0" / "model"
    half.mkdir(parents=True)
    (half / "MLmodel").touch()
    with locked(made):
        spool = opened(made)
        spool.__enter__()
        spool.log_model(save, 1)
        (record,) = journal.records(spool.folder)
        assert record.is_whole(spool.folder)
    spool.close()


@pytest.mark.parametrize("damage", ["record", "file", "gone"])
def test_what_is_damaged_is_left_out_and_said_and_the_rest_arrives(
    made: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = ('spool.log_text("one", "one.txt")', 'spool.log_text("two", "two.txt")')
    left = tell_while_locked(made, *texts, "spool.log_epochs([epoch(1)])")
    file = left / "0" / "one.txt"
    if damage == "record":
        journal = left / "journal"
        content = bytearray(journal.read_bytes())
        content[20] ^= 1
        journal.write_bytes(bytes(content))
    elif damage == "file":
        file.write_text("eno")
    else:
        file.unlink()
    capfd.readouterr()
    with opened(made):
        pass
    (line,) = capfd.readouterr().err.splitlines()
    assert "is left out" in line
    client, run = the_run(made)
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["two.txt"]
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 1


@pytest.mark.parametrize("lines", [None, 0, 1, 2])
def test_a_journal_that_is_cut_is_said(
    made: Path, lines: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    left = tell_while_locked(made, *(f"spool.log_text('x', '{name}.txt')" for name in "abc"))
    journal = left / "journal"
    if lines is None:
        journal.unlink()
    else:
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))
    capfd.readouterr()
    delivered, _ = spools.deliver_all(left, SPOOLED, Tracker(place(made)))
    said = capfd.readouterr().err
    assert delivered == (lines or 0) and not left.exists()
    # One file without a record is what a process leaves that is killed between the two.
    assert ("is damaged" in said) == (lines != 2) and len(said.splitlines()) <= 1


def test_what_mlflow_refuses_for_good_is_raised(made: Path) -> None:
    with opened(made) as spool:
        spool.log_settings({"lr": "0.1"})
    client, run = the_run(made)
    client.delete_run(run.info.run_id)
    spooled = dataclasses.replace(SPOOLED, run_id=run.info.run_id)
    with opened(made, spooled) as spool:
        spool.set_tags({"a": "b"})
        deadline = time.monotonic() + 20
        with pytest.raises(Exception, match="deleted"):
            while time.monotonic() < deadline:
                spool.raise_if_refused()
                time.sleep(0.05)


def test_a_run_that_is_at_work_is_left_to_itself(made: Path, commands: Commands) -> None:
    with opened(made) as spool:
        done = commands.run_module("sync", f"output_dir={made}", cwd=made)
        assert done.code == 1 and "is at work" in done.err
        spool.end("FINISHED")


def checkpoints(made: Path) -> tuple[Tracker, str, dict[str, Any], list[Path]]:
    """A run with two checkpoints, of steps 1 and 2: its tag, and the files, the newest first."""
    with opened(made) as spool:
        spool.save_checkpoint(state(1))
        spool.save_checkpoint(state(2))
    client, run = the_run(made)
    newest = json.loads(run.data.tags[tag.CHECKPOINT])
    assert (newest["step"], newest["before"]["step"]) == (2, 1)
    root = next((made / "artifacts").rglob("checkpoints"))
    files = [root / f"slot-{slot['slot']}.pt" for slot in (newest, newest["before"])]
    return Tracker(place(made)), run.info.run_id, newest, files


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_used(
    made: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker, run_id, _, (newest, _) = checkpoints(made)
    content = newest.read_bytes()
    if damage == "flipped":
        newest.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "cut":
        newest.write_bytes(content[:-100])
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        newest.unlink()
    loaded = tracker.load_checkpoint(run_id)
    assert loaded is not None and loaded["steps"] == 1
    assert "its newest checkpoint is damaged" in capfd.readouterr().out


def test_a_run_whose_checkpoints_are_all_damaged_says_so(made: Path) -> None:
    tracker, run_id, _, files = checkpoints(made)
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(DamagedCheckpoint):
        tracker.load_checkpoint(run_id)


def test_a_late_checkpoint_never_replaces_a_newer_one(made: Path) -> None:
    tracker, run_id, newest, _ = checkpoints(made)
    with opened(made, dataclasses.replace(SPOOLED, run_id=run_id)) as spool:
        spool.save_checkpoint(state(1))
    _, run = the_run(made)
    assert json.loads(run.data.tags[tag.CHECKPOINT]) == newest


def test_who_was_cut_off_and_comes_back_leaves_the_checkpoints_of_who_went_on(
    made: Path, tmp_path: Path
) -> None:
    tracker, run_id, _, _ = checkpoints(made)
    assert tracker.load_checkpoint(run_id) is not None
    path = tmp_path / "state.pt"

    def write(by: Tracker, step: int) -> None:
        checkpoint.save(path, state(step))
        about = {"epoch": step, "step": step, "sha256": journal.sha256_of(path)}
        by.log_checkpoint(run_id, path, about)

    write(tracker, 3)
    other = Tracker(place(made))
    for step in (4, 6):
        write(other, step)
    for step in (4, 5):
        write(tracker, step)
    for reader in (tracker, other):
        loaded = reader.load_checkpoint(run_id)
        assert loaded is not None and loaded["steps"] == 6


def test_an_end_that_arrives_late_does_not_undo_that_the_run_has_finished(made: Path) -> None:
    left = tell_while_locked(made, 'spool.end("KILLED")')
    run_id = Tracker(place(made)).create_run(SPOOLED)
    journal.write_run(left, dataclasses.replace(SPOOLED, run_id=run_id))
    Tracker(place(made)).end(run_id, "FINISHED", 1_700_000_005_000)
    command = [sys.executable, "-m", "mnist_hydra.sync", f"output_dir={made}"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    _, run = the_run(made)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1_700_000_005_000)


def test_what_follows_a_journal_that_lost_its_end_is_delivered(made: Path) -> None:
    tell_while_locked(made, 'spool.set_tags({"a": "1"})', 'spool.set_tags({"b": "2"})')
    folder = made / "spool" / SPOOLED.key
    size = (folder / "journal").stat().st_size
    journal.set_position(folder, size)
    os.truncate(folder / "journal", size // 2)
    with opened(made) as spool:
        spool.set_tags({"c": "3"})
        spool.end("FINISHED")
    _, run = the_run(made)
    assert (run.data.tags.get("c"), run.info.status) == ("3", "FINISHED")


def test_a_cloud_that_does_not_answer_is_away() -> None:
    class Lost(Exception):
        __module__ = "botocore.exceptions"  # which MLflow passes on

    assert is_away(Lost("no connection")) and not is_away(ValueError("no"))


def test_a_run_has_one_model_however_often_it_is_told_and_whatever_its_folder_is_called(
    mnist: Path, tmp_path: Path
) -> None:
    from mnist_hydra.build import prepare
    from mnist_hydra.export import save_model

    made = tmp_path / "a%20b?c"
    words = [f"data.root={mnist}", f"output_dir={made}", "data.limit=600", "compile=false"]
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        trainer = prepare(settle(compose("config", overrides=words)))
    with opened(made) as spool:
        spool.log_epochs([epoch(1)])
        spool.end("FINISHED", 1_700_000_001_000)
    client, run = the_run(made)
    half = client.create_logged_model(run.info.experiment_id, "model", run.info.run_id)
    for _ in range(2):
        with opened(made, dataclasses.replace(SPOOLED, run_id=run.info.run_id)) as spool:
            spool.log_model(lambda path: save_model(trainer, path), 1)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == LoggedModelStatus.READY and model.model_id != half.model_id
    assert model.source_run_id == run.info.run_id
    assert the_run(made)[1].info.end_time == 1_700_000_001_000
    images = trainer.dataset.test.images[:3, 0]
    assert find_model(run.info.run_id, place(made))(images).shape == (3, 10)
    folder = unquote(urlsplit(model.artifact_location).path)
    assert find_model(folder, place(tmp_path))(images).shape == (3, 10)


def test_a_model_that_is_refused_is_said_and_costs_nothing_else(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def save(path: Path) -> None:
        path.mkdir()
        (path / "MLmodel").write_text("- no model")

    with opened(made) as spool:
        spool.log_model(save, 1)
        spool.set_tags({"after": "it"})
        spool.end("FINISHED")
    assert spool.refusal is None and spool.left == 0
    client, run = the_run(made)
    assert run.info.status == "FINISHED" and run.data.tags["after"] == "it"
    assert not client.search_logged_models([run.info.experiment_id])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"no exported model of run {run.info.run_id}: ")


def test_a_worker_waits_for_the_store_until_it_is_told_to_stop(made: Path) -> None:
    stop = threading.Event()
    with opened(made) as spool:
        with locked(made):
            spool.log_epochs([epoch(1)])
            waits = threading.Thread(target=spool.close, args=(stop,))
            waits.start()
            waits.join(1)
            assert waits.is_alive()
        waits.join(60)
        assert not waits.is_alive() and not stop.is_set()
    assert spool.left == 0


def test_a_training_waits_no_longer_for_a_store_that_hangs_once_it_is_to_stop(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on, stop = threading.Event(), threading.Event(), threading.Event()

    class Hanging(Tracker):
        def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
            hangs.set()
            goes_on.wait()
            super().set_tags(run_id, tags)

    with Spool(made, SPOOLED, lambda: Hanging(place(made))) as spool:
        spool.set_tags({"a": "b"})
        assert hangs.wait(60)
        waits = threading.Thread(target=spool.wait, args=(stop.is_set,))
        waits.start()
        waits.join(0.5)
        assert waits.is_alive()
        stop.set()
        waits.join(5)
        assert not waits.is_alive()
        monkeypatch.setattr(spools, "PATIENCE_S", 0.1)
        spool.wait(lambda: False)  # nobody asks it to stop
        monkeypatch.undo()
        goes_on.set()
    assert the_run(made)[1].data.tags["a"] == "b"


def test_a_store_that_is_busy_or_slow_gets_all_before_the_run_ends(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "PATIENCE_AWAY_S", 0.1)
    ahead_s, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead_s[0])

    class Slow(Tracker):
        def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
            ahead_s[0] += spools.PATIENCE_S / 2
            super().set_tags(run_id, tags)

    busy = [sqlite3.OperationalError("database is locked")] * 2

    def open_tracker() -> Tracker:
        if busy:
            raise busy.pop()
        return Slow(place(made))

    with Spool(made, SPOOLED, open_tracker) as spool:
        for number in range(8):
            spool.set_tags({f"tag{number}": "x"})
    assert spool.left == 0
    assert {f"tag{number}" for number in range(8)} <= the_run(made)[1].data.tags.keys()


def test_a_trial_waits_until_a_busy_store_has_its_checkpoint_and_not_for_one_that_is_away(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, away = sqlite3.OperationalError("database is locked"), OSError("nobody answers")
    error: list[Exception] = []

    class Troubled(Tracker):
        def log_checkpoint(self, run_id: str, path: Path, about: Mapping[str, Any]) -> None:
            for each in error:
                raise each
            super().log_checkpoint(run_id, path, about)

    monkeypatch.setattr(spools, "LONGEST_WAIT_S", 0.1)
    with Spool(made, SPOOLED, lambda: Troubled(place(made))) as spool:
        spool.wait(lambda: False)
        spool._taken_at -= 100  # since then there was nothing to take
        error[:] = [busy]
        threading.Timer(1.0, error.clear).start()
        spool.save_checkpoint(state(1))
        spool.wait(lambda: False)
        assert spool.left == 0
        error[:] = [away]
        spool.save_checkpoint(state(2))
        spool.wait(lambda: False)
        assert spool.left == 1 and spool.away == "nobody answers"
        error[:] = [busy]
        while spool.away != "database is locked":
            time.sleep(0.01)
        spool._taken_at -= 100
        spool.wait(lambda: False)  # it has taken nothing for long
        assert spool.left == 1
        error.clear()
    assert spool.left == 0


def test_each_attempt_at_a_trial_has_a_spool_that_no_earlier_one_keeps_locked(made: Path) -> None:
    tracker = Tracker(place(made))
    run_id = tracker.create_run(SPOOLED)
    first, second = (spooled_run(place(made), run_id, attempt=n) for n in (1, 2))
    with locked(made), pytest.MonkeyPatch.context() as patch:
        patch.setattr(spools, "PATIENCE_S", 0.1)
        with Spool(made, second, lambda: Tracker(place(made))) as left:
            left.set_tags({"of": "the second"})
    left._thread.join(60)  # it lets go of its spool after its last try
    with Spool(made, first, lambda: tracker):
        with pytest.raises(InUse, match="at work in another process"):
            spools.deliver_left(place(made), tracker, run_id)
        assert tracker.client.get_run(run_id).data.tags["of"] == "the second"
        with Spool(made, spooled_run(place(made), run_id, attempt=3), lambda: tracker) as spool:
            spool.set_tags({"of": "the third"})
    assert tracker.client.get_run(run_id).data.tags["of"] == "the third"


def test_no_other_attempts_records_are_delivered_while_one_is_at_work(
    made: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Tracker:
        raise ConnectionError("away")

    run_id = Tracker(place(made)).create_run(SPOOLED)
    first, second = (spooled_run(place(made), run_id, attempt=n) for n in (1, 2))
    monkeypatch.setattr(spools, "PATIENCE_AWAY_S", 0.1)
    with Spool(made, first, away) as left:
        left.set_tags({"of": "the first"})
    left._thread.join(60)
    with Spool(made, second, lambda: Tracker(place(made))):
        done = commands.run_module("sync", f"output_dir={made}", cwd=made)
    assert done.code == 1 and done.err.count("is at work in another process") == 2
    done = commands.run_module("sync", f"output_dir={made}", cwd=made)
    assert done.code == 0 and f"run {run_id}: 1 records delivered" in done.out, done.said


def test_a_spool_that_was_left_half_removed_is_said_to_nobody(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(made) as spool:
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # it is killed here
    assert spool.folder.exists()
    (spool.folder / "run.json").unlink()
    assert journal.spools(made) == [] and capfd.readouterr().err == ""


def test_what_was_trained_stays_when_the_store_refuses_later_and_goes_when_nothing_was(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "PATIENCE_AWAY_S", 0.2)

    def refused() -> Tracker:
        raise UserError("tracking.uri lets nobody in")

    with pytest.raises(UserError), Spool(made, SPOOLED, refused) as spool:
        spool.log_epochs([epoch(1)])
        while spool.refusal is None:
            time.sleep(0.01)
        spool.raise_if_refused()
    assert not spool.folder.exists()

    trained = threading.Event()

    def refused_later() -> Tracker:
        trained.wait()
        raise UserError("tracking.uri lets nobody in")

    with Spool(made, SPOOLED, refused_later) as spool:
        spool.save_checkpoint(state(1))
        trained.set()
    assert spool.refusal is None and spool.away == "tracking.uri lets nobody in"
    while spool._thread.is_alive():  # it lets go of the spool after its last try
        time.sleep(0.01)
    with opened(made):
        pass
    client, run = the_run(made)
    assert json.loads(run.data.tags[tag.CHECKPOINT])["step"] == 1


def test_a_close_that_is_interrupted_is_done_again(made: Path) -> None:
    class Interrupted(threading.Event):
        def is_set(self) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(made) as spool:
        spool.log_epochs([epoch(1)])
        with locked(made):
            spool.close(Interrupted())
    assert not spool.folder.exists()
    with opened(made):
        pass  # the lock is free


def test_a_spool_that_another_process_has_just_delivered_leaves_nothing(made: Path) -> None:
    left = tell_while_locked(made, "spool.log_epochs([epoch(1)])")
    ((folder, spooled),) = journal.spools(made)
    tracker = Tracker(place(made))
    assert spools.deliver_all(folder, spooled, tracker)[0] == 1
    assert spools.deliver_all(folder, spooled, tracker)[0] == 0
    assert not left.exists()


def test_a_run_that_begins_anew_after_damage_keeps_its_checkpoints(made: Path) -> None:
    with opened(made) as spool:
        spool.save_checkpoint(state(8))
        spool.save_checkpoint(state(9))
    for file in (made / "artifacts").rglob("slot-*.pt"):
        file.write_bytes(b"")
    tracker = Tracker(place(made))
    with pytest.raises(DamagedCheckpoint):
        tracker.load_checkpoint(spool.run.id)
    for step in (2, 3):
        with Spool(made, SPOOLED, lambda: tracker) as spool:
            spool.save_checkpoint(state(step))
        loaded = Tracker(place(made)).load_checkpoint(spool.run.id)
        assert loaded is not None and loaded["steps"] == step


def weights(client: MlflowClient, run_id: str) -> list[float]:
    """Of the run's last.pt and of its newest checkpoint."""
    newest = json.loads(client.get_run(run_id).data.tags[tag.CHECKPOINT])
    names = ["checkpoints/last.pt", f"checkpoints/slot-{newest['slot']}.pt"]
    states = [torch.load(client.download_artifacts(run_id, name)) for name in names]
    return [float(state["weight"][0]) for state in states]


def tell_weights(spool: Spool, value: float) -> None:
    """What a training tells whose weights have this value after its last epoch."""
    spool.set_tags({"host": f"machine {value:g}"})
    spool.save_checkpoint(state(9) | {"weight": torch.tensor([value])})
    spool.log_epochs([{"epoch": 9, "timestamp_ms": 9, "test/acc_last": value}])
    spool.log_state({"weight": torch.tensor([value])}, "checkpoints/last.pt")


def test_who_was_cut_off_leaves_the_run_as_another_process_has_finished_it(made: Path) -> None:
    back = threading.Event()

    def once_back() -> Tracker:
        back.wait()
        return Tracker(place(made))

    run_id = Tracker(place(made)).create_run(SPOOLED)
    spooled = dataclasses.replace(SPOOLED, run_id=run_id, config="lr: 0.1")
    with Spool(made / "cut off", spooled, once_back, reopen=True) as cut_off:
        tell_weights(cut_off, 1)
        cut_off.log_text("", "pictures/of_1.png")
        cut_off.end("FINISHED", 1)
        with opened(made, spooled) as spool:
            tell_weights(spool, 2)
            spool.end("FINISHED", 2)
        back.set()
    with pytest.raises(UserError, match=f"run {run_id} was finished by another process"):
        cut_off.raise_if_refused()
    client, run = the_run(made)
    assert weights(client, run_id) == [2, 2] and run.info.end_time == 2
    assert (run.data.tags["host"], run.data.metrics["test/acc_last"]) == ("machine 2", 2)
    assert not client.list_artifacts(run_id, "pictures") and not cut_off.folder.exists()


def test_who_lost_a_trial_while_it_was_cut_off_leaves_all_of_it_to_who_took_it_over(
    made: Path,
) -> None:
    back, settings = threading.Event(), settings_of("", "sweeper")
    tracker = Tracker(place(made))
    parent = elect_parent(tracker.client, tracker.experiment_id, "abc", name="sweep", tags={})
    one, other = (Ledger(tracker.client, parent.info.run_id) for _ in range(2))

    def once_back() -> Tracker:
        back.wait()
        return Tracker(place(made))

    lost = one.claim("f" * 16, "lr=0.1", None, myself("one"), "sweeper")
    assert lost is not None
    watch = Watch(one, lost, settings, threading.Event())
    spooled = dataclasses.replace(SPOOLED, run_id=lost.run_id)
    with Spool(made / "one", spooled, once_back, check=watch.check_claim) as cut_off:
        tell_weights(cut_off, 1)
        [trial] = other.read().trials.values()
        assert other.end(trial, "died")
        [trial] = other.read().trials.values()
        taken = other.claim("f" * 16, "lr=0.1", trial, myself("other"), "sweeper")
        assert taken is not None
        check = Watch(other, taken, settings, threading.Event()).check_claim
        with Spool(made / "other", spooled, lambda: tracker, check=check) as spool:
            tell_weights(spool, 2)
        back.set()  # before the other one has recorded that it is through
    with pytest.raises(ClaimLost, match="another process took it over"):
        cut_off.raise_if_refused()
    assert other.end(taken, "finished") and not one.end(lost, "finished")
    assert weights(tracker.client, lost.run_id) == [2, 2] and not cut_off.folder.exists()
    run = tracker.client.get_run(lost.run_id)
    assert (run.data.tags["host"], run.data.metrics["test/acc_last"]) == ("machine 2", 2)


def test_what_was_left_of_a_run_that_another_process_has_finished_is_left_out_and_said(
    made: Path, commands: Commands
) -> None:
    left = tell_while_locked(made, "tell_weights(spool, 1)", 'spool.end("KILLED")')
    run_id = Tracker(place(made)).create_run(SPOOLED)
    with Spool(
        made / "another", dataclasses.replace(SPOOLED, run_id=run_id), lambda: Tracker(place(made))
    ) as spool:
        tell_weights(spool, 2)
        spool.end("FINISHED")
    done = commands.run_module("sync", f"output_dir={made}", cwd=made)
    assert done.code == 0 and done.err.count("\n") == 1, done.said
    assert f"run {run_id} has finished: 5 records of before are left out" in done.err
    client, run = the_run(made)
    assert weights(client, run_id) == [2, 2] and run.data.tags["host"] == "machine 2"
    assert not left.exists()


def test_pictures_and_model_of_a_finished_run_are_delivered_by_hand(
    made: Path, commands: Commands
) -> None:
    tell_while_locked(made, "spool.log_text('', 'pictures/of_it.png')")
    run_id = Tracker(place(made)).create_run(SPOOLED)
    Tracker(place(made)).end(run_id, "FINISHED")
    assert "1 records delivered" in commands.run_module("sync", f"output_dir={made}", cwd=made).out
    assert the_run(made)[0].list_artifacts(run_id, "pictures")


@pytest.mark.parametrize("error", [MemoryError(), OSError("413 Client Error: too large")])
def test_what_is_refused_until_something_is_changed_stays_with_all_behind_it(
    made: Path, error: Exception
) -> None:
    class Refusing(Tracker):
        def log_epochs(self, run_id: str, history: list[dict[str, Any]]) -> None:
            raise error

    with Spool(made, SPOOLED, lambda: Refusing(place(made))) as spool:
        spool.log_epochs([epoch(1)])
        spool.set_tags({"behind": "it"})
    assert spool.refusal is error and spool.left == 2
    tracker, run_id = Tracker(place(made)), spool.run.id
    with pytest.raises(UserError, match="right: more memory, or a higher limit of the proxy"):
        spools.deliver_left(place(made), Refusing(place(made)), run_id)
    spools.deliver_left(place(made), tracker, run_id)
    run = the_run(made)[1]
    assert run.data.metrics["train/loss"] == 1 and run.data.tags["behind"] == "it"
    assert not (made / "spool").exists()
