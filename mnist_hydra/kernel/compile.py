"""Compiles kernel.c for one architecture and this CPU, once, and loads it.

Where that is not possible it says why, and the run goes on without a kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from mnist_hydra.kernel.folder import (
    drop_oldest,
    insist_on_kept,
    insist_on_own,
    make_folder,
    remove_empty,
)
from mnist_hydra.whole_file import whole_file

SOURCE = Path(__file__).with_name("kernel.c")
COMPILER_FLAGS = ("-std=gnu11", "-O2", "-ffp-contract=fast", "-shared", "-fPIC", "-Wall", "-Wextra")
CHANNELS = 16
"""Channels that a table of BatchNorm's has room for, as in kernel.c."""
TIMEOUT_S = 60
KEPT_FILES = 300
"""Of 100 kernels, three each: some 8 MB."""


class Unavailable(Exception):
    """There is no kernel for this model on this machine; the message says why."""


@dataclass(frozen=True)
class Vectors:
    """The vector registers of one CPU core."""

    lanes: int
    """Samples in one vector, computed together."""
    registers: int
    """How many vectors a block of sums may hold: fewer than the CPU has registers, since compilers
    were seen to run out of them earlier (tests/benchmarks/LOG.md)."""


def vectors(macros: Collection[str]) -> Vectors:
    """The vector registers of the CPU that a compiler compiles for.

    Args:
        macros: the names that the compiler predefines (`cc -dM -E`).
    """
    if "__AVX512F__" in macros:
        return Vectors(16, 24)
    if "__AVX2__" in macros:
        return Vectors(8, 16)
    if "__ARM_NEON" in macros:
        return Vectors(4, 24)
    return Vectors(4, 11)


def cpu_flags(machine: str, capability: str) -> list[str]:
    """The compiler flags that name the CPU to compile for: this one, as far as PyTorch uses it.

    So `ATEN_CPU_CAPABILITY=avx2` (or `default`) holds for the kernel as it does for PyTorch.

    Args:
        machine: as `platform.machine()` names it.
        capability: as `torch.backends.cpu.get_cpu_capability()` names it.
    """
    if machine.lower() not in ("x86_64", "amd64", "i386", "i686"):
        return ["-mcpu=native"]
    if capability.startswith("AVX512"):
        return ["-march=native", "-mprefer-vector-width=512"]
    return ["-march=native", "-mno-avx512f" if capability == "AVX2" else "-mno-avx"]


def openmp_flags(macros: Collection[str], runtime: Path | None) -> list[str]:
    """The compiler flags for threads, with the OpenMP library that torch uses if that works.

    A second library would start a second set of threads, and crash the process on macOS.

    Args:
        macros: the names that the compiler predefines (`cc -dM -E`).
        runtime: the library that torch brings, if it does.
    """
    if runtime is None:
        return ["-fopenmp"]
    if "__clang__" not in macros:
        return ["-fopenmp", "-Wl,--as-needed", str(runtime)]
    if runtime.name.startswith("libgomp"):  # which clang's code cannot call
        return ["-fopenmp"]
    return ["-Xclang", "-fopenmp", str(runtime)]


