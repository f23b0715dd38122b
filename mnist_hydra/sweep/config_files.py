"""Takes the files of `--config-dir` along to a machine that does not share this one's disk.

It takes YAML and Python files only, and writes nothing where the same files are there already.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hydra.plugins.config_source import ConfigSource

from mnist_hydra.errors import UserError

Folders = dict[str, dict[str, bytes]]
"""Folder -> file below it, with forward slashes -> content."""

SUFFIXES = (".yaml", ".yml", ".py")
MAX_BYTES = 10 * 2**20
MAX_FILES = 2000


def pack(sources: Iterable[ConfigSource]) -> Folders:
    """The configuration and code files of every source that is a folder, hidden folders left out.

    Raises:
        UserError: where a folder holds more than could be meant.
    """
    return {
        source.path: _files(Path(source.path)) for source in sources if source.scheme() == "file"
    }


def _files(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for here, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith((".", "__"))]
        for name in names:
            if not name.endswith(SUFFIXES):
                continue
            path = Path(here, name)
            content = path.read_bytes()
            files[path.relative_to(folder).as_posix()] = content
            total += len(content)
            if total > MAX_BYTES or len(files) > MAX_FILES:
                raise UserError(
                    f"--config-dir={folder} holds more than {MAX_FILES} YAML and Python files or "
                    f"{MAX_BYTES // 2**20} MiB of them, too much to send to other machines: "
                    "give your configuration a folder of its own"
                )
    return files


def unpack(folders: Folders, sources: Iterable[ConfigSource]) -> dict[str, str]:
    """Write what this machine does not have to temporary folders and point the sources there.

    Returns:
        Old folder -> new folder, for those with a file that is missing here or differs.
    """
    moved: dict[str, str] = {}
    for folder, files in folders.items():
        if all(_holds(Path(folder, name), content) for name, content in files.items()):
            continue
        moved[folder] = tempfile.mkdtemp(prefix="mnist_hydra_config_")
        atexit.register(shutil.rmtree, moved[folder], ignore_errors=True)
        for name, content in files.items():
            path = Path(moved[folder], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for source in sources:
        source.path = moved.get(source.path, source.path)
    return moved


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
