"""A model's folder that was tampered with: MLflow would run what it names, this program refuses."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml

from mnist_hydra.config import Place, TrackingConfig
from mnist_hydra.errors import UserError
from mnist_hydra.inference.exported import find_model
from tests.security.conftest import Store

# One process has the store and what commands are forked from.
pytestmark = pytest.mark.xdist_group("security")

MARKER = "marker"
EVIL = f"import pathlib\npathlib.Path({MARKER!r}).touch()\nfrom pickle import *\n"
BLANK = np.zeros((1, 28, 28), np.uint8)
NOWHERE = Place("nowhere", TrackingConfig("local", None, "mnist_hydra"))


class Payload:
    """Unpickled, it leaves the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARKER),)


@pytest.fixture
def model(trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a model that one of the store's runs exported, in the current folder."""
    exported, *_ = trained.output_dir.rglob("MLmodel")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    return Path(shutil.copytree(exported.parent, tmp_path / "model"))


def tamper(model: Path, how: str) -> None:
    """Have the model run something as it is loaded."""
    (about,) = model.glob("MLmodel")
    names = yaml.safe_load(about.read_text())
    flavor, data = names["flavors"]["python_function"], model / "data"
    evil = f"evil_{how}"
    Path(f"{evil}.py").write_text(EVIL)
    if how == "loader":
        flavor["loader_module"] = evil
    if how == "code":
        (model / "code").mkdir()
        shutil.move(f"{evil}.py", model / "code" / f"{evil}.py")
        flavor |= {"code": "code", "loader_module": evil}
    if how == "pickle":
        (data / "model.pth").write_bytes(pickle.dumps(Payload()))
        (data / "pickle_module_info.txt").write_text(evil)
    if how == "archive":
        whole = data / "whole.pt2"
        (data / "model.pt2").rename(whole)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(data / "model.pt2", "w") as new:
            for name in old.namelist():
                is_pickle = "sample_inputs" in name and name.endswith(".pt")
                new.writestr(name, archived() if is_pickle else old.read(name))
        whole.unlink()
    about.write_text(yaml.safe_dump(names))


def archived() -> bytes:
    """The payload as `torch.save` writes it."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    return buffer.getvalue()


def test_an_exported_model_is_loaded(model: Path) -> None:
    found = find_model(str(model), NOWHERE)
    assert found.side == 28 and found(BLANK).shape == (1, 10)


@pytest.mark.parametrize("how", ["loader", "code", "pickle", "archive"])
def test_a_tampered_model_runs_nothing(model: Path, how: str) -> None:
    tamper(model, how)
    with pytest.raises(UserError, match="right: ") as error:
        find_model(str(model), NOWHERE)(BLANK)
    assert not Path(MARKER).exists() and len(str(error.value).splitlines()) == 1
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "true"
    try:
        mlflow.pyfunc.load_model(str(model))
    except Exception:  # it may fail after it has acted
        pass
    assert Path(MARKER).exists(), "the attack is real"
