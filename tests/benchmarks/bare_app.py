"""Writes the smallest Hydra program with the same configuration groups as mnist_hydra's: what
`--help` and `--cfg job` cannot be quicker than."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.measure import ROOT

PROGRAM = '''\
import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    pass


if __name__ == "__main__":
    main()
'''


def write(folder: Path, conf: Path = ROOT / "conf") -> Path:
    """Write the program and its `conf` below `folder`, less what needs mnist_hydra's plugins.

    Returns:
        The program's path.
    """
    shutil.copytree(conf, folder / "conf", ignore=shutil.ignore_patterns("hydra", "*.py"))
    root = folder / "conf" / "config.yaml"
    content: dict[str, Any] = yaml.safe_load(root.read_text())
    content["defaults"] = [
        entry
        for entry in content["defaults"]
        if not (isinstance(entry, dict) and any("hydra/" in key for key in entry))
    ]
    root.write_text(yaml.safe_dump(content, sort_keys=False))
    program = folder / "app.py"
    program.write_text(PROGRAM)
    return program
