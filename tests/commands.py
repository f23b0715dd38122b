"""Runs the project's commands many times over, each time in a process of its own.

One process imports everything once and forks for each command: a command costs what it does, and
not 6 s of imports more. As a module it is that process. What a command imports, and when, is for a
test to see that starts it by itself.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.empty_store import migrate_once

TIMEOUT_S = 300
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    """Its exit code; negative for a signal, such as -9 where it took too long."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""

    @property
    def said(self) -> str:
        """All that it wrote."""
        return self.out + self.err

    @property
    def errors(self) -> list[str]:
        """The lines in which it says what is wrong."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


class Commands:
    """The process that commands are forked from."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    def run(self, folder: Path, *words: str, **environment: str) -> Done:
        """Run `mnist_hydra.train` in `folder` with `words` and variables of its own.

        Hydra takes options before or after the overrides, not among them: they are put first.
        """
        places = [i for i, word in enumerate(words) if word.startswith("--")]
        options = [word for i in places for word in words[i : i + 2]]
        rest = [w for i, w in enumerate(words) if i not in places and i - 1 not in places]
        return self.run_module("train", *options, *rest, cwd=folder, env=environment)

    def run_module(
        self, name: str, *words: str, cwd: Path, env: Mapping[str, str | None] | None = None
    ) -> Done:
        """Do what `python -m mnist_hydra.NAME WORDS` does.

        Args:
            env: variables on top of those of this process; `None` takes one away.
        """
        [done] = self.run_at_once(name, [words], [cwd], env)
        return done

    def run_at_once(
        self,
        name: str,
        each: Sequence[Sequence[str]],
        folders: Sequence[Path],
        env: Mapping[str, str | None] | None = None,
    ) -> list[Done]:
        """Do what `python -m mnist_hydra.NAME WORDS` does, several times at once.

        Args:
            each: their words.
            folders: where they run.
            env: as for `run_module`.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        same = {"name": name, "environment": env or {}}
        requests = [
            same | {"words": words, "folder": str(folder)}
            for words, folder in zip(each, folders, strict=True)
        ]
        self.process.stdin.write(json.dumps(requests) + "\n")
        self.process.stdin.flush()
        return [Done(**done) for done in json.loads(self.process.stdout.readline())]

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def read_until(text: str, stream: IO[str] | None) -> str:
    """Read what a process writes until it has written `text`; what it wrote up to there.

    What comes after stays for `communicate`, which knows nothing of what the stream has buffered.
    """
    assert stream is not None
    said = b""
    while text.encode() not in said:
        readable, _, _ = select.select([stream], [], [], 180)
        byte = os.read(stream.fileno(), 1) if readable else b""
        assert byte, f"it never said {text!r}:\n{said.decode()}"
        said += byte
    return said.decode()


def _run(request: dict[str, Any], out: IO[bytes], err: IO[bytes]) -> None:
    """In the fork: become the command."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]  # as `python -m` has it
    for key, value in request["environment"].items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value
    name = f"mnist_hydra.{request['name']}"
    sys.argv = [name, *request["words"]]
    code = 0
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: B036  it ends just below
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int) -> int:
    """The child's exit code; kills its process group where it takes too long."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def _main() -> None:
    import albumentations  # noqa: F401
    import mlflow.pyfunc
    import mlflow.pytorch
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import torch

    import mnist_hydra.report.make
    import mnist_hydra.run
    import mnist_hydra.sweep.sweeper
    import mnist_hydra.sweep.worker  # noqa: F401

    torch.export.export(torch.nn.Identity(), (torch.zeros(1),))  # imports most as it is called
    migrate_once()
    for line in sys.stdin:
        with ExitStack() as files:
            running = []
            for request in json.loads(line):
                out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
                child = os.fork()
                if child == 0:
                    _run(request, out, err)
                running.append((child, out, err))
            ended = [
                {"code": _wait(child), "out": _content(out), "err": _content(err)}
                for child, out, err in running
            ]
        print(json.dumps(ended), flush=True)


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    _main()
