"""What a sweep does with torch besides training: it checks its trials and completes the best ones.

A sweeper whose trials run in other processes does so in a short-lived process too, and never
imports torch itself.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from mnist_hydra.cli.entry import collect_seldom, leaving_promptly
from mnist_hydra.config import NO_EFFECT_ON_RESULT, Config, settle
from mnist_hydra.errors import BAD_INPUT, InUse, Stopped, UserError, in_one_line
from mnist_hydra.sweep.launchers import Ended, last_line
from mnist_hydra.targets import LET_IN, let_in

CHECKED_NUMBERS = ("dropout", "lr", "weight_decay", "momentum", "betas")


class Died(Exception):
    """How a process that was to do a task ended without an answer, and its last line."""


def check_trials(trials: Mapping[str, Mapping[str, Any]], elsewhere: bool) -> None:
    """Build the parts of each trial, so that one that cannot be built is refused before any starts.

    Args:
        trials: composed and resolved configurations by the trials' names.
        elsewhere: the trials run on other machines, so this one's devices are not looked at.
    Raises:
        UserError: naming the trial.
    """
    from mnist_hydra import build, runtime

    for title, raw in trials.items():
        cfg = OmegaConf.create(dict(raw))
        if elsewhere:
            cfg.merge_with({"device": "cpu", "precision": "auto"})
        try:
            config = settle(cfg)
            build.build(config, runtime.choose(config, runtime.capability(config.device)))
        except UserError as error:
            raise UserError(f"trial {title}: {error}") from None


def complete(raw: Mapping[str, Any], run_ids: Sequence[str]) -> dict[str, str]:
    """Record the pictures and the exported model of finished trials.

    Args:
        raw: the sweep's configuration, composed and resolved; says where MLflow, the data and
            the device are.
        run_ids: MLflow runs of the trials.
    Returns:
        Why it failed, by run; the others are done.
    """
    from mnist_hydra.build import prepare
    from mnist_hydra.export import log_pictures_and_model
    from mnist_hydra.tracking.spool import LOCK_WAIT_S, Spool, deliver_left, spooled_run
    from mnist_hydra.tracking.tracker import Tracker

    here = OmegaConf.create(dict(raw))
    config = settle(here)
    tracker = Tracker(config)
    failed: dict[str, str] = {}
    for run_id in run_ids:
        try:
            cfg = OmegaConf.create(tracker.read_text(run_id, "config.yaml"))
            for key in NO_EFFECT_ON_RESULT:
                OmegaConf.update(cfg, key, OmegaConf.select(here, key), merge=False)
            # What an earlier process of the run has left here; or it is left out, where another one
            # has finished the run.
            with suppress(InUse):  # by a process that lost the trial and stands still
                deliver_left(config, tracker, run_id, wait_s=LOCK_WAIT_S)
            trainer = prepare(settle(cast(DictConfig, cfg)), tracker.load_checkpoint(run_id))
            if trainer.position.epoch < trainer.config.epochs:
                raise UserError("its last checkpoint is missing or damaged")
            spooled = spooled_run(config, run_id)
            with Spool(config.folder, spooled, lambda: tracker) as spool:
                log_pictures_and_model(trainer, spool)
            spool.raise_if_refused()
            if spool.left:
                failed[run_id] = f"the store does not take them now ({spool.away})"
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            failed[run_id] = in_one_line(error)
    return failed


def run(task: Callable[..., Any], *arguments: Any, here: bool) -> Any:
    """Call `check_trials` or `complete`, in this process or in a new one; returns its answer.

    Args:
        arguments: the task's, of plain values.
        here: whether this process may import torch.
    Raises:
        UserError: the task's own.
        Died: the new process died or raised anything else.
    """
    if here:
        return task(*arguments)
    # JSON would turn the keys of a mapping into text, and YAML takes 0.1 s for a trial.
    request = pickle.dumps((task.__name__, arguments, sys.path, vars(LET_IN)))
    command = [sys.executable, "-m", "mnist_hydra.sweep.torch_tasks"]
    done = subprocess.run(command, input=request, check=False, capture_output=True)
    answer, said = (told.decode(errors="replace") for told in (done.stdout, done.stderr))
    if done.returncode == BAD_INPUT:
        raise UserError(answer)
    if done.returncode != 0 or not answer:  # a user's own code may leave with 0
        raise Died(str(Ended(done.returncode, last_line(said))))
    return json.loads(answer)


def kind_of(config: Config) -> str:
    """What `check_trials` looks at, as text.

    Trials of one kind differ only in numbers whose range is checked already.
    """
    parts = (config.model, config.optimizer, config.scheduler)
    classes = [[part.target, part.name] for part in parts]
    arguments = [
        {key: value for key, value in part.arguments.items() if key not in CHECKED_NUMBERS}
        for part in parts
    ]
    places = [config.device, config.precision, vars(config.data)]
    has_length = "total_steps" in config.scheduler.arguments  # which must suffice for all epochs
    betas = len(config.optimizer.arguments.get("betas", ()))
    steps = [config.batch_size, betas, config.epochs if has_length else None]
    return json.dumps([classes, arguments, config.aug, places, steps], default=str)


def _main() -> None:
    collect_seldom()
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)  # what a user's own code prints, and what programs that it starts do
    sys.stdout = sys.stderr
    name, arguments, sys.path[:], let = pickle.load(sys.stdin.buffer)
    let_in(**let)
    tasks: dict[str, Callable[..., Any]] = {t.__name__: t for t in (check_trials, complete)}
    try:
        answer, code = json.dumps(tasks[name](*arguments)), 0
    except UserError as error:
        answer, code = str(error), BAD_INPUT
    print(answer, end="", file=answer_to, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    with leaving_promptly():
        _main()
