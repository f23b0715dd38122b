"""The end of a sweep: its results are printed and recorded, and its best trials completed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mnist_hydra.cli.commands import same_command
from mnist_hydra.errors import first_line
from mnist_hydra.ledger.ledger import LOOK_EVERY_S, Ledger, View
from mnist_hydra.ledger.next_action import Action
from mnist_hydra.ledger.owner import Observer, Owner, read_owner, working
from mnist_hydra.ledger.parent import REPORT, existing_run
from mnist_hydra.report import read, results
from mnist_hydra.report.results import Results
from mnist_hydra.secrets import hide_in_error
from mnist_hydra.sweep import torch_tasks
from mnist_hydra.sweep.command import Command
from mnist_hydra.tracking import pages, tag
from mnist_hydra.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mnist_hydra.report.make import Report

COMPLETE = "complete/"
"""`complete/<run>/<n>`: the n-th process that set out to complete a trial, an `Owner`."""
COMPLETED = "completed/"
"""`completed/<run>`: the trial has its pictures and its exported model."""
WITHOUT_REPORT = " without its report"
SHOWN_PICTURES = ("heat_map", "main_effects", "learning_curves")
"""Pictures of the report that the sweep's description shows."""


def results_of(command: Command, tracker: Tracker, view: View) -> Results:
    """The trials that the ledger knows, ranked by the objective.

    Of two that train the same and came out the same the earlier one counts, as in the report.
    """
    plan, metric = command.plan, command.objective
    found = read.records_of(tracker, view, [plan], metric, plan.at)
    for later, earlier in command.trials.twins().items():
        one, other = found.get(later), found.get(earlier)
        if one and other and one.counts and other.counts and one.came_out == other.came_out:
            del found[later]
    axes = dict.fromkeys(results.bare_key(axis.key) for axis in plan.arguments.axes)
    axes |= dict.fromkeys(key for record in found.values() for key in record.values)
    records = list(found.values())
    for place, record in enumerate(records):
        if record.values.keys() != axes.keys():  # a command before was over others
            if (run := existing_run(tracker.client, record.run_id)) is not None:
                record = replace(read.with_run(record, run), overrides=read.overrides_of(run))
            records[place] = read.completed(record, axes)
    return results.ranked(read.one_spelling(records), axes, metric, plan.at)


def record_results(
    tracker: Tracker, parent_id: str, found: Results, actions: Collection[Action], interrupted: bool
) -> None:
    """Record the results on the parent run; close it unless others still train its trials."""
    tracker.log_text(parent_id, results.ranking_csv(found), "results.csv")
    best = results.best_command(found)
    if best is not None:
        tracker.set_tags(parent_id, {tag.BEST: best[:4000]})
        for name, value in results.sweep_metrics(found).items():
            tracker.client.log_metric(parent_id, name, value, synchronous=True)
    if Action.WAIT in actions:
        return
    failed = any(action is not Action.DONE for action in actions)
    status = "KILLED" if interrupted else "FAILED" if failed else "FINISHED"
    if tracker.client.get_run(parent_id).info.status != status:  # else keep its end time
        tracker.end(parent_id, status)


