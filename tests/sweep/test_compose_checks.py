"""Which trials a sweep has, and that each is checked before any starts."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from mnist_hydra import cores
from mnist_hydra.config import SweepConfig
from mnist_hydra.errors import UserError
from mnist_hydra.ledger.plan import Arguments, Plan, Planned, read_plan
from mnist_hydra.secrets import hide_in_error
from mnist_hydra.sweep.axes import parse
from mnist_hydra.sweep.command import objective_of
from mnist_hydra.sweep.compose import Composer, Trials, check_points, corners


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        yield Composer(loader, compose("config", return_hydra_config=True))


def trials_of(composer: Composer, *arguments: str) -> Trials:
    typed = parse(arguments, composer.options)
    return check_points(typed, typed.points(), composer)


def arguments_of(composer: Composer, *arguments: str) -> Arguments:
    return parse(arguments, composer.options)


def test_every_point_is_a_trial_in_the_order_of_the_command_line(composer: Composer) -> None:
    trials = trials_of(composer, "model=model1,model2", "seed=1,2", "epochs=3")
    titles = [planned.name for planned in trials.planned.values()]
    assert titles == [f"model=model{m}, seed={s}" for m in (1, 2) for s in (1, 2)]
    assert trials.epochs == 3 and not trials.holdout and not trials.repeated


def test_points_that_come_to_the_same_configuration_are_one_trial(composer: Composer) -> None:
    trials = trials_of(composer, "model=model3", "dropout=0.04,null,0.02")
    assert [planned.name for planned in trials.planned.values()] == [
        "dropout=0.04",
        "dropout=0.02",
    ]
    assert trials.repeated == [("dropout=null", "dropout=0.04")]


def test_points_that_come_to_the_same_training_are_told_in_one_line(composer: Composer) -> None:
    axes = ("model=model1,model2,model3", "dropout=0.0,0.02", "seed=1,2")
    told = trials_of(composer, *axes).same_as_others()
    assert told is not None and told.startswith("4 of 12 points are the same as others, such as ")
    assert "model=model3, dropout=0.0, seed=1 and model=model2, dropout=0.0, seed=1" in told
    turned = trials_of(composer, "model=model3,model2", "dropout=0.02").same_as_others()
    assert turned is not None and re.search("such as model=model2.* and model=model3", turned)
    assert trials_of(composer, "model=model1,model2,model3").same_as_others() is None
    one = trials_of(composer, "model=model3", "dropout=0.04,null,0.02").same_as_others()
    assert one == (
        "1 of 3 points is the same training as another, such as dropout=null and dropout=0.04"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dropout=0.02,1.5"], "trial dropout=1.5: dropout=1.5 is not valid"),
        (["model=model1,model9"], "trial model=model9: .*model9"),
        (["lr=0.1,nan", "seed=1,2"], "trial lr=nan, seed=1"),
        (["sede=1,2"], "trial sede=1: .*sede"),
        (["seed=1,2", "resume=abc"], "resume=abc"),
    ],
)
def test_a_bad_value_names_its_trial(
    composer: Composer, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trials_of(composer, *arguments)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)


def test_many_points_are_checked_on_all_cores_and_come_out_the_same(
    composer: Composer, four_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = ("model=model2,model3", "data.val_size=0,100", "seed=range(0,150)", "dropout=0.04,null")
    side_by_side = trials_of(composer, *axes)
    monkeypatch.setattr(cores, "usable_cores", lambda: 1)
    assert vars(side_by_side) == vars(trials_of(composer, *axes))
    assert len(side_by_side.planned) + len(side_by_side.repeated) == 1200
    assert side_by_side.same_as_others() is not None and not side_by_side.holdout


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("1.5", "trial dropout=1.5, seed=0: dropout=1.5 is not valid"),
        ("0.1,1.5,1.6", "trial dropout=1.5, seed=0: dropout=1.5 is not valid"),
    ],
)
def test_the_first_bad_one_of_many_points_is_named(
    composer: Composer, four_cores: None, last: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trials_of(composer, f"dropout=0,0.02,{last}", "seed=range(0,300)")


def test_a_place_that_changes_among_many_points_is_named(
    composer: Composer, four_cores: None
) -> None:
    OmegaConf.register_new_resolver("by_200", lambda seed: seed // 200, replace=True)
    with pytest.raises(UserError, match="trial seed=1000 has another output_dir"):
        trials_of(composer, "seed=range(800,1600)", "output_dir='here/${by_200:${seed}}'")


def test_a_variable_that_one_of_many_points_reads_is_hidden(
    composer: Composer, four_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_LAST_RATE", "0.123456")
    rates = ",".join(f"0.{number}" for number in range(1000, 1900))
    trials_of(composer, f"lr={rates},'${{oc.decode:${{oc.env:THE_LAST_RATE}}}}'")
    assert hide_in_error("lr=0.123456") == "lr=${oc.env:THE_LAST_RATE}"


def test_trials_that_differ_in_checked_numbers_alone_are_looked_at_once(composer: Composer) -> None:
    trials = trials_of(composer, "model=model1,model3", "lr=0.1,0.2", "dropout=0.1,0.2", "seed=1,2")
    assert [title for title, _ in trials.samples.values()] == [
        f"model={model}, lr=0.1, dropout=0.1, seed=1" for model in ("model1", "model3")
    ]


def test_a_trial_of_other_epochs_is_looked_at_since_its_schedule_is_another(
    composer: Composer,
) -> None:
    trials = trials_of(composer, "+scheduler.total_steps=118", "epochs=1,2", "lr=0.1,0.2")
    assert [title for title, _ in trials.samples.values()] == [
        f"epochs={epochs}, lr=0.1" for epochs in (1, 2)
    ]


def test_a_search_is_checked_at_each_value_and_end_of_each_axis(composer: Composer) -> None:
    axes = ("model=choice(model1,model2)", "lr=interval(0.1,0.2)", "seed=range(2)")
    arguments = arguments_of(composer, *axes)
    found = corners(arguments)
    assert found[0] == ("model=model1", "lr=0.1", "seed=0")
    assert ("model=model2", "lr=0.1", "seed=0") in found
    assert ("model=model1", "lr=0.1", "seed=1") in found
    [upper] = {point[1] for point in found} - {"lr=0.1"}
    assert 0.1999 < float(upper.removeprefix("lr=")) < 0.2
    assert len(found) == 4


def test_an_end_of_an_interval_that_no_trial_can_have_is_named(composer: Composer) -> None:
    arguments = arguments_of(composer, "dropout=interval(0,1.5)")
    with pytest.raises(UserError, match="trial dropout=1.4"):
        check_points(arguments, corners(arguments), composer)


def test_a_grid_ranks_by_the_hold_out_where_there_is_one(composer: Composer) -> None:
    settings = SweepConfig()
    with_val = trials_of(composer, "seed=1,2", "data.val_size=5000")
    assert objective_of(settings, "grid", with_val) == "val/acc"
    assert objective_of(settings, "grid", trials_of(composer, "seed=1,2")) == "test/acc_last"
    some = trials_of(composer, "data.val_size=0,5000")
    assert objective_of(settings, "grid", some) == "test/acc_last"


def test_a_search_never_chooses_on_the_test_set(composer: Composer) -> None:
    without = trials_of(composer, "seed=1,2")
    with pytest.raises(UserError, match="data.val_size=0; right: data.val_size=5000"):
        objective_of(SweepConfig(), "search", without)
    with_val = trials_of(composer, "seed=1,2", "data.val_size=5000")
    assert objective_of(SweepConfig(), "search", with_val) == "val/acc"
    with pytest.raises(UserError, match="test set"):
        objective_of(SweepConfig(objective="test/acc"), "search", with_val)


@pytest.mark.parametrize("kind", ["grid", "search"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "val/ac"}, "val/ac is no metric .did you mean val/acc"),
        ({"objective": "loss"}, "right: one of val/acc, val/loss, train/acc, "),
        ({"objective": "test/acc_last"}, "test set"),
    ],
)
def test_an_objective_that_no_trial_records_is_refused(
    composer: Composer, kind: str, settings: dict[str, str], message: str
) -> None:
    with_val = trials_of(composer, "seed=1,2", "data.val_size=5000")
    with pytest.raises(UserError, match=message):
        objective_of(SweepConfig(**settings), kind, with_val)  # type: ignore[arg-type]


def test_a_pruner_needs_a_metric_of_each_epoch(composer: Composer) -> None:
    with_val = trials_of(composer, "seed=1,2", "data.val_size=5000")
    last = SweepConfig(objective="val/acc_best")
    assert objective_of(last, "search", with_val) == "val/acc_best"
    with pytest.raises(UserError, match="pruner=median needs a metric of each epoch"):
        objective_of(SweepConfig(objective="val/acc_best", pruner="median"), "search", with_val)


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_workers_read_the_plan_that_was_written(composer: Composer, kind: str) -> None:
    axes = ["lr=tag(log,interval(0.02,0.5))"] if kind == "search" else ["lr=0.1,0.2"]
    axes += ["+x='a,b','c d'", "seed=range(2)", "model=glob(*)"]
    arguments = arguments_of(composer, "epochs=3", *axes, "batch_size=${seed}")
    trials = [Planned("f", ("lr=0.1", "+x='a,b'", "seed=0", "model=model1"), "lr=0.1, x", 3)]
    plan = Plan(kind, arguments, tuple(trials), ("--config-dir", "a b"), "best")
    again = read_plan(plan.text())
    assert again == plan
    point = ("lr=0.1", "+x=c", "seed=1", "model=model2")
    assert again.arguments.overrides(point) == ["epochs=3", *point, "batch_size=${seed}"]
