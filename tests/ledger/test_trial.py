"""What a trial's entries come to: a table, without MLflow."""

from __future__ import annotations

import json

import pytest

from mnist_hydra.ledger.owner import Owner
from mnist_hydra.ledger.trial import (
    MAX_ENTRY,
    Claim,
    End,
    Entry,
    claim_key,
    end_key,
    proposed_points,
    read_entry,
    replay,
    trial_of,
)

OWNER = Owner("token", "boot 1", 7, 300.0, "machine")


def entries(*history: tuple[str, str, int, str | None]) -> dict[str, Entry]:
    """Entries of the trial "a": for each claim its run, sweeper, step, and how it ended."""
    found: dict[str, str] = {}
    for number, (run, by, from_step, end) in enumerate(history, start=1):
        found[claim_key("a", number)] = Claim(run, "lr=0.1", OWNER, by, from_step).text()
        if end is not None:
            error = "it broke" if end == "failed" else ""
            ended = End(end, 2.0, number, 10 * number, {"val/acc": number / 10}, error, {"c": "1"})
            found[end_key("a", number)] = ended.text()
    return read(found)


def read(texts: dict[str, str]) -> dict[str, Entry]:
    """Entries as the ledger holds them."""
    return {key: read_entry(key, text) for key, text in texts.items()}


@pytest.mark.parametrize(
    ("history", "deleted", "expected"),
    [
        ([], (), None),
        ([("r", "s", -1, None)], (), ("r", "running", [None], -1, 0, "")),
        ([("r", "s", -1, "finished")], (), ("r", "finished", ["finished"], 10, 1, "")),
        (
            [("r", "s", -1, "failed"), ("r", "s", 10, None)],
            (),
            ("r", "running", ["failed", None], 10, 1, ""),
        ),
        (
            [("r", "s", -1, "died"), ("r", "t", 10, "failed")],
            (),
            ("r", "failed", ["died", "failed"], 20, 2, "it broke"),
        ),
        ([("r", "s", -1, "finished")], ("r",), None),
        (
            [("r", "s", -1, "finished"), ("q", "s", -1, None)],
            ("r",),
            ("q", "running", [None], -1, 0, ""),
        ),
        ([("r", "s", -1, "failed"), ("q", "s", -1, None)], ("r", "q"), None),
        (
            [("r", "s", -1, "failed"), ("q", "s", -1, "finished")],
            (),
            ("q", "finished", ["finished"], 20, 2, ""),
        ),
    ],
)
def test_a_trial_is_a_replay_of_its_entries(
    history: list[tuple[str, str, int, str | None]],
    deleted: tuple[str, ...],
    expected: tuple[str, str, list[str | None], int, int, str] | None,
) -> None:
    trial = replay("a", entries(*history), deleted)
    if expected is None:
        assert trial is None
        return
    assert trial is not None
    ends = [attempt.end and attempt.end.state for attempt in trial.attempts]
    found = (trial.run_id, trial.state, ends, trial.step, trial.epoch, trial.error)
    assert found == expected
    assert trial.name == "lr=0.1"


def test_the_order_in_which_entries_are_read_makes_no_difference() -> None:
    written = entries(("r", "s", -1, "died"), ("r", "t", 10, "failed"), ("r", "t", 20, "finished"))
    backward = dict(reversed(written.items()))
    assert replay("a", backward) == replay("a", written)


def test_an_entry_says_which_trial_it_is_about() -> None:
    assert {trial_of(key) for key in entries(("r", "s", -1, "died"))} == {"a"}
    assert trial_of("point/0") is None and trial_of("stop/token") is None


def test_claims_and_ends_come_back_as_they_were_written() -> None:
    claim = Claim("run", "lr=0.1", OWNER, "sweeper", 5)
    end = End("failed", 1.5, 2, 20, {"a": 0.5, "b": float("nan")}, "line\nline", {"c": "d"})
    assert read_entry(claim_key("a", 1), claim.text()) == claim
    came_back = read_entry(end_key("a", 1), end.text())
    assert isinstance(came_back, End) and came_back.text() == end.text()
    assert came_back.metrics["a"] == 0.5 and list(came_back.metrics) == ["a", "b"]
    assert "c" not in came_back.metrics and came_back.metrics.get("c") is None


def test_an_end_fits_into_an_entry_however_much_there_is_to_say() -> None:
    metrics = {f"test/metric-{number:03}": 0.123456789 for number in range(500)}
    end = End("failed", 1.0, 2, 20, metrics, "x" * 2_000 + "the last line", {})
    kept = read_entry(end_key("a", 1), end.text())
    assert isinstance(kept, End)
    assert len(end.text()) <= MAX_ENTRY
    assert kept.error.endswith("the last line") and 50 < len(kept.metrics) < 500


def test_points_are_read_up_to_the_first_gap() -> None:
    point = json.dumps({"fingerprint": "f", "overrides": ["lr=0.1"], "values": {"lr": 0.1}})
    found = read({"point/0": point, "point/1": point, "point/3": point, "stop/me": "Ctrl-C"})
    assert [point.number for point in proposed_points(found)] == [0, 1]


def test_ledgers_of_a_process_share_what_an_ended_trial_holds() -> None:
    one, other = (replay("a", entries(("r", "s", -1, "finished"))) for _ in range(2))
    assert one is not None and other is not None
    assert one.metrics is other.metrics and one.owner is other.owner


def test_trials_share_what_is_alike_in_them() -> None:
    """Thousands of ends hold the same names of metrics, commits and versions."""
    metrics = {f"test/metric-{number}": 0.5 for number in range(17)}
    ends = [End("finished", n, 1, 1, metrics, "", {"commit": "c0ffee"}) for n in (1.0, 2.0)]
    one, other = (read_entry(end_key("a", 1), end.text()) for end in ends)
    assert isinstance(one, End) and isinstance(other, End) and one is not other
    assert one.made_by is other.made_by
    assert all(x is y for x, y in zip(one.metrics, other.metrics, strict=True))
