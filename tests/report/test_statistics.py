"""What a report says of seeds and settings, against SciPy's own tests and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mnist_hydra.report.questions import leads
from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import TrialRecord, ranked
from mnist_hydra.report.statistics import (
    Difference,
    Scores,
    Verdict,
    correct,
    difference,
    effect,
    in_order,
    level_means,
    summary,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("seeds", [2, 3, 10, 40])
def test_a_difference_is_scipys_paired_t_test(seeds: int) -> None:
    one, other = RANDOM.normal(0.99, 0.01, (2, seeds))
    found = difference(_by_seed(one), _by_seed(other))
    expected = stats.ttest_rel(one, other)
    low, high = expected.confidence_interval(0.95)
    assert found.n == seeds
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.half_width is not None
    assert found.mean - found.half_width == pytest.approx(low, rel=1e-9)
    assert found.mean + found.half_width == pytest.approx(high, rel=1e-9)


def test_only_seeds_that_both_have_are_compared() -> None:
    found = difference({"1": 0.5, "2": 0.6, "3": 0.9}, {"2": 0.5, "3": 0.7, "4": 0.0})
    assert (found.n, round(found.mean, 12)) == (2, 0.15)
    assert difference({"1": 1.0}, {"2": 1.0}).n == 0
    assert math.isnan(difference({"1": 1.0}, {"2": 1.0}).mean)


def test_with_one_seed_no_interval_is_invented() -> None:
    found = difference({"1": 0.9}, {"1": 0.5})
    assert (found.half_width, found.p) == (None, None)
    assert found.verdict == Verdict.UNTOLD
    assert summary([0.9]).half_width is None and summary([0.9]).deviation is None


def test_equal_differences_have_no_spread_to_judge_by() -> None:
    constant = difference({"1": 0.9, "2": 0.8}, {"1": 0.7, "2": 0.6})
    assert (constant.half_width, constant.p) == (None, None)
    same = difference({"1": 0.9, "2": 0.8}, {"1": 0.9, "2": 0.8})
    assert same.verdict == Verdict.IDENTICAL


def test_holms_correction_by_hand() -> None:
    family = [Difference(3, 0.1, 0.1, p) for p in (0.01, 0.04, 0.03, 0.005)]
    found = correct([*family, Difference(1, 0.1)])
    assert [one.corrected for one in found[:4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert found[4].corrected is None
    assert [one.verdict.name for one in found] == ["REAL", "HINT", "HINT", "REAL", "UNTOLD"]


def test_the_correction_keeps_false_alarms_below_one_in_twenty() -> None:
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        family = []
        for _ in range(10):
            one, other = random.normal(0, 1, (2, 5))
            family.append(difference(_by_seed(one), _by_seed(other)))
        alarms += any(each.verdict == Verdict.REAL for each in correct(family))
    assert alarms <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize("configurations", [3, 10])
def test_where_none_is_better_the_first_beats_another_in_at_most_one_of_twenty_sweeps(
    configurations: int,
) -> None:
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        scores = random.normal(0, 1, (configurations, 5))
        records = [
            TrialRecord(values, [], "finished", score, f"{values}", seed=values["seed"])
            for name, of_name in enumerate(scores)
            for seed, score in _by_seed(of_name).items()
            for values in [{"lr": str(name), "seed": seed}]
        ]
        results = ranked(records, ["lr", "seed"], "val/acc")
        found = leads(Findings("", tuple(records), results, len(records)))
        alarms += any(lead.verdict == Verdict.REAL for lead in found)
    assert alarms <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_an_axis_effect_is_averaged_within_each_seed_first() -> None:
    scores: Scores = {
        ("a", "0.1"): {"1": 1.0, "2": 2.0, "3": 3.0},
        ("b", "0.1"): {"1": 0.5, "2": 1.0, "3": 3.5},
        ("a", "0.2"): {"1": 3.0, "2": 2.0},
        ("b", "0.2"): {"1": 1.5, "2": 2.5, "3": 9.9},
    }
    found = effect(scores, 0, "a", "b")
    by_seed = [(0.5 + 1.5) / 2, (1.0 - 0.5) / 2, -0.5]
    assert (found.n, found.mean) == (3, pytest.approx(np.mean(by_seed)))
    assert found.p == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    within = effect({point: s for point, s in scores.items() if point[1] == "0.1"}, 0, "a", "b")
    assert within.mean == pytest.approx((0.5 + 1.0 - 0.5) / 3)


def test_a_value_that_was_tried_in_better_company_does_not_look_better() -> None:
    scores: Scores = {
        ("a", "good"): {"1": 0.9},
        ("b", "good"): {"1": 0.9},
        ("b", "bad"): {"1": 0.1},
    }
    found = level_means(scores, 0, ["a", "b"])
    assert found["a"].mean == found["b"].mean == 0.9


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        (["0.1", "0.02", "1e-3", "0.02"], ["1e-3", "0.02", "0.1"]),
        (["model3", "model1"], ["model3", "model1"]),
        (["0.1", "null"], ["0.1", "null"]),
        ([], []),
    ],
)
def test_values_stand_by_size_where_they_are_numbers(
    values: list[str], ordered: list[str]
) -> None:
    assert in_order(values) == ordered


def _by_seed(values: np.ndarray) -> dict[str, float]:
    return {str(seed): float(value) for seed, value in enumerate(values)}
