"""The folder of compiled kernels is the user's own, or nothing is loaded from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mnist_hydra.kernel import folder as folders
from mnist_hydra.kernel.compile import Unavailable
from mnist_hydra.kernel.fused import Fused
from mnist_hydra.models import Model1


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("/c", "/c"), ("", "/home/me/.cache"), ("c", "/home/me/.cache"), (None, "/home/me/.cache")],
)
def test_kernels_lie_in_the_users_cache_folder(
    variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME")
    if variable is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert folders.kernel_folder() == Path(expected, "mnist_hydra", "kernels")


def test_what_is_missing_of_the_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    inner = tmp_path / ".cache" / "mnist_hydra" / "kernels"
    made = [inner, *inner.parents[:2]]
    before = os.umask(0)
    try:
        assert folders.make_folder(inner) == made
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3
    assert folders.make_folder(inner) == []


def test_no_home_is_made_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        folders.make_folder(tmp_path / "home" / ".cache" / "mnist_hydra" / "kernels")
    assert not list(tmp_path.iterdir())


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    for age in range(5):
        (tmp_path / str(age)).touch()
        os.utime(tmp_path / str(age), (1e9 - age, 1e9 - age))
    folders.drop_oldest(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


@pytest.mark.usefixtures("kernel_possible")
@pytest.mark.parametrize("what", ["folder", "folder around it", "file"])
@pytest.mark.parametrize("whose", ["written by others", "another user's"])
def test_a_kernel_that_others_may_have_put_there_is_not_loaded(
    what: str, whose: str, tmp_path: Path
) -> None:
    inner = tmp_path / "mnist_hydra" / "kernels"
    Fused(Model1(), inner)
    (library,) = inner.glob("*.so")
    changed = {"folder": inner, "folder around it": inner.parent, "file": library}[what]
    if whose == "written by others":
        changed.chmod(changed.stat().st_mode | 0o020)
    elif os.geteuid() == 0:
        os.chown(changed, 12345, -1)
    else:
        pytest.skip("only root may give a file away")
    before = library.read_bytes()
    with pytest.raises(Unavailable) as caught:
        Fused(Model1(), inner)
    assert str(changed) in str(caught.value) and "XDG_CACHE_HOME=" in str(caught.value)
    assert library.read_bytes() == before


@pytest.mark.usefixtures("kernel_possible")
def test_a_cache_in_which_others_may_swap_folders_is_not_used(tmp_path: Path) -> None:
    inner = tmp_path / "mnist_hydra" / "kernels"
    tmp_path.chmod(0o777)
    with pytest.raises(Unavailable, match="777"):
        Fused(Model1(), inner)
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o1777)  # as /tmp has it: only the owner may
    Fused(Model1(), inner)


@pytest.mark.usefixtures("kernel_possible")
def test_a_user_without_a_home_has_no_kernel_in_the_folder_he_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unavailable, match="XDG_CACHE_HOME="):
        Fused(Model1(), Path("~/.cache/mnist_hydra/kernels"))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("kernel_possible")
def test_a_folder_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    inner = tmp_path / "mnist_hydra" / "kernels"
    inner.mkdir(parents=True)
    inner.chmod(0o777)
    with pytest.raises(Unavailable, match="777"):
        Fused(Model1(), inner)
    assert not list(inner.iterdir())


@pytest.mark.usefixtures("kernel_possible")
def test_a_kernel_that_is_compiled_is_this_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Fused(Model1(), tmp_path / "kernels")
    finally:
        os.umask(before)
    (library,) = tmp_path.glob("kernels/*.so")
    assert library.stat().st_mode & 0o777 == 0o600
    assert library.parent.stat().st_mode & 0o777 == 0o700
