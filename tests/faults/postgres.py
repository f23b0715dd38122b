"""A throwaway PostgreSQL on loopback and a real MLflow server on it, ended by their own pids.

It must never touch another cluster of the machine, nor be reached from outside.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
USER = "postgres"
UP_WITHIN_S = 120.0


def free_port() -> int:
    """A port of loopback that nobody listens on now.

    It is none of those that a system gives to whoever asks for any, Linux those from 32,768 on: its
    server starts later, or again.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def postgres(folder: Path, port: int | None = None) -> Iterator[str]:
    """A database server; gives SQLAlchemy's URL of its database, which is empty the first time.

    Args:
        folder: one that other users may enter; the server does not run as root.
        port: of loopback; `None`: a free one.
    """
    data = folder / "postgres"
    if not data.exists():
        data.mkdir()
        shutil.chown(data, USER, USER)
        make = [str(BINARIES / "initdb"), "-D", str(data), "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, user=USER, group=USER, cwd=data)
    port = port or free_port()
    run = [str(BINARIES / "postgres"), "-D", str(data), "-p", str(port), "-k", str(data)]
    run += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with (folder / "postgres.log").open("wb") as log:
        server = subprocess.Popen(
            run, stdout=log, stderr=log, user=USER, group=USER, extra_groups=[], cwd=data
        )
    try:
        ask = [str(BINARIES / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-U", USER]
        _wait(lambda: subprocess.run(ask, capture_output=True).returncode == 0, server, log.name)
        yield f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # it ends its sessions first
        try:
            server.wait(120)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def mlflow_server(
    folder: Path,
    database: str,
    inside: Sequence[str] = (),
    port: int | None = None,
    workers: int = 1,
) -> Iterator[str]:
    """MLflow's tracking server, artifacts included; gives its address.

    Args:
        folder: for its log and the artifacts.
        database: SQLAlchemy's URL of where runs are kept.
        inside: what leads into another network, in which alone it can be reached then.
        port: of loopback; `None`: a free one.
        workers: so many processes answer.
    """
    port = port or free_port()
    run = [*inside, sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
    run += ["--artifacts-destination", str(folder / "artifacts"), "--workers", str(workers)]
    run += ["--host", "127.0.0.1", "--port", str(port)]
    # Or it starts eight more processes, for jobs that only its pages for GenAI have.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(run, stdout=log, stderr=log, cwd=folder, env=environment)
    health = f"http://127.0.0.1:{port}/health"
    try:
        _wait(lambda: _answers(health, inside), server, log.name)
        yield f"http://127.0.0.1:{port}"
    finally:
        process = psutil.Process(server.pid)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        server.wait()


def _answers(url: str, inside: Sequence[str]) -> bool:
    if inside:
        ask = f"import urllib.request; urllib.request.urlopen('{url}', timeout=2)"
        answer = subprocess.run([*inside, sys.executable, "-c", ask], capture_output=True)
        return answer.returncode == 0
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def _wait(is_up: Callable[[], bool], server: subprocess.Popen[bytes], log: str) -> None:
    until = time.monotonic() + UP_WITHIN_S
    while not is_up():
        up = server.poll() is None and time.monotonic() < until
        assert up, Path(log).read_text()
        time.sleep(0.2)
