"""The table at a sweep's end, its statistics, and the command that it recommends."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console, RenderableType

from mnist_hydra.cli.commands import shell_command
from mnist_hydra.ledger import trial
from mnist_hydra.report.results import (
    Results,
    TrialRecord,
    best_command,
    footer,
    heading,
    print_table,
    ranked,
    ranking_csv,
    reason,
    table,
    trial_command,
    values_of,
)
from mnist_hydra.report.statistics import summary
from tests.imports import imported_by

COUNTER = itertools.count()
MANY_LINES = "CUDA error\n  at step 3\nCompile with X\n\n"


def record(
    values: Mapping[str, str],
    objective: float | None,
    state: str = trial.FINISHED,
    fixed: Sequence[str] = (),
    note: str = "",
    flags: Sequence[str] = (),
) -> TrialRecord:
    """A trial at these values, their keys as they were typed."""
    swept = [f"{key}={value}" for key, value in values.items()]
    plain = values_of(swept)
    seed = plain.get("seed", "")
    overrides, run_id = [*fixed, *swept], f"run{next(COUNTER)}"
    return TrialRecord(plain, overrides, state, objective, run_id, note, flags, seed)


def by_dropout(*pairs: tuple[str, float | None], objective: str = "val/acc") -> Results:
    return ranked([record({"dropout": d}, value) for d, value in pairs], ["dropout"], objective)


def over_seeds(scores: Mapping[str, Sequence[float | None]]) -> Results:
    """Each model's trials, by seed 1, 2, ...; `None` is one that failed."""
    records = [
        record(
            {"model": model, "seed": str(seed)},
            score,
            trial.FAILED if score is None else trial.FINISHED,
        )
        for model, values in scores.items()
        for seed, score in enumerate(values, start=1)
    ]
    return ranked(records, ["model", "seed"], "val/acc")


def lines(results: Results) -> list[str]:
    """What a file would hold."""
    return printed(table(results, boxed=False), 10_000).splitlines()


def printed(what: RenderableType, width: int = 120, encoding: str = "utf-8") -> str:
    """What a terminal of that width would show."""
    out = io.BytesIO()
    file = io.TextIOWrapper(out, encoding=encoding)
    Console(file=file, width=width, force_terminal=True, color_system=None).print(what)
    file.flush()
    return out.getvalue().decode(encoding)


def test_configurations_are_ranked_best_first() -> None:
    results = by_dropout(("0.0", 0.98), ("0.1", 0.99), ("0.2", 0.97))
    assert [(row.rank, row.values) for row in results.rows] == [
        (1, ("0.1",)),
        (2, ("0.0",)),
        (3, ("0.2",)),
    ]


def test_a_loss_is_ranked_the_other_way() -> None:
    records = [record({"lr": "0.1"}, 0.3), record({"lr": "0.2"}, 0.1)]
    results = ranked(records, ["lr"], "val/loss")
    assert [row.values for row in results.rows] == [("0.2",), ("0.1",)]


def test_equal_means_share_a_rank_and_keep_their_order() -> None:
    results = by_dropout(("0.3", 0.98), ("0.2", 0.99), ("0.1", 0.99), ("0.0", 0.97))
    assert [(row.rank, row.values[0]) for row in results.rows] == [
        (1, "0.2"),
        (1, "0.1"),
        (3, "0.3"),
        (4, "0.0"),
    ]
    assert "2 configurations share the first rank" in footer(results)


def test_means_of_the_same_values_tie_in_whatever_order_they_came() -> None:
    results = over_seeds({"model1": [0.1, 0.2, 0.3], "model2": [0.3, 0.1, 0.2]})
    assert [row.rank for row in results.rows] == [1, 1]


def test_equal_means_of_different_numbers_of_seeds_share_a_rank() -> None:
    results = over_seeds({"model1": [0.1, 0.1], "model2": [0.1, 0.1, 0.1]})
    assert [row.rank for row in results.rows] == [1, 1]


