"""How the commands start: composed by Hydra, bad input one line and exit code 2."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import signal
import sys
import threading
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig

from mnist_hydra.cli.config_files import check_files
from mnist_hydra.cli.refusals import REFUSALS, refused
from mnist_hydra.config import Folder, Place, TrackingConfig, resolved
from mnist_hydra.errors import (
    BAD_INPUT,
    UserError,
    first_line,
    in_one_line,
    lacks_memory,
    wrong_value,
)
from mnist_hydra.secrets import hide_in_error
from mnist_hydra.stopping import OF_SIGNAL, insist_on_signals
from mnist_hydra.typed import check_setting, read_settings

T = TypeVar("T")

WAIT_FOR_THREADS_S = 20.0
"""The longest that a command that has ended waits for threads that it has left."""
OPTIONS_WITH_A_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def group_of(cfg: DictConfig, group: str, kind: type[T]) -> T:
    """A group of a command's settings, such as `data`, as the dataclass `kind`.

    Raises:
        UserError: naming the key, the value that was got and what would be right.
    """
    raw = resolved(cfg, group)
    if not isinstance(raw, dict):
        raise wrong_value(group, raw, f"an entry of the group conf/{group}")
    return read_settings(kind, raw, f"{group}.")


def place_of(cfg: DictConfig) -> Place:
    """The place that a command's settings name; raises as `group_of`."""
    folder: str = check_setting("output_dir", resolved(cfg, "output_dir"), Folder)
    return Place(folder, group_of(cfg, "tracking", TrackingConfig))


def file_of(key: str, value: Any) -> Path:
    """The file that a command is to write, in a folder that is there.

    Raises:
        UserError: naming the key, the value that was got and what would be right.
    """
    if isinstance(value, str) and value.strip():
        path = Path(value)
        if path.parent.is_dir() and not path.is_dir():
            return path
    raise wrong_value(key, value, "a file in a folder that is there")


def take_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's plain words, such as names of files, and what is Hydra's.

    Hydra's are options, with their values, and whatever has a `=` or begins with `~`, the latter
    two unless there is a file of that name.
    """
    words: list[str] = []
    hydras: list[str] = []
    for before, argument in zip(["", *arguments], arguments):
        override = "=" in argument or argument.startswith("~")
        option = argument.startswith("-") and argument != "-"
        plain = not option and (not override or os.path.exists(argument))
        own = plain and before not in OPTIONS_WITH_A_VALUE
        (words if own else hydras).append(argument)
    return words, hydras


def take_value(arguments: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value that a command line gives a key, the last one, and the rest of the line."""
    own = [argument for argument in arguments if argument.lstrip("+").startswith(f"{key}=")]
    value = own[-1].partition("=")[2] if own else None
    return value, [argument for argument in arguments if argument not in own]


def show_help(command: str) -> None:
    """Print the help of a command and leave, where its command line asks for it.

    Raises:
        SystemExit: 0 after the help.
    """
    arguments = sys.argv[1:]
    if not {"--help", "-h"} & set(arguments):
        return
    from mnist_hydra.cli.help import help_text

    print(help_text(command, own_folders(arguments)))
    sys.exit(0)


def own_folders(arguments: Sequence[str]) -> list[str]:
    """The folder of the user's own configuration that a command line names, if it does."""
    followed_by = dict(zip(arguments, arguments[1:], strict=False))
    folder, _ = take_value(arguments, "--config-dir")
    folder = folder or followed_by.get("--config-dir") or followed_by.get("-cd")
    return [folder] if folder else []


def start(name: str, task: Callable[[DictConfig], int]) -> None:
    """Compose `conf/<name>.yaml` with the command line and leave with the task's exit code."""

    def checked(cfg: DictConfig) -> None:
        try:
            with leaving_with_its_reader():
                code = task(cfg)
        except UserError as error:
            leave(error)
        except Exception as error:
            from mnist_hydra.tracking.tracker import is_away

            if not is_away(error):
                raise
            why = hide_in_error(first_line(error))
            print(f"error: disk or store take nothing now: {why}", file=sys.stderr)
            sys.exit(1)
        sys.exit(code)

    main = hydra.main(version_base="1.3", config_path="pkg://mnist_hydra.conf", config_name=name)
    with leaving_promptly():
        try:
            prepare_streams()
            insist_on_signals()
            with leaving_with_its_reader():
                show_help(name)
            share_cores()
            check_files()
            call(main(checked), name)
        except KeyboardInterrupt:  # where it was is of no interest
            sys.exit(OF_SIGNAL + signal.SIGINT)


