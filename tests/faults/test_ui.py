"""MLflow's own page in a real browser: what a user sees who does what the command printed.

It needs Debian's `chromium`, and never touches anything but this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

PATIENCE_S = 120.0
BROWSER_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture
def chromium() -> str:
    """The path of a browser that can be driven."""
    pytest.importorskip("playwright", reason="playwright missing: pip install -e '.[faults]'")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium missing: apt-get install chromium")
    return path


def test_the_printed_address_opens_on_the_table_of_runs_with_the_runs_name_in_it(
    chromium: str, mnist: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import expect, sync_playwright

    words = [f"data.root={mnist}", "epochs=1", "batch_size=128", "data.limit=1024", "threads=1"]
    done = subprocess.run(
        [sys.executable, "-m", "mnist_hydra.train", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    command, address = printed(done.stdout)
    name = name_of_the_only_run(tmp_path)
    assert "epochs=1" in name
    with ui(command, tmp_path) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        page = browser.new_page()
        page.goto(address.replace(":5000/", f":{port}/"))
        page.get_by_role("link", name=name, exact=True).wait_for(timeout=PATIENCE_S * 1000)
        expect(page).to_have_url(re.compile(r"/#/experiments/\d+/runs\?"))
        expect(page.get_by_text("1 matching run")).to_be_visible()
        browser.close()


def printed(output: str) -> tuple[str, str]:
    """The command and the address that a finished run names."""
    (command,) = re.findall(r"^  (.*mlflow ui .*)$", output, re.MULTILINE)
    (address,) = re.findall(r"^  (http://\S+)$", output, re.MULTILINE)
    return command, address


def name_of_the_only_run(folder: Path) -> str:
    client = MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mnist_hydra")
    (run,) = client.search_runs([experiment.experiment_id])
    return str(run.info.run_name)


@contextmanager
def ui(command: str, folder: Path) -> Iterator[int]:
    """Run the command on a free port, which is returned once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = [*shlex.split(command), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = folder / "ui.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            words,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        began = time.monotonic()
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() - began < PATIENCE_S, log.read_text()
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except OSError:
        return False
