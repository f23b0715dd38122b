"""Checkpoints: written whole or not at all, read only when their hash is right, never a pickle."""

from __future__ import annotations

import hashlib
import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_hydra.whole_file import whole_file

FORMAT = 1


class DamagedCheckpoint(Exception):
    """The file is not what was written, or holds what is never read."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` by rename; once this returns it is on the disk.

    Whoever reads `path` meanwhile finds the file before or the file after, never a part of one.

    Args:
        path: the file; its folder must exist.
        state: tensors, numbers, text, lists and dictionaries only.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    with whole_file(path) as beside, open(beside, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, sha256: str) -> dict[str, Any]:
    """Read a checkpoint whose hash is known; tensors come on the CPU.

    Raises:
        DamagedCheckpoint: if the file is not the one that was written, of another format, or holds
            more than `save` is for.
    """
    data = path.read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise DamagedCheckpoint(
            f"{path.name} has SHA-256 {got[:12]}..., written was {sha256[:12]}..."
        )
    if kinds := _never_read(io.BytesIO(data)):
        raise DamagedCheckpoint(f"{path.name} holds {kinds}")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if state.pop("format", None) != FORMAT:
        raise DamagedCheckpoint(f"{path.name} is of another format; this program reads {FORMAT}")
    return state


def insist_on_storable(state: Any) -> None:
    """See that a state can be saved and is read again.

    Raises:
        TypeError: it holds what is not read; names its kinds.
        Exception: of pickle's, if it cannot be saved.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    if kinds := _never_read(buffer):
        raise TypeError(f"it holds {kinds}")


def _never_read(file: io.BytesIO) -> str:
    """The kinds of objects in a checkpoint that are not read, since that could run code."""
    file.seek(0)
    return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file)))


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global generator that a user's own code on `device` may draw from."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "mps": [torch.mps.get_rng_state()] if device.type == "mps" else [],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every global generator back to what `random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and len(state["cuda"]) == 1:  # it may come from a CPU
        torch.cuda.set_rng_state(state["cuda"][0], device)
    if device.type == "mps" and state.get("mps"):  # which older checkpoints lack
        torch.mps.set_rng_state(state["mps"][0])
