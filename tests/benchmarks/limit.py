"""How far an epoch is from the machine's limit: its wall time over that of its convolutions alone.

    python -m tests.benchmarks.limit [--full] [--experiments exp3]

The convolutions are those of all steps at batch 512, forward and backward, in whichever of float32
and bfloat16, contiguous and channels-last, is fastest. The epoch includes its evaluation.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks import mnist_files, options, product, table
from tests.benchmarks.measure import in_turns, median, run

EXPERIMENTS = ("exp1", "exp2", "exp3")
FORMS = {
    "fp32": ("--precision", "fp32"),
    "fp32 channels_last": ("--precision", "fp32", "--channels-last"),
    "bf16": ("--precision", "bf16"),
    "bf16 channels_last": ("--precision", "bf16", "--channels-last"),
}
BATCH_SIZE = 512
TRAIN_IMAGES = 60_000


def convolutions(experiment: str, form: str, repeats: int, batch_size: int) -> list[float]:
    """Seconds of one step's convolutions, measured in a process of its own."""
    words = ("python", "-m", "tests.benchmarks.convolutions", experiment, *FORMS[form])
    size = ("--batch-size", str(batch_size))
    said = json.loads(run([*words, *size, "--repeats", str(repeats)]).stdout)
    return [said["seconds"]]


def epochs(experiment: str, count: int, data: Path, extra: Sequence[str]) -> list[float]:
    """Seconds of each epoch of one run but the first, which warms up."""
    done = product.train([f"experiment={experiment}", f"epochs={count}", *extra], data)
    return done.epoch_s[1:] or done.epoch_s


def measure(
    experiments: Sequence[str],
    epoch_count: int,
    step_repeats: int,
    repeats: int,
    data: Path,
    images: int,
    batch_size: int = BATCH_SIZE,
    extra: Sequence[str] = (),
) -> list[dict[str, object]]:
    """Measure epochs and convolutions in turns; return the table's rows.

    Args:
        images: how many the training set has.
    """
    calls: dict[tuple[str, str], Callable[[], list[float]]] = {}
    for experiment in experiments:
        calls[experiment, "epoch"] = _epochs(experiment, epoch_count, data, extra)
        for form in FORMS:
            calls[experiment, form] = _convolutions(
                experiment, form, step_repeats, batch_size
            )
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for key, taken in in_turns(calls, repeats):
        seconds[key] += taken
    return [_row(experiment, seconds, images / batch_size) for experiment in experiments]


def _epochs(
    experiment: str, count: int, data: Path, extra: Sequence[str]
) -> Callable[[], list[float]]:
    return lambda: epochs(experiment, count, data, extra)


def _convolutions(
    experiment: str, form: str, repeats: int, batch_size: int
) -> Callable[[], list[float]]:
    return lambda: convolutions(experiment, form, repeats, batch_size)


def _row(
    experiment: str, seconds: dict[tuple[str, str], list[float]], steps: float
) -> dict[str, object]:
    by_form = {form: median(seconds[experiment, form]) for form in FORMS}
    fastest = min(by_form, key=lambda form: by_form[form])
    epoch_s = median(seconds[experiment, "epoch"])
    return {
        "experiment": experiment,
        **{f"{form}_ms": 1000 * taken for form, taken in by_form.items()},
        "fastest": fastest,
        "convolutions_s": by_form[fastest] * steps,
        "epoch_s": epoch_s,
        "epoch_over_convolutions": epoch_s / (by_form[fastest] * steps),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--epochs", type=int, help="default 3; with --full 8")
    parser.add_argument("--repeats", type=int, help="default 2; with --full 5")
    given = parser.parse_args(arguments)
    epoch_count = given.epochs or (8 if given.full else 1 if given.tiny else 3)
    repeats = given.repeats or (5 if given.full else 1 if given.tiny else 2)
    with tempfile.TemporaryDirectory() as folder:
        data, extra, images, steps = given.data, given.override, TRAIN_IMAGES, 30
        batch_size = BATCH_SIZE
        if given.tiny:
            data, images, steps, batch_size = Path(folder), 1024, 1, 32
            extra = [*extra, "data.sha256=null", f"batch_size={batch_size}"]
            mnist_files.write(data, train=images, test=256)
        rows = measure(
            given.experiments, epoch_count, steps, repeats, data, images, batch_size, extra
        )
    table.publish(
        "limit",
        "An epoch over its convolutions alone",
        rows,
        {**vars(given), "epochs": epoch_count, "repeats": repeats},
        given.out,
    )


if __name__ == "__main__":
    main()
