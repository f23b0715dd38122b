"""The composer against Hydra itself: the same configuration, for every kind of override."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_hydra.errors import UserError
from mnist_hydra.sweep.axes import parse
from mnist_hydra.sweep.compose import Composer

FILES = {
    "config.yaml": """
        defaults:
          - model: small
          - db/engine: memory
          - aug@augment: none
          - _self_
          - experiment: null
          - override hydra/job_logging: none
        seed: 1
        lr: null
        half: ${eval_half:${seed}}
        folder: ${oc.env:HOME}/x
        started: ${now:%H-%M-%S-%f}
        width: ${model.width}
        nested: {a: {b: 1, c: [1, 2]}}
    """,
    "model/small.yaml": "{width: 8, dropout: 0.0}",
    "model/large.yaml": "{width: 32, dropout: 0.1, depth: 3}",
    "db/engine/memory.yaml": "{kind: memory}",
    "db/engine/disk.yaml": "{kind: disk, path: /x}",
    "aug/none.yaml": "{steps: []}",
    "aug/ssr.yaml": "{steps: [{p: 0.25}]}",
    "experiment/best.yaml": """
        # @package _global_
        defaults:
          - override /model: large
        lr: 0.3
        model: {dropout: 0.2}
    """,
}


def write(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")
    return f"file://{folder}"


def loader_of(main: str, config_dir: str | None = None) -> ConfigLoaderImpl:
    setup_globals()
    OmegaConf.register_new_resolver("eval_half", lambda x: x / 2, replace=True)
    search_path = create_config_search_path(main)
    if config_dir is not None:
        search_path.prepend("command-line", config_dir, SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(search_path)


@pytest.fixture
def loader(tmp_path: Path) -> ConfigLoaderImpl:
    return loader_of(write(tmp_path / "conf", FILES))


def composer_of(loader: ConfigLoaderImpl, hydra_overrides: Sequence[str] = ()) -> Composer:
    return Composer(
        loader, loader.load_configuration("config", list(hydra_overrides), RunMode.MULTIRUN)
    )


def by_hydra(loader: ConfigLoaderImpl, overrides: list[str]) -> DictConfig:
    """What a launcher hands to the task function."""
    cfg = loader.load_configuration("config", overrides, run_mode=RunMode.RUN)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def same(mine: DictConfig, theirs: DictConfig) -> bool:
    def raw(cfg: DictConfig) -> Any:
        return OmegaConf.to_container(cfg, resolve=False)

    return (
        raw(mine) == raw(theirs)
        and list(mine) == list(theirs)
        and OmegaConf.is_struct(mine) == OmegaConf.is_struct(theirs)
    )


AXES = {
    "none": ["seed=1"],
    "model": ["model=small", "model=large"],
    "db/engine": ["db/engine=memory", "db/engine=disk"],
    "aug@augment": ["aug@augment=ssr"],
    "experiment": ["experiment=best"],
    "+model@teacher": ["+model@teacher=large"],
    "~db/engine": ["~db/engine"],
    "seed": ["seed=3", "seed=null"],
    "model.width": ["model.width=5", "++model.width=6", "~model.width"],
    "+model.new": ["+model.new={a:1}", "+model.new=text"],
    "nested.a": ["nested.a={b:2}", "nested.a.c=[3]", "nested.a.b=x y"],
    "model-dict": ["model={width:7}"],
    "lr": ["lr=${seed}", "lr=1e-3", "lr='0.1'"],
}


def test_every_pair_of_overrides_composes_as_hydra_composes_it(loader: ConfigLoaderImpl) -> None:
    composer = composer_of(loader)
    compared = 0
    for k, (one, other) in enumerate(itertools.combinations(AXES.values(), 2)):
        for i in range(max(len(one), len(other))):
            pair = (one[i % len(one)], other[i % len(other)])
            overrides = pair if k % 2 else pair[::-1]
            try:
                theirs = by_hydra(loader, list(overrides))
            except (HydraException, ValueError):
                with pytest.raises(UserError):
                    composer.compose(overrides)
            else:
                assert same(composer.compose(overrides), theirs), overrides
                compared += 1
    assert compared > 80


def test_the_order_of_overrides_counts_where_they_touch_the_same_key(
    loader: ConfigLoaderImpl,
) -> None:
    composer = composer_of(loader)
    for lr in ("0.1", "0.2"):
        for first, last in itertools.permutations(["nested={a:{b:5,c:[]}}", "nested.a.b=7"]):
            overrides = [first, f"lr={lr}", last]
            assert same(composer.compose(overrides), by_hydra(loader, overrides)), overrides


def test_interpolations_resolve_as_they_do_under_hydra(loader: ConfigLoaderImpl) -> None:
    composer = composer_of(loader)
    cfg = composer.compose(["seed=3", "model=large"])
    assert (cfg.half, cfg.width) == (1.5, 32)
    assert cfg.folder == by_hydra(loader, []).folder


def test_the_time_is_that_of_the_sweep_in_every_trial(loader: ConfigLoaderImpl) -> None:
    master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
    started = master.started
    composer = Composer(loader, master)
    assert composer.compose(["seed=3"]).started == started
    assert composer.compose(["model=large"]).started == started


def test_one_trial_cannot_change_another(loader: ConfigLoaderImpl) -> None:
    composer = composer_of(loader)
    cfg = composer.compose(["seed=3"])
    cfg.nested.a.c.append(4)
    cfg.model.width = 99
    assert same(composer.compose(["seed=3"]), by_hydra(loader, ["seed=3"]))


def test_a_config_dir_and_a_search_path_count_and_globs_see_their_entries(tmp_path: Path) -> None:
    main = write(tmp_path / "conf", FILES)
    more = write(tmp_path / "more", {"model/mine.yaml": "{width: 3, dropout: 0.3}"})
    far = write(tmp_path / "far", {"model/far.yaml": "{width: 4}", "extra/one.yaml": "{x: 1}"})
    loader = loader_of(main, config_dir=more)
    hydra_overrides = [f"hydra.searchpath=[{far}]"]
    composer = composer_of(loader, hydra_overrides)
    assert composer.options("model") == ["far", "large", "mine", "small"]
    assert composer.options("no_such_group") == []
    for point in parse(["model=glob(*)", "seed=1,2"], composer.options).points():
        assert same(composer.compose(point), by_hydra(loader, [*hydra_overrides, *point]))
    added = ["+extra=one", "model=far"]
    assert same(composer.compose(added), by_hydra(loader, [*hydra_overrides, *added]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=huge", "Could not find 'model/huge'.*small"),
        ("sede=3", "Could not override 'sede'"),
        ("moddel=small", "Could not override 'moddel'"),
        ("model.width.deep=3", "model.width.deep=3"),
        ("seed=[1", "Error|mismatched|missing|no viable"),
    ],
)
def test_what_hydra_refuses_is_refused_with_hydras_words(
    loader: ConfigLoaderImpl, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        composer_of(loader).compose([override])
    assert "\n" not in str(caught.value)


def test_the_projects_own_configuration_composes_as_hydra_composes_it() -> None:
    loader = loader_of("pkg://mnist_hydra.conf")
    composer = composer_of(loader)
    arguments = [
        "epochs=2",
        "model=glob(*)",
        "optimizer=sgd,adamw",
        "scheduler=constant,onecycle",
        "lr=0.05,null",
        "seed=range(2)",
        "++data.val_size=100,0",
    ]
    plan = parse(arguments, composer.options)
    points = list(plan.points())
    assert len(points) == 96
    for point in points[::5]:
        overrides = plan.overrides(point)
        assert same(composer.compose(overrides), by_hydra(loader, overrides)), overrides
