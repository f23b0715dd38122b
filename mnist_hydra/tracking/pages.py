"""MLflow's own pages: what their addresses are, and what they say and show of a sweep.

Pure functions over plain values: nothing here asks MLflow or starts anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from urllib.parse import urlencode

from mnist_hydra.config import AT_THE_ROOT, GROUPS
from mnist_hydra.metrics import is_minimized

RECIPE = "experiment"
"""A group that is no parameter: the settings of its entry are. A trial's name has it."""
MAX_NOTE = 8_000
"""Characters of a description that MLflow takes."""
WORKFLOW = "workflowType=machine_learning"
"""Without it MLflow 3.17 opens any experiment on the pages for GenAI, whatever its kind:
https://github.com/mlflow/mlflow/issues/24498
"""


def runs_page(experiment_id: str, view: str | None = None) -> str:
    """The address of an experiment's list of runs, behind the server's.

    Args:
        view: the name of the view to open it with; `None` for the user's own.
    """
    named = f"viewStateShareKey={view}&" if view is not None else ""
    return f"/#/experiments/{experiment_id}/runs?{named}{WORKFLOW}"


def run_page(experiment_id: str, run_id: str) -> str:
    """The address of one run, behind the server's."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}?{WORKFLOW}"


def trials_view(parent_id: str, objective: str, axes: Sequence[str]) -> str:
    """A view of a sweep's trials, the best first, with what was swept: the value of `tag.VIEW`.

    Args:
        objective: the metric's name.
        axes: the swept keys, as on the command line.
    """
    swept = [axis for axis in axes if axis.lstrip("+~") != RECIPE]
    parameters = dict.fromkeys(map(parameter_of, swept))  # two may be of one list
    shown = [f"metrics.`{objective}`", *(f"params.`{name}`" for name in parameters)]
    return json.dumps(
        {
            "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_id}'",
            "orderByKey": f"metrics.`{objective}`",
            "orderByAsc": is_minimized(objective),
            "selectedColumns": shown,
        }
    )


def parameter_of(axis: str) -> str:
    """The parameter that a swept key is recorded as: of an item of a list that of the list."""
    plain = axis.lstrip("+~")
    group, _, name = plain.rpartition(".")
    if group in ("model", "optimizer") and name in AT_THE_ROOT:
        return name
    return f"{plain}.name" if plain in GROUPS else re.split(r"\.\d+(?:\.|$)", plain)[0]


def sweep_note(
    question: str,
    answer: str,
    table: Sequence[Sequence[str]],
    command: str,
    pictures: Sequence[tuple[str, str]] = (),
) -> str:
    """A sweep's description, in Markdown.

    Args:
        question: what was swept, in a sentence.
        answer: what came out, in a sentence.
        table: its first row names the columns; empty leaves it out.
        command: the sweep's own, to be given again.
        pictures: a name and an address of each.
    """
    parts = [f"**{_escaped(question)}**", _escaped(answer)]
    if len(table) > 1:
        head, *rows = ([_escaped(cell).replace("|", "\\|") for cell in row] for row in table)
        lines = [head, ["---"] * len(head), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append(f"```bash\n{command}\n```")
    parts += [f"![{_escaped(name)}]({address})" for name, address in pictures]
    return "\n\n".join(parts)


def artifact(run_id: str, name: str) -> str:
    """The address of an artifact, as a page of the server names it."""
    return f"get-artifact?{urlencode({'path': name, 'run_uuid': run_id})}"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for sign in ("\\", "`", "*", "_", "<", "["):
        text = text.replace(sign, "\\" + sign)
    return text
