"""What `resume=` goes on with: a run's settings and its newest checkpoint, from MLflow, or from the
run's spool while the store is away.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from omegaconf import DictConfig, OmegaConf

from mnist_hydra import checkpoint
from mnist_hydra.cli.commands import place_words, shell_command, written
from mnist_hydra.config import NO_EFFECT_ON_RESULT, Config, changes_result, fingerprint, settle
from mnist_hydra.errors import UserError, first_line
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.journal import records, spools, warn_of_lost_records
from mnist_hydra.tracking.spool import Spool, deliver_left, spooled_run
from mnist_hydra.tracking.tracker import (
    NothingRecorded,
    Tracker,
    check_not_moved,
    is_away,
    restore_command,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

CONFIG = "config.yaml"
OLD_TAGS = "mnist_hydra."
"""How the tags of versions before 2026-11-25 begin, whose checkpoints are not looked for."""
BEGIN_ANEW = "right: the run's first command again, which begins anew"

Resumed: TypeAlias = tuple[Config, Spool, dict[str, Any] | None]
"""A run that goes on: what it began with, in the place where it goes on; its spool, not entered
yet; and its newest whole checkpoint, `None` if it has none.
"""


def resumed_run(config: Config, overrides: list[str]) -> Resumed:
    """The run that `config.resume` names, by its id or by the key that it had before it got one.

    What its last process could not deliver is delivered first.

    Raises:
        UserError: there is no such run, it has finished, is at work, was deleted or is a sweep's,
            or neither MLflow nor the spool can be read.
    """
    name = str(config.resume)
    changed = list(filter(changes_result, overrides))
    if changed:
        allowed = ", ".join(key for key in NO_EFFECT_ON_RESULT if key != "sweep")
        raise UserError(
            f"resume={name} goes on with the run's own settings, got {changed[0]}; right: "
            f"without it (allowed: {allowed})"
        )
    found: Resumed | None
    try:
        found = _from_store(config, name, overrides)
    except Exception as error:
        not_there_yet = isinstance(error, NothingRecorded)  # its maker was killed before it was
        if not (is_away(error) or not_there_yet):
            raise
        found = _from_spool(config, name, overrides)
        if found is None and not_there_yet:
            raise
        if found is None:
            raise UserError(
                f"resume={name}: the store does not answer ({first_line(error)}), and only there "
                f"is what the run goes on from; right: when it is back"
            ) from None
    first, _, state = found
    if state is not None and state["fingerprint"] != fingerprint(first):
        raise UserError(
            f"resume={name}: its checkpoint is of other settings (fingerprint "
            f"{state['fingerprint']}, now {fingerprint(first)}); right: the version of "
            f"mnist_hydra that made it"
        )
    return found


def _from_store(config: Config, name: str, overrides: list[str]) -> Resumed:
    tracker = Tracker(config, make=False)
    deliver_left(config, tracker, name)
    run = tracker.find_run(name)
    _refuse_what_is_no_run_of_its_own(tracker, run)
    if config.tracking.uri is None:
        experiment = tracker.client.get_experiment(run.info.experiment_id)
        check_not_moved(experiment.name, experiment.artifact_location, config.folder)
    run_id = str(run.info.run_id)
    if run.info.status == "FINISHED":
        raise UserError(f"resume={name}: that run has finished; right: one that has not")
    if any(name.startswith(OLD_TAGS) for name in run.data.tags):
        raise UserError(
            f"resume={name}: an older version of mnist_hydra began that run; right: that version, "
            f"or the run's first command again, which begins anew"
        )
    try:
        state = tracker.load_checkpoint(run_id)
    except checkpoint.DamagedCheckpoint as damage:
        raise UserError(
            f"resume={name}: all its checkpoints are damaged ({damage}); {BEGIN_ANEW}"
        ) from None
    text = _config_text(tracker, run_id)
    first = _here(config, text, overrides)
    if run.data.tags.get(tag.FINGERPRINT, fingerprint(first)) != fingerprint(first):
        raise UserError(
            f"resume={name}: {CONFIG} is not what the run began with (damaged, or of another "
            f"version of mnist_hydra); {BEGIN_ANEW}"
        )
    spooled = spooled_run(config, run_id, text)
    return first, Spool(first.folder, spooled, lambda: tracker, reopen=True), state


def _from_spool(config: Config, name: str, overrides: list[str]) -> Resumed | None:
    """The run as its spool holds it; `None` if only the store can go on with it."""
    found = spools(config.folder, name)
    if not found:
        return None
    folder, spooled = found[0]
    left = records(folder)
    # The newest first; of the others nothing is read.
    whole = (r for r in reversed(left) if r.kind == "checkpoint" and r.is_whole(folder))
    states = (checkpoint.load(r.path(folder), str(r.sha256)) for r in whole)
    state = next(states, None)
    if spooled.config is None or (state is None and spooled.run_id is not None):
        return None  # the store has more of it
    if any(r.kind == "end" and r.data["status"] == "FINISHED" for r in left):
        sync = shell_command("sync", place_words(config.composed))
        raise UserError(
            f"resume={name}: that run has finished; right: {sync}, once the store is back"
        )
    first = _here(config, spooled.config, overrides)
    warn_of_lost_records(folder, spooled.id)
    return first, Spool(first.folder, spooled, lambda: Tracker(config), reopen=True), state


def _here(config: Config, text: str, overrides: list[str]) -> Config:
    """A recorded configuration, with what may differ where its run goes on."""
    try:
        cfg = OmegaConf.create(text)
        assert isinstance(cfg, DictConfig)
        for key in NO_EFFECT_ON_RESULT:
            if any(o.lstrip("+").startswith(key) for o in overrides):
                OmegaConf.update(cfg, key, OmegaConf.select(config.composed, key), merge=False)
        # Where the run is found it goes on, whatever its record says.
        for key in ("output_dir", "tracking.uri"):
            OmegaConf.update(cfg, key, written(config.composed, key))
        return settle(cfg)
    except Exception as error:
        raise UserError(
            f"resume={config.resume}: {CONFIG} of the run is damaged ({first_line(error)}); "
            f"{BEGIN_ANEW}"
        ) from None


def _config_text(tracker: Tracker, run_id: str) -> str:
    try:
        return tracker.read_text(run_id, CONFIG)
    except Exception as error:
        there = {file.path for file in tracker.client.list_artifacts(run_id)}
        if CONFIG in there and is_away(error):
            raise
        raise UserError(
            f"resume={run_id}: {CONFIG} of the run is missing or damaged; {BEGIN_ANEW}"
        ) from None


def _refuse_what_is_no_run_of_its_own(tracker: Tracker, run: Run) -> None:
    """Refuse a run that was deleted, and a sweep and its trials: who trains a trial without a claim
    trains beside the sweep's workers.
    """
    run_id, tags = run.info.run_id, run.data.tags
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"resume={run_id}: that run was deleted in MLflow; right: "
            f"`{restore_command(tracker.client, run_id)}` first, or another run"
        )
    sweep = tags.get(tag.PARENT) or (run_id if tag.SWEEP in tags else None)
    if sweep is not None:
        what = "is a sweep" if sweep == run_id else f"is a trial of the sweep {sweep}"
        command = ""
        with suppress(UserError):  # it is gone for good
            command = tracker.find_run(sweep).data.tags.get(tag.COMMAND, "")
        raise UserError(
            f"resume={run_id} {what}; right: the sweep's own command again, which goes on with "
            f"all of its trials{': ' if command else ''}{command}"
        )
