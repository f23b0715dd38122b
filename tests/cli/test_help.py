"""`--help` shows every key with the comment of its file, quickly, whatever the command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from mnist_hydra.cli.help import groups_of, header, help_text, keys_of

CONF = Path(__file__).parents[2] / "conf"
COMMANDS = ["evaluate", "predict", "register", "report", "sync"]
COMMANDS += ["to_onnx", "train", "ui"]
HEAVY = {"torch", "torchvision", "albumentations", "cv2", "mlflow", "matplotlib", "optuna", "scipy"}


def test_a_key_is_shown_as_it_is_typed_with_the_comment_of_its_line() -> None:
    text = """\
# What it does.
# And more.
defaults:
  - data: mnist
seed: 7            # of everything
text: "a # b"      # quoted, and with a mark
plain: null
betas: [0.9, 0.1]  # two
steps:             # in order
  - Flip:
      p: 0.5       # share
      silent: 1
sweep:
  name: null       # its own
hydra:
  run: {dir: .}
"""
    assert header(text) == "What it does.\nAnd more."
    assert keys_of(text) == [
        ("seed=7", "of everything"),
        ('text="a # b"', "quoted, and with a mark"),
        ("plain=null", ""),
        ("betas=[0.9, 0.1]", "two"),
        ("steps", "in order"),
        ("steps.0.Flip.p=0.5", "share"),
        ("sweep.name=null", "its own"),
    ]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a: |\n  two\n  lines\n", [("a=| two lines", "")]),
        ("a: >-\n  two\n  lines\nb: 1  # one\n", [("a=>- two lines", ""), ("b=1", "one")]),
        ("a: [1,\n    2]  # two\n", [("a=[1, 2]", "two")]),
        ("a: [1\n", []),
        ("a: *unknown\n", []),
        ("a:\tb: c\n", []),
    ],
)
def test_values_of_many_lines_and_files_that_are_no_yaml_are_shown_as_far_as_they_go(
    text: str, keys: list[tuple[str, str]]
) -> None:
    assert keys_of(text) == keys


def test_an_entry_of_a_group_has_its_name_before_its_keys_and_not_what_it_is_made_of() -> None:
    text = "defaults: [mnist]\nname: wide\n_target_: wide.Wide\nwidth: 64  # units\n"
    assert keys_of(text, "model") == [("model.width=64", "units")]
    assert keys_of("", "model") == []


def test_the_groups_of_a_command_are_those_of_its_defaults() -> None:
    text = "defaults:\n  - data: mnist\n  - _self_\n  - experiment: null\n"
    text += "  - override hydra/sweeper: grid\n  - override hydra/job_logging: none\n"
    assert groups_of(text) == {"data": "mnist", "experiment": "null", "hydra/sweeper": "grid"}


def test_a_group_of_which_nothing_is_chosen_shows_no_entry_that_would_be_refused() -> None:
    assert re.search(r"^  experiment=\(none\) +exp1, exp2, exp3$", help_text("train"), re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_command_is_in_its_help_and_has_a_comment(command: str) -> None:
    shown = help_text(command)
    file = CONF / ("config.yaml" if command == "train" else f"{command}.yaml")
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    for key, value in config.items():
        nested = [f"{key}.{inner}" for inner in value] if isinstance(value, DictConfig) else [key]
        for name in nested if key not in ("defaults", "hydra") else []:
            assert re.search(rf"^  {re.escape(str(name))}=\S* +\S", shown, re.M), name


def test_the_entries_of_ones_own_folder_are_shown_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("_target_: wide.Wide\nwidth: 64  # units\n")
    shown = help_text("train", [str(tmp_path)])
    for flag in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"]):
        words = [sys.executable, "-m", "mnist_hydra.train", "--help", *flag]
        assert subprocess.check_output(words, text=True) == shown + "\n"
    assert re.search(r"^  model=model3 +model1, model2, model3, wide$", shown, re.M)
    assert re.search(r"^  model.width=64 +units$", shown, re.M)


def test_the_help_of_every_command_comes_without_anything_heavy(tmp_path: Path) -> None:
    for command in COMMANDS:
        words = [sys.executable, "-X", "importtime", "-m", f"mnist_hydra.{command}", "--help"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert done.returncode == 0 and done.stdout == help_text(command) + "\n", command
        assert imported & HEAVY == set(), command
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_that_nobody_reads_on_ends_without_a_word(command: str) -> None:
    words = [sys.executable, "-m", f"mnist_hydra.{command}", "--help"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(60)
