"""The command `python -m mnist_hydra.sync`: delivers what runs could not tell MLflow.

Each run's goes to the store that it was for; `tracking.uri=` says where that is now.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from mnist_hydra import entry
from mnist_hydra.config import TrackingConfig
from mnist_hydra.spool import About, deliver_all, first_line, is_away, spools
from mnist_hydra.tracking import Tracker


@dataclass(frozen=True)
class Place:
    """Where runs are kept, as a `Tracker` asks for it."""

    output_dir: str
    tracking: TrackingConfig


def sync(cfg: DictConfig) -> int:
    """Deliver the spools below `output_dir`, the oldest run first.

    Returns:
        The exit code: 0 if all is delivered, 1 if a store does not take what is left.
    """
    given = TrackingConfig(**cfg.tracking)
    left = 0
    found = spools(Path(cfg.output_dir).absolute())
    for folder, about in found:
        uri = about.store if given.uri is None else given.uri
        tracking = replace(given, experiment_name=about.experiment, uri=uri)
        try:
            count = deliver_all(folder, about, partial(_open, Place(cfg.output_dir, tracking)))
        except Exception as error:
            if not is_away(error):
                raise
            left += 1
            print(f"run {about.run_id or about.key} stays: {first_line(error)}", file=sys.stderr)
        else:
            print(f"run {about.run_id or about.key}: {count} records delivered")
    if not found:
        print("everything was delivered already")
    return 1 if left else 0


def _open(place: Place, about: About) -> tuple[Tracker, str]:
    tracker = Tracker(place)
    return tracker, tracker.create_run(about)


if __name__ == "__main__":
    entry.start("sync", sync)
