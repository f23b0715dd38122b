"""What a sweep's command tells its workers."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_module

from mnist_hydra.config import sweep_settings
from mnist_hydra.ledger.plan import Plan, Planned
from mnist_hydra.sweep.axes import parse
from mnist_hydra.sweep.command import Command
from mnist_hydra.sweep.compose import Trials


def test_ids_that_look_like_numbers_stay_text_for_a_worker() -> None:
    unused: Any = None
    plan = Plan("grid", parse(["lr=0.1,0.2"], lambda group: []), (), (), "last")
    trials = Trials(planned={"a": Planned("a", ("lr=0.1",), "lr=0.1")})
    command = Command(unused, plan, trials, unused, "val/acc", {}, "", ())
    words = command.worker_overrides("0123456789e1", "0007", 3)
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        found = sweep_settings(compose("config", words))
    assert (found.parent, found.by, found.worker) == ("0123456789e1", "0007", 3)
