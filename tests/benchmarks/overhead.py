"""What is not training: the share of an epoch outside its steps, and what evaluation costs over the
same forward pass alone.

    python -m tests.benchmarks.overhead [--full] [--experiments exp3]

An epoch's steps are forward pass, loss, backward pass, optimizer and its schedule; its evaluation
is judged apart. What is outside is gathering, augmentation, normalising, metrics, tracking,
checkpoint and progress bar.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path

from tests.benchmarks import mnist_files, options, table
from tests.benchmarks.measure import in_turns, median, run

EXPERIMENTS = ("exp1", "exp2", "exp3")
PARTS = ("gather and augmentation", "metrics", "checkpoint", "tracking", "progress bar")
Parts = dict[str, float]


def parts(experiment: str, epochs: int, data: Path, extra: Sequence[str]) -> Parts:
    """Seconds of a mean epoch and of its parts, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"experiment={experiment}", f"epochs={epochs}", *extra]
        where = [f"data.root={data.absolute()}", f"output_dir={folder}"]
        done = run(["python", "-m", "tests.benchmarks.parts", *words, *where])
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return {**said.pop("parts_s"), **said}


def measure(
    experiments: Sequence[str], epochs: int, repeats: int, data: Path, extra: Sequence[str]
) -> list[dict[str, object]]:
    """Measure the experiments in turns; return the table's rows."""

    def call(experiment: str) -> Callable[[], Parts]:
        return lambda: parts(experiment, epochs, data, extra)

    found: dict[str, list[Parts]] = {name: [] for name in experiments}
    for experiment, measured in in_turns({name: call(name) for name in experiments}, repeats):
        found[experiment].append(measured)
    return [_row(experiment, found[experiment]) for experiment in experiments]


def _row(experiment: str, runs: list[Parts]) -> dict[str, object]:
    def share(of: Callable[[Parts], float]) -> float:
        return 100 * median([of(run) / run["epoch_s"] for run in runs])

    known = ("step", "evaluation", *PARTS)
    return {
        "experiment": experiment,
        "epoch_s": median([run["epoch_s"] for run in runs]),
        "steps_%": share(lambda run: run["step"]),
        "evaluation_%": share(lambda run: run["evaluation"]),
        "outside_%": share(lambda run: run["epoch_s"] - run["step"] - run["evaluation"]),
        **{f"{name}_%": share(itemgetter(name)) for name in PARTS},
        "rest_%": share(lambda run: run["epoch_s"] - sum(run[name] for name in known)),
        "evaluation_over_forward": median(
            [run["evaluation_s"] / run["bare_forward_s"] for run in runs]
        ),
        "repeats": len(runs),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--epochs", type=int, help="2 or more; default 4; with --full 15")
    parser.add_argument("--repeats", type=int, help="default 3; with --full 5")
    given = parser.parse_args(arguments)
    epochs = given.epochs or (15 if given.full else 2 if given.tiny else 4)
    if epochs < 2:
        parser.error(f"--epochs {epochs}: the first one is left out; right: 2 or more")
    repeats = given.repeats or (5 if given.full else 1 if given.tiny else 3)
    with tempfile.TemporaryDirectory() as folder:
        data, extra = given.data, given.override
        if given.tiny:
            data, extra = Path(folder), [*extra, "data.sha256=null"]
            mnist_files.write(data, train=1024, test=256)
        rows = measure(given.experiments, epochs, repeats, data, extra)
    table.publish(
        "overhead",
        "What is not training",
        rows,
        {**vars(given), "epochs": epochs, "repeats": repeats},
        given.out,
    )


if __name__ == "__main__":
    main()
