"""Starts and stops the one-node Slurm of `slurm.sh`, and asks it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.faults.postgres import free_port

SCRIPT = Path(__file__).with_name("slurm.sh")


class Slurm:
    """A running Slurm; `environment` is how commands find it."""

    def __init__(self, folder: Path, *, cpus: int = 2) -> None:
        self.folder = folder
        start = [str(SCRIPT), "start", str(folder), str(cpus), str(free_port()), str(free_port())]
        try:
            started = subprocess.run(start, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            self.__exit__()
            raise
        assert started.returncode == 0, started.stderr
        self.environment = {"SLURM_CONF": started.stdout.strip()}

    def queue(self, states: str = "PENDING,RUNNING") -> list[str]:
        """The jobs that wait or run."""
        which = f"--states={states}"
        return self.ask("squeue", "--noheader", "--array", "--format=%i", which).split()

    def preempt(self, job: str) -> None:
        """What Slurm does when it needs the place: the signal that submitit asks it to send."""
        self.ask("scancel", "--signal=USR2", job)

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run([str(SCRIPT), "stop", str(self.folder)], check=True, timeout=300)
