"""Every benchmark still works: each is run in its small form, and nothing is said of its times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.measure import in_turns, run
from tests.benchmarks.table import markdown


@pytest.mark.parametrize(
    ("name", "words", "rows"),
    [
        ("training", ["--experiments", "exp3"], 4),
        ("limit", ["--experiments", "exp2"], 1),
        ("startup", [], 3),
        ("overhead", ["--experiments", "exp3"], 1),
        ("sweeps", [], 4),
        ("trials", ["--figures", "cost"], 2),
        ("trials", ["--figures", "start", "finished"], 6),
        ("trials", ["--figures", "rate"], 1),
        ("growth", [], 8),
    ],
)
def test_a_benchmark_prints_and_keeps_its_table(
    name: str, words: list[str], rows: int, tmp_path: Path
) -> None:
    module = f"tests.benchmarks.{name}"
    done = run(["python", "-m", module, "--tiny", "--out", str(tmp_path), *words])
    kept = json.loads((tmp_path / f"{name}.json").read_text())

    assert markdown(kept["rows"]) in done.stdout
    assert len(kept["rows"]) == rows
    assert kept["machine"]["libraries"]["torch"]


def test_every_contender_goes_first_in_turn() -> None:
    order = [key for key, _ in in_turns({"a": lambda: 0, "b": lambda: 0, "c": lambda: 0}, 3)]
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
