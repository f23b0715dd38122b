"""The command `python -m mnist_hydra.ui`: MLflow's own pages for the store that the settings name.

It serves them to this machine alone and ends with Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.errors import UserError, wrong_value
from mnist_hydra.tracking import pages, tag
from mnist_hydra.tracking.tracker import Tracker
from mnist_hydra.typed import Limits, check_setting

HOST = "127.0.0.1"
Port = Annotated[int, Limits(at_least=1, at_most=65_535)]
START_TIMEOUT_S = 120.0
"""Until the server answers; on a busy machine it takes half a minute."""


def ui(cfg: DictConfig) -> int:
    """Show the pages; returns the exit code.

    Raises:
        UserError: no such store or run, the port is taken, or MLflow's server does not start.
    """
    port = check_setting("port", cfg.port, Port | None)
    tracker = Tracker(entry.place_of(cfg), make=False)
    page = page_of(tracker, None if cfg.run is None else str(cfg.run))
    if tracker.store.kind == "server":  # which has a UI of its own
        print(tracker.store.shown + page)
        return 0
    # As after Ctrl-C: the server, whose process it started, ends with this one.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
            signal.signal(number, signal.default_int_handler)
    uri = tracker.client.tracking_uri
    with suppress(KeyboardInterrupt), server(uri, port) as (process, address):
        print(f"{address}{page}\nCtrl-C ends it", flush=True)
        process.wait()
        print("MLflow's server has ended by itself", file=sys.stderr)
        return 1
    return 0


def page_of(tracker: Tracker, run: str | None) -> str:
    """The address, behind the server's, of what there is to see.

    Args:
        run: id of a run, or name or id of a sweep; `None` for the experiment's list of runs.

    Raises:
        UserError: there is no such run.
    """
    if run is None:
        return pages.runs_page(tracker.experiment_id)
    # MLflow takes either quotation mark around a text, and has no way to write it inside.
    quoted = next((f"{mark}{run}{mark}" for mark in "'\"" if mark not in run), None)
    named = f"attributes.run_name = {quoted}"
    here = [tracker.experiment_id]
    found = [] if quoted is None else tracker.client.search_runs(here, named, max_results=1)
    one = found[0] if found else tracker.find_run(run, "run")
    experiment_id, run_id = one.info.experiment_id, one.info.run_id
    views = tracker.client.get_experiment(experiment_id).tags
    if tag.VIEW + run_id in views:
        return pages.runs_page(experiment_id, view=run_id)
    return pages.run_page(experiment_id, run_id)


@contextmanager
def server(uri: str, port: int | None = None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """MLflow's server for a store, for this machine alone, while the context lasts.

    Args:
        uri: the store's.
        port: `None` for any that is free.

    Returns:
        Its process and its address, once it answers.

    Raises:
        UserError: the port is taken, or the server does not start.
    """
    port = _free_port(port)
    address = f"http://{HOST}:{port}"
    words = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            env={
                **os.environ,
                # It may hold a password, and a command line is seen by every user.
                "MLFLOW_BACKEND_STORE_URI": uri,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                # Eight more processes, for jobs that only the pages for GenAI have.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            began = time.monotonic()
            while not _answers(f"{address}/health"):
                if process.poll() is not None or time.monotonic() - began > START_TIMEOUT_S:
                    log.seek(0)
                    last = (log.read().decode(errors="replace").strip().splitlines() or ["-"])[-1]
                    raise UserError(f"MLflow's server does not start: {last}")
                time.sleep(0.1)
            yield process, address
        finally:
            _end(process)


def _free_port(port: int | None) -> int:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port or 0))
        except OSError as error:
            raise wrong_value("port", port, f"a free one, or null ({error.strerror})") from None
        return int(free.getsockname()[1])


def _answers(address: str) -> bool:
    # Never through a proxy: the address is this machine's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=2):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers."""
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            return


if __name__ == "__main__":
    entry.start("ui", ui)
