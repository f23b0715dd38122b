"""What a command costs before it works: to its first step, over `import torch` alone; `--help` and
`--cfg job`, over a bare Hydra program's with as many groups.

    python -m tests.benchmarks.startup [--full]

Warm is the usual case. Cold is an empty `output_dir`, with the libraries' files evicted from the
system's cache beforehand as far as nothing else has them open (Linux).
"""

from __future__ import annotations

import os
import re
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks import bare_app, mnist_files, options, table
from tests.benchmarks.measure import ROOT, Finished, in_turns, median, run

OURS = ("python", "-m", "mnist_hydra.train")
IMPORT_TORCH = ("python", "-c", "import torch")


def first_step_s(data: Path, output_dir: Path, extra: Sequence[str]) -> float:
    """Seconds from the command's start to the end of its first optimizer step."""
    command = ["python", "-m", "tests.benchmarks.first_step", "experiment=exp3", *extra]
    finished = run([*command, f"data.root={data.absolute()}", f"output_dir={output_dir}"])
    said = re.search(r"first step at ([0-9.]+)", finished.stdout)
    assert said is not None, finished.stdout
    return float(said[1]) - finished.started


def evict(folder: Path) -> None:
    """Let the system forget the contents of the files below `folder`, where it can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(call: Callable[[Path], float]) -> float:
    """Call with an empty folder and nothing of the libraries in memory."""
    evict(Path(sysconfig.get_path("purelib")))
    with tempfile.TemporaryDirectory() as folder:
        return call(Path(folder))


def measure(
    repeats: int, cold_repeats: int, data: Path, extra: Sequence[str]
) -> list[dict[str, object]]:
    """Measure all of it in turns; return the table's rows."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(bare_app.write(Path(folder) / "bare"))
        warm = Path(folder) / "warm"
        first_step_s(data, warm, extra)

        def to_first_step(output_dir: Path) -> float:
            return first_step_s(data, output_dir, extra)

        def wall_s(*command: str) -> Callable[[], float]:
            return lambda: _wall(run(command, cwd=ROOT))

        calls: dict[str, Callable[[], float]] = {
            "import torch": wall_s(*IMPORT_TORCH),
            "first step": lambda: to_first_step(warm),
            "bare --help": wall_s("python", program, "--help"),
            "--help": wall_s(*OURS, "--help"),
            "bare --cfg job": wall_s("python", program, "--cfg", "job"),
            "--cfg job": wall_s(*OURS, "--cfg", "job"),
        }
        cold_calls: dict[str, Callable[[], float]] = {
            "import torch, cold": lambda: cold(lambda _: _wall(run(IMPORT_TORCH))),
            "first step, cold": lambda: cold(to_first_step),
        }
        seconds: dict[str, list[float]] = {name: [] for name in (*calls, *cold_calls)}
        for name, taken in in_turns(calls, repeats):
            seconds[name].append(taken)
        for name, taken in in_turns(cold_calls, cold_repeats):
            seconds[name].append(taken)
    pairs = (
        ("first step", "import torch"),
        ("first step, cold", "import torch, cold"),
        ("--help", "bare --help"),
        ("--cfg job", "bare --cfg job"),
    )
    return [_row(name, over, seconds) for name, over in pairs]


def _wall(finished: Finished) -> float:
    return finished.wall_s


def _row(name: str, over: str, seconds: dict[str, list[float]]) -> dict[str, object]:
    return {
        "command": name,
        "seconds": median(seconds[name]),
        "over": over,
        "its_seconds": median(seconds[over]),
        "ratio": median(seconds[name]) / median(seconds[over]),
        "repeats": len(seconds[name]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__, tiny="each once, on made-up data")
    parser.add_argument("--repeats", type=int, help="default 7; with --full 21")
    given = parser.parse_args(arguments)
    repeats = given.repeats or (21 if given.full else 1 if given.tiny else 7)
    cold_repeats = 7 if given.full else 0 if given.tiny else 2
    with tempfile.TemporaryDirectory() as folder:
        data, extra = given.data, given.override
        if given.tiny:
            data, extra = Path(folder), [*extra, "data.sha256=null"]
            mnist_files.write(data, train=1024, test=256)
        rows = measure(repeats, cold_repeats, data, extra)
    table.publish(
        "startup",
        "Starting up",
        [row for row in rows if row["repeats"]],
        {**vars(given), "repeats": repeats, "cold_repeats": cold_repeats},
        given.out,
    )


if __name__ == "__main__":
    main()
