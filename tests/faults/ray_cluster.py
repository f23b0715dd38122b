"""A Ray cluster of two nodes, processes of their own, in a network namespace of this machine.

Nothing of it can be reached from outside, and only what was started here is ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PORT = 6379
UP_WITHIN_S = 300.0
COUNT = """
import ray
ray.init("{address}", log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
"""


class RayCluster:
    """A head and a second node with one CPU each.

    Args:
        folder: an empty one with a short path, for Ray's session.
        hidden: a folder that the second node cannot see, as if it were another machine.
        second_node: environment variables of the second node and its workers.
    """

    address = f"127.0.0.1:{PORT}"

    def __init__(self, folder: Path, *, hidden: Path, second_node: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self._started: list[subprocess.Popen[bytes]] = []
        self._hidden, self._second_environment = hidden, second_node

    def __enter__(self) -> RayCluster:
        try:
            self._start_all()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start_all(self) -> None:
        alone = "ip link set lo up && exec sleep infinity"
        network = self._start("network", ["unshare", "--net", "sh", "-c", alone])
        until = time.monotonic() + UP_WITHIN_S
        while os.readlink(f"/proc/{network.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert time.monotonic() < until
            time.sleep(0.05)
        self.inside = ["nsenter", f"--net=/proc/{network.pid}/ns/net"]
        ray = [*self.inside, str(Path(sys.executable).with_name("ray")), "start", "--block"]
        each = ["--num-cpus=1", "--object-store-memory=100000000"]
        head = ["--head", f"--port={PORT}", f"--temp-dir={self.folder}", "--include-dashboard=0"]
        self._start("head", [*ray, *each, *head])
        self._wait_for_nodes(1, until)
        hide = f'mount -t tmpfs none "{self._hidden}" && exec "$@"'
        blind = ["unshare", "--mount", "sh", "-c", hide, "sh"]
        join = [*blind, *ray, *each, f"--address={self.address}"]
        self._second = self._start("second", join, self._second_environment)
        self._wait_for_nodes(2, until)

    def _start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment, **(environment or {})},
            )
        self._started.append(process)
        return process

    def _wait_for_nodes(self, count: int, until: float) -> None:
        ask = [*self.inside, sys.executable, "-c", COUNT.format(address=self.address)]
        environment = {**os.environ, **self.environment}
        while True:
            try:
                answer = subprocess.run(
                    ask, capture_output=True, text=True, timeout=60, env=environment
                )
                if answer.stdout.strip() == str(count):
                    return
            except subprocess.TimeoutExpired:
                pass
            assert time.monotonic() < until, self.logs()
            time.sleep(0.5)

    def logs(self) -> str:
        """What the nodes wrote."""
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def processes_of_second_node(self) -> set[int]:
        """Pids of the second node and all that it started, its workers among them."""
        node = psutil.Process(self._second.pid)
        return {node.pid, *(process.pid for process in node.children(recursive=True))}

    def kill_second_node(self) -> None:
        """What a power cut does to a machine."""
        for pid in self.processes_of_second_node():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        for started in reversed(self._started):
            if started.poll() is None:
                process = psutil.Process(started.pid)
                for each in [*process.children(recursive=True), process]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            started.wait()
