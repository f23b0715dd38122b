"""What a configuration file may ask of Hydra, and what only a command line may."""

from __future__ import annotations

from typing import Any

import pytest

from mnist_hydra.cli.config_files import refused_settings


@pytest.mark.parametrize(
    "hydra",
    [
        {},
        {"mode": "MULTIRUN"},
        {"sweeper": {"params": {"seed": "1,2", "+model.width": "choice(1,2)"}}},
        {"sweeper": {"params": {"seed": [1, 2], "epochs": 1, "lr": None}}},
        {"sweeper": {"_target_": "hydra_plugins.mnist_hydra.SearchSweeper"}},
        {"launcher": {"workers": 4, "slurm_partition": "long", "slurm_account": "me"}},
        {"launcher": {"folder": "${output_dir}/slurm", "workers": "${sweep.workers}"}},
        {"run": {"dir": "${output_dir}/hydra"}},
        {"run": {"dir": "."}, "sweep": {"dir": ".", "subdir": "."}, "output_subdir": None},
    ],
)
def test_a_file_may_choose_how_a_sweep_runs(hydra: dict[str, Any]) -> None:
    assert not list(refused_settings({"hydra": hydra, "seed": 1}))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"trusted": ["a"]}, "trusted"),
        ({"hydra": "${a}"}, "hydra"),
        ({"hydra": {"callbacks": {}}}, "hydra.callbacks"),
        ({"hydra": {"launcher": "${a}"}}, "hydra.launcher"),
        ({"hydra": {"launcher": {"slurm_setup": ["a"]}}}, "hydra.launcher.slurm_setup"),
        ({"hydra": {"launcher": {"name": "a\n#SBATCH"}}}, "hydra.launcher.name"),
        ({"hydra": {"launcher": {"name": "${a}"}}}, "hydra.launcher.name"),
        ({"hydra": {"launcher": {"folder": "/etc"}}}, "hydra.launcher.folder"),
        ({"hydra": {"launcher": {"address": "auto"}}}, "hydra.launcher.address"),
        ({"hydra": {"run": {"dir": "${output_dir}/../a"}}}, "hydra.run.dir"),
        ({"hydra": {"run": {"dir": "${output_dir}/${a}"}}}, "hydra.run.dir"),
        ({"hydra": {"sweeper": {"params": {"hydra.job.name": "a"}}}}, "hydra.sweeper.params"),
        ({"hydra": {"sweeper": {"params": {"++trusted": "a"}}}}, "hydra.sweeper.params"),
        ({"hydra": {"sweeper": {"params": {"seed=1 --config-dir": 1}}}}, "hydra.sweeper.params"),
        ({"hydra": {"sweeper": {"params": {"_target_": "a.b"}}}}, "hydra.sweeper.params"),
        ({"hydra": {"sweeper": {"params": {"a": {"_target_": "a.b"}}}}}, "hydra.sweeper.params"),
        ({"hydra": {"sweeper": {"params": {"a": [1, {"b": 1}]}}}}, "hydra.sweeper.params"),
        ({"hydra": {"sweeper": {"params": {"a": "${b}"}}}}, "hydra.sweeper.params"),
        ({"hydra": {"sweeper": {"params": "${b}"}}}, "hydra.sweeper.params"),
    ],
)
def test_a_file_has_nothing_run(content: dict[str, Any], key: str) -> None:
    assert [name for name, _ in refused_settings(content)] == [key]
