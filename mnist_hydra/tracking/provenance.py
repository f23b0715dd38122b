"""What made a run: code, libraries, machine and command, as tags and as a file of their own."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mnist_hydra
from mnist_hydra.cli.commands import same_command
from mnist_hydra.errors import UserError
from mnist_hydra.targets import LET_IN
from mnist_hydra.tracking import tag

if TYPE_CHECKING:
    from mnist_hydra.config import DataConfig

LIBRARIES = ("torch", "torchvision", "albumentations", "hydra-core", "omegaconf", "mlflow", "numpy")
SHOWN_LIBRARIES = ("torch", "mlflow")
FILE = "provenance.json"
GIT = shutil.which("git")
"""Found when this is imported: before a configuration could set another `PATH`."""


def tags() -> dict[str, str]:
    """The tags that say what made a run, as far as they are known before there is data."""
    shown = [f"{name} {_version(name)}" for name in SHOWN_LIBRARIES]
    ours = [f"mnist_hydra {mnist_hydra.__version__}", f"python {platform.python_version()}"]
    return git_state() | own_code() | {
        tag.COMMAND: same_command("python", begun=True),
        "host": platform.node(),
        "versions": ", ".join([*ours, *shown]),
        tag.VERSION: mnist_hydra.__version__,
        "mlflow.source.name": "mnist_hydra.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user(),
    }


def record(**more: Any) -> dict[str, Any]:
    """What made a run, in full: the content of `provenance.json`.

    Args:
        more: what else there is to say, by name; anything that JSON can hold.
    """
    state = git_state()
    return {
        "command": same_command("python"),
        "commit": state.get(tag.COMMIT),
        "uncommitted_changes": state[tag.DIRTY] == "true" if tag.DIRTY in state else None,
        "host": platform.node(),
        "system": platform.platform(),
        "user": user(),
        "versions": {
            "mnist_hydra": mnist_hydra.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
        },
        **more,
    }


def origin(data: DataConfig) -> dict[str, str]:
    """The `tag.ORIGIN` that a run would get now.

    Of the data only if its hashes are known, or its files lie in `data.root`.
    """
    from mnist_hydra.data import idx

    now, known = git_state() | own_code() | {tag.VERSION: mnist_hydra.__version__}, data.sha256
    if known is None and data.root is not None:
        raw = Path(data.root).expanduser().absolute() / data.dataset / "raw"
        files = {name: raw / name for name in idx.FILES}
        with suppress(UserError):  # one is missing or damaged
            known = {
                name: idx.sha256(path if path.is_file() else raw / f"{name}.gz")
                for name, path in files.items()
            }
    if known is not None and all(name in known for name in idx.FILES):
        digests = "".join(known[name] for name in idx.FILES)
        now[tag.DATA] = hashlib.sha256(digests.encode()).hexdigest()
    return now


def own_code() -> dict[str, str]:
    """A hash of the Python files and packages beside the user's own YAML; nothing without any."""
    digest, found = hashlib.sha256(), False
    for folder in map(Path, LET_IN.folders):
        packages = (file.parent for file in folder.glob("*/__init__.py"))
        inner = (file for package in packages for file in package.rglob("*.py"))
        for file in sorted([*folder.glob("*.py"), *inner]):
            found = True
            with suppress(OSError):  # what cannot be read is not run
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"{content} {file.relative_to(folder)}\n".encode())
    return {tag.OWN_CODE: digest.hexdigest()} if found else {}


@cache
def git_state() -> dict[str, str]:
    """Commit of this program's code and whether it differs from it; nothing if not in git.

    Git runs nothing that a configuration or a variable could name: it gets an environment of its
    own, and reads neither the user's nor the system's settings.
    """
    folder = Path(mnist_hydra.__file__).parent
    top = folder.parent
    if GIT is None:
        return {}
    environment = {
        "PATH": os.defpath,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",
    }
    # The last one: this code is run already, whoever owns it.
    fixed = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", f"safe.directory={top}")

    def git(*words: str) -> str | None:
        settings = [word for setting in fixed for word in ("-c", setting)]
        command = [str(GIT), *settings, "-C", str(folder), *words]
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=10, env=environment
            )
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no", "--", "..")
    return {tag.COMMIT: commit or "", tag.DIRTY: str(bool(changes)).lower()}


def user() -> str:
    """This user's name, or `unknown`."""
    import getpass

    with suppress(ImportError, KeyError, OSError):  # a container's user may have no name
        return getpass.getuser()
    return "unknown"


@cache
def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        return version(name)
    return "not installed"
