"""What a sweep says before it starts: which trials it skips and why; pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mnist_hydra.sweep.decide import Action
from mnist_hydra.sweep.trial import DONE, FAILURES, Trial

WORDS = {
    Action.START: "to run",
    Action.RESUME: "to be continued",
    Action.RETRY: "to be tried again",
    Action.WAIT: "run by another process",
    Action.DONE: "done and skipped",
    Action.GIVE_UP: "failed for good",
}


def overview(actions: Mapping[str, Action], total: int) -> str:
    """One line: how many trials there are and what becomes of them.

    Args:
        actions: by fingerprint, of the trials that are known.
        total: how many there are to be.
    """
    count = Counter(actions.values())
    parts = [f"{count[action]} {WORDS[action]}" for action in WORDS if count[action]]
    if total > len(actions):
        parts.append(f"{total - len(actions)} to be proposed")
    return f"{total} trial{'' if total == 1 else 's'}: " + ", ".join(parts)


def outcome(actions: Mapping[str, Action]) -> str:
    """One line: how a sweep ended.

    Args:
        actions: what would be done with each trial, by fingerprint.
    """
    count = Counter(actions.values())
    done, failed = count.pop(Action.DONE, 0), count.pop(Action.GIVE_UP, 0)
    left = sum(count.values())
    parts = [f"{done} of {len(actions)} trials done"]
    parts += [f"{failed} failed"] if failed else []
    return ", ".join([*parts, f"{left} not finished"] if left else parts)


def line(title: str, action: Action, trial: Trial | None, objective: str) -> str:
    """What is to be done with one trial, and why."""
    return f"{WORDS[action]:<22}  {title}{_why(action, trial, objective)}"


def _why(action: Action, trial: Trial | None, objective: str) -> str:
    if trial is None or action is Action.START:
        return ""
    if action is Action.DONE:
        value = trial.metrics.get(objective)
        score = "" if value is None else f", {objective} {value:.4f}"
        return f" ({trial.state} after epoch {trial.epoch}{score}; run {trial.run_id})"
    if trial.state in FAILURES:
        why = f"{trial.state} in attempt {trial.number}"
    elif trial.state in DONE:
        why = trial.state
    else:
        why = "running" if action is Action.WAIT else "stopped"
    return f" ({why}, after epoch {trial.epoch}; run {trial.run_id})"


def other_origin(trials: Mapping[str, Trial], now: Mapping[str, str]) -> str | None:
    """One warning where finished trials were made with other code or data than now.

    Args:
        trials: those whose results are used.
        now: this program's own tags of commit, version and data; a tag that is missing here is
            only compared between the trials.
    """
    told = []
    done = [trial for trial in trials.values() if trial.state in DONE]
    for tag in sorted({key for trial in done for key in trial.made_by} | now.keys()):
        values = Counter(trial.made_by[tag] for trial in done if tag in trial.made_by)
        here = now.get(tag)
        if set(values) - {here} and (here is not None or len(values) > 1):
            name = tag.removeprefix("mnist_hydra.").removeprefix("mlflow.source.")
            of = ", ".join(f"{value[:12]} ({number})" for value, number in sorted(values.items()))
            told.append(f"{name} {of}" + ("" if here is None else f", now {here[:12]}"))
    if not told:
        return None
    return "warning: finished trials are used that were made with something else: " + "; ".join(
        told
    )
