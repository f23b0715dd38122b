"""Whole training commands, end to end: mnist_hydra against the notebook's way and Lightning's.

    python -m tests.benchmarks.training [--full] [--experiments exp3] [--contenders notebook ...]

Every contender trains the same network on the same data with the same batches, and each command is
timed from outside, in turns.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks import mnist_files, options, product, table
from tests.benchmarks.measure import in_turns, median, run

EXPERIMENTS = ("exp1", "exp2", "exp3")
OURS = "mnist_hydra"
BASELINES = {
    "notebook": ("notebook", 0),
    "notebook, 2 workers": ("notebook", 2),
    "lightning": ("lightning", 0),
}
PUBLISHED_EPOCHS = 15


@dataclass(frozen=True)
class Sample:
    """One command's run: seconds, % of the test set, MiB."""

    wall_s: float
    epoch_s: list[float]
    test_acc: float
    max_rss_mib: float

    @property
    def published_s(self) -> float:
        """The whole command with 15 epochs: measured if it had 15, else from its median epoch."""
        return self.wall_s + (PUBLISHED_EPOCHS - len(self.epoch_s)) * median(self.epoch_s)


def ours(experiment: str, epochs: int, data: Path, extra: Sequence[str]) -> Sample:
    """Run the product once, in an empty `output_dir`."""
    done = product.train([f"experiment={experiment}", f"epochs={epochs}", *extra], data)
    finished = done.finished
    return Sample(finished.wall_s, done.epoch_s, done.test_acc, finished.max_rss_mib)


def baseline(module: str, workers: int, experiment: str, epochs: int, data: Path) -> Sample:
    """Run one of the other ways once."""
    command = [
        *("python", "-m", f"tests.benchmarks.{module}", "--experiment", experiment),
        *("--epochs", str(epochs), "--workers", str(workers), "--data", str(data)),
    ]
    finished = run(command, env={"PYTHONWARNINGS": "ignore"})
    said = json.loads(finished.stdout.strip().splitlines()[-1])
    return Sample(finished.wall_s, said["epoch_s"], said["test_acc"], finished.max_rss_mib)


def measure(
    experiments: Sequence[str],
    contenders: Sequence[str],
    epochs: int,
    repeats: int,
    data: Path,
    extra: Sequence[str] = (),
) -> list[dict[str, object]]:
    """Measure every contender, mnist_hydra among them, on every experiment; return the rows."""
    calls: dict[tuple[str, str], Callable[[], Sample]] = {}
    for experiment in experiments:
        for name in contenders:
            calls[experiment, name] = _call(name, experiment, epochs, data, extra)
    samples: dict[tuple[str, str], list[Sample]] = {key: [] for key in calls}
    for key, sample in in_turns(calls, repeats):
        samples[key].append(sample)
    return [_row(experiment, name, samples) for experiment, name in calls]


def _call(
    name: str, experiment: str, epochs: int, data: Path, extra: Sequence[str]
) -> Callable[[], Sample]:
    if name == OURS:
        return lambda: ours(experiment, epochs, data, extra)
    module, workers = BASELINES[name]
    return lambda: baseline(module, workers, experiment, epochs, data)


def _row(
    experiment: str, name: str, samples: dict[tuple[str, str], list[Sample]]
) -> dict[str, object]:
    own = samples[experiment, name]
    mine = samples[experiment, OURS]
    epoch_s = median([s for sample in own for s in sample.epoch_s])
    published_s = median([sample.published_s for sample in own])
    return {
        "experiment": experiment,
        "way": name,
        "command_s": median([sample.wall_s for sample in own]),
        "epoch_s": epoch_s,
        "15_epochs_s": published_s,
        "ours_faster_epoch": epoch_s / median([s for sample in mine for s in sample.epoch_s]),
        "ours_faster_15_epochs": published_s / median([sample.published_s for sample in mine]),
        "test_acc_%": median([sample.test_acc for sample in own]),
        "max_rss_mib": max(sample.max_rss_mib for sample in own),
        "repeats": len(own),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__, full="the published length: hours")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--contenders", nargs="+", choices=BASELINES, default=tuple(BASELINES))
    parser.add_argument("--epochs", type=int, help="default 1; with --full 15")
    parser.add_argument("--repeats", type=int, help="default 1; with --full 3")
    given = parser.parse_args(arguments)
    epochs = given.epochs or (PUBLISHED_EPOCHS if given.full else 1)
    repeats = given.repeats or (3 if given.full else 1)
    contenders = [OURS, *given.contenders]
    if "lightning" in contenders and not find_spec("lightning"):
        contenders.remove("lightning")
        print("Lightning is left out: pip install -e '.[benchmarks]'")
    with tempfile.TemporaryDirectory() as folder:
        data, extra = given.data, given.override
        if given.tiny:
            data, extra = Path(folder), [*extra, "data.sha256=null"]
            mnist_files.write(data, train=1024, test=256)
        rows = measure(given.experiments, contenders, epochs, repeats, data, extra)
    table.publish(
        "training",
        f"Training, end to end: {epochs} epochs, medians of {repeats}",
        rows,
        {**vars(given), "epochs": epochs, "repeats": repeats},
        given.out,
    )


if __name__ == "__main__":
    main()
