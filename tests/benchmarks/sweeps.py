"""A sweep of 18 trials, the whole command: in process and side by side, over its training alone,
and against a shell loop that trains the notebook's way.

    python -m tests.benchmarks.sweeps [--full] [--without-notebook]

The training alone is the same trials' epochs and nothing else, in two processes at the same time
with one thread each: the seconds of all epochs, divided by two.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks import mnist_files, multirun, options, table
from tests.benchmarks.measure import in_turns, median, run

Axes = Mapping[str, Sequence[str]]
AXES: Axes = {
    "model": ("model1", "model2", "model3"),
    "dropout": ("0.0", "0.02", "0.04"),
    "lr": ("0.05", "0.1"),
}
TINY_AXES: Axes = {"model": ("model1", "model2"), "dropout": ("0.02",), "lr": ("0.1",)}
ALONE = "training alone, 2 side by side"
NOTEBOOK = "the notebook's way, in a loop"
NOTEBOOK_TRIALS = 3
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Sweep:
    """The trials that every way trains."""

    axes: Axes
    epochs: int
    limit: int | None
    """Training images; `None` for all."""
    data: Path
    extra: Sequence[str]
    """Overrides for mnist_hydra alone."""

    @property
    def overrides(self) -> list[str]:
        swept = [f"{key}={','.join(values)}" for key, values in self.axes.items()]
        limit = "null" if self.limit is None else str(self.limit)
        return [*swept, f"epochs={self.epochs}", f"data.limit={limit}", *self.extra]

    @property
    def points(self) -> list[dict[str, str]]:
        values = itertools.product(*self.axes.values())
        return [dict(zip(self.axes, point, strict=True)) for point in values]


@dataclass(frozen=True)
class Sample:
    """All trials once, one way."""

    wall_s: float
    max_rss_mib: float


def ours(way: str, sweep: Sweep) -> Sample:
    """The whole command, in an empty `output_dir`."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*sweep.overrides, *multirun.WAYS[way]]
        done = run(multirun.command(overrides, sweep.data, Path(folder)))
    return Sample(done.wall_s, done.max_rss_mib)


def alone(sweep: Sweep) -> Sample:
    """The trials' epochs in two processes at once, each with every second trial."""
    of = multirun.WORKERS
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(of) as together:
        where = [f"data.root={sweep.data.absolute()}", f"output_dir={folder}"]
        commands = [
            [
                *("python", "-m", "tests.benchmarks.alone", "--part", str(part), "--of", str(of)),
                *("--meet", folder, *sweep.overrides, *where),
            ]
            for part in range(of)
        ]
        done = list(together.map(partial(run, env=ONE_THREAD), commands))
    trials: dict[str, list[float]] = {}
    for finished in done:
        trials |= json.loads(finished.stdout.strip().splitlines()[-1])["epoch_s"]
    assert len(trials) == len(sweep.points), sorted(trials)
    seconds = sum(sum(epoch_s) for epoch_s in trials.values())
    return Sample(seconds / of, max(finished.max_rss_mib for finished in done))


def notebook(sweep: Sweep, measured: int, extended: bool) -> Sample:
    """A command a trial, one after another.

    Args:
        measured: of how many trials, evenly spread; the others count as their mean.
        extended: run each of those with one epoch and with two only, and count as many more
            epochs as are missing, each as the second.
    """
    points = sweep.points
    stride = len(points) // measured
    samples = []
    for point in points[stride // 2 :: stride][:measured]:
        first = _notebook(sweep, point, 1 if extended else sweep.epochs)
        samples.append(first)
        if extended:
            second = _notebook(sweep, point, 2)
            wall_s = first.wall_s + (sweep.epochs - 1) * (second.wall_s - first.wall_s)
            samples[-1] = Sample(wall_s, max(first.max_rss_mib, second.max_rss_mib))
    wall_s = sum(sample.wall_s for sample in samples) * len(points) / len(samples)
    return Sample(wall_s, max(sample.max_rss_mib for sample in samples))


def _notebook(sweep: Sweep, point: Mapping[str, str], epochs: int) -> Sample:
    chosen = [word for key, value in point.items() for word in (f"--{key}", value)]
    limit = [] if sweep.limit is None else ["--limit", str(sweep.limit)]
    command = [
        *("python", "-m", "tests.benchmarks.notebook", "--experiment", "exp2", *chosen, *limit),
        *("--epochs", str(epochs), "--data", str(sweep.data)),
    ]
    done = run(command, env={"PYTHONWARNINGS": "ignore"})
    return Sample(done.wall_s, done.max_rss_mib)


def measure(
    sweep: Sweep, repeats: int, notebook_trials: int, extended: bool
) -> list[dict[str, object]]:
    """Measure every way in turns; return the table's rows.

    Args:
        notebook_trials: see `notebook`; 0 leaves that way out.
    """
    calls: dict[str, Callable[[], Sample]] = {
        way: partial(ours, way, sweep) for way in multirun.WAYS
    }
    calls[ALONE] = partial(alone, sweep)
    if notebook_trials:
        calls[NOTEBOOK] = partial(notebook, sweep, notebook_trials, extended)
    samples: dict[str, list[Sample]] = {way: [] for way in calls}
    for way, sample in in_turns(calls, repeats):
        samples[way].append(sample)
    wall_s = {way: median([sample.wall_s for sample in samples[way]]) for way in calls}
    return [
        {
            "way": way,
            "wall_s": wall_s[way],
            "over_training_alone": wall_s[way] / wall_s[ALONE],
            "ours_joblib_faster": wall_s[way] / wall_s[multirun.JOBLIB],
            "max_rss_mib": max(sample.max_rss_mib for sample in samples[way]),
            "repeats": len(samples[way]),
        }
        for way in calls
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__, full="the published length: an hour or more")
    parser.add_argument("--epochs", type=int, help="default 2; with --full 15")
    parser.add_argument("--limit", type=int, help="training images; default 12000; --full: all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without-notebook", action="store_true")
    parser.add_argument(
        "--notebook-trials", type=int, default=NOTEBOOK_TRIALS, help="how many are measured"
    )
    given = parser.parse_args(arguments)
    axes = TINY_AXES if given.tiny else AXES
    epochs = given.epochs or (15 if given.full else 1 if given.tiny else 2)
    limit = given.limit or (None if given.full else 1024 if given.tiny else 12_000)
    measured = 0 if given.without_notebook else 1 if given.tiny else given.notebook_trials
    trials = math.prod(map(len, axes.values()))
    if not 0 <= measured <= trials:
        parser.error(f"--notebook-trials {measured}: right: 0 to {trials}")
    with tempfile.TemporaryDirectory() as folder:
        data, extra = given.data, given.override
        if given.tiny:
            data = Path(folder)
            extra = [*extra, "data.sha256=null", "compile=false"]
            extra += ["sweep.keep=0", "sweep.report=false"]
            mnist_files.write(data, train=1024, test=256)
        sweep = Sweep(axes, epochs, limit, data, extra)
        rows = measure(sweep, given.repeats, measured, extended=given.full)
    table.publish(
        "sweeps",
        f"A sweep of {trials} trials, end to end; epochs of each: {epochs}",
        rows,
        {
            **vars(given),
            "trials": trials,
            "overrides": sweep.overrides,
            "notebook_trials": f"{measured} of {trials} measured, and scaled",
        },
        given.out,
    )


if __name__ == "__main__":
    main()
