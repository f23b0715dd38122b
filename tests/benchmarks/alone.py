"""Trains trials of a sweep one after another with one thread, and nothing else: no MLflow, no
checkpoint, no sweep. Prints the seconds of each trial's epochs, in JSON.

    python -m tests.benchmarks.alone --part 0 --of 2 --meet /tmp/a model=model2,model3 epochs=2

A process that is given `--meet` begins to train once all parts are ready; it is told the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra

from mnist_hydra.build import prepare
from mnist_hydra.config import settle
from mnist_hydra.sweep.axes import parse
from mnist_hydra.sweep.compose import Composer, check_points
from mnist_hydra.trainer import Listener, Trainer

PATIENCE_S = 120.0


def prepared(overrides: Sequence[str], part: int, of: int) -> dict[str, Trainer]:
    """This part's trials by name, ready to train; the kernels are compiled by then."""
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        composer = Composer(loader, compose("config", return_hydra_config=True))
        plan = parse([*overrides, "threads=1"], composer.options)
        trials = check_points(plan, plan.points(), composer)
        mine = list(trials.planned.values())[part::of]
        configs = {p.name: settle(composer.compose(plan.overrides(p.overrides))) for p in mine}
    return {title: prepare(config) for title, config in configs.items()}


def meet(folder: Path, part: int, of: int) -> None:
    """Wait until every part has come here."""
    (folder / f"ready-{part}").touch()
    given_up_at = time.monotonic() + PATIENCE_S
    while not all((folder / f"ready-{other}").exists() for other in range(of)):
        if time.monotonic() > given_up_at:
            sys.exit("another part is not ready")
        time.sleep(0.01)


def epoch_s(trainer: Trainer) -> list[float]:
    """Train to the end; seconds of each epoch, evaluation included."""
    trainer.train(Listener())
    return [epoch["epoch_s"] for epoch in trainer.position.history]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int, default=0, help="which part of the trials, from 0")
    parser.add_argument("--of", type=int, default=1, help="how many parts; trials go round them")
    parser.add_argument("--meet", type=Path, help="an empty folder, the same for all parts")
    parser.add_argument("overrides", nargs="*", help="a sweep's")
    given = parser.parse_args()
    trainers = prepared(given.overrides, given.part, given.of)
    if given.meet is not None:
        meet(given.meet, given.part, given.of)
    print(json.dumps({"epoch_s": {title: epoch_s(each) for title, each in trainers.items()}}))


if __name__ == "__main__":
    main()
