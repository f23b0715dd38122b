"""Compiles kernel.c for one architecture, once, and loads it.

Where that cannot be done it says why; it must never stop a run.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

SOURCE = Path(__file__).with_name("kernel.c")
FLAGS = ("-std=gnu11", "-O2", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w")
LANES = 16
"""Samples of a vector, as in kernel.c; they are worked on and summed up together."""
CHANNELS = 16
"""Channels that a table of BatchNorm's has room for, as in kernel.c."""
REGISTERS = 24
"""To plan with, of the 32 of an AVX-512 CPU: with more, compilers were seen to run out of them."""
TIMEOUT_S = 120


class Unavailable(Exception):
    """There is no kernel for this model on this machine; the message says why."""


@dataclass(frozen=True)
class Shape:
    """`Of` of kernel.c: what a stage is of."""

    k: int
    pad: int
    ci: int
    co: int
    raw: int
    inner: int
    out: int
    slope_in: float
    slope_out: float

    def as_c(self) -> str:
        sizes = (self.k, self.pad, self.ci, self.co, self.raw, self.inner, self.out)
        blocks = (*_block(self.out, self.co), *_block(self.inner, self.ci))
        many_taps = _divisors(self.co, REGISTERS // self.k)[-1]
        values = (*sizes, *blocks, many_taps, self.slope_in, self.slope_out)
        return ", ".join(str(value) for value in values)


class Task(ctypes.Structure):
    """`Task` of kernel.c."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "gy", "y", "gx", "weight", "gweight")],
        *[(name, ctypes.c_void_p) for name in ("before", "after", "sums")],
        ("stride", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("n", "threads", "threshold")],
        ("key", ctypes.c_int32 * 2),
        *[(name, ctypes.c_float) for name in ("scale", "eps_x", "eps_y")],
    ]


Call = Callable[[Task], None]


def load(shapes: Sequence[Shape], folder: Path) -> tuple[list[Call], list[Call]]:
    """Each stage's forward and backward function, compiled unless `folder` has them already.

    A damaged file is compiled anew. Processes that ask at the same time compile once. The file's
    name tells source, shapes and CPU, so that a folder shared by different machines is no danger.

    Raises:
        Unavailable: no AVX-512 (with less, plain PyTorch is faster), no compiler, a compiler that
            fails, or a folder that cannot be written.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        raise Unavailable("this CPU has no AVX-512")
    stages = " ".join(f"STAGE({i}, {shape.as_c()})" for i, shape in enumerate(shapes))
    identity = "\0".join((SOURCE.read_text(), " ".join(FLAGS), stages, _cpu(), _openmp() or ""))
    library = folder / f"kernel-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        loaded = _loaded(library)
        if loaded is None:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{library}.lock", timeout=TIMEOUT_S):
                loaded = _loaded(library)
                if loaded is None:
                    _compile(library, stages)
                    loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(str(error)) from error
    numbers = range(len(shapes))
    forward = [_function(loaded, f"forward_{i}") for i in numbers]
    return forward, [_function(loaded, f"backward_{i}") for i in numbers]


def _loaded(library: Path) -> ctypes.CDLL | None:
    """A library that was compiled before, or `None` where it is missing or damaged."""
    try:
        return ctypes.CDLL(str(library)) if library.exists() else None
    except OSError:
        return None


def _function(library: ctypes.CDLL, name: str) -> Call:
    function = library[name]
    function.argtypes, function.restype = [ctypes.POINTER(Task)], None
    return function


def _compile(library: Path, stages: str) -> None:
    name = compiler()
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built = Path(scratch) / library.name
        command = [name, *FLAGS, f"-DSTAGES={stages}", "-o", str(built), str(SOURCE)]
        openmp = _openmp()
        if openmp is not None:  # torch's own: a second one would bring a second set of threads
            command += ["-Wl,--as-needed", openmp]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode != 0:
            first = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
            raise Unavailable(f"{Path(name).name} fails: {first}")
        os.replace(built, library)


def compiler() -> str:
    """The C compiler: `$CC`, gcc, clang or cc.

    Raises:
        Unavailable: there is none.
    """
    for name in (os.environ.get("CC"), "gcc", "clang", "cc"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise Unavailable("there is no C compiler (gcc, clang or cc)")


def _openmp() -> str | None:
    """The OpenMP library that torch brings, where it does."""
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.parent / "torch.libs"):
        for found in sorted(folder.glob("libgomp*.so*")):
            return str(found)
    return None


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def _block(these: int, those: int) -> tuple[int, int]:
    """How many of these to multiply by how many of those at once.

    Of what fits in the registers beside one factor of each kind, the block with the most
    multiplications for a load.
    """
    blocks = [(a, b) for a in _divisors(these, 16) for b in _divisors(those, 16)]
    fitting = [(a, b) for a, b in blocks if a * b + a + 1 <= REGISTERS]
    return max(fitting, key=lambda block: block[0] * block[1] / (block[0] + block[1]))


def _divisors(count: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, most + 1) if count % divisor == 0]
