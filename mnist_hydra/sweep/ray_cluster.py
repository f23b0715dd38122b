"""Joins a Ray cluster, or starts a local one, within a time in which a person still waits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib import import_module
from typing import Any

from mnist_hydra.errors import UserError

LOCAL = "local"
"""The address of a cluster that is started for this process and ends with it."""

ANSWER_WITHIN_S = 3.0  # to a TCP connection
JOIN_WITHIN_S = 11.0  # by a driver; Ray's own client would try for two minutes
JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
OBJECT_STORE_BYTES = 100 * 2**20  # nothing but jobs and their results goes through it


def joined(address: str) -> Any:
    """The module `ray`, connected to the cluster; does nothing more when it is connected already.

    A local cluster listens on loopback only and reports nothing to Ray's makers.

    Args:
        address: `host:port` of the head, `auto` for this machine's cluster, or `local`.

    Raises:
        UserError: Ray is not installed, or within 15 s no cluster lets this process join.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:  # the switch that keeps Ray on loopback; it works on Linux too
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        ray = import_module("ray")
    except ImportError as error:
        need = f"hydra/launcher=ray needs Ray ({error}): pip install 'mnist_hydra[ray]'"
        raise UserError(need) from None
    if not ray.is_initialized():
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == LOCAL:
            settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        else:
            check(address)
        ray.init(address, **settings)
    return ray


def check(address: str) -> None:
    """Try a connection, then to join from a process that can be given up on.

    Raises:
        UserError: no Ray cluster is there, or it refuses.
    """
    where = f"hydra.launcher.address={address}"
    mend = "start one with 'ray start --head', or a local one with hydra.launcher.address=null"
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), ANSWER_WITHIN_S).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: no Ray cluster answers there ({error}); {mend}") from None
    command = [sys.executable, "-c", JOIN, address]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=JOIN_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"{where}: what listens there is no Ray cluster; {mend}") from None
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.strip().splitlines()[-1:])
        raise UserError(f"{where}: Ray does not join it ({why}); {mend}") from None
