"""MLflow's own pages in a real browser: what a user sees who does what a sweep printed.

It needs Debian's `chromium`, and never touches anything but this machine. What the pages looked
like is kept below `outputs/screenshots`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.commands import Commands
from tests.faults.postgres import free_port

pytestmark = pytest.mark.xdist_group("ui")  # they share a sweep
PATIENCE_MS = 120_000
SCREENSHOTS = Path(__file__).parents[2] / "outputs" / "screenshots"
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


@pytest.fixture(scope="module")
def sweep(
    mnist: Path, tmp_path_factory: pytest.TempPathFactory, commands: Commands
) -> tuple[Path, str]:
    """The folder of a sweep of four trials, and the command that it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    words = ["--multirun", "model=model1,model3", "dropout=0.0,0.1", "sweep.keep=1"]
    words += ["epochs=1", "batch_size=32", "data.limit=1024", "data.val_size=500", "threads=1"]
    done = commands.run_module("train", *words, f"data.root={mnist}", cwd=folder)
    assert done.code == 0, done.said
    (command,) = re.findall(r"^  \S+ (-m mnist_hydra.ui .*)$", done.out, re.MULTILINE)
    return folder, command


@pytest.fixture(scope="module")
def opened(sweep: tuple[Path, str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of the pages that the printed command opens, and what ends it with Ctrl-C."""
    folder, command = sweep
    with ExitStack() as ending:
        yield ending.enter_context(pages(command, folder)), ending.close


def test_a_person_finds_the_best_trial_compares_them_all_and_sees_its_pictures(
    chromium: str, sweep: tuple[Path, str], opened: tuple[str, Callable[[], None]]
) -> None:
    from playwright.sync_api import expect, sync_playwright

    folder, _ = sweep
    address, _ = opened
    parent, trials = runs(folder)
    names = [trial.info.run_name for trial in trials]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)

        page.goto(address)
        for name in names:
            page.get_by_role("link", name=name, exact=True).first.wait_for()
        keep(page, "list")
        expect(page.get_by_text("4 matching runs")).to_be_visible()
        links = page.locator(".ag-pinned-left-cols-container a").all()
        shown = [link.inner_text() for link in links]
        assert [name for name in shown if name in names] == names, "the best is first"
        for column in ("val/acc", "model.name", "dropout"):
            expect(page.get_by_role("columnheader", name=column).first).to_be_visible()

        page.get_by_role("checkbox").first.check()
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator(".js-plotly-plot").first.wait_for()
        keep(page, "compare")
        for chosen in ("dropout", "model.name", "val/acc"):
            expect(page.get_by_text(chosen, exact=True).first).to_be_visible()

        root = address.partition("/#/")[0]
        page.goto(root + run_page(parent))
        question = "Which model and dropout give the highest val/acc?"
        expect(page.get_by_text(question)).to_be_visible()
        page.get_by_text("Show more").click()
        picture = page.locator("img[src*='heat_map']")
        picture.wait_for()
        width = "document.querySelector(\"img[src*='heat_map']\").naturalWidth"
        page.wait_for_function(f"{width} > 100")
        expect(page.get_by_role("table").get_by_text("model3").first).to_be_visible()
        keep(page, "parent")

        page.goto(root + run_page(pictured(folder, trials)))
        expect(page.get_by_text("MNIST train, 1,024 images")).to_be_visible()
        keep(page, "trial")
        page.goto(root + run_page(pictured(folder, trials)) + "/artifacts")
        page.get_by_text("pictures", exact=True).click()
        page.get_by_text("confusion_matrix.png", exact=True).click()
        page.locator("img[src^='blob:'], img[src*='get-artifact']").first.wait_for()
        keep(page, "picture")
        browser.close()


@pytest.mark.parametrize(
    ("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 25, 29)")]
)
def test_the_report_opens_from_disk_in_light_and_dark_and_on_a_phone(
    chromium: str, sweep: tuple[Path, str], scheme: Any, paper: str
) -> None:
    from playwright.sync_api import expect, sync_playwright

    (file,) = (sweep[0] / "outputs" / "reports").glob("*/report.html")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        for width in (1280, 390):
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            page.goto(file.as_uri())
            expect(page.get_by_role("heading", name="Can I trust it?")).to_be_visible()
            expect(page.get_by_role("img").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
            page.screenshot(path=SCREENSHOTS / f"report-{scheme}-{width}.png", full_page=True)
        browser.close()


def test_optuna_s_dashboard_shows_the_trials(
    chromium: str, sweep: tuple[Path, str], commands: Commands
) -> None:
    pytest.importorskip("optuna_dashboard", reason="pip install -e '.[faults]'")
    from playwright.sync_api import expect, sync_playwright

    folder, _ = sweep
    parent, trials = runs(folder)
    words = [f"sweep={parent.info.run_id}", "optuna=study"]
    assert commands.run_module("report", *words, cwd=folder).code == 0
    start = "from optuna_dashboard._cli import main; main()"
    port = free_port()
    with (folder / "dashboard.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", start, "study", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.set_default_timeout(PATIENCE_MS)
            expect.set_options(timeout=PATIENCE_MS)
            await_answer(f"http://127.0.0.1:{port}/dashboard")
            page.goto(f"http://127.0.0.1:{port}/dashboard")
            page.get_by_text(parent.info.run_name).click()
            best = trials[0].data
            expect(page.get_by_text(str(best.metrics["val/acc"])).first).to_be_visible()
            value = best.metrics["val/acc"]
            equals = [trial.data for trial in trials if trial.data.metrics["val/acc"] == value]
            names = re.compile("|".join(data.params["model.name"] for data in equals))
            expect(page.get_by_text(names).first).to_be_visible()
            page.locator(".js-plotly-plot").first.wait_for()
            keep(page, "optuna")
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def test_the_pages_end_with_ctrl_c_and_leave_no_process(
    opened: tuple[str, Callable[[], None]],
) -> None:
    address, end = opened
    end()
    assert nobody_listens(address)


def test_the_pages_end_with_their_terminal(sweep: tuple[Path, str]) -> None:
    folder, command = sweep
    with pages(command, folder, ends_with=signal.SIGHUP) as address:
        assert listening(address)
    assert nobody_listens(address)


def listening(address: str) -> bool:
    """Whether a process listens at the port of an address."""
    port = int(re.findall(r":(\d+)/", address)[0])
    held = [c for c in psutil.net_connections() if c.laddr and c.laddr.port == port]
    return any(c.status == psutil.CONN_LISTEN for c in held)


def nobody_listens(address: str) -> bool:
    """Whether within a minute no process listens there any more."""
    deadline = time.monotonic() + 60
    while listening(address) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not listening(address)


def test_a_run_or_a_store_that_is_not_there_is_one_line(
    sweep: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = sweep
    for words, said in (
        (["run=nosuch"], "run=nosuch"),
        (["port=99999"], "port=99999"),
        (["output_dir=elsewhere"], "output_dir=elsewhere"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mnist_hydra.ui", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (folder / "elsewhere").exists()


def await_answer(address: str) -> None:
    """Wait until a server on this machine answers."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{address} does not answer"
            time.sleep(0.2)


def keep(page: Any, name: str) -> None:
    """Keep what the page looks like, once it has come to rest."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(2_000)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def run_page(run: Any) -> str:
    return f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def runs(folder: Path) -> tuple[Any, list[Any]]:
    """The sweep's parent, and its trials, the best first."""
    client = MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mnist_hydra")
    found = client.search_runs([experiment.experiment_id], order_by=["metrics.`val/acc` DESC"])
    trials = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in found if run not in trials]
    return parent, trials


def pictured(folder: Path, trials: list[Any]) -> Any:
    """The best trial that has pictures: of equal ones not each has."""
    client = MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    for trial in trials:
        if "pictures" in [file.path for file in client.list_artifacts(trial.info.run_id)]:
            return trial
    raise AssertionError("no trial has pictures")


@contextmanager
def pages(command: str, folder: Path, ends_with: int = signal.SIGINT) -> Iterator[str]:
    """Run the printed command; yields the address that it prints, and ends it with a signal."""
    words = [sys.executable, *shlex.split(command)]
    with (folder / "ui.log").open("w") as log:
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            # Tests that are started in the background ignore Ctrl-C, and so would this.
            preexec_fn=partial(signal.signal, ends_with, signal.SIG_DFL),
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), (folder / "ui.log").read_text()
        yield address
    finally:
        process.send_signal(ends_with)
        code = process.wait(120)
    assert code == 0, (folder / "ui.log").read_text()