@dataclass(frozen=True)
class Shape:
    """The sizes and slopes of a stage: `Shape` of kernel.c."""

    k: int
    pad: int
    ci: int
    co: int
    raw: int
    inner: int
    out: int
    slope_in: float
    slope_out: float

    def as_c(self, registers: int) -> str:
        """The initialiser of a `Shape` in C, with blocks that fit in so many registers."""
        sizes = (self.k, self.pad, self.ci, self.co, self.raw, self.inner, self.out)
        there = _block(self.out, self.co, registers)
        back = _block(self.inner, self.ci, registers)
        many_taps = _divisors(self.co, max(registers // self.k, 1))[-1]
        values = (*sizes, *there, *back, many_taps, self.slope_in, self.slope_out)
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


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: for each stage a forward and a backward function."""

    lanes: int
    """Samples of a vector."""
    parallel: bool
    """Whether it was compiled with OpenMP; without, it uses one thread."""
    forward: list[Call]
    backward: list[Call]


def load_kernel(shapes: Sequence[Shape], folder: Path, cpu: Sequence[str] | None = None) -> Kernel:
    """Each stage's functions, compiled unless `folder` has them already.

    A damaged file is compiled anew. Processes that ask at the same time compile once. The file's
    name depends on source, shapes, compiler, its version and the CPU that it compiles for, so
    different machines may share the folder. The oldest files go when there are many.

    Args:
        shapes: the architecture's stages, in order.
        folder: where compiled kernels are kept.
        cpu: the compiler flags that say for which CPU; `None` for this one (`cpu_flags`).

    Raises:
        Unavailable: no compiler, a compiler that fails, a folder that cannot be written, or that
            others may write to; then nothing is left behind.
    """
    if cpu is None:
        cpu = cpu_flags(platform.machine(), torch.backends.cpu.get_cpu_capability())
    command = [*compiler(), *COMPILER_FLAGS, *cpu]
    macros = predefined(*command)
    sources = SOURCE.read_text(), Path(__file__).read_text()
    identity = (sources, command, shapes, sorted(macros.items()), _openmp())
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    library = folder / f"kernel-{digest}.so"
    lock = Path(f"{library}.lock")
    made: list[Path] = []
    right = "XDG_CACHE_HOME=<a folder that you alone may write to>"
    if not folder.is_absolute():
        raise Unavailable(f"{folder} has no place to be; right: {right}")
    try:
        loaded = _loaded(library)
        if loaded is None:
            made = make_folder(folder)
            with FileLock(lock, timeout=3 * TIMEOUT_S):
                loaded = _loaded(library)
                if loaded is None:
                    loaded = _kept(_compiled(command, macros, shapes), library, command[0])
                    drop_oldest(folder, KEPT_FILES)
    except (OSError, Unavailable) as error:
        if not isinstance(error, Timeout) and not os.path.exists(library):
            with suppress(OSError):
                lock.unlink()
        remove_empty(made)
        if isinstance(error, Unavailable):
            raise
        raise Unavailable(f"{error}; right: {right}") from error
    return loaded


def _loaded(library: Path) -> Kernel | None:
    """A library that was compiled before; `None` if it is missing or damaged.

    Raises:
        OSError: it cannot be looked at, or others may write to it or to the folders it lies in.
    """
    try:
        insist_on_kept(library.parents[2])
        for path in (library.parents[1], library.parent, library):
            insist_on_own(path)
    except FileNotFoundError:
        return None
    try:
        found = hashlib.sha256(library.read_bytes()).hexdigest()
        return _opened(library) if _hash_file(library).read_text() == found else None
    except (OSError, ValueError):
        return None


def _hash_file(library: Path) -> Path:
    """The file with a library's hash: loading a library that is cut short crashes the process."""
    return library.with_suffix(".sha256")


def _opened(library: Path) -> Kernel:
    """Load a library; raises `OSError` or `ValueError` where it is no kernel."""
    opened = ctypes.CDLL(str(library))
    lanes, parallel, stages = (
        ctypes.c_int.in_dll(opened, name).value for name in ("lanes", "parallel", "stages")
    )
    forward, backward = (
        [_function(opened, f"{way}_{stage}") for stage in range(stages)]
        for way in ("forward", "backward")
    )
    return Kernel(lanes, bool(parallel), forward, backward)


def _function(library: ctypes.CDLL, name: str) -> Call:
    function = library[name]
    function.argtypes, function.restype = [ctypes.POINTER(Task)], None
    return function


def _compiled(
    command: Sequence[str], macros: Mapping[str, str], shapes: Sequence[Shape]
) -> bytes:
    """Compile, and return what the compiler wrote."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            built = Path(scratch) / "kernel.so"
            words = [*command, *definitions(shapes, vectors(macros)), "-o", str(built), str(SOURCE)]
            try:
                _run([*words, *openmp_flags(macros, _openmp())])
            except Unavailable:  # perhaps for want of OpenMP alone
                _run(words)
            return built.read_bytes() if built.exists() else b""
    except OSError as error:
        raise Unavailable(f"nothing can be compiled ({error})") from None


def _kept(content: bytes, library: Path, compiled_by: str) -> Kernel:
    """Write a library, load it once as a test, and only then move it to its place."""
    hash_file = _hash_file(library)
    try:
        with whole_file(library) as beside:
            beside.write_bytes(content)
            beside.chmod(0o600)
            hash_file.write_text(hashlib.sha256(content).hexdigest())
            try:
                return _opened(beside)
            except (OSError, ValueError) as error:
                raise Unavailable(f"{Path(compiled_by).name} made no library: {error}") from None
    except BaseException:
        hash_file.unlink(missing_ok=True)
        raise


def definitions(shapes: Sequence[Shape], vector: Vectors) -> list[str]:
    """The compiler flags that define one architecture's stages in kernel.c."""
    stages = " ".join(f"STAGE({i}, {s.as_c(vector.registers)})" for i, s in enumerate(shapes))
    return [f"-DLANES={vector.lanes}", f"-DCOUNT={len(shapes)}", f"-DSTAGES={stages}"]


@cache
def predefined(*command: str) -> Mapping[str, str]:
    """The macros that a compiler predefines, by name: they tell its version and its CPU."""
    lines = _run([*command, "-dM", "-E", "-x", "c", os.devnull]).splitlines()
    macros = (line.split(maxsplit=2) for line in lines if line.startswith("#define"))
    return {name: " ".join(value) for _, name, *value in macros}


def _run(command: Sequence[str]) -> str:
    """Run a compiler and return what it printed.

    Raises:
        Unavailable: it cannot be started, failed or hung; whatever it started is ended, too.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"{name} cannot be started ({error.strerror})") from None
    try:
        out, errors = process.communicate(timeout=TIMEOUT_S)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Unavailable(f"{name} gave no answer within {TIMEOUT_S} s") from None
        raise
    if process.returncode != 0:
        lines = errors.strip().splitlines() or [f"exit code {process.returncode}"]
        telling = (line for line in lines if "error" in line or "failed" in line)
        first = next(telling, lines[0])
        raise Unavailable(f"{name} fails: {first}")
    return out


def compiler() -> list[str]:
    """The C compiler's command: `$CC` if that is set, else gcc, clang or cc.

    Raises:
        Unavailable: there is none.
    """
    try:
        chosen = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise Unavailable(f"CC={os.environ['CC']} cannot be read ({error})") from None
    for name in chosen[:1] or ("gcc", "clang", "cc"):
        found = shutil.which(name)
        if found is not None:
            return [found, *chosen[1:]]
    if chosen:
        raise Unavailable(f"CC={chosen[0]} is no program; right: a C compiler, or no CC at all")
    raise Unavailable("there is no C compiler (gcc, clang or cc)")


def _openmp() -> Path | None:
    """The OpenMP library that comes with torch, if one does."""
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.parent / "torch.libs"):
        for found in sorted([*folder.glob("libgomp*.so*"), *folder.glob("lib*omp*.dylib")]):
            return found
    return None


def _block(these: int, those: int, registers: int) -> tuple[int, int]:
    """The size of the block of products that is summed in registers at once.

    `a` of `these` times `b` of `those` need registers for a * b sums, for `a` factors of the one
    kind and for one of the other. Of the blocks that fit this has the most products per load.
    """
    blocks = [(a, b) for a in _divisors(these, 16) for b in _divisors(those, 16)]
    fitting = [(a, b) for a, b in blocks if a * b + a + 1 <= registers]
    return max(fitting, key=lambda block: block[0] * block[1] / (block[0] + block[1]))


def _divisors(count: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, most + 1) if count % divisor == 0]
