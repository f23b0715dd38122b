"""What all launchers of workers have in common, tried with joblib's processes; no training."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from hydra_plugins.mnist_hydra.registration import register
from mnist_hydra.errors import UserError


def task(cfg: DictConfig) -> dict[str, str]:
    """What the tests' workers do, by the number that stands for `seed`."""
    here = Path(cfg.output_dir)
    lives = len(list(here.glob(f"{cfg.seed}-*")))
    (here / f"{cfg.seed}-{os.getpid()}").touch()
    if cfg.seed == 1 and lives < 1 or cfg.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    while cfg.seed == 5 and len(list(here.glob("1-*"))) < 2:
        time.sleep(0.1)
    if cfg.seed == 3:
        raise KeyError("seed 3")
    if cfg.seed == 4:
        sys.exit(2)
    os.kill(os.getpid(), signal.SIGINT)  # as a terminal does on Ctrl-C
    return {"pid": str(os.getpid()), "threads": os.environ["OMP_NUM_THREADS"], "cwd": os.getcwd()}


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that launches workers by their seeds."""
    monkeypatch.chdir(tmp_path)
    register()
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):

        def launch(*seeds: int, **settings: Any) -> list[JobReturn]:
            chosen = ["hydra/launcher=joblib", "device=cpu"]
            chosen += [f"hydra.launcher.{key}={value}" for key, value in settings.items()]
            config = compose("config", chosen, return_hydra_config=True)
            context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
            made = Plugins.instance().instantiate_launcher(context, task, config)
            jobs = [[f"seed={seed}", f"output_dir={tmp_path}"] for seed in seeds]
            return list(made.launch(jobs, 0))

        yield launch


def test_workers_come_back_in_order_with_what_they_return(launcher: Any, tmp_path: Path) -> None:
    results = launcher(10, 11)
    assert [list(result.overrides or [])[0] for result in results] == ["seed=10", "seed=11"]
    returned = [result.return_value for result in results]
    assert {each["cwd"] for each in returned} == {str(tmp_path)}
    assert len({each["pid"] for each in returned} | {str(os.getpid())}) == 3


def test_a_killed_worker_is_started_again_and_its_neighbours_go_on(
    launcher: Any, tmp_path: Path
) -> None:
    killed, neighbour = launcher(1, 5)
    assert killed.status is neighbour.status is JobStatus.COMPLETED
    assert len(list(tmp_path.glob("1-*"))) == 2
    assert len(list(tmp_path.glob("5-*"))) == 1


def test_a_worker_that_always_dies_comes_back_as_failed(
    launcher: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [dead] = launcher(2, restarts=1)
    assert dead.status is JobStatus.FAILED
    assert len(list(tmp_path.glob("2-*"))) == 2
    assert "worker 0 died: {SIGKILL(-9)}" in capfd.readouterr().err


def test_what_a_worker_raises_comes_back_with_its_traceback(launcher: Any) -> None:
    raised, left = launcher(3, 4)
    assert raised.status is left.status is JobStatus.FAILED
    assert 'raise KeyError("seed 3")' in str(raised._return_value)
    assert "SystemExit: 2" in str(left._return_value)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    launcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    for name, module in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, module, None)  # what `import` sees of a missing package
        chosen = [f"hydra/launcher={name}"] + ["hydra.launcher.cluster=local"] * (name == "slurm")
        config = compose("config", chosen, return_hydra_config=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        made: Any = Plugins.instance().instantiate_launcher(context, task, config)
        with pytest.raises(UserError, match=rf"pip install 'mnist_hydra\[{name}\]'"):
            made.slots()
