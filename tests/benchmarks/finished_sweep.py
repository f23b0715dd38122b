"""Finishes every trial of a sweep without training any: it takes the sweep's own command line, and
writes into the ledger what a worker would have written, through the ledger's own calls.

    python -m tests.benchmarks.finished_sweep --multirun 'seed=range(0,1000)' output_dir=outputs
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from mnist_hydra import train
from mnist_hydra.config import flatten
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.owner import new_token, working
from mnist_hydra.ledger.plan import Planned, plan_file
from mnist_hydra.ledger.trial import FINISHED, Trial
from mnist_hydra.sweep import sweeper
from mnist_hydra.sweep.command import Command, Job, begin_sweep, read_command
from mnist_hydra.tracking import provenance, tag
from mnist_hydra.tracking.tracker import Tracker

EPOCH_METRICS = ("train/loss", "train/acc", "lr", "images_per_s", "epoch_s")


def fill(job: Job, arguments: Sequence[str]) -> None:
    """In place of `sweeper.run_and_exit`: finish the trials that the ledger does not have yet."""
    command = read_command(job, arguments)
    tracker = Tracker(command.config)
    parent_id = begin_sweep(command, tracker).info.run_id
    ledger = Ledger(tracker.client, parent_id)
    view, token = ledger.read(), new_token()
    tracker.log_text(parent_id, command.plan.text(), plan_file(token))
    made_by = provenance.tags() | provenance.origin(command.config.data)
    with working() as owner:
        for number, planned in enumerate(view.wanted(command.plan.trials)):
            if planned.fingerprint not in view.trials:
                trial = ledger.claim(planned.fingerprint, planned.name, None, owner, token)
                assert trial is not None
                _record(command, tracker, trial, planned, number, made_by)
                assert ledger.end(trial, FINISHED, seconds=1.0)
    tracker.end(parent_id, "FINISHED")


def _record(
    command: Command,
    tracker: Tracker,
    trial: Trial,
    planned: Planned,
    number: int,
    made_by: Mapping[str, str],
) -> None:
    """Record what a training would have: settings, tags and metrics."""
    config, overrides = command.config, command.plan.arguments.overrides(planned.overrides)
    swept = dict(text.split("=", 1) for text in planned.overrides)
    tracker.log_settings(trial.run_id, flatten(config) | swept)
    checkpoint = {"slot": 0, "sha256": "", "epoch": config.epochs, "step": config.epochs}
    own = {tag.OVERRIDES: " ".join(overrides), tag.CHECKPOINT: json.dumps(checkpoint)}
    tracker.set_tags(trial.run_id, {**made_by, **own})
    now = {"timestamp_ms": int(time.time() * 1000)}
    split = command.objective.partition("/")[0]
    measured = dict.fromkeys((*EPOCH_METRICS, f"{split}/loss", f"{split}/acc"), 0.5)
    history = [now | {"epoch": epoch + 1} | measured for epoch in range(config.epochs)]
    final = {f"test/acc_class/{digit}": 0.5 for digit in range(10)}
    final |= dict.fromkeys(("test/loss_last", "test/acc_last", f"{split}/acc_best"), 0.5)
    final |= {command.objective: 0.5 + number / 1_000_000}
    tracker.log_epochs(trial.run_id, [*history, now | {"epoch": config.epochs} | final])


def main() -> None:
    sweeper.run_and_exit = fill
    train.command()


if __name__ == "__main__":
    main()
