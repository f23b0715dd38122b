"""What a user gets from `pip install`: commands that work from anywhere, and quickly."""

from __future__ import annotations

import ast
import configparser
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.benchmarks import mnist_files
from tests.lower_bounds import requirements

ROOT = Path(__file__).parents[1]
BIN = Path(sysconfig.get_path("scripts"))
# The tests that share the wheel run in one process, so that it is built once.
WITH_THE_WHEEL = pytest.mark.xdist_group("wheel")
HEAVY = ("torch", "torchvision", "albumentations", "cv2", "mlflow", "matplotlib", "optuna", "scipy")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that nothing that was built here before gets into it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("conf", "mnist_hydra"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(copy)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel; its dependencies are this environment's."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    words = ["--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    # A path file's folders do not have their own path files read: the checkout stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**clean, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


@WITH_THE_WHEEL
def test_a_wheel_trains_in_an_environment_that_has_no_checkout(
    installed: Path, tmp_path: Path
) -> None:
    where = run(installed / "python", "-c", "import mnist_hydra as m; print(m)", cwd=tmp_path)
    assert str(installed.parent) in where.stdout, where.stdout + where.stderr

    mnist_files.write(tmp_path / "data", train=64, test=32)
    words = ("model=model1", "epochs=1", "batch_size=16", "data.root=data", "data.sha256=null")
    done = run(installed / "mnist-train", *words, cwd=tmp_path, OMP_NUM_THREADS="1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "outputs" / "mlflow.db").exists()


def test_both_commands_work_from_any_folder(tmp_path: Path) -> None:
    module = run(sys.executable, "-m", "mnist_hydra.train", "--cfg", "job", cwd=tmp_path)
    script = run(BIN / "mnist-train", "--cfg", "job", cwd=tmp_path)

    assert module.returncode == 0, module.stderr
    assert module.stdout == script.stdout
    assert "batch_size: 512" in module.stdout


@WITH_THE_WHEEL
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {"mnist_hydra/conf/__init__.py"}
    expected |= {f"mnist_hydra/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    for path in (ROOT / "mnist_hydra").rglob("*.*"):
        if path.is_file() and path.suffix != ".pyc":
            name = str(path.relative_to(ROOT))
            expected.add(name.replace("mnist_hydra/hydra_plugins/", "hydra_plugins/mnist_hydra/"))

    assert expected - held == set()
    assert {name.split("/")[0] for name in held} - {"mnist_hydra", "hydra_plugins"} == {
        f"mnist_hydra-{version()}.dist-info"
    }


def version() -> str:
    module = ast.parse((ROOT / "mnist_hydra" / "__init__.py").read_text())
    assigned = next(node for node in module.body if isinstance(node, ast.Assign))
    return str(ast.literal_eval(assigned.value))


@WITH_THE_WHEEL
def test_hydra_s_namespace_stays_open_to_other_plugins(wheel: Path) -> None:
    assert "hydra_plugins/__init__.py" not in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["-sc", "query=bash"]])
def test_a_command_that_only_looks_at_the_configuration_imports_nothing_heavy(
    words: list[str], tmp_path: Path
) -> None:
    done = run(
        *(sys.executable, "-X", "importtime", "-m", "mnist_hydra.train", *words),
        cwd=tmp_path,
        COMP_LINE="mnist-train model=",
        COMP_POINT="18",
    )
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))

    assert done.returncode == 0, done.stderr[-2000:]
    assert "hydra.main" in imported
    assert imported & set(HEAVY) == set()
    assert list(tmp_path.iterdir()) == []


def test_tab_completes_groups_and_choices_in_bash(tmp_path: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.environ.update(PATH=f"{BIN}:{os.environ['PATH']}", TERM="dumb", PS1="$ ")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        type_and_await(terminal, 'eval "$(mnist-train -sc install=bash)"; echo rea""dy\n', "ready")
        type_and_await(terminal, "mnist-train sched\t", "uler")  # it is a group and a key
        shown = type_and_await(terminal, "=\t\t", "scheduler=onecycle")
    finally:
        os.write(terminal, b"\x03exit\n")
        os.close(terminal)
        os.waitpid(process, 0)

    assert re.search(r"scheduler=constant\s+scheduler=cosine\s+scheduler=onecycle", shown)


def type_and_await(terminal: int, keys: str, awaited: str, timeout_s: float = 60) -> str:
    """Send keys to a terminal and return what it shows, once that contains `awaited`."""
    os.write(terminal, keys.encode())
    shown, deadline = "", time.monotonic() + timeout_s
    while awaited not in shown:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            pytest.fail(f"{awaited!r} did not appear after {keys!r}, but {shown!r}")
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_every_dependency_names_the_oldest_release_that_works() -> None:
    for name, lines in requirements().items():
        for line in lines:
            assert ">=" in line or line.startswith("mnist_hydra["), f"[{name}] {line}"


def test_no_major_release_of_a_core_dependency_gets_in_unseen() -> None:
    assert [line for line in requirements()[""] if "<" not in line] == []


def test_metadata_stand_in_setup_cfg_and_pyproject_only_names_the_build_backend() -> None:
    tables = re.findall(r"^\[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert tables == ["build-system"]
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    assert {"metadata", "options", "tool:pytest", "mypy", "flake8", "isort"} <= set(setup)


def test_the_readme_opens_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"```bash\n(.+?)\n```", readme, re.DOTALL)
    assert commands[:2] == [
        "pip install -e . && python -m mnist_hydra.train model=model3 aug=ssr",
        "pip install -e '.[test]' && pytest",
    ]


def test_the_constraints_hold_an_exact_version_of_everything_that_setup_cfg_asks_for() -> None:
    lines = [line for block in requirements().values() for line in block]
    needed = [Requirement(line) for line in lines if not line.startswith(("mnist_hydra", "#"))]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    exact = dict(line.split("==") for line in constraints if not line.startswith("#"))
    for requirement in needed:
        version = exact[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version}"
