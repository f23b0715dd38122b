"""What MLflow's pages are told of a sweep: addresses, the view of its trials, its description."""

from __future__ import annotations

import json

from mnist_hydra.report import results
from mnist_hydra.report.results import TrialRecord, ranked
from mnist_hydra.tracking import pages


def record(dropout: str, seed: str, accuracy: float) -> TrialRecord:
    values = {"dropout": dropout, "seed": seed}
    overrides = [f"{axis}={value}" for axis, value in values.items()]
    return TrialRecord(values, overrides, "finished", accuracy, f"run-{dropout}-{seed}")


SEEDS = [record(d, s, a) for d, s, a in [("0", "1", 0.97), ("0", "2", 0.98), ("0.1", "1", 0.99)]]


def test_a_view_of_trials_has_the_best_first_and_a_column_for_each_axis() -> None:
    view = json.loads(pages.trials_view("abc", "val/acc", ["model", "+dropout"]))
    assert view["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val/acc`", False)
    columns = ["metrics.`val/acc`", "params.`model.name`", "params.`dropout`"]
    assert view["selectedColumns"] == columns
    assert json.loads(pages.trials_view("abc", "val/loss", []))["orderByAsc"] is True


def test_a_column_has_the_name_that_a_swept_key_is_recorded_by() -> None:
    swept = ["model.dropout", "++optimizer.weight_decay", "optimizer.nesterov", "experiment"]
    swept += ["aug.steps.0.ShiftScaleRotate.p", "+optimizer.betas.1"]
    view = json.loads(pages.trials_view("abc", "val/acc", swept))
    names = ["dropout", "weight_decay", "optimizer.nesterov", "aug.steps", "optimizer.betas"]
    assert view["selectedColumns"][1:] == [f"params.`{name}`" for name in names]


def test_a_description_asks_answers_and_shows_the_table_and_the_command() -> None:
    found = ranked(SEEDS, ["dropout", "seed"], "val/acc")
    assert results.question(found) == "Which dropout gives the highest val/acc?"
    told = results.brief_answer(found)
    assert told.startswith("dropout=0.1 comes first of 2: val/acc 99.00 %")
    note = pages.sweep_note(results.question(found), told, results.grid(found, 10), "python x")
    assert "| rank | dropout | n | val/acc | +/- (95 %) |" in note
    assert "```bash\npython x\n```" in note


def test_what_the_test_set_ranked_is_said_to_be_no_ground_for_choosing() -> None:
    found = ranked(SEEDS, ["dropout", "seed"], "test/acc_last")
    assert "no ground for choosing" in results.brief_answer(found)


def test_a_sweep_without_a_finished_trial_says_so() -> None:
    assert results.brief_answer(ranked([], ["dropout"], "val/acc")) == "No trial has finished."


def test_a_mean_over_seeds_is_told_with_its_interval() -> None:
    told = results.brief_answer(ranked(SEEDS[:2], ["dropout", "seed"], "val/acc"))
    assert "97.50 % ± 6.35, the mean of 2 seeds" in told


def test_a_descriptions_text_is_shown_as_it_is_typed() -> None:
    note = pages.sweep_note("a*b_c", "<b>", [["x|y"], ["1"]], "python x", [("heat", "get?a=b")])
    assert "**a\\*b\\_c**" in note and "\\<b>" in note and "x\\|y" in note
    assert note.endswith("![heat](get?a=b)")


def test_the_parents_metrics_are_the_best_trial_and_the_mean_of_all() -> None:
    found = results.sweep_metrics(ranked(SEEDS, ["dropout", "seed"], "val/acc"))
    assert found["val/acc"] == found["val/acc/best"] == 0.99
    assert round(found["val/acc/mean"], 6) == 0.98
    losses = results.sweep_metrics(ranked(SEEDS, ["dropout", "seed"], "val/loss"))
    assert losses["val/loss/best"] == 0.97
