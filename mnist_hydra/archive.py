"""A `torch.export` program's archive, looked at before torch loads it.

torch evaluates a program's sizes and guards as Python, finds an operator by any attribute of torch,
imports the module that an enum names, and loads compiled code that lies in the archive. A program
of plain layers needs none of that: sizes and guards are arithmetic, operators are ATen's.

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
    r"([^/]+/)?(data/(weights|constants|sample_inputs)/[\w.-]+|models/[\w.-]+\.json"
    r"|archive_format|archive_version|version|byteorder|\.data/\w+|\.format_version"
    r"|\.storage_alignment|serialized_\w+\.(json|pt))"
)
"""The names of an archive's records; compiled code has others."""
SIZE = re.compile(
    r"(Symbol\('[a-z]+\d+'|(positive|nonnegative|integer)=True|[a-z]{1,2}\d+(?!\d)|\d"
    r"|[(), +/-]|\*(?!\*)|(Integer|Add|Mul|Max|Min|FloorDiv|CleanDiv|Mod|PythonMod)\()*"
)
GUARD = re.compile(
    r"(L\['\w+'\]|\[\d+\]|\.(size|stride)\(\)|\.shape|\d|\b(and|or|not)\b"
    r"|[<>=!]=|[<>+/%() -]|\*(?!\*))*"
)
"""Neither knows powers: `9**9**9` takes for ever. Each text is read in one way alone, so that no
long one takes for ever to refuse."""
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!\w*__|from_file\b)\w+\.(?!\w*__)\w+|torch\.sym_\w+"
    r"|torch\.ops\.higher_order\.(cond|scan|map_impl|while_loop|wrap_with_set_grad_enabled)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|and_|or_|eq|ne|ge|gt|le|lt)"
)


def _are_guards(value: Any) -> bool:
    return not value or all(GUARD.fullmatch(str(one)) for one in value)


PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "expr_str": lambda value: bool(SIZE.fullmatch(str(value))),
    "guards_code": _are_guards,
    "target": lambda value: value is None or bool(OPERATOR.fullmatch(str(value))),
    "as_operator": lambda value: False,
    "__enum__": lambda value: False,
}
"""Which values are harmless, of the keys whose values torch evaluates, calls or imports."""


def copy_plain(archive: Path, copy: Path) -> str | None:
    """Copy a program's archive, file by file, if it is a plain program's.

    Returns:
        What torch would run of one that is none; `None` if it was copied.

    Raises:
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        names = [record.filename for record in old.infolist()]
        for name in names:
            if not RECORD.fullmatch(name) or names.count(name) > 1:
                return f"the file {name}"
            record = old.read(name)
            with suppress(ValueError):  # no JSON, or no text
                for found in _evaluated(json.loads(record)):
                    return found
            new.writestr(name, record)
    return None


def _evaluated(found: Any) -> Iterator[str]:
    """What is not plain in a program's JSON."""
    if isinstance(found, str) and "__enum__" in found:  # JSON within JSON
        yield found
    if isinstance(found, list):
        for one in found:
            yield from _evaluated(one)
    if isinstance(found, dict):
        for key, value in found.items():
            if key in PLAIN and not PLAIN[key](value):
                yield f"{key}={value}"
            yield from _evaluated(value)
