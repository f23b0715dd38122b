"""What a sweep's command tells its workers."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_module

from mnist_hydra.config import settle
from mnist_hydra.ledger.plan import Plan, Planned
from mnist_hydra.sweep.axes import parse
from mnist_hydra.sweep.command import Command
from mnist_hydra.sweep.compose import Trials


def test_ids_that_look_like_numbers_stay_text_for_a_worker() -> None:
    unused: Any = None
    plan = Plan("grid", parse(["lr=0.1,0.2"], lambda group: []), (), (), "last")
    trials = Trials(planned={"a": Planned("a", ("lr=0.1",), "lr=0.1")})
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        config = settle(compose("config", ["output_dir='a place, now'"]))
        command = Command(unused, plan, trials, config, "val/acc", {}, "")
        worker = settle(compose("config", command.worker_overrides("0123456789e1", "0007", 3)))
    found = worker.sweep
    assert (found.parent, found.by, found.worker) == ("0123456789e1", "0007", 3)
    assert worker.output_dir == "a place, now"
