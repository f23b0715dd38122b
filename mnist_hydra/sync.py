"""The command `python -m mnist_hydra.sync`: delivers what runs could not tell MLflow.

Each run's goes to the store that it was for; `tracking.uri=` is needed where that has a password.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.cli.commands import shell_command, words_for_place
from mnist_hydra.config import Place
from mnist_hydra.errors import UserError, first_line
from mnist_hydra.secrets import hide_in_error
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.journal import SpooledRun, is_in_use, spools
from mnist_hydra.tracking.spool import deliver_all, in_use
from mnist_hydra.tracking.store import shown_address
from mnist_hydra.tracking.tracker import Tracker


def sync(cfg: DictConfig) -> int:
    """Deliver the spools below `output_dir`, the oldest run first.

    Returns:
        The exit code: 0 if all is delivered, 1 if anything stays; why is said.

    Raises:
        UserError: there is no such folder.
    """
    given = entry.place_of(cfg)
    if not given.folder.is_dir():
        raise UserError(
            f"output_dir={given.output_dir} holds no runs; right: the one that a run wrote to"
        )
    stays = 0
    found = spools(given.folder)
    for folder, spooled in found:
        try:
            there = [other for other, of in found if of.id == spooled.id and other.exists()]
            if any(map(is_in_use, there)):
                raise in_use(spooled)  # perhaps in another attempt at the trial
            said = _deliver(folder, spooled, given)
        except Exception as error:
            stays += 1
            print(f"run {spooled.id} stays: {hide_in_error(first_line(error))}", file=sys.stderr)
        else:
            print(said)
    if not found:
        print("everything was delivered already")
    return 1 if stays else 0


def _deliver(folder: Path, spooled: SpooledRun, place: Place) -> str:
    """Deliver one spool, and say what was done and is to be done."""
    given = place.tracking
    if given.uri is not None and shown_address(given.uri) != spooled.store:
        right = "tracking=local" if spooled.store is None else f"tracking.uri={spooled.store}"
        shown = shown_address(given.uri)
        raise UserError(f"it is not of tracking.uri={shown}; right: {right}")
    uri = given.uri or spooled.store
    tracking = replace(given, experiment_name=spooled.experiment, uri=uri)
    tracker = Tracker(replace(place, tracking=tracking))
    count, run_id = deliver_all(folder, spooled, tracker)
    run = tracker.find_run(run_id)
    begun_as = "" if run_id == spooled.id else f" (begun as {spooled.id})"
    said = f"run {run_id}{begun_as}: {count} records delivered"
    if run.info.status == "RUNNING" and tag.PARENT not in run.data.tags:
        words = words_for_place(place.output_dir, spooled.store, spooled.experiment)
        again = shell_command("train", [*words, f"resume={run_id}"])
        said += f"; it was cut off, go on with\n  {again}"
    return said


if __name__ == "__main__":
    entry.start("sync", sync)
