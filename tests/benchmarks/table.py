"""Prints a benchmark's one table and writes it, with the machine that it came from, as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks.measure import ROOT, run

OUT = ROOT / "outputs" / "benchmarks"
LIBRARIES = (
    "torch",
    "torchvision",
    "albumentations",
    "hydra-core",
    "mlflow",
    "numpy",
    "lightning",
    "torchmetrics",
)
# In a process of its own: what this one holds would count as its children's memory.
ASK_TORCH = """
import json, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({"cpu_capability": torch.backends.cpu.get_cpu_capability(), "gpu": gpu}))
"""
Row = Mapping[str, object]


def publish(
    name: str, title: str, rows: Sequence[Row], settings: Mapping[str, object], out: Path = OUT
) -> Path:
    """Print `rows` as a Markdown table and write `<out>/<name>.json`; return that path.

    Args:
        rows: all with the same keys, which are the columns' names; a unit stands in the name.
        settings: what the benchmark was asked to do.
    """
    print(f"\n{title}\n\n{markdown(rows)}\n")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    content = {
        "benchmark": name,
        "title": title,
        "settings": dict(settings),
        "machine": machine(),
        "rows": [dict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
    print(f"written to {path}")
    return path


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, numbers to three digits and to the right."""
    if not rows:
        return "(nothing was measured)"
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    numeric = [all(not isinstance(row[name], str) for row in rows) for name in names]
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]

    def line(words: Sequence[str]) -> str:
        padded = (
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(words, widths, numeric, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = (
        "-" * (width + 1) + ":" if right else "-" * (width + 2)
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(names), "|" + "|".join(rule) + "|", *map(line, cells)])


def machine() -> dict[str, object]:
    """What the numbers depend on: processor, cores, libraries, commit."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        **json.loads(run(["python", "-c", ASK_TORCH]).stdout),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "load_average": os.getloadavg()[0],
    }


def _cell(value: object) -> str:
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()
