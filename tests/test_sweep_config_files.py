"""How the files of `--config-dir` reach a machine that does not have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)

from mnist_hydra.errors import UserError
from mnist_hydra.sweep import config_files
from mnist_hydra.sweep.config_files import pack, unpack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "wide.yaml").write_text("width: 64\n")
    (folder / "wide.py").write_text("WIDTH = 64\n")
    (folder / "data.bin").write_bytes(b"0" * 1000)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "other.py").write_text("")
    return folder


def source(folder: Path) -> FileConfigSource:
    return FileConfigSource("command-line", f"file://{folder}")


def test_only_configuration_and_code_are_packed(folder: Path) -> None:
    built_in = ImportlibResourcesConfigSource("main", "pkg://mnist_hydra.conf")
    files = {"model/wide.yaml": b"width: 64\n", "wide.py": b"WIDTH = 64\n"}
    assert pack([built_in, source(folder)]) == {str(folder): files}


def test_a_machine_without_the_folder_gets_its_own_copy(folder: Path) -> None:
    packed, there = pack([source(folder)]), source(folder)
    shutil.rmtree(folder)
    moved = unpack(packed, [there])
    assert there.path == moved[str(folder)]
    assert (Path(there.path) / "model" / "wide.yaml").read_text() == "width: 64\n"


def test_a_machine_with_other_files_in_the_folder_keeps_them_and_uses_the_sweeps(
    folder: Path,
) -> None:
    packed, there = pack([source(folder)]), source(folder)
    (folder / "wide.py").write_text("WIDTH = 32\n")
    unpack(packed, [there])
    assert (Path(there.path) / "wide.py").read_text() == "WIDTH = 64\n"
    assert (folder / "wide.py").read_text() == "WIDTH = 32\n"


def test_a_machine_with_the_same_files_uses_them(folder: Path) -> None:
    there = source(folder)
    assert unpack(pack([there]), [there]) == {}
    assert there.path == str(folder)


def test_a_folder_that_cannot_be_meant_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_files, "MAX_FILES", 1)
    with pytest.raises(UserError, match="a folder of its own"):
        pack([source(folder)])
