"""What `--help` shows: every key of a command with its value and the comment from its YAML file.

It reads the files as text and composes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import yaml  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from importlib.abc import Traversable

CONF = "mnist_hydra.conf"
IS_GLOBAL = "# @package _global_"
"""In a file whose keys are the root's, said there."""
OF_HYDRA = ("defaults", "hydra")
OF_AN_ENTRY = ("defaults", "name", "_target_")
"""Keys of an entry that are no settings: they say what it is made of and called."""
OF_TRAIN = {"hydra/launcher": "basic"}
"""Hydra's own default, which no file of ours names."""
NO_ENTRY = "null"
BLOCK_STYLES = ("|", ">")
WIDTH = 40
Lines = Sequence[tuple[str, str]]
OF_SWEEPS: Lines = [("--multirun", "all combinations of comma-separated values, as one sweep")]
FLAGS: Lines = [
    ("--config-dir DIR", "files of your own, laid out like conf/"),
    ("--cfg job", "print the settings as they would be, and end"),
    ("--hydra-help", "Hydra's other flags"),
]


def help_text(command: str, folders: Sequence[str] = ()) -> str:
    """The help of a command of this package.

    Args:
        command: such as `train`.
        folders: of the user's own, laid out like conf/.
    """
    root = files(CONF)
    name = "config" if command == "train" else command
    text = root.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    roots = [root, *(Path(folder) for folder in folders)]
    groups, flags = groups_of(text), FLAGS
    if command == "train":
        groups, flags = groups | OF_TRAIN, [*OF_SWEEPS, *FLAGS]
    entries = {group: entries_of(roots, group) for group in groups}
    lines = [header(text), "", "Keys, given as KEY=VALUE:", *_table(keys_of(text))]
    lines += ["", "Groups, given as GROUP=ENTRY:"]
    chosen = {g: "(none)" if entry == NO_ENTRY else entry for g, entry in groups.items()}
    lines += _table([(f"{g}={entry}", ", ".join(entries[g])) for g, entry in chosen.items()])
    for group in groups:
        for entry, content in entries[group].items():
            keys = [] if IS_GLOBAL in content else keys_of(content, group.replace("/", "."))
            if keys or header(content):
                lines += ["", f"{group}={entry}  {header(content)}".rstrip(), *_table(keys)]
    return "\n".join([*lines, "", "Flags:", *_table(flags)])


def header(text: str) -> str:
    """The comment lines that a file begins with, but for Hydra's `@package`."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            found.append(line.removeprefix("#").strip())
    return "\n".join(found)


def keys_of(text: str, group: str = "") -> list[tuple[str, str]]:
    """The settings in a YAML file as `name=value`, each with its comment, in the file's order.

    What Hydra and tables need is left out. A file that is no YAML, which is refused when it is
    composed, has none here.

    Args:
        group: what stands before their names, with a dot.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return []
    if not isinstance(node, yaml.MappingNode):
        return []
    unsaid = OF_AN_ENTRY if group else OF_HYDRA
    node.value = [pair for pair in node.value if pair[0].value not in unsaid]
    return list(_walk(node, f"{group}." if group else "", text))


def groups_of(text: str) -> dict[str, str]:
    """The groups that a file's defaults name and the entry of each; of Hydra's own no loggings."""
    content = yaml.safe_load(text) or {}
    groups = {}
    for entry in content.get("defaults", ()):
        for name, chosen in entry.items() if isinstance(entry, dict) else ():
            group = str(name).removeprefix("override ")
            if not group.endswith("_logging"):
                groups[group] = NO_ENTRY if chosen is None else str(chosen)
    return groups


def entries_of(roots: Iterable[Traversable], group: str) -> dict[str, str]:
    """The texts of a group's files, by the names of its entries."""
    found = {}
    for root in roots:
        folder = root.joinpath(group)
        for file in folder.iterdir() if folder.is_dir() else ():
            name, dot, kind = file.name.rpartition(".")
            if dot and kind == "yaml":
                # What is no text is refused when it is composed, and shown as it can be here.
                found[name] = file.read_bytes().decode(errors="replace")
    return dict(sorted(found.items()))


def _walk(
    node: yaml.Node, prefix: str, text: str, said: bool = False
) -> Iterator[tuple[str, str]]:
    """The keys in a mapping or a list, below one that has a comment (`said`) only such as have."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(f"{prefix}{key.value}", key, value) for key, value in node.value]
    else:
        pairs = [(f"{prefix}{place}", None, value) for place, value in enumerate(node.value)]
    for name, key, value in pairs:
        if isinstance(value, yaml.ScalarNode) or value.flow_style:
            # a block of text ends where the next line begins
            is_block = isinstance(value, yaml.ScalarNode) and value.style in BLOCK_STYLES
            comment = "" if is_block else _comment(text, value.end_mark)
            if comment or not said:
                whole = text[value.start_mark.index : value.end_mark.index]
                yield f"{name}={' '.join(whole.split())}", comment
            continue
        comment = _comment(text, key.end_mark) if key is not None else ""
        if comment:
            yield name, comment
        yield from _walk(value, f"{name}.", text, said or bool(comment))


def _comment(text: str, mark: yaml.Mark) -> str:
    """The comment on the rest of a line."""
    found = re.search(r"\s# ?(.*)$", text[mark.index :].partition("\n")[0])
    return found[1] if found else ""


def _table(rows: Lines) -> list[str]:
    """Two columns; what is too long for the first has a line of its own."""
    width = max([len(left) for left, _ in rows if len(left) <= WIDTH], default=0)
    lines = []
    for left, right in rows:
        if len(left) > width:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left:{width}}  {right}")
    return [line.rstrip() for line in lines if line.strip()]
