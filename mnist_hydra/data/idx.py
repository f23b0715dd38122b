"""IDX files, the format of MNIST's data: written, unpacked, and checked before they are read.

It never repairs a file and never uses the network.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from mnist_hydra.errors import UserError
from mnist_hydra.whole_file import whole_file

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Hashes of fetched files, in `sha256sum`'s format; checked where the configuration knows none.
SUMS = "SHA256SUMS"
LABELS = 10
IMAGES_OFFSET = 16
LABELS_OFFSET = 8


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write `array` (images: uint8 [N, 28, 28]; labels: uint8 [N]) as an IDX file.

    Its header is two zeros, 8 for `uint8`, the number of axes and their lengths.
    """
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def first_missing(raw: Path) -> str:
    """The first of the four files that is missing in `raw`, plain and gzipped; empty if none."""
    for name in FILES:
        if not os.path.isfile(raw / name) and not os.path.isfile(raw / f"{name}.gz"):
            return name
    return ""


def read_sums(raw: Path) -> dict[str, str]:
    """What `sha256sum` would check in `raw`: name -> SHA-256 (hex), empty without a list."""
    if not (raw / SUMS).is_file():
        return {}
    lines = (line.split() for line in (raw / SUMS).read_text(errors="replace").splitlines())
    return {parts[1].lstrip("*"): parts[0] for parts in lines if len(parts) == 2}


def sha256(path: Path) -> str:
    """The SHA-256 (hex) of a file's content, of what is inside if its name ends in `.gz`.

    Raises:
        UserError: it cannot be read, or is not whole gzip.
    """
    digest = hashlib.sha256()
    try:
        with opened(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged: it cannot be unpacked ({error})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def check_hash(path: Path, expected: str | None) -> str:
    """The SHA-256 (hex) of a file's content, once it is what it should be; `None` is anything.

    Raises:
        UserError: the file is damaged; the message names it and both hashes.
    """
    digest = sha256(path)
    if expected is not None and digest != expected.lower():
        raise UserError(
            f"{path} is damaged: its SHA-256 is {digest[:16]}..., it should be {expected[:16]}..."
        )
    return digest


def check_structure(path: Path) -> None:
    """Check that an unpacked file is what its name says: header, length, labels from 0 to 9.

    Raises:
        UserError: it is not; names the file and the reason.
    """
    if flaw := _flaw(path):
        raise UserError(f"{path} is damaged: {flaw}")


def unpack(source: Path, target: Path) -> None:
    """Unpack `source` (gzip) to `target`, completely or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as beside, opened(source) as stream, beside.open("wb") as out:
        shutil.copyfileobj(stream, out)
        out.flush()
        os.fsync(out.fileno())  # once it has its name it is whole on the disk


def opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    """A file for reading, unpacked where its name ends in `.gz`."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _flaw(path: Path) -> str:
    """What is wrong with a file's structure; empty when nothing is."""
    images = "images" in path.name
    offset = IMAGES_OFFSET if images else LABELS_OFFSET
    with path.open("rb") as stream:
        start = stream.read(offset)
    if len(start) < offset:
        return f"it is {len(start)} bytes long, shorter than an IDX header"
    magic, count, *shape = struct.unpack(f">{offset // 4}I", start)
    if magic != (0x803 if images else 0x801) or shape != ([28, 28] if images else []):
        what = "28 x 28 uint8 images" if images else "uint8 labels"
        return f"it does not begin with the IDX header of {what}"
    length, right = path.stat().st_size, offset + count * (784 if images else 1)
    if length != right:
        return f"it is {length:,} bytes long, its header asks for {right:,}"
    if count == 0:
        return "it is empty"
    if not images:
        highest = int(np.fromfile(path, np.uint8, offset=offset).max())
        if highest >= LABELS:
            return f"it holds the label {highest}, labels are 0 to {LABELS - 1}"
    return ""
