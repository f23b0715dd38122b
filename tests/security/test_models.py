"""A model's folder that was tampered with: MLflow would run what it names, this program refuses."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml

from mnist_hydra.archive import copy_plain
from mnist_hydra.config import Place, TrackingConfig
from mnist_hydra.errors import UserError
from mnist_hydra.exported import find_model
from tests.security.conftest import Store

# One process has the store and what commands are forked from.
pytestmark = pytest.mark.xdist_group("security")

MARKER = "marker"
ARCHIVES = ("inputs", "weights", "constants", "old archive")
"""Where in a program's archive torch unpickles whatever it finds."""
CALL = f"__import__('pathlib').Path('{MARKER}').touch()"
TEXTS: dict[str, Callable[[str], str]] = {
    "size": lambda text: text.replace("Symbol('s34', positive=True, integer=True)", CALL),
    "guard": lambda text: text.replace('"guards_code": []', f'"guards_code": ["{CALL}"]'),
    "operator": lambda text: text.replace("torch.ops.aten.conv2d.default", "torch.os.system"),
    "enum": lambda text: text.replace("builtins.tuple", "__enum__"),
}
"""What of a program's text torch evaluates, calls or imports."""
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
    if how in ("two directories", *ARCHIVES, *TEXTS):
        whole = data / "whole.pt2"
        (data / "model.pt2").rename(whole)
        with zipfile.ZipFile(whole) as old:
            records = {name: old.read(name) for name in old.namelist()}
        (data / "model.pt2").write_bytes(with_payload(records, how))
        whole.unlink()
    about.write_text(yaml.safe_dump(names))


def with_payload(records: dict[str, bytes], how: str) -> bytes:
    """A program's archive in which torch would find the payload."""
    if how == "two directories":
        return two_directories(torch_finds=evil(records, "inputs"), python_finds=records)
    return b"".join(zipped(evil(records, how)))


def zipped(records: dict[str, bytes]) -> tuple[bytes, bytes, bytes]:
    """An archive: its files, its directory and its end record."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
        start = archive.start_dir
    whole, end = buffer.getvalue(), buffer.getvalue().rindex(b"PK\5\6")
    return whole[:start], whole[start:end], whole[end:]


def two_directories(torch_finds: dict[str, bytes], python_finds: dict[str, bytes]) -> bytes:
    """An archive in which torch's reader finds other files than Python's.

    torch looks for the directory where the end record says. Python takes the one that lies right
    before the end record, and where that is not where it should be, it takes the archive to begin
    as much later.
    """
    files, directory, end = zipped(torch_finds)
    others, other, _ = zipped(python_finds)
    files += bytes(max(0, len(others) - len(files)))  # that no file begins before its archive
    moved, at = bytearray(other), 0
    while at < len(moved):
        name, extra, comment = struct.unpack_from("<HHH", moved, at + 28)
        (begins,) = struct.unpack_from("<I", moved, at + 42)
        struct.pack_into("<I", moved, at + 42, begins + len(files) - len(others))
        at += 46 + name + extra + comment
    end = end[:12] + struct.pack("<II", len(directory), len(files)) + end[20:]
    return files + directory + others + bytes(moved) + end


def evil(records: dict[str, bytes], how: str) -> dict[str, bytes]:
    """A program's files, one of which holds the payload."""
    if how in TEXTS:
        path = "model/models/model.json"
        return records | {path: TEXTS[how](records[path].decode()).encode()}
    if how == "inputs":
        return records | {"model/data/sample_inputs/model.pt": archived()}
    if how == "old archive":
        from torch._export.serde.schema import SCHEMA_VERSION

        return {
            "version": ".".join(map(str, SCHEMA_VERSION)).encode(),
            "serialized_exported_program.json": records["model/models/model.json"],
            "serialized_state_dict.pt": archived(),
            "serialized_constants.pt": archived(),
            "serialized_example_inputs.pt": archived(),
        }
    folder = f"model/data/{how}"
    path = f"{folder}/model_{how}_config.json"
    said = json.loads(records[path])
    first = next(iter(said["config"].values()))
    first["use_pickle"] = True
    changed = {path: json.dumps(said).encode(), f"{folder}/{first['path_name']}": archived()}
    return records | changed


def archived() -> bytes:
    """The payload as `torch.save` writes it."""
    import torch

    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    return buffer.getvalue()


def test_an_exported_model_is_loaded(model: Path) -> None:
    found = find_model(str(model), NOWHERE)
    assert found.side == 28 and found(BLANK).shape == (1, 10)


@pytest.mark.parametrize("how", ["loader", "code", "pickle", *ARCHIVES, "size", "guard"])
def test_a_tampered_model_runs_nothing(model: Path, how: str) -> None:
    tamper(model, how)
    with pytest.raises(UserError, match="right: ") as error:
        find_model(str(model), NOWHERE)(BLANK)
    assert not Path(MARKER).exists() and len(str(error.value).splitlines()) == 1
    assert acts_in_mlflow(model), "the attack is real"


