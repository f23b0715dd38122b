"""Where compiled kernels are kept: a folder of the user's own, since to load a kernel runs it.

No configuration names it, and nothing is loaded that somebody else may have put there.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def kernel_folder() -> Path:
    """`mnist_hydra/kernels` in `$XDG_CACHE_HOME`, or in `~/.cache` where that is no full path.

    For a user without a home it is relative, which the caller refuses.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(cache, "mnist_hydra", "kernels")


def insist_on_own(path: Path) -> None:
    """Refuse a file or a folder that is not this user's alone.

    Raises:
        PermissionError: another user owns it, or may write to it.
        OSError: it cannot be looked at.
    """
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{str(path)!r} belongs to another user")
    _insist_that_others_cannot_write(path, status.st_mode)


def insist_on_kept(folder: Path) -> None:
    """Refuse a folder in which others may put another file or folder in the place of ours.

    Raises:
        PermissionError: they may write to it, and not only to what is theirs (its sticky bit).
        OSError: it cannot be looked at.
    """
    mode = folder.stat().st_mode
    if not mode & stat.S_ISVTX:
        _insist_that_others_cannot_write(folder, mode)


def _insist_that_others_cannot_write(path: Path, mode: int) -> None:
    if mode & 0o022:
        shown = f"{mode & 0o777:o}"
        raise PermissionError(f"other users may write to {str(path)!r} (its mode is {shown})")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and up to two around it, for this user alone; return those that were missing.

    Folders further out must exist: no home is made where there is none.

    Raises:
        OSError: one cannot be made; none is left behind.
    """
    made: list[Path] = []
    for path in (*reversed(folder.parents[:2]), folder):
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError:
            remove_empty(made)
            raise
        made.insert(0, path)
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for path in folders:
        with suppress(OSError):
            path.rmdir()


def drop_oldest(folder: Path, keep: int) -> None:
    """Remove all but the newest files of a folder; a process that uses one goes on with it."""
    with suppress(OSError):
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[keep:]:
            file.unlink()
