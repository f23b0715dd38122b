"""What the kernel is compiled for, and what happens where it cannot be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from mnist_hydra import build
from mnist_hydra.kernel import compile as kernel
from mnist_hydra.kernel.compile import Unavailable, Vectors
from mnist_hydra.kernel.fused import Fused
from mnist_hydra.models import Model2, Model3

ASKED = """case "$*" in *-dM*) exit;; esac
"""
"""It has no macros to tell."""
GOMP, OMP = Path("/torch/libgomp.so.1"), Path("/torch/libomp.dylib")


@pytest.mark.parametrize(
    ("macros", "expected"),
    [
        ({"__x86_64__", "__SSE2__", "__AVX2__", "__AVX512F__"}, Vectors(16, 24)),
        ({"__x86_64__", "__SSE2__", "__AVX__", "__AVX2__"}, Vectors(8, 16)),
        ({"__x86_64__", "__SSE2__", "__AVX__"}, Vectors(4, 11)),
        ({"__aarch64__", "__ARM_NEON"}, Vectors(4, 24)),
        ({"__riscv"}, Vectors(4, 11)),
    ],
)
def test_lanes_and_registers_follow_from_what_the_compiler_is_given(
    macros: set[str], expected: Vectors
) -> None:
    assert kernel.vectors(macros) == expected


@pytest.mark.parametrize(
    ("machine", "capability", "expected"),
    [
        ("x86_64", "AVX512", ["-march=native", "-mprefer-vector-width=512"]),
        ("x86_64", "AVX2", ["-march=native", "-mno-avx512f"]),
        ("AMD64", "DEFAULT", ["-march=native", "-mno-avx"]),
        ("aarch64", "DEFAULT", ["-mcpu=native"]),
        ("arm64", "SVE256", ["-mcpu=native"]),
    ],
)
def test_the_kernel_uses_of_this_cpu_what_pytorch_uses(
    machine: str, capability: str, expected: list[str]
) -> None:
    assert kernel.cpu_flags(machine, capability) == expected


@pytest.mark.parametrize(
    ("macros", "runtime", "expected"),
    [
        (set(), None, ["-fopenmp"]),
        (set(), GOMP, ["-fopenmp", "-Wl,--as-needed", str(GOMP)]),
        ({"__clang__"}, GOMP, ["-fopenmp"]),
        ({"__clang__"}, OMP, ["-Xclang", "-fopenmp", str(OMP)]),
    ],
)
def test_threads_are_those_of_torchs_own_openmp_library_where_the_compiler_can_call_it(
    macros: set[str], runtime: Path | None, expected: list[str]
) -> None:
    assert kernel.openmp_flags(macros, runtime) == expected


def pretend(folder: Path, name: str, script: str) -> str:
    """A program that stands in for a C compiler."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def refusal(folder: Path) -> str:
    with pytest.raises(Unavailable) as caught:
        Fused(Model3(), folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_compiler_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert refusal(tmp_path / "kernels") == "there is no C compiler (gcc, clang or cc)"
    assert not (tmp_path / "kernels").exists()


def test_a_cc_that_points_nowhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert "CC=/nowhere/cc is no program" in refusal(tmp_path / "kernels")
    assert not (tmp_path / "kernels").exists()


def test_a_compiler_that_cannot_be_started_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", pretend(tmp_path, "mycc", ""))
    (tmp_path / "mycc").write_text("no program")
    assert refusal(tmp_path / "kernels") == "mycc cannot be started (Exec format error)"
    monkeypatch.setenv("CC", 'gcc "')
    assert refusal(tmp_path / "kernels") == 'CC=gcc " cannot be read (No closing quotation)'
    assert not (tmp_path / "kernels").exists()


def test_a_temporary_folder_that_is_missing_is_not_taken_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_possible: None
) -> None:
    kernel.compiler()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    said = refusal(tmp_path / "kernels")
    assert said.startswith("nothing can be compiled (") and "XDG_CACHE_HOME" not in said


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"{ASKED}echo 'a warning: x' >&2; echo 'a.c:1: error: bad flag' >&2; exit 3"
    monkeypatch.setenv("CC", pretend(tmp_path, "mycc", script))
    assert refusal(tmp_path / "kernels") == "mycc fails: a.c:1: error: bad flag"
    assert not (tmp_path / "kernels").exists()


