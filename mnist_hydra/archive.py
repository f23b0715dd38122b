"""A `torch.export` program's archive, looked at before torch loads it.

torch evaluates a program's sizes and guards as Python, writes its names into Python, finds an
operator by any attribute of torch, imports the modules that its inputs and outputs name, and loads
pickles and compiled code that lie in the archive. A program of plain layers needs none of that:
sizes and guards are arithmetic, operators are ATen's, the files are those that torch writes now.

Two readers may find different files in one archive. So what was looked at is written anew, and that
is what torch loads.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

RECORD = re.compile(
    r"model/(data/(weights/(weight_[0-9]+|model_weights_config\.json)"
    r"|constants/(tensor_[0-9]+|model_constants_config\.json)|sample_inputs/model\.pt)"
    r"|models/model\.json|archive_format|archive_version|version|byteorder|\.data/[a-z_]+"
    r"|\.format_version|\.storage_alignment)"
)
"""The names of an archive's records; none differ in case alone, which torch's reader ignores."""
SIZE = re.compile(
    r"(Symbol\('[a-z]+\d+'|(positive|nonnegative|integer)=True|[a-z]{1,2}\d+(?!\d)|\d"
    r"|[(), +/-]|\*(?!\*)|(Integer|Add|Mul|Max|Min|FloorDiv|CleanDiv|Mod|PythonMod)\()*"
)
GUARD = re.compile(
    r"(L\['\w+'\]|\[\d+\]|\.(size|stride)\(\)|\.shape|\d|\b(and|or|not)\b"
    r"|[<>=!]=|[<>](?![<>])|[+/%() -]|\*(?!\*))*"
)
"""Neither knows powers or shifts: `9**9**9` takes for ever. Each text is read in one way alone, so
that no long one takes for ever to refuse."""
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.(__(and|or|xor)__|(?!\w*__|from_file\b)\w+)\.(?!\w*__)\w+"
    r"|torch\.sym_\w+|torch\.ops\.higher_order\.(cond|scan|map_impl|while_loop"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|and_|or_|eq|ne|ge|gt|le|lt)"
)
TREE = re.compile(r'(?!.*(defaultdict|__enum__))\[1, [\w{}\[\]":, .]*\]')
"""What a program takes and returns, without a backslash, by which JSON could hide a word."""
NAME = re.compile(r"[\w., >/+:-]*")
"""All else that is text."""


PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "expr_str": lambda value: bool(SIZE.fullmatch(str(value))),
    "guards_code": lambda value: all(GUARD.fullmatch(str(one)) for one in value or ()),
    "target": lambda value: value is None or bool(OPERATOR.fullmatch(str(value))),
    "as_operator": lambda value: False,
    "in_spec": lambda value: bool(TREE.fullmatch(str(value))),
    "out_spec": lambda value: bool(TREE.fullmatch(str(value))),
    "use_pickle": lambda value: value is False,
    "path_name": lambda value: bool(re.fullmatch("(weight|tensor)_[0-9]+", str(value))),
    "metadata": lambda value: all(isinstance(one, str) for one in value.values()),
    "torch_version": lambda value: isinstance(value, str),
}
"""Which values are harmless, of the keys whose values are no names."""


def copy_plain(archive: Path, copy: Path) -> str | None:
    """Copy a program's archive, file by file, if it is a plain program's.

    Returns:
        What torch would run of one that is none; `None` if it was copied.

    Raises:
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        seen = set[str]()
        for one in old.infolist():
            name, is_packed = one.filename, one.compress_type != zipfile.ZIP_STORED
            if not RECORD.fullmatch(name) or name in seen or is_packed:  # none by torch
                return f"the file {name}"
            seen.add(name)
            record = old.read(one)
            with suppress(ValueError):  # no JSON, or no text
                for found in _evaluated(json.loads(record)):
                    return found
            new.writestr(name, record)
    return None


def _evaluated(found: Any) -> Iterator[str]:
    """What is not plain in a program's JSON."""
    if isinstance(found, str) and not NAME.fullmatch(found):
        yield found
    if isinstance(found, list):
        for one in found:
            yield from _evaluated(one)
    if isinstance(found, dict):
        for key, value in found.items():
            if not NAME.fullmatch(key):
                yield key
            if key not in PLAIN:
                yield from _evaluated(value)
            elif not PLAIN[key](value):
                yield f"{key}={value}"
