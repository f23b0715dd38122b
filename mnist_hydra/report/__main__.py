"""The command `python -m mnist_hydra.report`: makes the report of a sweep that a store holds."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.config import resolved
from mnist_hydra.errors import UserError, first_line, shown
from mnist_hydra.typed import Pattern, check_setting

SweepName = Annotated[str, Pattern(".+", "a sweep's name or its run's id")]


def report(cfg: DictConfig, query: str | None) -> int:
    """Make the report and print its table, its answer and where the page is; returns 0.

    Args:
        query: an MLflow filter.

    Raises:
        UserError: neither sweep nor filter, or both; else see `read_sweeps` and `read_filter`.
    """
    asked = check_setting("sweep", resolved(cfg, "sweep"), SweepName | list[SweepName] | None)
    names = [asked] if isinstance(asked, str) else asked
    if bool(names) == (query is not None):
        raise UserError(
            f"sweep={shown(cfg.sweep)} filter={shown(query)}: one of the two says what to report; "
            "right: sweep=NAME, a sweep's name or its run's id"
        )
    place = entry.place_of(cfg)
    file = entry.file_of("optuna", cfg.optuna) if cfg.optuna is not None else None
    from mnist_hydra.report import make, read, results, study
    from mnist_hydra.tracking.tracker import Tracker

    tracker = Tracker(place, make=False)
    if names:
        findings = read.read_sweeps(tracker, names)
    else:
        findings = read.read_filter(tracker, query or "")
    results.print_table(findings.results)
    made = make.make(tracker, findings, place)
    print("\n".join(["", *made.sentences, "", str(made.page)]))
    if file is not None:
        runs = [record.run_id for record in findings.records if record.params]
        histories = read.histories(tracker, runs, findings.results.objective)
        try:
            study.write_study(findings, histories, file)
        except OSError as error:
            raise UserError(f"optuna={file} cannot be written: {first_line(error)}") from None
        print(shlex.join(["optuna-dashboard", str(file)]))
    return 0


if __name__ == "__main__":
    # Not Hydra's to read: its values hold no " = ".
    query, sys.argv[1:] = entry.take_value(sys.argv[1:], "filter")
    if query == "null":
        query = None
    elif query and query[0] == query[-1] == '"':  # as Hydra has text
        query = query[1:-1]
    entry.start("report", lambda cfg: report(cfg, cfg.filter if query is None else query))