def test_seeds_are_put_together_with_mean_and_interval() -> None:
    results = over_seeds({"model1": [0.990, 0.992, 0.994], "model2": [0.996, 0.995, 0.997]})
    best, other = results.rows
    assert (best.values, len(best.finished), best.trials) == (("model2",), 3, 3)
    assert best.score.mean == pytest.approx(0.996)
    # t(0.975, 2) = 4.302653, standard deviation 0.001 of three
    assert best.score.half_width == pytest.approx(4.302653 * 0.001 / math.sqrt(3), rel=1e-6)
    assert other.score.half_width == pytest.approx(4.302653 * 0.002 / math.sqrt(3), rel=1e-6)


def test_a_seed_however_it_was_typed_is_no_axis_of_the_table() -> None:
    for key in ("seed", "+seed", "++seed"):
        records = [record({key: "1", "+aug.p": "0.5"}, 0.9), record({key: "2", "+aug.p": "0.5"}, 1)]
        results = ranked(records, records[0].values, "val/acc")
        assert results.axes == ("aug.p",) and results.over_seed
        assert [row.score.mean for row in results.rows] == [0.95]


def test_without_the_seed_as_an_axis_there_is_no_interval() -> None:
    results = by_dropout(("0.0", 0.98))
    assert not results.over_seed
    assert lines(results)[1].split() == ["rank", "dropout", "n", "val/acc"]


def test_one_finished_seed_has_a_mean_but_no_interval() -> None:
    results = over_seeds({"model1": [0.99, None]})
    assert results.rows[0].score.half_width is None
    assert lines(results)[2].split() == ["1", "model1", "1", "of", "2", "99.00", "%", "-"]
    assert "some means are of fewer trials than others: see n" in footer(results)


@pytest.mark.parametrize(
    "state",
    [trial.FAILED, trial.PRUNED, trial.TIMEOUT, trial.DIED, trial.INTERRUPTED, trial.RUNNING],
)
def test_only_finished_trials_are_ranked_and_the_others_listed_apart(state: str) -> None:
    records = [
        record({"lr": "0.1"}, 0.9),
        record({"lr": "9"}, 0.99, state, note="after epoch 2"),
    ]
    results = ranked(records, ["lr"], "val/acc")
    assert [row.values for row in results.rows] == [("0.1",)]
    assert [other.values for other in results.apart] == [{"lr": "9"}]
    assert f"{state}: lr=9 (run {records[1].run_id}): after epoch 2" in footer(results)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, sys.float_info.max])
def test_a_finished_trial_without_a_finite_objective_has_no_rank(value: float | None) -> None:
    results = by_dropout(("0.0", 0.98), ("0.1", value))
    assert [row.values for row in results.rows] == [("0.0",)]
    assert any(text.startswith("no finite val/acc: dropout=0.1") for text in footer(results))


def test_failures_are_listed_before_what_was_pruned() -> None:
    records = [record({"lr": str(i)}, 0.1, trial.PRUNED) for i in range(30)]
    records.append(record({"lr": "7"}, None, trial.FAILED))
    told = footer(ranked(records, ["lr"], "val/acc"))
    assert told[0].startswith("failed: lr=7")
    assert "11 more without a rank in results.csv" in told


def test_the_heading_says_what_ranks_and_when() -> None:
    assert heading(by_dropout(("0", 0.9))) == (
        "Configurations by val/acc on the hold-out (in the last epoch)"
    )
    records = [record({"seed": "1"}, 0.1)]
    assert heading(ranked(records, ["seed"], "val/loss", at="best")) == (
        "Configurations by val/loss on the hold-out "
        "(mean over seeds and its 95 % interval, in the best epoch)"
    )


def test_a_ranking_by_the_test_set_says_that_it_is_no_ground_for_choosing() -> None:
    results = by_dropout(("0.0", 0.98), ("0.1", 0.97), objective="test/acc_last")
    assert "on the test set" in heading(results)
    assert heading(results).endswith("no ground for choosing")
    told = footer(results)
    assert any("no ground for choosing" in text and "data.val_size=" in text for text in told)
    assert "first in the table:" in told and not any("best" in text for text in told)


