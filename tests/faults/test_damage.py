"""A bit that flips, a file that is cut, empty or gone, among what a run is resumed from: it is
found, and what was before it is used, or one line says what to do.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from mnist_hydra.config import Config, fingerprint, settle
from mnist_hydra.data import idx
from mnist_hydra.data.load import load_dataset
from mnist_hydra.errors import UserError
from mnist_hydra.tracking import journal, tag
from mnist_hydra.tracking.journal import SpooledRun
from mnist_hydra.tracking.resume import resumed_run
from mnist_hydra.tracking.spool import Spool
from mnist_hydra.tracking.tracker import Tracker

KEY = "d" * 32
PLACES = pytest.mark.parametrize("places", [8, pytest.param(200, marks=pytest.mark.long)])
Run = tuple[Path, Config]


def composed(*overrides: str) -> Config:
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        return settle(compose("config", overrides=list(overrides)))


def checkpoint_state(config: Config, step: int) -> dict[str, Any]:
    return {"epoch": step, "steps": step, "fingerprint": fingerprint(config)}


def tell(spool: Spool, config: Config, steps: list[int]) -> None:
    """What a run of a few epochs tells, of this many steps each."""
    spool.set_tags({tag.FINGERPRINT: fingerprint(config)})
    spool.log_text(OmegaConf.to_yaml(config.composed), "config.yaml")
    for step in steps:
        spool.save_checkpoint(checkpoint_state(config, step))
        spool.log_epochs([{"epoch": step, "timestamp_ms": step, "epoch_s": 1.0}])


def record(folder: Path) -> Config:
    """Leave a run with two checkpoints, of steps 1 and 2, all of it in MLflow; its settings."""
    config = composed(f"output_dir={folder}")
    tracker = Tracker(config)
    spooled = SpooledRun(KEY, "mnist_hydra", None, {}, 0, None)
    with Spool(folder, spooled, lambda: tracker) as spool:
        tell(spool, config, [1, 2])
    return config


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder and the settings of such a run."""
    folder = tmp_path_factory.mktemp("recorded")
    return folder, record(folder)


@pytest.fixture(scope="module")
def spooled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, of steps 1 to 3, before MLflow has any of it but that there is a store."""
    folder = tmp_path_factory.mktemp("spooled")
    config = composed(f"output_dir={folder}")
    Tracker(config)

    def away() -> Tracker:
        raise OSError("it is away")

    spooled = SpooledRun(KEY, "mnist_hydra", None, {}, 0, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_hydra.tracking.spool.PATIENCE_AWAY_S", 0.0)
        with Spool(folder, spooled, away) as spool:
            tell(spool, config, [1, 2, 3])
    for _ in range(100):  # the thread lets go of the spool after its last try
        if not spool._thread.is_alive():
            break
        spool._thread.join(0.1)
    return folder, config


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit of a file, cut it, empty it or take it away."""
    content = bytearray(path.read_bytes())
    how = chance.choice(("flipped", "flipped", "flipped", "cut", "emptied", "removed"))
    if how == "flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    return f"{how} {path.name}"


def resumed(config: Config, key: str) -> int | None:
    """The step that a run is gone on from; `None` if it is refused in one line."""
    words = [f"output_dir={config.output_dir}", f"resume={key}"]
    try:
        first, _, state = resumed_run(composed(*words), words)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return None
    assert fingerprint(first) == fingerprint(config)
    return 0 if state is None else int(state["steps"])


@PLACES
@pytest.mark.parametrize(
    ("what", "outcomes"),
    [
        ("checkpoints/slot-0.pt", {1, 2}),  # the older one: nobody looks at it
        ("checkpoints/slot-1.pt", {1}),
        ("config.yaml", {2, None}),  # a flipped bit in a comment or a path changes no result
    ],
)
def test_a_damaged_artifact_is_found(
    what: str, outcomes: set[int | None], places: int, recorded: Run
) -> None:
    folder, config = recorded
    (path,) = folder.glob(f"artifacts/**/{what}")
    whole = path.read_bytes()
    for place in range(places):
        said = damage(path, random.Random(place))
        assert resumed(config, KEY) in outcomes, f"{said}, place {place}"
        path.write_bytes(whole)
    assert resumed(config, KEY) == 2


@PLACES
def test_a_damaged_spool_is_found(places: int, spooled: Run, capfd: Any) -> None:
    folder, config = spooled
    kept = folder / "kept"
    shutil.move(folder / "spool" / KEY, kept)
    spooled = journal.read_run(kept)
    assert spooled is not None
    tracker = Tracker(config)
    client, experiment = tracker.client, tracker.experiment_id
    for place in range(places):
        chance, key = random.Random(place), f"{place:032x}"
        spool = folder / "spool" / key
        shutil.copytree(kept, spool)
        journal.write_run(spool, replace(spooled, key=key))
        files = sorted(p for p in spool.rglob("*") if p.is_file() and p.name != ".lock")
        said = damage(chance.choice(files), chance)
        step = resumed(config, key)
        told = capfd.readouterr().err
        assert step in (None, 2, 3) or "damaged" in told, f"{said}, place {place}: {step}"
        if step is None:
            shutil.rmtree(spool, ignore_errors=True)
            continue
        (run,) = client.search_runs([experiment], f"tags.`{tag.KEY}` = '{key}'")
        rows = client.get_metric_history(run.info.run_id, "epoch_s")
        steps = [row.step for row in rows]
        assert steps == sorted(set(steps)), f"{said}, place {place}"
        assert steps == [1, 2, 3] or "damaged" in told, f"{said}, place {place}"


def in_another_process(call: Any, *arguments: Any) -> Any:
    """What a call returns or raises in a forked process, which opens the store for itself."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork) as process:
        return process.submit(call, *arguments).result(120)


@PLACES
def test_a_damaged_store_is_found_or_changes_nothing(
    places: int, tmp_path: Path, capfd: Any
) -> None:
    config = in_another_process(record, tmp_path)
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    for place in range(places):
        said = damage(path, random.Random(place))
        step = in_another_process(resumed, config, KEY)
        told = capfd.readouterr()
        assert step in (2, None) or "damaged" in told.out, f"{said}, place {place}: {step}"
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.write_bytes(whole)
    assert in_another_process(resumed, config, KEY) == 2


@PLACES
@pytest.mark.parametrize("given", [True, False], ids=["data.root", "the cache"])
def test_damaged_data_is_found(given: bool, places: int, tmp_path: Path, mnist: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist / "MNIST" / "raw").iterdir():
        shutil.copyfile(file, raw / file.name)
    config = composed("data.offline=true", *([f"data.root={tmp_path}"] if given else []))
    cache = tmp_path / "cache" if given else tmp_path
    assert len(load_dataset(config.data, cache).train) == 60_000
    for place in range(places):
        chance = random.Random(place)
        path = raw / chance.choice(idx.FILES)
        whole = path.read_bytes()
        said = damage(path, chance)
        with pytest.raises(UserError) as refused:
            load_dataset(config.data, cache)
        assert len(str(refused.value).splitlines()) == 1, f"{said}, place {place}"
        path.write_bytes(whole)
    assert len(load_dataset(config.data, cache).train) == 60_000
