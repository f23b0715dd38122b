"""What a sweep has done in a process that imports torch in place of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from mnist_hydra.sweep.torch_tasks import check_trials, run
from mnist_hydra.targets import let_in


class Loud(torch.nn.Module):
    """A classifier whose making has another program print."""

    def __init__(self) -> None:
        super().__init__()
        os.system("echo loud")
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).log_softmax(1)


class Keyed(Loud):
    """Looks its width up by a number."""

    def __init__(self, table: dict[int, int], rate: float, word: str) -> None:
        super().__init__()
        assert table[1] == 16 and rate == 1e-05 and word == "1e-05"


def trials_of(*words: str) -> dict[str, Any]:
    """One trial with these overrides, as a sweep hands it on."""
    let_in([], [__name__])
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        cfg = compose("config", overrides=["~model.dropout", *words])
    return {"one": OmegaConf.to_container(cfg, resolve=True)}


def test_what_programs_print_that_a_models_code_starts_is_no_part_of_the_answer(
    mnist: Path,
) -> None:
    trials = trials_of(f"data.root={mnist}", f"model._target_={__name__}.Loud")
    assert run(check_trials, trials, False, here=False) is None


def test_settings_are_the_same_in_the_process_that_checks(mnist: Path) -> None:
    words = [f"data.root={mnist}", f"model._target_={__name__}.Keyed", "+model.table={1:16}"]
    trials = trials_of(*words, "+model.rate=1e-05", "+model.word='1e-05'")
    assert run(check_trials, trials, False, here=False) is None
