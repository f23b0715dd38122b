"""How the files of `--config-dir` reach a machine that does not have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hydra_plugins.mnist_hydra import ray_launcher
from hydra_plugins.mnist_hydra.ray_launcher import (
    check_address,
    lack_of_cpus,
    moved,
    pack_folder,
    unpack_folder,
)
from mnist_hydra.errors import UserError


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


def test_only_configuration_and_code_are_packed(folder: Path) -> None:
    assert pack_folder(folder) == {"model/wide.yaml": b"width: 64\n", "wide.py": b"WIDTH = 64\n"}


def test_a_machine_without_the_folder_gets_its_own_copy(folder: Path, tmp_path: Path) -> None:
    packed = pack_folder(folder)
    shutil.rmtree(folder)
    there = unpack_folder(packed, folder, tmp_path / "spare")
    assert (there / "model" / "wide.yaml").read_text() == "width: 64\n"
    assert not folder.exists()


def test_a_machine_with_other_files_in_the_folder_keeps_them_and_uses_the_sweeps(
    folder: Path, tmp_path: Path
) -> None:
    packed = pack_folder(folder)
    (folder / "wide.py").write_text("WIDTH = 32\n")
    there = unpack_folder(packed, folder, tmp_path / "spare")
    assert (there / "wide.py").read_text() == "WIDTH = 64\n"
    assert (folder / "wide.py").read_text() == "WIDTH = 32\n"


def test_a_machine_with_the_same_files_uses_them(folder: Path, tmp_path: Path) -> None:
    assert unpack_folder(pack_folder(folder), folder, tmp_path / "spare") == folder


def test_a_folder_that_cannot_be_meant_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_launcher, "MAX_FILES", 1)
    with pytest.raises(UserError, match="a folder of its own"):
        pack_folder(folder)


@pytest.mark.parametrize("second", ["/tmp/x/1", "/a/mine2"])
def test_a_folder_whose_name_begins_with_anothers_is_not_taken_for_it(second: str) -> None:
    places = {"/a/mine": "/tmp/x/0", "/a/mine2": second}
    words = ["--config-dir", "/a/mine", "hydra.searchpath=[/a/mine2,/a/mine]"]
    assert moved(words, places) == [
        *("--config-dir", "/tmp/x/0"),
        f"hydra.searchpath=[{second},/tmp/x/0]",
    ]
    assert moved(words, {}) == words


def test_a_cluster_has_its_time_to_answer_however_long_ray_takes_to_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = tmp_path / "ray.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ray_launcher, "JOIN_WITHIN_S", 4)
    ray.write_text("import time\ntime.sleep(5)\ndef init(*_, **__): pass\n")
    check_address("auto")
    ray.write_text("import time\ndef init(*_, **__): time.sleep(600)\n")
    with pytest.raises(UserError, match="address=auto: what listens there is no Ray cluster"):
        check_address("auto")
    ray.write_text("def init(*_, **__): raise ConnectionError('no version fits')\n")
    with pytest.raises(UserError, match=r"does not join it \(ConnectionError: no version fits\)"):
        check_address("auto")


def test_a_worker_that_fits_on_no_machine_is_said_with_what_would_fit() -> None:
    gone, small = ({"Alive": alive, "Resources": {"CPU": 8.0 - 6 * alive}} for alive in (0, 1))
    head = {"Alive": True, "Resources": {}}
    assert lack_of_cpus([gone, small, head], 2) is None
    said = str(lack_of_cpus([gone, small, head], 2.5))
    assert said.startswith("hydra.launcher.cpus_per_worker=2.5 ") and said.endswith("at most 2")
