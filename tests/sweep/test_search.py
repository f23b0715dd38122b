"""The search: proposals follow from the ledger and the seed alone, and are never made twice."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from mlflow import MlflowClient
from mlflow.entities import Metric

from mnist_hydra.config import SweepConfig
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.owner import working
from mnist_hydra.ledger.parent import elect_parent
from mnist_hydra.ledger.plan import Axis
from mnist_hydra.metrics import is_minimized, objective_value
from mnist_hydra.sweep import search
from mnist_hydra.sweep.axes import parse
from mnist_hydra.sweep.compose import Composer
from mnist_hydra.sweep.search import Result, Search, is_to_prune, propose
from tests.sweep_process import new_store

pytestmark = pytest.mark.xdist_group("sweep_search")  # they share a store, which is slow to make


def space(*arguments: str) -> tuple[Axis, ...]:
    return parse(arguments, lambda group: []).axes


SPACE = space(
    "lr=tag(log,interval(0.02,0.5))",
    "dropout=interval(0.0,0.1)",
    "batch_size=range(64,513,64)",
    "model=choice(model2,model3)",
)
SMALL = space("batch_size=range(64,193,64)", "dropout=range(0.0,0.11,0.05)")


def accuracy(values: Mapping[str, Any]) -> float:
    """Best at lr 0.15, dropout 0.03 and model3."""
    near = math.log(values["lr"] / 0.15) ** 2 * 0.01 + abs(values["dropout"] - 0.03)
    return 0.99 - near + (0.005 if values["model"] == "model3" else 0.0)


def searched(sampler: str, seed: int, n: int, late: int = 0) -> list[Result]:
    """`n` points, the last `late` of them still running whenever the next is proposed."""
    results: list[Result] = []
    for _ in range(n):
        values = propose(SPACE, results, sampler=sampler, minimize=False, seed=seed)
        assert values is not None
        results.append(Result(values, search.RUNNING))
        if len(results) > late:
            done = results[-1 - late]
            results[-1 - late] = Result(done.values, search.FINISHED, accuracy(done.values))
    return results


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_ledger_and_seed_give_the_same_point(sampler: str) -> None:
    results = searched(sampler, 1, 14)
    again = [
        propose(SPACE, results[:k], sampler=sampler, minimize=False, seed=1)
        for k in range(len(results))
    ]
    assert again == [result.values for result in results]
    other = propose(SPACE, results, sampler=sampler, minimize=False, seed=2)
    assert other != propose(SPACE, results, sampler=sampler, minimize=False, seed=1)


@pytest.mark.parametrize("late", [0, 3])
def test_no_point_is_proposed_twice_and_every_one_lies_in_its_space(late: int) -> None:
    results = searched("tpe", 1, 40, late)
    assert len({tuple(result.values.items()) for result in results}) == 40
    for values in (result.values for result in results):
        assert 0.02 <= values["lr"] <= 0.5
        assert 0.0 <= values["dropout"] <= 0.1
        assert values["batch_size"] in range(64, 513, 64)
        assert values["model"] in ("model2", "model3")


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("batch_size=range(64,513,64)", 96),
        ("lr=range(0.0,0.5,0.1)", 0.25),
        ("lr=interval(0.1,0.2)", 0.3),
        ("dropout=choice(0.0,0.1)", 0.1),
    ],
)
def test_a_point_that_no_axis_holds_any_more_is_passed_over(typed: str, value: float) -> None:
    (axis,) = space(typed)
    before = Result({axis.key: value}, search.FINISHED, 0.9)
    found = propose([axis], [before], sampler="tpe", minimize=False, seed=1)
    assert found is not None and found.keys() == {axis.key}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("typed", ["dropout=range(0.0,0.04,0.01)", "lr=range(0,1,0.3)"])
def test_a_search_over_listed_numbers_tries_each_of_them_once(typed: str, sampler: str) -> None:
    (axis,) = space(typed)
    results: list[Result] = []
    while values := propose([axis], results, sampler=sampler, minimize=False, seed=1):
        results.append(Result(values, search.FINISHED, 0.9))
    found = sorted(result.values[axis.key] for result in results)
    assert found == sorted(map(float, axis.values)) and len(found) == 4


def test_the_ends_of_listed_numbers_are_as_likely_as_the_others() -> None:
    (axis,) = space("dropout=range(0.0,0.35,0.1)")
    first = [propose([axis], [], sampler="random", minimize=False, seed=n) for n in range(400)]
    count = Counter(values["dropout"] for values in first if values)
    assert len(count) == 4 and min(count.values()) > 70, "a half as likely end would have 67"


def test_tpe_looks_where_it_was_good() -> None:
    late = searched("tpe", 3, 50)[25:]
    tpe = sum(accuracy(result.values) for result in late) / len(late)
    drawn = searched("random", 3, 50)[25:]
    assert tpe > sum(accuracy(result.values) for result in drawn) / len(drawn) + 0.005


def test_less_is_better_where_that_is_asked_for() -> None:
    results: list[Result] = []
    for _ in range(40):
        values = propose(SPACE, results, sampler="tpe", minimize=True, seed=3)
        assert values is not None
        results.append(Result(values, search.FINISHED, 1 - accuracy(values)))
    assert max(accuracy(result.values) for result in results[20:]) > 0.985


def test_running_points_are_kept_away_from() -> None:
    results = searched("tpe", 1, 20)
    best = max(results, key=lambda result: result.objective or 0.0)
    crowd = [
        Result({**best.values, "lr": best.values["lr"] * (1 + i / 100)}, search.RUNNING)
        for i in range(8)
    ]
    alone, crowded = (
        propose(SPACE, given, sampler="tpe", minimize=False, seed=5)
        for given in (results, results + crowd)
    )
    assert alone is not None and crowded is not None
    assert alone != crowded


def test_a_finite_space_is_listed_to_its_last_point_and_then_ends() -> None:
    results: list[Result] = []
    while True:
        values = propose(SMALL, results, sampler="tpe", minimize=False, seed=1)
        if values is None:
            break
        results.append(Result(values, search.FINISHED, 0.5))
    got = {(r.values["batch_size"], round(r.values["dropout"], 9)) for r in results}
    assert got == {(b, d) for b in (64, 128, 192) for d in (0.0, 0.05, 0.1)}
    assert len(results) == 9


def test_a_finite_space_on_a_logarithmic_scale_is_listed_too() -> None:
    axes = space("lr=tag(log,range(0.1,0.5,0.1))")
    listed, tried = {float(text) for text in axes[0].values}, set[float]()

    def refused(values: Mapping[str, Any]) -> bool:
        return values["lr"] not in listed - tried

    for _ in listed:
        values = propose(axes, [], sampler="tpe", minimize=False, seed=1, refused=refused)
        assert values is not None
        tried.add(values["lr"])
    assert tried == listed
    assert propose(axes, [], sampler="tpe", minimize=False, seed=1, refused=refused) is None


def test_what_is_refused_is_not_proposed() -> None:
    def refused(values: Mapping[str, Any]) -> bool:
        return values["batch_size"] != 128

    values = propose(SMALL, [], sampler="random", minimize=False, seed=1, refused=refused)
    assert values is not None
    assert values["batch_size"] == 128


def test_points_of_other_axes_and_failed_ones_do_no_harm() -> None:
    odd = [
        Result({"lr": 0.1}, search.FINISHED, 0.9),
        Result({"lr": 9.0, "dropout": 0.0, "batch_size": 64, "model": "model2"}, search.FAILED),
        Result({"lr": 0.1, "dropout": 0.0, "batch_size": 64, "model": "old"}, search.PRUNED),
    ]
    lost = searched("tpe", 1, 12)
    lost[3] = Result(lost[3].values, search.FAILED)
    lost[4] = Result(lost[4].values, search.FINISHED, None)
    lost[5] = Result(lost[5].values, search.PRUNED, None, {1: 0.1, 2: math.nan})
    values = propose(SPACE, [*odd, *lost], sampler="tpe", minimize=False, seed=1)
    assert values is not None


def test_numbers_are_proposed_as_a_person_would_write_them() -> None:
    values = propose(SPACE, [], sampler="random", minimize=False, seed=1)
    assert values is not None
    assert len(repr(values["lr"])) <= 7
    narrow = space("lr=interval(0.1,0.100001)")
    values = propose(narrow, [], sampler="random", minimize=False, seed=1)
    assert values is not None
    assert 0.1 < values["lr"] < 0.100001


def curve(level: float, epochs: int = 15) -> dict[int, float]:
    return {epoch: level + epoch / 1000 for epoch in range(1, epochs + 1)}


def finished(levels: Sequence[float]) -> list[Result]:
    return [Result({}, search.FINISHED, curve(x)[15], curve(x)) for x in levels]


@pytest.mark.parametrize(
    ("pruner", "others", "own", "expected"),
    [
        ("median", finished([0.90, 0.91, 0.92, 0.93]), curve(0.1, 4), False),  # too few yet
        ("median", finished([0.90, 0.91, 0.92, 0.93, 0.94]), curve(0.1, 4), True),
        ("median", finished([0.90, 0.91, 0.92, 0.93, 0.94]), curve(0.93, 4), False),
        ("median", finished([0.90, 0.91, 0.92, 0.93, 0.94]), {1: math.nan}, True),
        ("halving", finished([0.90, 0.91, 0.92, 0.93, 0.94]), curve(0.1, 1), True),
        ("halving", finished([0.90, 0.91, 0.92, 0.93, 0.94]), curve(0.95, 1), False),
        ("halving", finished([0.90, 0.91, 0.92, 0.93, 0.94]), curve(0.1, 3), False),  # no rung
        ("halving", finished([0.90, 0.91, 0.92, 0.93, 0.94]), curve(0.1, 4), True),
        ("halving", [], curve(0.1, 1), False),
    ],
)
def test_pruning_compares_with_the_same_epoch_of_others(
    pruner: str, others: list[Result], own: dict[int, float], expected: bool
) -> None:
    assert is_to_prune(own, others, pruner=pruner, minimize=False) is expected


def test_halving_counts_trials_that_run_or_were_pruned() -> None:
    others = [
        Result({}, search.RUNNING, None, curve(0.9, 2)),
        Result({}, search.PRUNED, None, curve(0.8, 1)),
        Result({}, search.RUNNING),
    ]
    assert is_to_prune(curve(0.1, 1), others, pruner="halving", minimize=False)
    assert not is_to_prune(curve(0.95, 1), others, pruner="halving", minimize=False)
    assert is_to_prune(curve(0.95, 1), others, pruner="halving", minimize=True)


def test_losses_and_times_are_minimized() -> None:
    assert [is_minimized(m) for m in ("val/loss", "epoch_s", "val/acc", "images_per_s")] == [
        True,
        True,
        False,
        False,
    ]


def test_the_objective_is_of_the_last_epoch_unless_the_best_is_asked_for() -> None:
    history = {1: 0.9, 2: 0.95, 3: 0.93}
    assert objective_value(history, "last", minimize=False) == 0.93
    assert objective_value(history, "best", minimize=False) == 0.95
    assert objective_value(history, "best", minimize=True) == 0.9
    assert objective_value({1: 0.9, 2: math.nan}, "last", minimize=False) is None
    assert objective_value({1: 0.9, 2: math.nan}, "best", minimize=False) == 0.9
    assert objective_value({}, "last", minimize=False) is None
    inf = sys.float_info.max  # as MLflow's SQL stores keep it
    assert objective_value({1: 0.9, 2: inf}, "last", minimize=True) is None
    assert objective_value({1: 0.9, 2: inf, 3: -inf}, "best", minimize=True) == 0.9


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def ledger(client: MlflowClient, request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    experiment = client.create_experiment(request.node.name, artifact_location=tmp_path.as_uri())
    parent = elect_parent(client, experiment, "abc", name="s", tags={})
    return Ledger(client, parent.info.run_id)


@pytest.fixture
def composer() -> Any:
    with initialize_config_module(version_base="1.3", config_module="mnist_hydra.conf"):
        master = compose("config", return_hydra_config=True)
        loader: Any = GlobalHydra.instance().config_loader()
        yield Composer(loader, master)


def searching(ledger: Ledger, composer: Composer, **settings: Any) -> Search:
    fresh = Ledger(ledger.client, ledger.parent_id)
    arguments = [
        "data.val_size=5000",
        "lr=tag(log,interval(0.02,0.5))",
        "batch_size=range(64,513,64)",
        "model=choice(model2,model3)",
    ]
    typed = parse(arguments, composer.options)
    return Search(fresh, typed, composer, SweepConfig(**settings), seed=7)


def test_two_processes_that_propose_at_once_share_one_row_of_points(
    ledger: Ledger, composer: Composer
) -> None:
    one, two = (searching(ledger, composer, n_trials=5) for _ in range(2))
    before = ledger.read()
    assert one.propose(before)
    assert two.propose(before)  # finds that the first point is there already
    seen = Ledger(ledger.client, ledger.parent_id).read()
    assert len(seen.points) == 1
    while (two if len(seen.points) % 2 else one).propose(seen):
        seen = Ledger(ledger.client, ledger.parent_id).read()
    assert len(seen.points) == 5
    assert len({point.fingerprint for point in seen.points}) == 5
    first = seen.points[0]
    assert first.name == ", ".join(first.overrides)
    assert [o.split("=")[0] for o in first.overrides] == ["lr", "batch_size", "model"]


def test_the_study_is_made_of_what_the_ledger_holds(
    ledger: Ledger, composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searching(ledger, composer, n_trials=9, pruner="median", objective_at="best")
    with working() as owner:
        for number in range(6):
            fresh = Ledger(ledger.client, ledger.parent_id)
            assert search.propose(fresh.read())
            fresh = Ledger(ledger.client, ledger.parent_id)
            point = fresh.read().points[number]
            claimed = fresh.claim(point.fingerprint, str(number), None, owner, "sweeper")
            assert claimed is not None
            rows = [Metric("val/acc", v, e, e) for e, v in curve(0.9 - number / 100).items()]
            ledger.client.log_batch(claimed.run_id, metrics=rows)
            if number < 5:
                fresh.end(claimed, "finished")
    give_up = search.prune(claimed)
    assert give_up is not None
    assert give_up(1, {"val/acc": 0.1})
    assert not give_up(2, {"val/acc": 0.99})

    def away(*_: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(search.ledger, "read", away)
    assert not give_up(3, {"val/acc": 0.1}), "a store that is away costs a trial nothing"
