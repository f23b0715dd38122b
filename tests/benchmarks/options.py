"""The options that every benchmark has."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks import table


def parser(
    about: str | None,
    full: str | None = None,
    tiny: str = "seconds, on a small made-up data set",
) -> argparse.ArgumentParser:
    """A parser with `--data`, `--override`, `--full`, `--tiny` and `--out`.

    Args:
        about: the benchmark's docstring.
        full: what `--full` means there.
        tiny: what `--tiny` means there.
    """
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--data", type=Path, default=Path("outputs/data"))
    made.add_argument("--override", action="append", default=[], help="for mnist_hydra alone")
    made.add_argument("--full", action="store_true", help=full)
    made.add_argument("--tiny", action="store_true", help=tiny)
    made.add_argument("--out", type=Path, default=table.OUT)
    return made
