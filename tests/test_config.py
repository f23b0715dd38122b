"""The configuration: what stands where after settling, what is refused, what a fingerprint sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from mnist_hydra.config import (
    Config,
    changes_result,
    fingerprint,
    flatten,
    refuse_unread_experiment,
    settle,
)
from mnist_hydra.errors import UserError
from tests.imports import imported_by


def settled(*overrides: str) -> Config:
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        return settle(compose("config", overrides=list(overrides)))


def test_model3_and_ssr_alone_are_the_recipe_of_exp3() -> None:
    assert fingerprint(settled("model=model3", "aug=ssr")) == fingerprint(
        settled("experiment=exp3")
    )


@pytest.mark.parametrize(
    ("experiment", "model", "steps", "lr", "dropout", "scheduler"),
    [
        ("exp1", "Model1", 0, 0.01, 0.0, "constant"),
        ("exp2", "Model2", 0, 0.15, 0.0, "onecycle"),
        ("exp3", "Model3", 1, 0.15, 0.04, "onecycle"),
    ],
)
def test_an_experiment_is_the_published_recipe(
    experiment: str, model: str, steps: int, lr: float, dropout: float, scheduler: str
) -> None:
    config = settled(f"experiment={experiment}")
    assert config.model.target == f"mnist_hydra.models.{model}"
    assert len(config.aug["steps"]) == steps
    assert (config.lr, config.dropout, config.scheduler.name) == (lr, dropout, scheduler)
    assert (config.momentum, config.weight_decay) == (0.95, 0.0005)
    assert (config.seed, config.epochs, config.batch_size) == (14596, 15, 512)
    assert config.data.val_size == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("scheduler", ["onecycle", "constant", "cosine"])
@pytest.mark.parametrize("model", ["model1", "model2", "model3"])
def test_root_keys_reach_their_places_whatever_the_groups(
    optimizer: str, scheduler: str, model: str
) -> None:
    groups = (f"optimizer={optimizer}", f"scheduler={scheduler}", f"model={model}")
    config = settled(*groups, "dropout=0.02", "lr=0.1", "momentum=0.8", "weight_decay=0.3")
    assert config.model.arguments["dropout"] == config.dropout == 0.02
    assert config.optimizer.arguments["lr"] == config.lr == 0.1
    assert config.optimizer.arguments["weight_decay"] == config.weight_decay == 0.3
    beta = config.optimizer.arguments.get("betas", [None])[0]
    assert config.optimizer.arguments.get("momentum", beta) == config.momentum == 0.8
    assert settled(*groups).lr > 0


def test_an_entry_without_a_name_is_called_by_its_class() -> None:
    own = ("~optimizer.name", "optimizer._target_=a.Mine", "~scheduler.name")
    words = "optimizer=a.Mine has no default for scheduler=torch.optim.lr_scheduler.OneCycleLR"
    with pytest.raises(UserError, match=f"lr=null, and {words}; right: lr=NUMBER"):
        settled(*own)


def test_the_momentum_is_the_first_of_as_many_betas_as_an_optimizer_has() -> None:
    own = ("optimizer=adamw", "optimizer._target_=a.Mine", "optimizer.betas=[0.9,0.999,0.9999]")
    config = settled(*own, "momentum=0.8")
    assert config.optimizer.arguments["betas"] == [0.8, 0.999, 0.9999] and config.momentum == 0.8


def test_a_momentum_of_0_is_a_beta_that_torch_takes() -> None:
    betas = settled("optimizer=adamw", "momentum=0").optimizer.arguments["betas"]
    assert betas == [0, 0.999] and {type(beta) for beta in betas} == {float}
    zero, same = (settled("optimizer=adamw", f"momentum={value}") for value in ("0", "0.0"))
    assert zero.momentum == 0 and fingerprint(zero) == fingerprint(same)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("dropout=1.5", "dropout=1.5"),
        ("dropout=-0.1", "dropout=-0.1"),
        ("lr=-1", "lr=-1"),
        ("lr=0", "lr=0"),
        ("lr=nan", "lr=nan"),
        ("lr=inf", "lr=inf"),
        ("lr=fast", "lr=fast"),
        ("epochs=0", "epochs=0"),
        ("epochs=1.5", "epochs=1.5"),
        ("epochs=true", "epochs=true"),
        ("batch_size=0", "batch_size=0"),
        ("seed=-1", "seed=-1"),
        ("momentum=1", "momentum=1"),
        ("weight_decay=-1", "weight_decay=-1"),
        ("device=gpu", "device=gpu"),
        ("device=cuda:x", "device=cuda:x"),
        ("precision=fp8", "precision=fp8"),
        ("compile=maybe", "compile=maybe"),
        ("threads=0", "threads=0"),
        ("data.val_size=-1", "data.val_size=-1"),
        ("data.limit=0", "data.limit=0"),
        ("data.std=0", "data.std=0"),
        ("optimizer.default_lr=abc", "optimizer.default_lr=abc"),
        ("data.mean=9223372036854775808", "data.mean=9223372036854775808"),
        ("sweep.n_trials=0", "sweep.n_trials=0"),
        ("tracking.experiment_name=''", "tracking.experiment_name="),
        ("+dropuot=0.1", "dropuot=0.1"),
        ("+sweep.retry=1", "sweep.retry=1"),
        ("+composed=1", "composed=1"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_would_be_right(override: str, key: str) -> None:
    with pytest.raises(UserError, match="right: ") as error:
        settled(override)
    assert str(error.value).startswith(key)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "override",
    [
        "device=cpu",
        "threads=1",
        "output_dir=/elsewhere",
        "tracking=server",
        "sweep.retries=3",
        "data.root=/data",
        "data.offline=true",
        "dropout=0.04",
        "lr=0.15",
        "momentum=0.95",
        "resume=abc",
    ],
)
def test_a_fingerprint_ignores_what_cannot_change_the_result(override: str) -> None:
    assert fingerprint(settled(override)) == fingerprint(settled())


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "epochs=2",
        "batch_size=64",
        "lr=0.1",
        "dropout=0.02",
        "momentum=0.9",
        "weight_decay=0.1",
        "precision=fp32",
        "data.val_size=5000",
        "data.limit=100",
        "model=model2",
        "aug=ssr",
        "optimizer=adamw",
        "scheduler=cosine",
        "scheduler.pct_start=0.2",
    ],
)
def test_a_fingerprint_sees_what_can_change_the_result(override: str) -> None:
    assert fingerprint(settled(override)) != fingerprint(settled())


def test_an_override_is_known_for_what_it_changes_however_it_is_typed() -> None:
    without = ("device=cpu", "++device=cpu", "tracking=server", "data.root=a=b", "+sweep.by=x")
    assert not any(map(changes_result, without))
    with_effect = ("lr=0.1", "++lr=0.1", "data=kmnist", "~aug.steps", "devices=2", "data.rooted=1")
    assert all(map(changes_result, with_effect))


def test_a_number_is_the_same_setting_however_it_is_written() -> None:
    assert fingerprint(settled("dropout=0")) == fingerprint(settled("dropout=0.0"))


def test_the_keys_of_a_mapping_may_be_numbers_and_words_in_any_order() -> None:
    tables = ("{1:16,b:2}", "{b:2,1:16}", "{1:16,c:2}")
    one, same, other = (fingerprint(settled(f"+model.table={table}")) for table in tables)
    assert one == same != other


def test_every_setting_becomes_a_parameter_once_and_what_lies_where_none() -> None:
    flat = flatten(settled("model=model2", "lr=0.1", "output_dir=elsewhere", "data.root=there"))
    assert flat["lr"] == "0.1" and flat["scheduler.name"] == "onecycle"
    assert not {"optimizer.lr", "model.dropout", "optimizer.momentum"} & set(flat)
    assert not {"output_dir", "resume", "data.root", "tracking.uri"} & set(flat)
    assert flat["model.name"] == "model2" and "model.target" not in flat
    assert all(isinstance(value, str) for value in flat.values())


def test_a_class_that_the_name_of_its_entry_does_not_tell_is_a_parameter() -> None:
    every = ["model=model1", "model=model2", "model=model3", "optimizer=adamw", "optimizer=sgd"]
    every += ["scheduler=onecycle", "scheduler=constant", "scheduler=cosine"]
    for word in every:
        assert not [name for name in flatten(settled(word)) if name.endswith("_target_")]
    other = flatten(settled("model._target_=mine.Model3"))
    assert other["model.name"] == "model3" and other["model._target_"] == "mine.Model3"


def test_the_configuration_alone_imports_nothing_heavy() -> None:
    imported = imported_by("import mnist_hydra.config, mnist_hydra.train")
    assert not {"torch", "mlflow", "albumentations", "torchvision"} & imported


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("output_dir=true", "output_dir=true is not valid; right: a folder"),
        ("output_dir=[a]", "output_dir=['a'] is not valid"),
        ("tracking.experiment_name=1.5", "tracking.experiment_name=1.5"),
        ("tracking.uri={a:1}", "tracking.uri={'a': 1}"),
        ("data.root=[]", "data.root=[]"),
        ("data.sha256=abc", "data.sha256=abc is not valid; right: a mapping of names"),
        ("data.sha256.train-images-idx3-ubyte=abc", "data.sha256.train-images-idx3-ubyte=abc"),
        ("sweep=3", "sweep=3"),
        ("sweep.parent=abc", "sweep.by=null beside sweep.parent=abc"),
        ("sweep.worker=1", "sweep.parent=null beside sweep.worker=1"),
        ("sweep.trial_timeout_s=1e10", "sweep.trial_timeout_s=10000000000.0"),
        ("lr=${nosuch}", "lr: Interpolation key 'nosuch' not found"),
        ("seed=${oc.env:UNSET}", "seed: "),
        ("lr=${lr}", "lr: Recursive interpolation"),
        ("~seed", "seed is missing; right: a whole number of at least 0"),
        ("+model.table={a@k:1}", "model.table.a@k is no name that MLflow keeps"),
        ("+optimizer.betas=0.9 ~optimizer.momentum", "optimizer.betas=0.9"),
        ("optimizer=adamw optimizer.betas=null", "optimizer.betas=null is not valid; right: two"),
        ("optimizer=adamw optimizer.betas=[0.9,0.8,0.7]", "optimizer.betas=[0.9, 0.8, 0.7] is not"),
        ("optimizer.betas=[] optimizer._target_=a.Mine optimizer=adamw", "optimizer.betas=[] is"),
        ("model.dropout=[0.1,0.2]", "model.dropout=[0.1, 0.2] is not valid; right: one number, as"),
        ("optimizer.momentum={a:1}", "optimizer.momentum={'a': 1} is not valid; right: one number"),
        ("trusted=torch", "trusted=torch is not valid; right: a list"),
        ("epochs=true", "epochs=true"),
        ("dropout='a\nb'", "dropout=a b is not valid"),
        ("epochs=1e9", "epochs=1000000000.0"),
        ("lr='0.1'", "lr=0.1 is not valid; right: a number above 0, without quotes"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_one_line(override: str, said: str) -> None:
    with pytest.raises(UserError, match="right: ") as error:
        settled(*override.split(" "))
    assert str(error.value).startswith(said) and len(str(error.value).splitlines()) == 1


def test_digits_are_fine_where_text_is_meant() -> None:
    config = settled("output_dir=2026", "tracking.experiment_name=7", "resume=12")
    assert (config.output_dir, config.tracking.experiment_name) == ("2026", "7")
    assert config.resume == "12"


def test_a_home_that_no_shell_has_put_in_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert settled("output_dir='~/x'").folder == Path("/home/me/x")


def test_an_experiment_whose_keys_nothing_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "big.yaml").write_text("rate: 0.3\n")
    words = [f"hydra.searchpath=[{tmp_path}]", "experiment=big"]
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        with pytest.raises(UserError, match="below experiment, .* right: `# @package _global_`"):
            refuse_unread_experiment(compose("config", overrides=words))
        refuse_unread_experiment(compose("config", overrides=[*words, "lr=${experiment.rate}"]))


def test_a_setting_may_refer_to_another() -> None:
    assert settled("sweep.name='s-${seed}'", "seed=3").sweep.name == "s-3"