def share_cores() -> None:
    """Let OpenMP's threads wait actively for one another a short time only, unless the user says
    otherwise; to be called before torch is loaded.

    It is as fast as the default on an idle machine, and up to three times as fast on one that
    others use too.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def collect_seldom() -> None:
    """Let Python's collector of garbage wait for more new objects than 700, its own number.

    What torch, MLflow and pandas make as they are imported stays, and was looked through again and
    again: a sixth of a short command's time. A worker has it look after each trial besides.
    """
    gc.set_threshold(20_000)


def call(main: Callable[[], object], name: str = "config") -> None:
    """Call what `hydra.main` made.

    Args:
        name: of the command's file in conf/.

    Raises:
        SystemExit: 2 for what Hydra refuses, after a line that says what.
    """
    collect_seldom()
    # Where its folder below the user's home cannot be written, it would say so in three lines.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it refuses, and does not show it
    try:
        os.getcwd()
    except OSError as error:
        why = f"the current folder cannot be used ({error.strerror})"
        leave(UserError(f"{why}; right: a folder that is there and may be read"))
    try:
        insist_on_options(sys.argv[1:])
        main()
    except REFUSALS as error:
        leave(refused(error, name, own_folders(sys.argv[1:])))
    except Exception as error:
        if not _is_of_hydra_alone(error):
            raise
        given = [word for word in sys.argv[1:] if "hydra" in word]
        right = f"other settings of Hydra than {' '.join(given) or 'those in the files'}"
        leave(UserError(f"Hydra fails: {in_one_line(error)}; right: {right}"))


def _is_of_hydra_alone(error: Exception) -> bool:
    """Whether Hydra raised it for its own settings, before it called anything of this project."""
    ours = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    called = [frame.name for frame in frames if ours in Path(frame.filename).parents]
    return called[-1] == call.__name__


@contextmanager
def leaving_promptly() -> Iterator[None]:
    """A context that a command ends with, and its process soon after, with the same exit code.

    At its exit Python takes apart what torch and MLflow have left, which costs seconds and 90 MiB.
    An exit handler that runs last leaves before that, with the status that Python would have.
    """
    status = 0

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # there may be no stream at all
                stream.flush()
        os._exit(status)

    atexit.register(leave)  # the first one in is the last one out
    try:
        yield
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except BaseException as error:
        status = 1
        if not lacks_memory(error):
            raise
        why = hide_in_error(in_one_line(error))
        right = "right: a higher limit, of ulimit, container or job; then the same command"
        print(f"error: this process gets no more memory ({why}); {right}", file=sys.stderr)
        raise SystemExit(status) from None
    finally:
        # Python waits for all other threads first, and those of a user's own code may never end.
        waited = threading.Timer(WAIT_FOR_THREADS_S, leave)
        waited.daemon = True
        with suppress(RuntimeError):  # no thread can be started
            waited.start()


def leave(error: UserError) -> NoReturn:
    """Say what is wrong with the input, and leave with the exit code of that."""
    print(f"error: {hide_in_error(str(error))}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def insist_on_options(arguments: Sequence[str]) -> None:
    """Refuse options that Hydra does not have, and overrides on both sides of an option.

    Raises:
        HydraException: as for all that Hydra refuses; `argparse` by itself shows every option.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        _, unknown = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise HydraException(f"{error}; right: as --hydra-help shows") from None
    if unknown:
        raise HydraException(
            f"unrecognized: {' '.join(unknown)}; right: settings such as lr=0.1, all of them "
            "together, and options such as --multirun before or after them"
        )


@contextmanager
def leaving_with_its_reader() -> Iterator[None]:
    """A context that ends the command where nobody reads on what it prints, as behind `| head`.

    Raises:
        SystemExit: 1 then, as where rich prints.
    """
    try:
        yield
    except BrokenPipeError:
        # Else Python, which flushes it at the end, would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class _Dropping(io.FileIO):
    """A file whose writes never fail: what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        with suppress(OSError):
            while rest:
                rest = rest[super().write(rest) :]
        return len(data)


def outlive_readers() -> None:
    """Let the command go on where what it prints cannot be written: nobody reads on, the disk is
    full, or the stream was closed from the beginning.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.flush()
            # With no buffer between, which a signal's handler could not print through meanwhile.
            file: Any = _Dropping(stream.fileno(), "wb", closefd=False)
            lasting = io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True)
            setattr(sys, name, lasting)


def prepare_streams() -> None:
    """Let any text be printed, and each line be seen when it is printed.

    In a locale of ASCII alone Python and its libraries read arguments and files as ASCII: there the
    same command is begun again, in the same process, in Python's UTF-8 mode.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a process may have none
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
