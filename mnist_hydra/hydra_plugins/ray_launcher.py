"""Workers as tasks on a Ray cluster: one that exists, or a local one for this sweep alone.

A task runs the worker's command on its node. A cluster's machines need the project installed and
share no disk, so the folders of `--config-dir` travel along: YAML and Python files only.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mnist_hydra.config import Count, Number, Positive
from mnist_hydra.errors import UserError
from mnist_hydra.sweep.launchers import CommandLauncher, Ended, followed, last_line, start_process
from mnist_hydra.targets import folders_of

LOCAL = "local"
"""The address of a cluster that is started for this process and ends with it."""
ANSWER_WITHIN_S = 3.0  # to a TCP connection
JOIN_WITHIN_S = 11  # by a driver that runs; Ray's own client would try for two minutes
IMPORT_WITHIN_S = 300.0
JOIN = """import ray, signal, sys
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.alarm(int(sys.argv[2]))  # which ends it, also where no Python runs
ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"""
OBJECT_STORE_BYTES = 100 * 2**20  # only commands and how they ended pass through it

SUFFIXES = (".yaml", ".yml", ".py")
MAX_BYTES = 10 * 2**20
MAX_FILES = 2000


class RayLauncher(CommandLauncher):
    """One worker per `cpus_per_worker`, or `trials_per_gpu` a GPU where the trials may use one.

    Args:
        address: `host:port` of the head; `auto` for the cluster of this machine; `None` for
            `RAY_ADDRESS` where that is set, else a local cluster that ends with the sweep.
    """

    def __init__(
        self,
        address: str | None,
        cpus_per_worker: Positive,
        trials_per_gpu: Count,
        workers: Count | None,
        restarts: Number,
    ) -> None:
        super().__init__(workers, restarts)
        self.address = address or os.environ.get("RAY_ADDRESS") or LOCAL
        self.on_this_machine = self.address == LOCAL
        self.cpus_per_worker = cpus_per_worker
        self.trials_per_gpu = trials_per_gpu

    def room(self) -> int:
        """How many workers the whole cluster has room for; connects to it first."""
        lack = lack_of_cpus(joined(self.address).nodes(), self.cpus_per_worker)
        if lack is not None and self.address == LOCAL:
            raise UserError(lack)
        if lack is not None:  # one that is large enough may join it
            print(f"workers wait for a machine: {lack}", file=sys.stderr)
        if gpus := self._gpus():
            return gpus * self.trials_per_gpu
        cpus = joined(self.address).cluster_resources().get("CPU", 0)
        return max(1, int(cpus // self.cpus_per_worker))

    def _gpus(self) -> int:
        device = str(self.config.device)
        if device != "auto" and not device.startswith("cuda"):
            return 0
        return int(joined(self.address).cluster_resources().get("GPU", 0))

    def start(self, commands: Mapping[int, tuple[list[str], list[str]]]) -> dict[int, Any]:
        """Submit the workers as tasks, each in a process of its own."""
        ray = joined(self.address)
        needs = {"num_cpus": self.cpus_per_worker}
        if self._gpus():
            needs["num_gpus"] = 1 / self.trials_per_gpu
        as_task = ray.remote(max_retries=0, max_calls=1, scheduling_strategy="SPREAD", **needs)
        run = as_task(_run_worker)
        own = folders_of(self.config.hydra.runtime.config_sources)
        folders = {folder: pack_folder(Path(folder)) for folder in own}
        here = os.getcwd()
        return {number: run.remote(*words, folders, here) for number, words in commands.items()}

    def ended(self, number: int, handle: Any) -> Ended | None:
        """What the task returned, or why it failed."""
        ray = joined(self.address)
        if not ray.wait([handle], timeout=0)[0]:
            return None
        try:
            ended: Ended = ray.get(handle)
        except ray.exceptions.TaskCancelledError:
            return Ended(0)
        except ray.exceptions.RayError as error:
            return Ended(None, last_line(str(error)))
        return ended

    def drop_waiting(self, running: Collection[Any]) -> None:
        """Cancel the tasks; those that run ignore the interrupt that Ray sends them."""
        for handle in running:
            joined(self.address).cancel(handle, force=False, recursive=False)

    def close(self, running: Collection[Any]) -> None:
        """Leave the cluster, which ends this sweep's tasks; a local cluster ends too."""
        joined(self.address).shutdown()


