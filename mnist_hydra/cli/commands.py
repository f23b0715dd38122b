"""The commands that the program prints or starts: each works as it stands, pasted into a shell."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_hydra.errors import UserError
from mnist_hydra.secrets import OF_ENVIRONMENT, without_password
from mnist_hydra.targets import folders_of

CONFIG_PATH, CONFIG_NAME = "pkg://mnist_hydra.conf", "config"
PLACE = {
    "output_dir": "outputs",
    "tracking.uri": None,
    "tracking.experiment_name": "mnist_hydra",
}
"""The settings by which a command finds its runs, and what they are by default."""


def shell_command(module: str, words: Sequence[str], python: str | None = None) -> str:
    """`python -m mnist_hydra.<module> ...`, each word quoted for a shell.

    Args:
        words: Hydra's flags and overrides.
        python: how Python is called; `None` for the word by which a shell finds this one here.
    """
    return shlex.join([python or python_word(), "-m", f"mnist_hydra.{module}", *words])


def resume_command(config: DictConfig, run: str) -> str:
    """The command that goes on with a run.

    The run's own settings come from MLflow: it needs the place where it is kept, and the folders
    of the user's own code.
    """
    from hydra.core.hydra_config import HydraConfig

    words = [*folder_words(HydraConfig.get()), *place_words(config)]
    trusted = OmegaConf.select(config, "trusted")  # a command's alone, so MLflow's copy has none
    if trusted:
        words.append(f"trusted=[{','.join(override_value(str(name)) for name in trusted)}]")
    return shell_command("train", [*words, f"resume={run}"])


def ui_command(config: DictConfig, run: str) -> str:
    """The command that opens MLflow's pages on a run, or on a sweep's trials."""
    return shell_command("ui", [*place_words(config), f"run={run}"])


def same_command(python: str | None = None, *, begun: bool = False) -> str:
    """The command that this process was started with, less the passwords that it may hold.

    Args:
        begun: whether it is to go on with the sweep that it has begun: without `sweep.fresh`.
    """
    words = [without_password(word) for word in sys.argv[1:]]
    kept = [word for word in words if not (begun and word.lstrip("+").startswith("sweep.fresh="))]
    return shell_command("train", kept, python)


def python_word() -> str:
    """`python` where a shell finds this very Python by it, else its path."""
    found = shutil.which("python")
    ours = Path(sys.executable).parent
    return "python" if found is not None and Path(found).parent == ours else sys.executable


def config_words(hydra: Any) -> list[str]:
    """Hydra's flags by which another command composes the same files; from the node `hydra`."""
    words: list[str] = []
    if hydra.job.config_name != CONFIG_NAME:
        words += ["--config-name", str(hydra.job.config_name)]
    searched = []
    for source in hydra.runtime.config_sources:
        path = source.path if source.schema == "file" else f"{source.schema}://{source.path}"
        if source.provider == "main" and path != CONFIG_PATH:
            words += ["--config-path", path]
        elif source.provider == "command-line":
            words += ["--config-dir", path]
        elif source.provider.startswith("hydra.searchpath"):
            searched.append(path)
    return words + _search_path(searched)


def folder_words(hydra: Any) -> list[str]:
    """Hydra's flags by which another command finds the same code; from the node `hydra`."""
    folders = folders_of(hydra.runtime.config_sources)
    return ["--config-dir", folders[0], *_search_path(folders[1:])] if folders else []


def place_words(config: DictConfig) -> list[str]:
    """The overrides by which another command, started in the same folder, finds the same runs.

    Passwords are left out; what is read from the environment is read from there again.

    Args:
        config: as composed, not yet resolved.
    """
    uri = OmegaConf.select(config, "tracking.uri")
    if uri is not None:
        as_written = str(written(config, "tracking.uri"))
        of_environment = re.search(OF_ENVIRONMENT, as_written)
        uri = as_written if of_environment else without_password(str(uri))
    name = OmegaConf.select(config, "tracking.experiment_name")
    return words_for_place(str(config.output_dir), uri, str(name))


def words_for_place(output_dir: str, uri: str | None, experiment_name: str) -> list[str]:
    """The overrides that name a place, less what is as by default.

    Args:
        uri: without a password; `None` is the store below `output_dir`.
    """
    values = zip(PLACE.items(), (output_dir, uri, experiment_name), strict=True)
    return [
        f"{key}={override_value(value)}"
        for (key, default), value in values
        if value is not None and value != default
    ]


def override_value(text: str) -> str:
    """A text as the value of an override, in quotes where Hydra needs them."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./:@-]*", text, re.ASCII)
    keyword = text.lower() in ("true", "false", "null", "nan", "inf")
    if re.match(OF_ENVIRONMENT, text) or (plain and not keyword):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def written(config: DictConfig, key: str) -> Any:
    """A setting as it is written, not resolved."""
    found: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def refuse_moving_folder(config: DictConfig, chdir: bool, multirun: bool) -> None:
    """Refuse an `output_dir` that another command, or a sweep's worker, would look for elsewhere.

    Args:
        config: as composed, not yet resolved.
        chdir: whether Hydra changes the current folder.
        multirun: whether it is a sweep's.
    Raises:
        UserError: with what to write instead.
    """
    as_written = str(written(config, "output_dir"))
    if multirun and "${hydra:" in as_written:
        raise UserError(
            f"output_dir={as_written} is another folder for a sweep and for each of its workers; "
            "right: one folder, such as output_dir=outputs"
        )
    if not chdir:
        return
    with suppress(OmegaConfBaseException):  # what leads nowhere is said with all other settings
        folder = str(OmegaConf.select(config, "output_dir"))
        if not os.path.isabs(os.path.expanduser(folder)):
            raise UserError(
                f"hydra.job.chdir=true moves the relative output_dir={folder}; right: without "
                f"hydra.job.chdir, or output_dir={os.path.abspath(folder)}"
            )


def _search_path(folders: Sequence[str]) -> list[str]:
    return [f"hydra.searchpath=[{','.join(map(override_value, folders))}]"] if folders else []
