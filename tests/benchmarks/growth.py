"""How wall time and memory grow with epochs, trials, training images and finished trials, beside
the straight line through the points of each kind.

    python -m tests.benchmarks.growth [--full] [--kinds epochs trials images finished]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.benchmarks import mnist_files, multirun, options, product, table
from tests.benchmarks.measure import Finished, in_turns, median, run

Points = Mapping[str, Sequence[int]]
POINTS: Points = {
    "epochs": (1, 2, 4, 8, 16, 32),
    "trials": (10, 30, 100, 300),
    "images": (6_000, 12_000, 24_000, 60_000, 120_000, 240_000),
    "finished": (100, 300, 1_000),
}
FULL_POINTS: Points = {
    **POINTS,
    "trials": (*POINTS["trials"], 1_000),
    "finished": (*POINTS["finished"], 10_000),
}
TINY_POINTS: Points = {
    "epochs": (1, 2),
    "trials": (1, 2),
    "images": (512, 1_536),
    "finished": (4, 8),
}
NAMES = {
    "epochs": "epochs of a training",
    "trials": f"trials of a sweep, {multirun.JOBLIB}",
    "images": "training images, one epoch",
    "finished": "finished trials of a sweep that is run again",
}
SMALL = ("epochs=1", "batch_size=128", "sweep.keep=0", "data.sha256=null")
IMAGES_OF_EPOCHS = 6_000


class Growth:
    """Makes the commands of all points.

    Args:
        data: holds `MNIST/raw`.
        made_up: holds a small data set, for trials whose length does not matter.
        limit: training images of the points that are about epochs.
        extra: overrides for all commands.
        of_sweeps: more for those that sweep.
    """

    def __init__(
        self,
        data: Path,
        made_up: Path,
        limit: int,
        extra: Sequence[str],
        of_sweeps: Sequence[str] = (),
    ) -> None:
        self.data, self.made_up, self.limit, self.extra = data, made_up, limit, extra
        self.small = [*SMALL, *extra, *of_sweeps]
        self._folders = ExitStack()

    def __enter__(self) -> Growth:
        return self

    def __exit__(self, *_: object) -> None:
        self._folders.close()

    def call(self, kind: str, n: int) -> Callable[[], Finished]:
        """What measures one point; what it needs beforehand is made here and now."""
        if kind == "epochs":
            return partial(self._epochs, n)
        if kind == "trials":
            return partial(self._sweep, n)
        if kind == "images":
            return partial(self._images, n)
        folder = Path(self._folders.enter_context(tempfile.TemporaryDirectory()))
        sweep = [f"seed=range(0,{n})", *self.small]
        multirun.fill(sweep, self.made_up, folder)
        return lambda: multirun.again(sweep, self.made_up, folder, n)

    def _epochs(self, epochs: int) -> Finished:
        words = [f"epochs={epochs}", f"data.limit={self.limit}", *self.extra]
        with tempfile.TemporaryDirectory() as folder:
            return product.command(words, self.data, Path(folder))

    def _sweep(self, trials: int) -> Finished:
        words = [f"seed=range(0,{trials})", *self.small, *multirun.WAYS[multirun.JOBLIB]]
        with tempfile.TemporaryDirectory() as folder:
            return run(multirun.command(words, self.made_up, Path(folder)))

    def _images(self, images: int) -> Finished:
        words = ["epochs=1", "data.sha256=null", *self.extra]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            mnist_files.repeat(self.data, data, images)
            return product.command(words, data, Path(folder) / "outputs")


def measure(
    points: Points, kinds: Sequence[str], repeats: int, growth: Growth
) -> list[dict[str, object]]:
    """Measure all points in turns; return the table's rows."""
    calls = {(kind, n): growth.call(kind, n) for kind in kinds for n in points[kind]}
    found: dict[tuple[str, int], list[Finished]] = {key: [] for key in calls}
    for key, done in in_turns(calls, repeats):
        found[key].append(done)
    return [row for kind in kinds for row in _rows(kind, points[kind], found)]


def _rows(
    kind: str, points: Sequence[int], found: Mapping[tuple[str, int], Sequence[Finished]]
) -> list[dict[str, object]]:
    wall_s = [median([done.wall_s for done in found[kind, n]]) for n in points]
    rss_mib = [median([done.max_rss_mib for done in found[kind, n]]) for n in points]
    rows = []
    for n, seconds, mib, line_s, line_mib in zip(
        points, wall_s, rss_mib, line(points, wall_s), line(points, rss_mib), strict=True
    ):
        rows.append(
            {
                "what": NAMES[kind],
                "n": n,
                "wall_s": seconds,
                "line_s": line_s,
                "off_line_%": 100 * (seconds / line_s - 1),
                "max_rss_mib": mib,
                "line_mib": line_mib,
                "off_line_mib_%": 100 * (mib / line_mib - 1),
                "repeats": len(found[kind, n]),
            }
        )
    return rows


def line(xs: Sequence[int], ys: Sequence[float]) -> list[float]:
    """At each x, what the straight line with the least squares through all points says."""
    slope, at_zero = statistics.linear_regression(xs, ys)
    return [at_zero + slope * x for x in xs]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(
        __doc__, full="more trials: an hour or two", tiny="two small points a kind"
    )
    parser.add_argument("--kinds", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--repeats", type=int, help="default 1; with --full 3")
    given = parser.parse_args(arguments)
    points = TINY_POINTS if given.tiny else FULL_POINTS if given.full else POINTS
    repeats = given.repeats or (3 if given.full else 1)
    with tempfile.TemporaryDirectory() as folder:
        data, limit, extra = given.data, IMAGES_OF_EPOCHS, given.override
        of_sweeps: list[str] = []
        made_up = Path(folder)
        mnist_files.write(made_up, train=1024, test=256)
        if given.tiny:
            data, limit = made_up, 1024
            extra = [*extra, "data.sha256=null", "compile=false"]
            of_sweeps = ["sweep.report=false"]
        with Growth(data, made_up, limit, extra, of_sweeps) as growth:
            rows = measure(points, given.kinds, repeats, growth)
    table.publish(
        "growth",
        "Growth, beside straight lines",
        rows,
        {**vars(given), "points": points, "repeats": repeats},
        given.out,
    )


if __name__ == "__main__":
    main()