def _run_worker(
    head: list[str], rest: list[str], folders: dict[str, dict[str, bytes]], cwd: str
) -> Ended:
    """Run a worker's command on this node, with the sweep's own configuration folders.

    Args:
        folders: each as `pack_folder` packed it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="mnist_hydra_config_") as spare:
        places = {
            folder: str(unpack_folder(files, Path(folder), Path(spare, str(number))))
            for number, (folder, files) in enumerate(folders.items())
        }
        return followed(start_process([*moved(head, places), *rest], subprocess.PIPE, {}, cwd))


def moved(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """The words with their folders replaced by the places of those; the longest that fits."""
    folders = re.compile("|".join(map(re.escape, sorted(places, key=len, reverse=True))))
    # Without a folder the pattern finds the empty text.
    return [folders.sub(lambda found: places.get(found[0], ""), word) for word in words]


def lack_of_cpus(nodes: Sequence[Mapping[str, Any]], cpus_per_worker: float) -> str | None:
    """Why none of a cluster's machines could run a worker; `None` if one could.

    Args:
        nodes: as `ray.nodes()` returns them.
    """
    most = max((node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]), default=0)
    if cpus_per_worker <= most:
        return None
    return (
        f"hydra.launcher.cpus_per_worker={cpus_per_worker:g} is more than any machine of the "
        f"cluster has; right: at most {most:g}"
    )


def pack_folder(folder: Path) -> dict[str, bytes]:
    """The configuration and code files of a folder, hidden folders left out.

    Returns:
        Name below the folder, with forward slashes -> content.

    Raises:
        UserError: the folder holds more than configuration and code would.
    """
    files: dict[str, bytes] = {}
    for here, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith((".", "__"))]
        for path in (Path(here, name) for name in names if name.endswith(SUFFIXES)):
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
        if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
            raise UserError(
                f"--config-dir={folder} holds more than {MAX_FILES} YAML and Python files or "
                f"{MAX_BYTES // 2**20} MiB of them, too much to send to other machines: "
                "give your configuration a folder of its own"
            )
    return files


def unpack_folder(files: dict[str, bytes], folder: Path, spare: Path) -> Path:
    """The folder that holds the files: the original one, or `spare`, where they are written now.

    Args:
        folder: where they were packed; it is used if this machine has the same files there.
    """
    there = {name: folder / name for name in files}
    if all(path.is_file() and path.read_bytes() == files[name] for name, path in there.items()):
        return folder
    for name, content in files.items():
        path = spare / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return spare


def joined(address: str) -> Any:
    """The module `ray`, connected to the cluster (at once if it is connected already).

    A local cluster listens on loopback only and sends no usage statistics.

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
            check_address(address)
        ray.init(address, **settings)
    return ray


def check_address(address: str) -> None:
    """Connect to the address, then join the cluster from a process that can be killed.

    Raises:
        UserError: no Ray cluster is there, or it refuses.
    """
    where = f"hydra.launcher.address={address}"
    mend = "start one with 'ray start --head', or a local one with hydra.launcher.address=local"
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), ANSWER_WITHIN_S).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: no Ray cluster answers there ({error}); {mend}") from None
    command = [sys.executable, "-c", JOIN, address, str(JOIN_WITHIN_S)]
    try:
        joining = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"{where}: Ray cannot be imported; {mend}") from None
    if joining.returncode == -signal.SIGALRM:
        raise UserError(f"{where}: what listens there is no Ray cluster; {mend}")
    if joining.returncode != 0:
        why = " ".join(joining.stderr.strip().splitlines()[-1:])
        raise UserError(f"{where}: Ray does not join it ({why}); {mend}")
