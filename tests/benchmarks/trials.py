"""What a trial costs beyond its own training, and what many trials cost before the first and after
the last one.

    python -m tests.benchmarks.trials [--full] [--figures cost rate start finished]

Every sweep is a whole command in an empty `output_dir`; what a trial spent in its epochs is read
from MLflow.
"""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks import mnist_files, multirun, options, table
from tests.benchmarks.measure import (
    ROOT,
    Finished,
    Key,
    Result,
    environment,
    in_turns,
    median,
    run,
)
from tests.benchmarks.multirun import IN_PROCESS, JOBLIB, WAYS, WORKERS

FIGURES = ("cost", "rate", "start", "finished")
SMALL = ("epochs=1", "batch_size=128", "data.limit=1024", "sweep.keep=0")
INTERRUPTED = 130
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    few: int
    """Trials of a sweep whose cost per trial is wanted."""
    many: int
    """Trials of a sweep whose beginning and end are looked at."""
    hold_s: float
    """How long a sweep of many goes on after its first trial began, before it is stopped."""
    real: Sequence[str]
    """Overrides of a sweep whose trials train for a while."""
    real_trials: int
    repeats: int


@dataclass(frozen=True)
class Where:
    """What all sweeps have in common."""

    data: Path
    extra: Sequence[str]

    def command(self, way: str, trials: int, overrides: Sequence[str], folder: str) -> list[str]:
        """The words of a sweep over so many seeds."""
        words = [*seeds(trials), *overrides, *self.extra, *WAYS[way]]
        return multirun.command(words, self.data, Path(folder))


def seeds(trials: int) -> list[str]:
    return [f"seed=range(0,{trials})"]


