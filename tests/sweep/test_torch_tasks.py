"""What a sweep has done in a process that imports torch in place of its own."""

from __future__ import annotations

import os
from pathlib import Path

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


def test_what_programs_print_that_a_models_code_starts_is_no_part_of_the_answer(
    mnist: Path,
) -> None:
    let_in([], [__name__])
    words = [f"data.root={mnist}", f"model._target_={__name__}.Loud", "~model.dropout"]
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        cfg = compose("config", overrides=words)
    trials = {"one": OmegaConf.to_container(cfg, resolve=True)}
    assert run(check_trials, trials, False, here=False) is None
