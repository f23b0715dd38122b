"""Prints the exact versions that are installed here, of everything that this project needs:
`python tests/constraints.py > constraints.txt`, after all tests have passed with them."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("ray", "slurm", "onnx", "test", "faults", "dev", "benchmarks")


def installed(name: str, extras: frozenset[str], found: dict[str, str]) -> None:
    """Add the version of a package, and of what it needs in turn, to `found`."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return  # for another system or another Python
    found[canonicalize_name(name)] = package.version.partition("+")[0]
    for line in package.requires or ():
        needed = Requirement(line)
        holds = needed.marker is None or any(
            needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        )
        if holds and canonicalize_name(needed.name) not in found:
            installed(needed.name, frozenset(needed.extras), found)


def main() -> None:
    """Print one package a line, this project's own left out."""
    found: dict[str, str] = {}
    installed("mnist_hydra", frozenset(EXTRAS), found)
    del found["mnist-hydra"]
    print(f"# The versions that all tests passed with, on Python {sys.version_info.major}."
          f"{sys.version_info.minor}; made by `python tests/constraints.py`.")  # fmt: skip
    for name, version in sorted(found.items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