def test_what_was_looked_at_is_what_torch_loads(model: Path) -> None:
    tamper(model, "two directories")
    assert find_model(str(model), NOWHERE)(BLANK).shape == (1, 10)
    assert not Path(MARKER).exists()
    assert acts_in_mlflow(model), "the attack is real"


def acts_in_mlflow(model: Path) -> bool:
    """Whether a model leaves the marker where MLflow itself loads it."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "true"
    try:
        mlflow.pyfunc.load_model(str(model)).predict(BLANK[:, None])
    except Exception:  # it may fail after it has acted
        pass
    return Path(MARKER).exists()


@pytest.mark.parametrize("how", TEXTS)
def test_what_torch_would_run_of_a_programs_text_is_named(model: Path, how: str) -> None:
    tamper(model, how)
    with pytest.raises(UserError, match="torch would run ") as error:
        find_model(str(model), NOWHERE)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    ["model/data/aotinductor/model/evil.so", "model/models/model.json", "model/extra/x"]
    + ["model/data/weights/WEIGHT_0", "model/data/weights/weight_x.pt", "model/models/other.json"],
)
def test_a_program_with_compiled_code_or_a_file_twice_is_refused(model: Path, name: str) -> None:
    with zipfile.ZipFile(model / "data" / "model.pt2", "a") as archive:
        archive.writestr(name, b"{}")
    with pytest.raises(UserError, match=f"torch would run the file {name}"):
        find_model(str(model), NOWHERE)


@pytest.mark.parametrize(
    "plain",
    [
        {"expr_str": "Symbol('s34', positive=True, integer=True)"},
        {"expr_str": "Add(Mul(Integer(2), s34), FloorDiv(Integer(-1), s0))"},
        {"guards_code": ["L['images'].size()[0] >= 2", "L['args'][0][0].shape[0] % 2 == 0"]},
        {"target": "torch.ops.aten._assert_tensor_metadata.default"},
        {"target": None, "kind": 1},
        {"out_spec": '[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]'},
        {"path_name": "weight_12", "use_pickle": False, "name": "layers.3x3+bn.blocks/0"},
        {"target": "torch.ops.aten.__and__.Tensor"},
    ],
)
def test_what_a_plain_program_says_is_let_in(plain: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/models/model.json", json.dumps({"nodes": [plain]}))
    assert copy_plain(tmp_path / "model.pt2", tmp_path / "copy.pt2") is None


@pytest.mark.parametrize(
    "evil",
    [
        {"expr_str": "s1.__class__"},
        {"expr_str": "open('x', 'w')"},
        {"expr_str": "lambda: 0"},
        {"guards_code": ["L['a'].shape.__class__"]},
        {"guards_code": ["print(1)"]},
        {"target": "torch.ops.aten.from_file.default"},
        {"target": "torch.ops.aten.__class__.mro"},
        {"target": "torch.ops.aten.__and__.__class__"},
        {"target": "torch.ops.load_library"},
        {"target": "torch.load"},
        {"expr_str": "9**9**9**9"},
        {"expr_str": "Pow(9, Pow(9, Pow(9, 9)))"},
        {"expr_str": "1" * 60 + "!"},
        {"expr_str": "s11" * 60 + "!"},
        {"guards_code": ["1" * 60 + "!"]},
        {"guards_code": ["1<<99999999999"]},
        {"out_spec": '[1, {"type": "collections.defaultdict", "context": {"module": "evil"}}]'},
        {"out_spec": '[1, {"context": "{\\u005f_enum__: true}"}]'},
        {"path_name": "WEIGHT_0"},
        {"use_pickle": True},
        {"as_operator": "torch.ops.aten.add.Tensor"},
    ],
)
def test_what_no_plain_program_says_is_refused(evil: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/models/model.json", json.dumps({"nodes": [evil]}))
    found = copy_plain(tmp_path / "model.pt2", tmp_path / "copy.pt2")
    assert str(found).startswith(next(iter(evil)))


@pytest.mark.parametrize("name", ["images=__import__('os')", 'x", None) or print("'])
def test_what_torch_would_write_into_code_is_a_name(name: str, tmp_path: Path) -> None:
    for text in ({"name": name}, {name: 1}, [name]):
        with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
            archive.writestr("model/models/model.json", json.dumps({"nodes": [text]}))
        assert copy_plain(tmp_path / "model.pt2", tmp_path / "copy.pt2") == name


def test_a_packed_file_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/weight_0", bytes(60_000_000))
    found = copy_plain(tmp_path / "model.pt2", tmp_path / "copy.pt2")
    assert found == "the file model/data/weights/weight_0"
