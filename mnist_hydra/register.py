"""The command `python -m mnist_hydra.register`: a sweep's best trial becomes the champion.

A model is chosen by the hold-out, never by the test set unless that is asked for, and by what it
reached itself: it is of the last epoch, also where the sweep ranks by the best one.
"""

from __future__ import annotations

from contextlib import suppress

from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.errors import UserError, shown
from mnist_hydra.typed import check_setting

CHAMPION = "champion"
METRIC_TAG, VALUE_TAG, CHOSEN_ON_TAG = "chosen_by", "value", "data"
HOLD_OUT_SETTINGS = ("data.val_size", "data.split_seed")
"""The settings that say which training images are held out."""


def register(cfg: DictConfig) -> int:
    """Register the best trial's model and give it the alias, if it beats the present champion.

    Returns:
        The exit code: 0; 1 if the present champion stays.

    Raises:
        UserError: no such sweep, it was ranked by the test set, or its best has no model.
    """
    if not cfg.sweep:
        raise UserError(
            f"sweep={shown(cfg.sweep)} names no sweep; right: a sweep's name or its run's id"
        )
    name = check_setting("name", cfg.name, str)
    by_test_set = check_setting("by_test_set", cfg.by_test_set, bool)

    import mlflow
    from mlflow.exceptions import MlflowException

    from mnist_hydra.exported import model_of
    from mnist_hydra.report import read
    from mnist_hydra.report.results import best_of, by_last_epoch
    from mnist_hydra.tracking import tag
    from mnist_hydra.tracking.tracker import Tracker, is_away

    tracker = Tracker(entry.place_of(cfg), make=False)
    client = tracker.client
    results = read.read_sweeps(tracker, [str(cfg.sweep)]).results
    metric = results.objective.removesuffix("_best")
    if results.on_test_set and not by_test_set:
        raise UserError(
            f"sweep={cfg.sweep} was ranked by {metric}, of the test set; right: a sweep with "
            f"data.val_size=5000, or by_test_set=true"
        )
    counting = by_last_epoch(results)
    if not counting:
        raise UserError(f"sweep={cfg.sweep}: no trial has a finite {metric} in its last epoch")
    best = best_of(counting, results.minimize)
    run = client.get_run(best.run_id)
    data = run.data.tags.get(tag.DATA, "")
    split = data
    if not results.on_test_set:
        split += "".join(f" {key}={run.data.params.get(key)}" for key in HOLD_OUT_SETTINGS)
    model_id = model_of(tracker, run)
    told = f"run {best.run_id}, {metric} {best.score:.4f}"
    if results.at == "best" or metric != results.objective:
        told += " in the last epoch, which the model is of (the sweep ranks by the best)"
    try:
        before = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if is_away(error):
            raise
        before = None
    if before is not None:
        if not {METRIC_TAG, VALUE_TAG, CHOSEN_ON_TAG} <= set(before.tags):
            raise UserError(
                f"name={name}: its champion, version {before.version}, was not made by this "
                f"command, and does not say what it reached; right: another name"
            )
        chosen_by, chosen_on = before.tags[METRIC_TAG], before.tags[CHOSEN_ON_TAG]
        # before 2026-11-26 the hold-out was not recorded
        if chosen_by != metric or chosen_on not in (split, data):
            raise UserError(
                f"name={name}: its champion was chosen by {chosen_by} on {chosen_on}, and this "
                f"sweep's best by {metric} on {split}; right: another name"
            )
        reached = float(before.tags[VALUE_TAG])
        with suppress(MlflowException):  # tags of before 2026-11-27 may be of its best epoch
            reached = client.get_run(str(before.run_id)).data.metrics.get(metric, reached)
        lead = best.score - reached
        against = f"{lead:+.4f} to version {before.version}"
        if before.run_id == best.run_id:
            print(f"{name}@{CHAMPION} is version {before.version} already: {told}")
            return 0
        if lead >= 0 if results.minimize else lead <= 0:
            print(f"{name}@{CHAMPION} stays version {before.version}: {told}, is {against}")
            return 1
        told += f", {against}"
    if before is None:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise UserError(f"name={name}: {str(error).splitlines()[0]}") from None
    mlflow.set_tracking_uri(tracker.client.tracking_uri)  # where MLflow itself looks for the model
    tags = {METRIC_TAG: metric, VALUE_TAG: repr(best.score), CHOSEN_ON_TAG: split}
    made = client.create_model_version(
        name, f"models:/{model_id}", best.run_id, tags=tags, model_id=model_id
    )
    client.set_registered_model_alias(name, CHAMPION, made.version)
    print(f"{name}@{CHAMPION} is version {made.version}: {told}")
    return 0


if __name__ == "__main__":
    entry.start("register", register)