def digest_of(view: View, ranking: Mapping[str, str]) -> str:
    """What a sweep's report and description are made of, as a hash: once that is another one they
    are outdated, whichever process made them, or was killed before it did.

    Args:
        ranking: what ranks the trials, see `Command.ranking`.
    """
    trials = sorted([t.fingerprint, t.run_id, t.number, t.state] for t in view.trials.values())
    text = json.dumps([trials, dict(ranking)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(
    tracker: Tracker, parent_id: str, found: Results, report: Report | None, digest: str
) -> None:
    """Describe on the parent run what was asked, what came out, and how to repeat it.

    Args:
        report: the sweep's, whose pictures are shown.
        digest: of what both are made of, see `digest_of`.
    """
    pictures = [
        (name.replace("_", " "), pages.artifact(parent_id, f"{REPORT}/{name}.png"))
        for name in SHOWN_PICTURES
        if report is not None and (report.folder / f"{name}.png").exists()
    ]
    question, answer = results.question(found), results.brief_answer(found)
    command = same_command("python", begun=True)
    for rows in (10, 3, 0):
        table = results.grid(found, rows)
        note = pages.sweep_note(question, answer, table, command, pictures)
        if len(note) <= pages.MAX_NOTE:
            break
    told = digest if report is not None else digest + WITHOUT_REPORT
    tracker.set_tags(parent_id, {tag.NOTE: note[: pages.MAX_NOTE], tag.TOLD: told})


def complete_best(command: Command, ledger: Ledger, found: Results, in_process: bool) -> None:
    """Record pictures and exported model of the best trials, each trial's once.

    Args:
        ledger: as it was read a moment ago.
        in_process: whether this process may import torch.
    """
    best_first = sorted(found.ranked_trials, key=lambda r: r.score, reverse=not found.minimize)
    chosen = best_first[: command.config.sweep.keep]
    if chosen and (last := results.by_last_epoch(found)):  # which `register` goes by
        chosen.append(results.best_of(last, found.minimize))
    with working() as owner:
        runs = dict.fromkeys(record.run_id for record in chosen)
        mine = [run_id for run_id in runs if claim_completion(ledger, run_id, owner)]
        if not mine:
            return
        print(f"making pictures and exported models of the best: {len(mine)}", file=sys.stderr)
        raw: Any = OmegaConf.to_container(command.config.composed, resolve=True)
        try:
            failed = torch_tasks.run(torch_tasks.complete, raw, mine, here=in_process)
        except Exception as error:  # the results stand without them
            failed = dict.fromkeys(mine, first_line(error))
        for run_id in mine:
            if run_id not in failed:
                ledger.write_once(COMPLETED + run_id, owner.token)
        if failed:
            why = hide_in_error("; ".join(f"run {key}: {text}" for key, text in failed.items()))
            print(f"pictures or models of the best are missing: {why}", file=sys.stderr)


def report_on(command: Command, tracker: Tracker, parent_id: str, view: View) -> Report | None:
    """Make the sweep's report and print where it is; a failure is printed, not raised.

    Args:
        view: says which trials are this command's: the report is of those of commands before, too.
    """
    try:
        from mnist_hydra.report import make

        findings = read.read_parents(tracker, [tracker.client.get_run(parent_id)])
        made = make.make(tracker, findings, command.config)
    except Exception as error:
        print(f"no report of this sweep: {hide_in_error(first_line(error))}", file=sys.stderr)
        return None
    mine = {planned.fingerprint for planned in view.wanted(command.plan.trials)}
    runs = {trial.run_id for key, trial in view.trials.items() if key in mine}
    has_more = any(record.run_id not in runs for record in findings.results.ranked_trials)
    more = ["of the whole sweep:"] if has_more else []
    print("\n".join([*more, *made.sentences, f"report: {made.page}"]), file=sys.stderr)
    return made


def claim_completion(ledger: Ledger, run_id: str, owner: Owner) -> bool:
    """Whether this process is to complete a trial: none has, and no living process does.

    If a process of this machine does, the answer is no at once. For one of another machine this
    waits until it has finished or its silence shows that it is gone.
    """
    if ledger.entries(COMPLETED + run_id):
        return False
    claims = ledger.entries(f"{COMPLETE}{run_id}/")
    if claims:
        rival = read_owner(claims[str(len(claims))])
        observer = Observer()
        while not observer.is_dead(rival):
            if rival.host == owner.host or ledger.holds(COMPLETED + run_id):
                return False
            time.sleep(LOOK_EVERY_S)
    return ledger.write_once(f"{COMPLETE}{run_id}/{len(claims) + 1}", owner.text())
