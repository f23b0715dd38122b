"""Which commands are the same sweep."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from mnist_hydra.errors import UserError
from mnist_hydra.ledger.plan import Axis, base_settings, check_same_base, identity_of
from mnist_hydra.sweep.axes import parse

BASE = {
    "hydra/sweeper": "grid",
    "epochs": "15",
    "lr": "null",
    "aug.name": "none",
    "aug.steps": "[]",
}


def axes(*arguments: str) -> tuple[Axis, ...]:
    return parse(arguments, lambda group: []).axes


def of(*arguments: str, name: str | None = None, **changed: str) -> str:
    return identity_of(name, BASE | changed, axes(*arguments))


def test_the_same_command_is_the_same_sweep() -> None:
    assert of("lr=0.1,0.2", "seed=range(3)") == of("lr=0.1,0.2", "seed=range(3)")
    assert len(of("lr=0.1,0.2")) == 16


def test_the_order_of_axes_and_values_does_not_matter() -> None:
    assert of("lr=0.1,0.2", "seed=0,1,2") == of("seed=shuffle(range(3))", "lr=0.2,0.1")


def test_other_values_other_axes_or_another_base_are_another_sweep() -> None:
    ones = [
        of("lr=0.1,0.2"),
        of("lr=0.1,0.3"),
        of("lr=0.1,0.2", "seed=1"),
        of("lr=0.1,0.2", "seed=1,2"),
        of("lr=0.1,0.2", epochs="3"),
        of("lr=interval(0.1,0.2)"),
        of("lr=interval(0.1,0.3)"),
        of("lr=tag(log,interval(0.1,0.2))"),
    ]
    # seed=1 stands in the base configuration, which is the same here.
    assert len(set(ones)) == len(ones) - 1


def test_what_the_base_holds_at_a_swept_key_does_not_matter() -> None:
    assert of("lr=0.1,0.2", lr="0.3") == of("lr=0.1,0.2")
    assert of("aug=none,ssr", **{"aug.name": "ssr", "aug.steps": "[1]"}) == of("aug=none,ssr")


def test_a_name_alone_decides() -> None:
    assert of("lr=0.1,0.2", name="mine") == of("seed=1,2", name="mine", epochs="3")
    assert of("lr=0.1,0.2", name="mine") != of("lr=0.1,0.2", name="yours")
    assert of("lr=0.1,0.2", name="mine") != of("lr=0.1,0.2")


def test_the_base_leaves_out_what_changes_no_result() -> None:
    cfg = OmegaConf.create(
        {
            "epochs": 3,
            "lr": None,
            "device": "cpu",
            "threads": 1,
            "output_dir": "x",
            "tracking": {"uri": "y"},
            "sweep": {"name": "z"},
            "hydra": {"job": {}},
            "data": {"root": "/x", "offline": True, "limit": 5, "sha256": {}},
            "aug": {"steps": [{"p": 0.25}]},
            "half": "${epochs}",
        }
    )
    assert base_settings(cfg, "search") == {
        "hydra/sweeper": "search",
        "epochs": "3",
        "lr": "null",
        "data.limit": "5",
        "data.sha256": "{}",
        "aug.steps": '[{"p": 0.25}]',
        "half": "${epochs}",
    }


def test_values_and_axes_may_be_added_under_a_name() -> None:
    check_same_base("mine", BASE, BASE, ["lr", "seed"])
    check_same_base("mine", BASE | {"lr": "0.1"}, BASE, ["lr"])
    check_same_base("mine", BASE | {"aug.name": "ssr", "aug.steps": "[1]"}, BASE, ["+aug"])


def test_another_base_under_a_name_is_refused_with_the_difference() -> None:
    new = BASE | {"epochs": "3", "data.limit": "5"}
    with pytest.raises(UserError) as caught:
        check_same_base("mine", BASE, new, ["lr"])
    message = str(caught.value)
    assert "sweep.name=mine" in message
    assert "data.limit: absent -> 5; epochs: 15 -> 3" in message
    assert "sweep.fresh=true" in message


def test_a_long_difference_is_cut_short() -> None:
    new = {f"key{i}": "1" for i in range(20)} | BASE
    with pytest.raises(UserError, match="and 15 more"):
        check_same_base("mine", BASE, new, [])


def test_a_grid_and_a_search_cannot_share_a_name() -> None:
    with pytest.raises(UserError, match="hydra/sweeper: grid -> search"):
        check_same_base("mine", BASE, BASE | {"hydra/sweeper": "search"}, [])
