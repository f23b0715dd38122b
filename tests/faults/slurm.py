"""Starts and stops the one-node Slurm of `slurm.sh`, and asks it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType

SCRIPT = Path(__file__).with_name("slurm.sh")


class Slurm:
    """A running Slurm; `environment` is how commands find it."""

    def __init__(self, folder: Path, *, cpus: int = 2) -> None:
        self.folder = folder
        start = [str(SCRIPT), "start", str(folder), str(cpus)]
        started = subprocess.run(start, capture_output=True, text=True, timeout=60)
        assert started.returncode == 0, started.stderr
        self.environment = {"SLURM_CONF": started.stdout.strip()}

    def queue(self) -> list[str]:
        """The jobs that wait or run."""
        command = ["squeue", "--noheader", "--array", "--format=%i %T", "--states=PENDING,RUNNING"]
        environment = {**os.environ, **self.environment}
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        )
        return answer.stdout.splitlines()

    def __enter__(self) -> Slurm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run([str(SCRIPT), "stop", str(self.folder)], check=True, timeout=60)
