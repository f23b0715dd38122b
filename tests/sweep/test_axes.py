"""From override grammar to axes and points, against Hydra's own basic sweeper."""

from __future__ import annotations

import random

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from mnist_hydra.errors import UserError
from mnist_hydra.ledger.plan import Span, title
from mnist_hydra.sweep.axes import check_grid, check_search, parse

GROUPS = {"model": ["model1", "model2", "model3"], "db/engine": ["innodb", "memory"]}


def options(group: str) -> list[str]:
    return GROUPS.get(group, [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["dropout=0.02,0.04"],
        ["model=model1,model2,model3", "dropout=0.0,0.02,0.04", "lr=0.05,0.1", "seed=1,2,3"],
        ["epochs=3", "lr=choice(0.1,0.2)", "seed=range(3)", "batch_size=64"],
        ["dropout=range(0,0.1,0.02)", "seed=range(5,1,-2)"],
        ["db/engine=innodb,memory", "+model@teacher=model1,model2"],
        ["lr=sort(0.3,0.1,0.2)", "seed=sort(range(4),reverse=true)"],
        ["x='a,b','c d'", "y=[1,2],[3]", "z={a:1},{b:2}", "t=true,null"],
        ["lr=float(1,2)", "seed=int(choice(1.0,2.0))", "n=str(choice(1,2))"],
        ["lr=tag(some,choice(0.1,0.2))", "~scheduler", "++extra=1"],
        ["lr=0.1", "seed=1", "lr=0.2"],
        ["lr=0.1", "seed=1", "lr=0.2,0.3"],
        ["seed=3"],
    ],
)
def test_points_and_their_order_are_those_of_hydras_own_sweeper(arguments: list[str]) -> None:
    overrides = OverridesParser.create().parse_overrides(arguments)
    [expected] = BasicSweeper.split_arguments(overrides, None)
    plan = parse(arguments, options)
    check_grid(plan)
    got = [plan.overrides(point) for point in plan.points()]
    assert len(got) == plan.count()
    parsed = OverridesParser.create().parse_overrides
    for mine, theirs in zip(got, expected, strict=True):
        assert [(o.get_key_element(), o.value()) for o in parsed(mine)] == [
            (o.get_key_element(), o.value()) for o in parsed(theirs)
        ]


def test_a_glob_takes_the_matching_entries_of_a_group_nested_ones_too() -> None:
    plan = parse(["model=glob(*,exclude=model1)", "db/engine=glob([i*,m*])"], options)
    assert plan.axes[0].values == ("model2", "model3")
    assert plan.axes[1].values == ("innodb", "memory")


def test_a_shuffled_axis_has_the_same_values_in_another_order() -> None:
    random.seed(3)
    [axis] = parse(["seed=shuffle(range(50))"], options).axes
    assert sorted(map(int, axis.values)) == list(range(50))
    assert list(map(int, axis.values)) != list(range(50))


def test_the_command_line_goes_before_hydra_sweeper_params() -> None:
    params = {"lr": "0.1,0.2", "seed": "range(3)", "epochs": 2, "momentum": None}
    plan = parse(["lr=0.3,0.4,0.5", "epochs=1"], options, params)
    assert [(axis.key, axis.values) for axis in plan.axes] == [
        ("seed", ("0", "1", "2")),
        ("lr", ("0.3", "0.4", "0.5")),
    ]
    assert plan.fixed == ("momentum=null", "epochs=1")


def test_a_trial_is_named_by_what_was_swept() -> None:
    plan = parse(["epochs=1", "+model.width=1,2", "dropout=0.02,0.04"], options)
    assert title(next(plan.points())) == "model.width=1, dropout=0.02"


