"""The folder that a run's records wait in: a journal of lines with checksums, and their files.

`<output_dir>/spool/<key>/` holds `run.json`, which says of which run it is; `journal`, a line a
record; `position`, up to where that is delivered; and a folder for each record that has a file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mnist_hydra.whole_file import whole_file

FOLDER = "spool"
"""Below `output_dir`; in it a folder for each run that has anything undelivered."""
JOURNAL, POSITION, LOCK, RUN_FILE = "journal", "position", ".lock", "run.json"


@dataclass(frozen=True)
class SpooledRun:
    """The MLflow run that a spool is of; it may not have been made yet."""

    key: str
    """This program's own id of the run, 32 hexadecimal digits; MLflow's for a run that it has, with
    the number of the attempt for a trial's.
    """
    experiment: str
    name: str | None
    tags: Mapping[str, str]
    start_ms: int
    store: str | None
    """The address of its store, without a password; `None` for the one below `output_dir`."""
    run_id: str | None = None
    config: str | None = None
    """What it began with, in YAML, for going on with it while the store is away."""

    @property
    def id(self) -> str:
        """The run's id in MLflow; its key while it has none."""
        return self.run_id or self.key


@dataclass(frozen=True)
class Record:
    """One thing that is to be delivered."""

    number: int
    """From 0; the folder of its file is called so."""
    kind: str
    """`settings`, `data`, `tags`, `metrics`, `file`, `checkpoint`, `model` or `end`."""
    data: Any
    """Anything that JSON can hold."""
    file: str | None = None
    """Name of its file or folder, below the folder of its number."""
    sha256: str | None = None

    @property
    def is_product(self) -> bool:
        """Whether it is what is made of a run that has finished: a picture or the model."""
        return self.kind == "model" or (self.kind == "file" and self.data == "pictures")

    def path(self, folder: Path) -> Path:
        """Where its file or folder is, in the spool at `folder`."""
        return folder / str(self.number) / str(self.file)

    def is_whole(self, folder: Path) -> bool:
        """Whether its file is there, and as it was written."""
        with suppress(OSError):
            return sha256_of(self.path(folder)) == self.sha256
        return False


def line_of(record: Record) -> bytes:
    """A record as a line of the journal: its CRC-32 in 8 hexadecimal digits, a blank, JSON."""
    return _with_checksum(json.dumps(asdict(record), separators=(",", ":")).encode())


def record_of(line: bytes) -> Record | None:
    """The record of a line; `None` for a line that is not as it was written."""
    text = _checked(line)
    return None if text is None else Record(**json.loads(text))


def undelivered(folder: Path) -> Iterator[tuple[Record | None, int]]:
    """The records of a spool that are not delivered, each with where its line ends, in bytes.

    They come in order, a damaged one as `None`; part of a line, by a killed process, does not come.
    """
    end = position(folder)
    with suppress(FileNotFoundError), open(folder / JOURNAL, "rb") as journal:
        journal.seek(end)
        for line in journal:
            if line.endswith(b"\n"):
                end += len(line)
                yield record_of(line), end


def records(folder: Path) -> list[Record]:
    """The records of a spool that are not delivered and not damaged, in order."""
    return [record for record, _ in undelivered(folder) if record is not None]


def warn_of_lost_records(folder: Path, run: str) -> None:
    """Say it if the journal of a run's spool must have been longer: files are in no record."""
    told = {str(record.number) for record in records(folder)}
    files = [p for p in folder.glob("*/*") if p.parent.name.isdecimal()]
    untold = sum(file.parent.name not in told for file in files)
    if untold > 1:  # one alone was written as its process was killed
        say(f"run {run} is damaged: {untold} of its files are in no record ({folder / JOURNAL})")


def spools(output_dir: Path, run: str | None = None) -> list[tuple[Path, SpooledRun]]:
    """The spools below `output_dir`, the oldest run first; one that does not say of which run it
    is, is said and left alone.

    Args:
        run: the id or the key of a run whose spools alone are wanted.
    """
    found = []
    for folder in filter(Path.is_dir, (output_dir / FOLDER).glob("*")):
        spooled = read_run(folder)
        if spooled is None and not (folder / JOURNAL).exists():
            continue  # another process begins it
        if spooled is None:
            say(f"{folder / RUN_FILE} is damaged; right: delete {folder}, whose run is not known")
        elif run in (None, spooled.key, spooled.run_id):
            found.append((folder, spooled))
    return sorted(found, key=lambda one: (one[1].start_ms, len(one[1].key), one[1].key))


def is_in_use(folder: Path) -> bool:
    """Whether a process writes to a spool or delivers it."""
    with suppress(Timeout), FileLock(folder / LOCK).acquire(timeout=0):
        return False
    return True


def remove(folder: Path) -> None:
    """Remove a spool, and the folder of spools with the last one."""
    with suppress(OSError):  # first, or who is killed here would leave one that nobody can read
        (folder / JOURNAL).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def sha256_of(path: Path) -> str:
    """The SHA-256 (hex) of a file, or of a folder: of its files' names and hashes, in order."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        told = "".join(f"{p.relative_to(path)} {sha256_of(p)}\n" for p in files)
        return hashlib.sha256(told.encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def position(folder: Path) -> int:
    """Up to where the journal is delivered, in bytes; damaged, all of it is delivered again."""
    return int(_read(folder / POSITION) or 0)


def set_position(folder: Path, end: int) -> None:
    """Write down that the journal is delivered up to `end`, in bytes."""
    _write(folder / POSITION, str(end).encode())


def read_run(folder: Path) -> SpooledRun | None:
    """The run that a spool is of; `None` if that is damaged or missing."""
    text = _read(folder / RUN_FILE)
    return None if text is None else SpooledRun(**json.loads(text))


def write_run(folder: Path, spooled: SpooledRun) -> None:
    """Write down which run a spool is of."""
    _write(folder / RUN_FILE, json.dumps(asdict(spooled)).encode())


def say(line: str) -> None:
    """Print a line on stderr at once."""
    print(line, file=sys.stderr, flush=True)


def _read(path: Path) -> bytes | None:
    """The text of a small file; `None` if that is missing, or not as it was written."""
    with suppress(FileNotFoundError):
        return _checked(path.read_bytes())
    return None


def _write(path: Path, text: bytes) -> None:
    """Write a small file, with its checksum, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_bytes(_with_checksum(text))


def _with_checksum(text: bytes) -> bytes:
    """One line: the CRC-32 of a text in 8 hexadecimal digits, a blank, the text."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(line: bytes) -> bytes | None:
    """The text of such a line; `None` if the line is not as it was written."""
    text = line[9:-1]
    return text if line == _with_checksum(text) else None