def test_a_compiler_that_writes_garbage_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ASKED + 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo junk > "$2"; shift; done'
    monkeypatch.setenv("CC", pretend(tmp_path, "mycc", script))
    assert "mycc made no library" in refusal(tmp_path / "kernels")
    assert not (tmp_path / "kernels").exists()


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    script = f"{ASKED}sleep 600 & echo $! > {started}; wait"
    monkeypatch.setenv("CC", pretend(tmp_path, "mycc", script))
    monkeypatch.setattr(kernel, "TIMEOUT_S", 2)
    assert refusal(tmp_path / "kernels") == "mycc gave no answer within 2 s"
    deadline = time.monotonic() + 10
    while _runs(int(started.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(started.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal(tmp_path / "file" / "folder")
    assert str(tmp_path / "file") in said and "XDG_CACHE_HOME=" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("kernel_possible")
def test_a_compiler_without_openmp_makes_a_kernel_of_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (real, *_) = kernel.compiler()
    script = f"""for word in "$@"; do
    [ "$word" = -fopenmp ] && {{ echo 'error: unsupported option -fopenmp' >&2; exit 1; }}
done
exec {real} "$@" """
    monkeypatch.setenv("CC", pretend(tmp_path, "mycc", script))
    model = Model2()
    fused = build.kernel_of(model, tmp_path)
    assert fused is not None and not fused.kernel.parallel
    assert capsys.readouterr().err == "training on one thread: the C compiler has no OpenMP\n"
    images = torch.randn(20, 1, 28, 28)
    model.eval()
    torch.testing.assert_close(fused.evaluate(images), model(images), atol=1e-4, rtol=1e-4)


def build_elsewhere(folder: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from mnist_hydra.kernel.fused import Fused;"
        "from mnist_hydra.models import Model3; Fused(Model3(), Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.usefixtures("kernel_possible")
@pytest.mark.parametrize("damage", ["cut", "flipped", "hash gone"])
def test_a_damaged_kernel_is_compiled_anew(tmp_path: Path, damage: str) -> None:
    build_elsewhere(tmp_path).wait(timeout=120)
    (library,) = tmp_path.glob("*.so")
    good = library.read_bytes()
    library.unlink()
    middle = len(good) // 2
    if damage == "cut":
        library.write_bytes(good[:middle])
    elif damage == "flipped":
        library.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    else:
        library.write_bytes(good)
        library.with_suffix(".sha256").unlink()
    assert Fused(Model3(), tmp_path)(torch.randn(3, 1, 28, 28)).isfinite().all()
    assert library.with_suffix(".sha256").read_text() == sha256(library.read_bytes()).hexdigest()


@pytest.mark.usefixtures("kernel_possible")
def test_it_is_compiled_once_however_many_processes_ask(tmp_path: Path) -> None:
    started = [build_elsewhere(tmp_path) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    assert len(list(tmp_path.glob("*.so"))) == 1


@pytest.mark.usefixtures("kernel_possible")
@pytest.mark.parametrize("changed", ["version", "CPU"])
def test_another_compiler_or_cpu_has_a_kernel_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    (real, *_) = kernel.compiler()
    macro = {"version": "__VERSION__ 9", "CPU": "__ANOTHER_CPU__ 1"}[changed]
    tells = f'{real} "$@"; case "$*" in *-dM*) echo "#define {macro}";; esac'
    made = pretend(tmp_path, "mycc", f'exec {real} "$@"')
    monkeypatch.setenv("CC", made)
    Fused(Model2(), tmp_path / "kernels")
    kernel.predefined.cache_clear()  # as another process has it
    pretend(tmp_path, "mycc", tells)
    Fused(Model2(), tmp_path / "kernels")
    assert len(list(tmp_path.glob("kernels/*.so"))) == 2


@pytest.mark.usefixtures("kernel_possible")
def test_pytorchs_own_switch_limits_the_kernel_too(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from mnist_hydra.kernel.fused import Fused;"
        "from mnist_hydra.models import Model3;"
        f"print(Fused(Model3(), Path({str(tmp_path)!r})).kernel.lanes)"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "4"