def test_intervals_and_ranges_are_spans_with_both_ends_inside() -> None:
    arguments = [
        "lr=tag(log,interval(0.02,0.5))",
        "n=int(interval(1,8))",
        "dropout=range(0,0.3,0.1)",
        "seed=range(9,0,-3)",
    ]
    spans = [axis.span for axis in parse(arguments, options).axes]
    assert spans == [
        Span(0.02, 0.5, None, integer=False, log=True),
        Span(1, 7, 1, integer=True, log=False),
        Span(0.0, 0.2, 0.1, integer=False, log=False),
        Span(3, 9, 3, integer=True, log=False),
    ]


def test_a_number_on_a_discrete_axis_becomes_the_text_of_the_nearest_value() -> None:
    [axis] = parse(["dropout=range(0,0.5,0.1)"], options).axes
    assert axis.override(0.1 * 3) == "dropout=0.3"
    [axis] = parse(["lr=interval(0.1,0.2)"], options).axes
    assert axis.override(0.15) == "lr=0.15"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr=choice(1,2),3"], "lr=choice\\(1,2\\),3 is a sweep within another; right: lr=A,B,C"),
        (["lr=1,2", "+lr=3,4"], "lr=1,2 and \\+lr=3,4 set the same key"),
        (["lr=0.2,0.3", "lr=0.1"], "lr=0.2,0.3 and lr=0.1 set the same key"),
        (["lr=0.1", "++lr=0.2,0.3"], "set the same key"),
        (["m={a:1},{a:2}", "m.a=1,2"], "set the same key"),
        (["model=glob(resnet*)"], "matches nothing; right: one of model1, model2, model3"),
        (["modle=glob(*)"], "modle is no group"),
        (["seed=range(3,1)"], "seed=range\\(3,1\\) matches nothing"),
        (["lr=interval(0.5,0.1)"], "LOW below HIGH"),
        (["seed=range(0,1,0)"], "must not be zero"),
        (["seed=range(0,1e12)"], "more than 100000 values"),
        (["lr=choice()"], "empty choice"),
        (["threads=1,2"], "threads changes no trial's result"),
        (["tracking=local,server"], "cannot be an axis"),
        (["sweep.retries=1,2"], "cannot be an axis"),
        (["data.root=a,b"], "cannot be an axis"),
    ],
)
def test_axes_that_make_no_sense_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(arguments, options)


def test_two_entries_of_hydra_sweeper_params_for_one_key_are_refused() -> None:
    with pytest.raises(UserError, match="set the same key"):
        parse([], options, {"lr": "1,2", "+lr": "3,4"})


def test_a_grid_refuses_what_it_cannot_list() -> None:
    with pytest.raises(UserError, match="continuous.*hydra/sweeper=search"):
        check_grid(parse(["lr=interval(0,1)"], options))
    with pytest.raises(UserError, match="1000000 combinations"):
        check_grid(parse(["lr=range(1000)", "seed=range(1000)"], options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epochs=3"], "no axis"),
        (["lr=tag(lgo,interval(0.1,1))"], "tag lgo is unknown"),
        (["lr=tag(log,choice(1,2))"], "only an interval or a range"),
        (["lr=tag(log,interval(0,1))"], "above 0, got 0"),
    ],
)
def test_a_search_refuses_what_it_cannot_sample(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_search(parse(arguments, options))


def test_a_point_over_other_axes_keeps_what_it_has() -> None:
    arguments = parse(["lr=interval(0.1,0.2)", "epochs=2", "dropout=interval(0.0,0.1)"], options)
    own, fewer, other = ("lr=0.15", "dropout=0.05"), ("lr=0.15",), ("momentum=0.9", "lr=0.15")
    assert arguments.overrides(own) == ["lr=0.15", "epochs=2", "dropout=0.05"]
    assert arguments.overrides(fewer) == ["lr=0.15", "epochs=2"]
    assert arguments.overrides(other) == ["lr=0.15", "epochs=2", "momentum=0.9"]
    assert arguments.are_of(own) and not arguments.are_of(fewer) and not arguments.are_of(other)
