"""Prints the oldest release that `setup.cfg` admits of every dependency, as a pip constraint file.

    pip install -e '.[test]' -c <(python tests/lower_bounds.py) && pytest

It must never name a release that `setup.cfg` does not.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def requirements(setup: Path = SETUP) -> dict[str, list[str]]:
    """Return the requirement lines of `setup.cfg`, those of the core under the key `""`."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(setup)
    sections = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {name: lines.split("\n")[1:] for name, lines in sections.items()}


def lower_bounds(setup: Path = SETUP) -> list[str]:
    """Return `name==version` for each requirement that has a lower bound."""
    found = [
        re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", line)
        for lines in requirements(setup).values()
        for line in lines
    ]
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(lower_bounds()))
