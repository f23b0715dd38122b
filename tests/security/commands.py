"""Runs `python -m mnist_hydra.train` many times over, each time in a process of its own.

One process imports everything once and forks for each command: a command costs what it does, and
not 6 s of imports more. As a module it is that process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    """Its exit code; negative for a signal, such as -9 where it took too long."""
    said: str
    """Standard output and standard error, as they came."""

    @property
    def errors(self) -> list[str]:
        """The lines in which it says what is wrong."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


class Commands:
    """The process that commands are forked from."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.security.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    def run(self, folder: Path, *words: str, **environment: str) -> Done:
        """Run the command in `folder` with `words` and variables of its own.

        Hydra takes options before or after the overrides, not among them: they are put first.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        places = [i for i, word in enumerate(words) if word.startswith("--")]
        options = [word for i in places for word in words[i : i + 2]]
        rest = [w for i, w in enumerate(words) if i not in places and i - 1 not in places]
        words_in_order = options + rest
        request = {"folder": str(folder), "words": words_in_order, "environment": environment}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def _run(request: dict[str, Any], log: Any) -> None:
    """In the fork: become the command."""
    from mnist_hydra.train import command

    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]  # as `python -m` has it
    os.environ.update(request["environment"])
    sys.argv = ["mnist_hydra.train", *request["words"]]
    code = 0
    try:
        command()
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
    import mlflow.pytorch  # noqa: F401
    import sqlalchemy.dialects.sqlite  # noqa: F401

    import mnist_hydra.run
    import mnist_hydra.sweep.worker  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as log:
            child = os.fork()
            if child == 0:
                _run(request, log)
            code = _wait(child)
            log.seek(0)
            said = log.read().decode(errors="replace")
        print(json.dumps({"code": code, "said": said}), flush=True)


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    _main()
