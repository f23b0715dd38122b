"""Random configurations, valid and not: each trains a step, or is refused in one line that names
the key, with exit code 2 and nothing left behind."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.commands import Commands
from tests.security.conftest import Store

# One process has the store and what commands are forked from.
pytestmark = pytest.mark.xdist_group("security")

NUMBERS = st.one_of(
    st.sampled_from("0 1 2 -1 0.5 0.9 1.0 1e-3 1e300 -0.0 nan inf -inf 1e400 007 0x10 1_0".split()),
    st.integers(-3, 40).map(str),
    st.floats(0, 2, width=16).map(str),
    st.sampled_from([str(2**63), str(2**70), "9" * 400]),
)
ODD_TEXTS = st.one_of(
    st.sampled_from(["''", "abc", "true", "false", "null", "auto", "'a b'", "'a\nb'", "'%s?#'"]),
    st.sampled_from(["'../../x'", "'${'", "\\${x}", "é", "'\U0001f600'", "'null'", "'1e5'", "a:b"]),
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12).map(lambda t: f"'{t}'"),
)
NESTED = st.sampled_from(
    """[] {} [1] [1,2] [a,null] {a:1} {a:{b:[1]}} [[]] {1:2} {a@k:1} {_target_:os.system}
    {'..':1}""".split()
)
LEADING_NOWHERE = st.sampled_from(
    """${nosuch} ${lr} ${seed} ${model} ${oc.env:UNSET} ${oc.env:HOME} ${oc.decode:'['} ${epochs}
    ???""".split()
)
ANYTHING = st.one_of(NUMBERS, ODD_TEXTS, NESTED, LEADING_NOWHERE)
WRONG_TEXTS = st.one_of(NESTED, st.sampled_from("true null 1.5 '' ${nosuch} 'a\nb'".split(" ")))

KEYS = """seed batch_size lr dropout momentum weight_decay precision deterministic resume
data.name data.val_size data.split_seed data.limit data.mean data.std data.offline data.sha256
model model.name model.dropout model._target_ +model.width +model.table aug aug.name aug.steps
optimizer optimizer.lr optimizer.momentum optimizer.weight_decay optimizer.default_lr
optimizer._target_ +optimizer.nesterov +optimizer.betas ++optimizer.foreach +optimizer.maximize
scheduler scheduler.pct_start scheduler.div_factor scheduler.final_div_factor
scheduler.base_momentum ++scheduler.total_steps ++scheduler.three_phase +scheduler.anneal_strategy
scheduler._target_ tracking tracking.name tracking.experiment_name data sweep sweep.name
sweep.retries sweep.keep sweep.workers sweep.objective sweep.objective_at sweep.trial_timeout_s
sweep.parent sweep.by sweep.worker +nosuch +data.nosuch trusted device threads""".split()
"""What may be set to anything."""
TEXTS = ["output_dir", "tracking.uri", "data.root", "data.dataset", "compile", "epochs"]
"""What leads somewhere else or takes long where it is right: set to what is wrong."""

GROUPS = st.sampled_from(
    """model=model1 model=model2 model=model9 aug=ssr aug=none optimizer=adamw scheduler=cosine
    scheduler=constant experiment=exp1 experiment=exp3 experiment=null tracking=local data=mnist
    optimizer=null data=none model=null ~seed ~epochs ~lr ~model ~data.mean ~tracking
    aug.steps=[{Rotate:{limit:5}}] aug.steps=[{CLAHE:{}}] aug.steps=[{Rotate:{limit:a}}]
    modell=model1 =1 lr lr= +lr=1 ++lr=0.1 lr=0.1,0.2 lr=range(3)""".split()
)
OVERRIDES = st.one_of(
    st.builds("{}={}".format, st.sampled_from(KEYS), ANYTHING),
    st.builds("{}={}".format, st.sampled_from(KEYS[:16]), NUMBERS),
    st.builds("{}={}".format, st.sampled_from(TEXTS), WRONG_TEXTS).filter(
        lambda word: word != "compile=true"
    ),
    GROUPS,
)


def check(commands: Commands, trained: Store, words: list[str]) -> None:
    """The promise, of one command."""
    before = trained.left()
    done = commands.run(trained.folder, *trained.words, *words)
    assert "Traceback" not in done.said, f"{words}\n{done.said}"
    if done.code == 0:
        return
    if done.code == 1:  # a learning rate may be too high for a loss that is a number
        assert "loss" in done.said, f"{words}\n{done.said}"
        return
    assert done.code == 2 and len(done.errors) == 1, f"{words}\n{done.code}\n{done.said}"
    names = [part for word in words for part in word.lstrip("+~-").partition("=")[0].split(".")]
    assert any(name in done.errors[0] for name in names), f"{words}\n{done.said}"
    assert trained.left() == before, f"{words}\n{done.said}"


def examples(number: int) -> settings:
    """So many configurations; none is made smaller, since a smaller one takes as long."""
    return settings(
        max_examples=number,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        database=None,
        derandomize="SEED" not in os.environ,
    )


@given(words=st.lists(OVERRIDES, min_size=1, max_size=3))
@examples(25)
def test_a_random_configuration_trains_or_is_refused_in_one_line(
    commands: Commands, trained: Store, words: list[str]
) -> None:
    check(commands, trained, words)


@pytest.mark.long
def test_2000_random_configurations_train_or_are_refused_in_one_line(
    commands: Commands, trained: Store
) -> None:
    failed, number = [], 0

    @given(words=st.lists(OVERRIDES, min_size=1, max_size=3))
    @examples(int(os.environ.get("EXAMPLES", "2000")))
    def each(words: list[str]) -> None:
        nonlocal number
        number += 1
        try:
            check(commands, trained, words)
        except AssertionError as error:  # the rest is tried too
            failed.append(str(error))

    each()
    assert not failed, f"{len(failed)} of {number}\n" + "\n".join(failed)


@pytest.mark.parametrize(
    "words",
    [
        "output_dir=true",
        "tracking.experiment_name=false",
        "optimizer.betas=0.9 optimizer=adamw",
        "data.sha256=abc",
        "~seed",
        "~epochs",
        "lr=${nosuch}",
        "seed=${oc.env:UNSET}",
        "scheduler.pct_start=0.1 epochs=10",
        "scheduler.div_factor=0",
        "scheduler.base_momentum=${model}",
        "scheduler.base_momentum=null",
        "sweep=${oc.decode:'['}",
        "+model.table={a@k:1}",
        "sweep=3",
        "sweep.parent=abc",
        "optimizer=null",
        "experiment=null",
        "++scheduler.total_steps=1 epochs=2",
        "optimizer._target_=torch.optim.LBFGS ~optimizer.momentum ~optimizer.weight_decay",
        "model._target_=torch.nn.Flatten ~model.dropout",
        "epochs=[1]",
        "trusted=3",
    ],
)
def test_what_once_ended_in_a_traceback_is_refused_in_one_line(
    commands: Commands, trained: Store, words: str
) -> None:
    before = trained.left()
    done = commands.run(trained.folder, *trained.words, *words.split())
    assert done.code == 2 and len(done.said.splitlines()) <= 2, done.said
    key = words.split()[0].lstrip("+~").partition("=")[0].split(".")[0]
    assert done.errors and key in done.errors[0], done.said
    assert trained.left() == before


def test_an_optimizer_steps_one_parameter_after_another_if_asked_to(
    commands: Commands, trained: Store
) -> None:
    done = commands.run(trained.folder, *trained.words, "++optimizer.foreach=true")
    assert done.code == 0, done.said