def test_a_sweep_of_which_nothing_finished_says_so() -> None:
    results = ranked([record({"lr": "0.1"}, None, trial.FAILED)], ["lr"], "val/acc")
    assert best_command(results) is None
    assert footer(results)[-1] == "no trial finished, so there is no best configuration"
    assert footer(ranked([], [], "val/acc")) == [footer(results)[-1]]


def test_a_sweep_without_an_axis_has_one_configuration() -> None:
    results = ranked([record({}, 0.98, fixed=["model=model3"])], [], "val/acc")
    assert lines(results)[1:] == ["rank  n  val/acc", "   1  1  98.00 %"]
    assert best_command(results) == shell_command("train", ["model=model3"])


def test_the_best_is_a_command_that_a_shell_and_hydra_read_back() -> None:
    values = {"+aug.steps": "[{name: Rotate, limit: 7}]", "data.root": "'/a folder/$HOME'"}
    fixed = ["model=model3", "tracking.experiment_name='it''s'", "lr=0.1"]
    results = ranked([record(values, 0.9, fixed=fixed)], [], "val/acc")
    command = f"set -- {best_command(results)}; shift 3; printf '%s\\n' \"$@\""
    shell = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True)
    typed = [*fixed, *(f"{key}={value}" for key, value in values.items())]
    assert shell.stdout.splitlines() == typed
    assert len(OverridesParser.create().parse_overrides(typed[:1] + typed[2:])) == 4


def test_the_best_command_leaves_out_what_only_concerns_the_sweep() -> None:
    fixed = ["sweep.retries=2", "++sweep.n_trials=5", "hydra/launcher=joblib", "data.val_size=9"]
    fixed += ["hydra.launcher.n_jobs=2", "+hydra.job.name=x", "hydrant=1"]
    flags = ["--config-dir", "mine"]
    results = ranked([record({"lr": "0.1"}, 0.9, fixed=fixed, flags=flags)], ["lr"], "val/acc")
    typed = ["data.val_size=9", "hydrant=1", "lr=0.1"]
    assert best_command(results) == shell_command("train", [*flags, *typed])


def test_a_trials_command_has_its_seed_and_nothing_of_the_sweep() -> None:
    words = ["++sweep.worker=0", "hydra/launcher=joblib", "seed=1"]
    alone = trial_command(TrialRecord({}, words, trial.FINISHED, 0.5, ""))
    assert alone == shell_command("train", ["seed=1"])


def test_a_trials_command_has_no_password() -> None:
    words = ["tracking.uri=http://me:secret@host:5000"]
    alone = trial_command(TrialRecord({}, words, trial.FINISHED, 0.5, ""))
    assert alone == shell_command("train", ["tracking.uri=http://me@host:5000"])


def test_the_best_command_names_no_seed_where_there_were_several() -> None:
    several = over_seeds({"model1": [0.98, 0.99]})
    assert footer(several)[-2:] == [
        "best, with any seed:",
        "  " + shell_command("train", ["model=model1"]),
    ]
    one = over_seeds({"model1": [0.98]})
    again = shell_command("train", ["model=model1", "seed=1"])
    assert footer(one)[-2:] == ["best:", f"  {again}"]


def test_the_csv_has_every_configuration_and_trial_unrounded() -> None:
    results = over_seeds({"model1": [0.1, 0.2], "a,b": [0.25, None], "model3": [None]})
    first, second = results.rows
    rows = list(csv.DictReader(io.StringIO(ranking_csv(results))))
    assert list(rows[0]) == [
        *("rank", "model", "seed", "n", "val/acc", "half_width_95", "state", "run_id")
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "", ""]
    assert [row["model"] for row in rows] == ["a,b", "model1", "a,b", "model3"]
    assert [row["seed"] for row in rows] == ["1", "1 2", "2", "1"]
    assert [row["n"] for row in rows] == ["1", "2", "0", "0"]
    assert float(rows[1]["val/acc"]) == second.score.mean
    assert float(rows[1]["half_width_95"]) == second.score.half_width
    assert rows[0]["half_width_95"] == ""
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert rows[1]["run_id"].split() == [record.run_id for record in second.finished]
    assert rows[0]["run_id"] == first.finished[0].run_id