def cost(sizes: Sizes, where: Where) -> list[dict[str, object]]:
    """What one more trial adds to the command, times the workers, less its own training."""
    workers = {IN_PROCESS: 1, JOBLIB: WORKERS}

    def sweep(way: str, trials: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            done = run(where.command(way, trials, SMALL, folder))
            return done.wall_s, sum(multirun.own_training_s(Path(folder)))

    calls = {
        (way, trials): partial(sweep, way, trials)
        for way, least in workers.items()
        for trials in (sizes.few, least)
    }
    found = collected(calls, sizes.repeats)

    def beyond(way: str) -> list[float]:
        side_by_side = workers[way]
        pairs = zip(found[way, sizes.few], found[way, side_by_side], strict=True)
        return [
            ((wall_s - least_wall_s) * side_by_side - (own_s - least_own_s))
            / (sizes.few - side_by_side)
            for (wall_s, own_s), (least_wall_s, least_own_s) in pairs
        ]

    name = f"a trial of {sizes.few}, beyond its training"
    return [
        row(f"{IN_PROCESS}: {name}", beyond(IN_PROCESS), "s", "<= 0.5"),
        row(f"{JOBLIB}: {name}", beyond(JOBLIB), "worker-s", "<= 1.0"),
    ]


def rate(sizes: Sizes, where: Where) -> list[dict[str, object]]:
    """Trials an hour side by side, over those one after another."""

    def sweep(way: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return run(where.command(way, sizes.real_trials, sizes.real, folder)).wall_s

    wall_s = collected({way: partial(sweep, way) for way in WAYS}, sizes.repeats)
    pairs = zip(wall_s[IN_PROCESS], wall_s[JOBLIB], strict=True)
    faster = [one_by_one / side_by_side for one_by_one, side_by_side in pairs]
    return [row(f"{JOBLIB}: trials an hour, over in process", faster, "x", ">= 1.35")]


def start(sizes: Sizes, where: Where) -> list[dict[str, object]]:
    """From the command's start to its first trial's, and what the sweeper held until stopped."""
    calls = {way: partial(begin, way, sizes, where) for way in WAYS}
    found = collected(calls, sizes.repeats)
    rows = [
        row(
            f"{way}: {sizes.many} trials, to the first one's start",
            [first_s for first_s, _ in found[way]],
            "s",
            "<= 10",
        )
        for way in WAYS
    ]
    peaks = [peak_mib for _, peak_mib in found[JOBLIB]]
    name = f"{JOBLIB}: {sizes.many} trials, the sweeper's peak memory"
    return [*rows, row(name, peaks, "MiB", "<= 400")]


def begin(way: str, sizes: Sizes, where: Where) -> tuple[float, float]:
    """Start a sweep of many trials and stop it by Ctrl-C.

    Returns:
        seconds to the first trial's start, and MiB that the sweeper's own process held at most.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        words = where.command(way, sizes.many, SMALL, folder)
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, *words[1:]],
            cwd=ROOT,
            env=environment(words),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            first = None
            while first is None and process.poll() is None and time.time() < started + PATIENCE_S:
                time.sleep(0.5)
                first = multirun.first_trial_at(Path(folder))
            if first is not None:
                time.sleep(sizes.hold_s)
            peak_mib = peak_memory_mib(process.pid)
            process.send_signal(signal.SIGINT)
            code = process.wait(PATIENCE_S)
        finally:
            if process.poll() is None:  # the second Ctrl-C takes the workers along
                process.send_signal(signal.SIGINT)
        said.seek(0)
        if first is None or code != INTERRUPTED:
            raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{said.read()[-3000:]}")
    return first - started, peak_mib


def peak_memory_mib(pid: int) -> float:
    """What a process held at most so far; `nan` where the system does not tell (no Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return math.nan
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else math.nan


def finished(sizes: Sizes, where: Where) -> list[dict[str, object]]:
    """The same command once more, when all trials are finished."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*seeds(sizes.many), *SMALL, *where.extra]
        multirun.fill(overrides, where.data, Path(folder))

        def again(way: str) -> Finished:
            words = [*overrides, *WAYS[way]]
            return multirun.again(words, where.data, Path(folder), sizes.many)

        found = collected({way: partial(again, way) for way in WAYS}, sizes.repeats)
    name = f"{sizes.many} finished trials"
    rows = [
        row(f"{way}: {name}, the whole command", [d.wall_s for d in found[way]], "s", "<= 5")
        for way in WAYS
    ]
    # No worker is started, so it is the sweeper that holds most.
    peaks = [done.max_rss_mib for done in found[JOBLIB]]
    return [*rows, row(f"{JOBLIB}: {name}, the sweeper's peak memory", peaks, "MiB", "<= 400")]


def collected(calls: Mapping[Key, Callable[[], Result]], repeats: int) -> dict[Key, list[Result]]:
    """What the calls returned, made in turns."""
    found: dict[Key, list[Result]] = {key: [] for key in calls}
    for key, result in in_turns(calls, repeats):
        found[key].append(result)
    return found


def row(name: str, values: Sequence[float], unit: str, goal: str) -> dict[str, object]:
    """One figure: the median of what was measured."""
    return {
        "figure": name,
        "measured": median(values),
        "unit": unit,
        "goal": goal,
        "repeats": len(values),
    }


def measure(figures: Sequence[str], sizes: Sizes, where: Where) -> list[dict[str, object]]:
    """Measure the figures one after another, the ways of each in turns; return the rows."""
    by_name = {"cost": cost, "rate": rate, "start": start, "finished": finished}
    return [row for name in figures for row in by_name[name](sizes, where)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__, full="an hour", tiny="few trials, on made-up data")
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=FIGURES)
    parser.add_argument("--repeats", type=int, help="default 1; with --full 3")
    given = parser.parse_args(arguments)
    real = ["model=model3", "aug=ssr", "sweep.keep=0"]
    if given.tiny:
        sizes = Sizes(3, 20, 0.0, [*SMALL, *real], 2, given.repeats or 1)
    elif given.full:
        sizes = Sizes(100, 1000, 120.0, [*real, "epochs=3"], 8, given.repeats or 3)
    else:
        real += ["epochs=3", "data.limit=12000"]
        sizes = Sizes(100, 1000, 20.0, real, 8, given.repeats or 1)
    with tempfile.TemporaryDirectory() as folder:
        data, extra = given.data, given.override
        if given.tiny:
            data = Path(folder)
            extra = [*extra, "data.sha256=null", "compile=false", "sweep.report=false"]
            mnist_files.write(data, train=1024, test=256)
        rows = measure(given.figures, sizes, Where(data, extra))
    table.publish(
        "trials",
        "What a trial costs beyond its own training, and what many of them cost",
        rows,
        {**vars(given), **vars(sizes), "small": SMALL},
        given.out,
    )


if __name__ == "__main__":
    main()