def test_the_csv_has_the_same_columns_without_seeds() -> None:
    header, line = ranking_csv(by_dropout(("0.0", 0.98))).splitlines()
    assert header == "rank,dropout,seed,n,val/acc,half_width_95,state,run_id"
    assert line.startswith("1,0.0,,1,0.98,,finished,run")


def test_plain_lines_stand_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    results = over_seeds({"model1": [0.99] * 10, "a": [0.98, 0.97]})
    print_table(results)
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert title == heading(results)
    assert header == "rank  model    n  val/acc  +/- (95 %)"
    assert first == "   1  model1  10  99.00 %        0.00"
    assert second == "   2  a        2  97.50 %        6.35"


def test_a_line_that_goes_to_a_file_is_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(by_dropout(("x" * 300, 0.9)))
    assert "x" * 300 in capsys.readouterr().out
    print_table(by_dropout())
    assert capsys.readouterr().out == ""


def test_a_long_table_is_cut_and_says_where_the_rest_is() -> None:
    results = by_dropout(*((str(i), i / 1000) for i in range(100)))
    assert len(lines(results)) == 22
    assert printed(table(results, boxed=True)).count("%") == 20
    assert "80 more in results.csv" in footer(results)
    assert len(ranking_csv(results).splitlines()) == 101


def with_markup() -> Results:
    values = {"aug.steps": "[{name: Rotate}]", "x": "[bold]:smile:"}
    return ranked([record(values, 0.98)], values, "val/acc")


@pytest.mark.parametrize("width", [1, 20, 60, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_table_has_its_heading_and_fits_any_terminal(width: int, encoding: str) -> None:
    shown = printed(table(with_markup(), boxed=True), width, encoding)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "".join(shown.split()).startswith("".join(heading(with_markup()).split()))


def test_a_table_shows_values_as_they_were_typed() -> None:
    shown = printed(table(with_markup(), boxed=True), 200, "utf-8")
    assert "[{name: Rotate}]" in shown and "[bold]:smile:" in shown and "98.00 %" in shown


@pytest.mark.parametrize(
    ("freedom", "t"),
    # the column of 0.975 in the t table of NIST's e-Handbook of Statistical Methods, 1.3.6.7.2
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (29, 2.045),
        (30, 2.042),
        (100, 1.984),
    ],
)
def test_an_interval_has_the_quantile_of_student_t_that_the_tables_have(
    freedom: int, t: float
) -> None:
    values = [(-1.0) ** number for number in range(freedom + 1)]
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert summary(values).half_width == pytest.approx(t * error, abs=5.001e-4 * error)


def test_an_interval_needs_two_values_and_is_zero_for_equal_ones() -> None:
    assert summary([0.5]).half_width is None
    assert summary([0.5, 0.5]).half_width == 0.0
    assert summary([1.0, 3.0]).half_width == pytest.approx(12.7062, abs=1e-3)


def test_no_mlflow_and_no_torch_is_needed() -> None:
    imported = imported_by("from mnist_hydra.report import results")
    assert not {"mlflow", "torch", "scipy", "hydra", "rich"} & imported


def raised(error: BaseException) -> str:
    """The traceback of an error."""
    try:
        raise error
    except BaseException:  # noqa: B036
        return traceback.format_exc()


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (raised(RuntimeError(MANY_LINES)), "failed", "RuntimeError: CUDA error"),
        (raised(ValueError("one line")), "failed", "ValueError: one line"),
        (raised(ValueError("\n  in the next\none")), "failed", "ValueError: in the next"),
        (raised(KeyboardInterrupt()), "failed", "KeyboardInterrupt"),
        ("process 1 on node is gone", "died", "process 1 on node is gone"),
        ("", "failed", ""),
        (raised(RuntimeError("slow")) + "it trained for 3 s", "timeout", "it trained for 3 s"),
    ],
)
def test_a_failure_is_told_in_the_first_line_of_what_was_raised(
    error: str, state: str, told: str
) -> None:
    assert reason(error, state) == told
