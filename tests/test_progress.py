"""What a person sees of a training: on a pseudo-terminal, in a pipe, and where output fails."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mnist_hydra.progress import Progress, clock, fit_words, time_left_s

if TYPE_CHECKING:
    from typing_extensions import Self

METRICS = {
    "train/loss": 0.0412,
    "train/acc": 0.98712,
    "test/loss": 0.0301,
    "test/acc": 0.9902,
    "lr": 0.1402,
    "images_per_s": 31204.4,
    "epoch_s": 1.9,
}

# Trains two epochs of three steps, and waits in the middle of the second for a line of input.
CHILD = f"""
import os, sys
from mnist_hydra.cli.entry import outlive_readers
from mnist_hydra.progress import Progress
outlive_readers()
with Progress(2, 3, 600, os.environ.get("LABEL", "model3")) as progress:
    progress.step(3)
    progress.epoch(1, {METRICS})
    print("said by someone else")
    print("said by someone else on stderr", file=sys.stderr)
    progress.step()
    sys.stdin.readline()
    progress.step(2)
    progress.epoch(2, {METRICS})
print("done, rich imported:", "rich" in sys.modules)
"""


class Terminal:
    """A process on a pseudo-terminal of a given size, and what it wrote so far."""

    def __init__(self, columns: int, rows: int, code: str = CHILD, **environment: str) -> None:
        self.reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=writer,
            stdout=writer,
            stderr=writer,
            env=kept | {"TERM": "xterm-256color"} | environment,
        )
        os.close(writer)
        self.written = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def read(self) -> bool:
        """Take what the process writes next; false once it has closed the terminal."""
        assert select.select([self.reader], [], [], 120)[0], f"nothing more after {self.written!r}"
        try:
            data = os.read(self.reader, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.written += data.decode()
        return bool(data)

    def read_until(self, pattern: str) -> None:
        """Wait until the text, colours left out, has the pattern in it."""
        deadline = time.monotonic() + 120
        while not re.search(pattern, re.sub(r"\x1b\[[0-9;]*m", "", self.written)):
            assert self.read(), f"{pattern!r} was never written: {self.written!r}"
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.written!r}"

    def enter(self) -> None:
        os.write(self.reader, b"\n")

    def end(self) -> int:
        while self.read():
            pass
        return self.process.wait(120)


def run_piped(code: str = CHILD, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        input="\n",
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_a_terminal_shows_a_bar_with_epoch_loss_accuracy_speed_and_time_left() -> None:
    with Terminal(120, 24) as terminal:
        terminal.read_until(
            r"model3 .*━.* epoch 2/2  loss 0.0412  test/acc 99.02 %  31,204 images/s  \d:\d\d left"
        )
        terminal.enter()
        assert terminal.end() == 0
    assert "done, rich imported: True" in terminal.written


def test_a_bar_grows_with_the_steps() -> None:
    code = CHILD.replace("progress.epoch(1", "sys.stdin.readline(); progress.epoch(1")
    code = code.replace("    progress.step(3)\n", "    sys.stdin.readline(); progress.step(3)\n", 1)
    with Terminal(120, 24, code, NO_COLOR="1") as terminal:  # the rest of a bar has no sign then
        terminal.read_until(r"model3 +epoch 1/2  -:-- left")
        terminal.enter()
        terminal.read_until(r"model3  ━{20} +epoch 2/2")
        terminal.enter()
        terminal.read_until(r"model3  ━{26}╸ +epoch 2/2")
        terminal.enter()
        assert terminal.end() == 0


def test_a_terminal_keeps_a_line_of_each_epoch_and_what_others_print() -> None:
    with Terminal(120, 24) as terminal:
        terminal.read_until("epoch 2/2")
        terminal.enter()
        assert terminal.end() == 0
    lines = [line.split("\x1b[2K")[-1].rstrip() for line in terminal.written.split("\r\n")]
    for epoch in (1, 2):
        words = f"epoch {epoch}/2  train/loss 0.0412  train/acc 98.71 %  test/loss 0.0301"
        assert sum(words in line for line in lines) == 1
    assert "said by someone else" in lines
    assert "said by someone else on stderr" in lines


@pytest.mark.parametrize(
    ("columns", "rows"), [(0, 0), (1, 1), (2, 1), (5, 2), (13, 1), (30, 3), (79, 24), (400, 5)]
)
def test_a_terminal_of_any_size_will_do(columns: int, rows: int) -> None:
    with Terminal(columns, rows) as terminal:
        terminal.read_until("e\r?\n?p?")
        terminal.enter()
        assert terminal.end() == 0
    assert "Traceback" not in terminal.written.replace("\r\n", "")
    for line in terminal.written.split("\r\n"):
        for drawn in re.split(r"\x1b\[2K|\r", line):
            if "epoch" in drawn and columns and "done" not in drawn:
                assert len(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", drawn)) <= columns


def test_the_cursor_is_visible_even_after_kill_9() -> None:
    with Terminal(120, 24) as terminal:
        terminal.read_until("epoch 2/2")
        terminal.process.send_signal(signal.SIGKILL)
        assert terminal.end() == -signal.SIGKILL
    assert re.findall(r"\x1b\[\?25[lh]", terminal.written)[-1] == "\x1b[?25h"


def test_a_terminal_that_hangs_up_does_not_stop_the_training(tmp_path: Path) -> None:
    code = CHILD.replace("sys.stdin.readline()", "open(os.environ['FIFO']).read()")
    code = code.replace("progress.step(2)", "progress.step(2); print('to nobody')")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Terminal(120, 24, code, FIFO=str(fifo)) as terminal:
        terminal.read_until("on stderr")
        terminal.hang_up()
        fifo.write_text("go on")
        assert terminal.process.wait(120) == 0


def test_an_error_passes_through_and_the_bar_is_gone_before_its_traceback() -> None:
    code = CHILD.replace("sys.stdin.readline()", "raise RuntimeError('the training failed')")
    with Terminal(120, 24, code, PYTHON_COLORS="0") as terminal:  # of Python 3.13's tracebacks
        assert terminal.end() == 1
    assert "RuntimeError: the training failed" in terminal.written
    assert "━" not in terminal.written[terminal.written.index("Traceback") :]


def test_a_terminal_that_knows_only_ascii_is_written_to_in_ascii() -> None:
    with Terminal(120, 24, LABEL="modèle3", PYTHONIOENCODING="ascii") as terminal:
        terminal.read_until("mod.le3  -+.*epoch 2/2")
        terminal.enter()
        assert terminal.end() == 0
    assert terminal.written.isascii()


def test_a_dumb_terminal_gets_plain_lines() -> None:
    with Terminal(120, 24, TERM="dumb") as terminal:
        terminal.read_until("stderr")
        terminal.enter()
        assert terminal.end() == 0
    assert "\x1b" not in terminal.written
    assert "done, rich imported: False" in terminal.written


def test_below_another_display_an_epoch_is_a_line_above_it() -> None:
    code = CHILD.replace("with Progress", "from rich.live import Live\nwith Live('all'), Progress")
    with Terminal(120, 24, code) as terminal:
        terminal.read_until(r"epoch 1/2  train/loss [^$]*said by someone else[^$]*all")
        terminal.enter()
        assert terminal.end() == 0
    assert "model3  epoch 2/2  train/loss" in terminal.written
    assert "━" not in terminal.written


def test_elsewhere_an_epoch_is_a_line_and_rich_is_not_imported() -> None:
    child = run_piped()
    assert child.returncode == 0, child.stderr
    words = "train/loss 0.0412  train/acc 98.71 %  test/loss 0.0301  test/acc 99.02 %"
    first, other, second, last = child.stdout.splitlines()
    start = f"model3  epoch 1/2  {words}  lr 0.1402    31,204 images/s  "
    assert re.fullmatch(re.escape(start) + r"\d:\d\d left", first)
    assert other == "said by someone else"
    assert second == f"model3  epoch 2/2  {words}  lr 0.1402    31,204 images/s"
    assert last == "done, rich imported: False"
    assert child.stderr == "said by someone else on stderr\n"


def test_a_label_cannot_send_control_sequences() -> None:
    child = run_piped(LABEL="a\x1b[31m\nb\udc80:smile:[bold]")
    assert child.stdout.startswith("a?[31m?b?:smile:[bold]  epoch 1/2")


def test_only_what_was_measured_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(12, 3, 600, "") as progress:
        progress.epoch(1, {})
        progress.epoch(12, {"val/acc": 0.5, "train/loss": float("nan"), "lr": 1e-5})
        progress.epoch(12, {"train/loss": 123456.0})
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"epoch  1/12  \d:\d\d left", first)
    assert second.split("  ") == ["epoch 12/12", "train/loss nan", "val/acc 50.00 %", "lr 1e-05"]
    assert third == "epoch 12/12  train/loss 1.2e+05"


def test_a_progress_that_is_not_enabled_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, 3, 600, "model3", enabled=False) as progress:
        progress.step(3)
        progress.epoch(1, METRICS)
    assert capsys.readouterr() == ("", "")


def test_a_resumed_training_goes_on_where_it_was() -> None:
    code = (
        "from mnist_hydra.progress import Progress; import sys\n"
        "with Progress(4, 3, 600, 'model3', done_steps=7):\n"
        "    sys.stdin.readline()\n"
    )
    with Terminal(120, 24, code) as terminal:
        terminal.read_until(r"model3  .*━.*  epoch 3/4  -:-- left")
        terminal.enter()
        assert terminal.end() == 0


def test_a_reader_that_leaves_does_not_stop_the_training() -> None:
    """As in `... | head -1`: the lines after the first are lost, the exit code stays 0."""
    code = CHILD.replace('    print("said by someone else")\n', "")
    code += "print('finished', file=sys.stderr)\n"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdin is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    child.stdin.write("\n")
    child.stdin.close()
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait(120) == 0, said
    assert said.endswith("finished\n") and "Error" not in said


@pytest.mark.parametrize("output", ["", "os.close(1)", "sys.stdout = None"])
def test_output_that_is_closed_or_full_does_not_stop_the_training(output: str) -> None:
    code = CHILD.replace("with Progress", f"{output}\nwith Progress")
    code = code.replace('    print("said by someone else")\n', "")
    code = code[: code.rindex("print")] + "os.write(2, b'finished'); os._exit(0)\n"
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            input=b"\n",
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert child.stderr.endswith(b"finished") and b"Error" not in child.stderr


def test_a_step_does_nothing_but_count() -> None:
    called: list[str] = []
    with Progress(1, 3, 600, "", enabled=False) as progress:
        sys.setprofile(lambda frame, event, _: called.append(event))
        progress.step()
        sys.setprofile(None)
    assert called == ["call", "return", "c_call"]  # into step, out of it, and to setprofile


def test_no_thread_outlives_the_block() -> None:
    code = CHILD + "import threading, time; time.sleep(0.5)\n"
    code += "print('threads left:', threading.active_count())\n"
    with Terminal(120, 24, code) as terminal:
        terminal.enter()
        assert terminal.end() == 0
    assert "rich imported: True" in terminal.written
    assert "threads left: 1" in terminal.written


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (99, "label  epoch 1/2  loss 0.1"),
        (26, "label  epoch 1/2  loss 0.1"),
        (25, "epoch 1/2  loss 0.1"),
        (18, "epoch 1/2"),
        (4, "epoc"),
        (0, ""),
    ],
)
def test_words_of_the_lowest_rank_are_left_out_first(width: int, line: str) -> None:
    words = [(1, "label"), (9, "epoch 1/2"), (5, "loss 0.1"), (7, "")]
    assert fit_words(words, width) == line
    assert fit_words([], width) == ""


@pytest.mark.parametrize(
    ("marks", "now", "done", "left"),
    [
        ([], 5.0, 3, None),
        ([(0.0, 0)], 5.0, 0, None),
        ([(0.0, 0)], 0.0, 3, None),
        ([(0.0, 0)], 5.0, 10, 45.0),  # 0.5 s a step, 90 to go
        ([(0.0, 50)], 5.0, 60, 20.0),  # resumed at step 50
        ([(0.0, 0), (100.0, 10)], 101.0, 15, 101 / 15 * 85),  # no whole epoch since the slow start
        ([(0.0, 0), (100.0, 10)], 105.0, 20, 40.0),  # one at 0.5 s a step
        ([(0.0, 0), (100.0, 10), (105.0, 20)], 107.0, 25, 7 / 15 * 75),
        ([(0.0, 0)], 5.0, 100, 0.0),
        ([(0.0, 0)], 5.0, 120, 0.0),
    ],
)
def test_time_left_goes_by_the_last_whole_epoch(
    marks: list[tuple[float, int]], now: float, done: int, left: float | None
) -> None:
    found = time_left_s(marks, now, done, 100, 10)
    assert found == (left if left is None else pytest.approx(left))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-:--"), (0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3600, "1:00:00")],
)
def test_a_time_is_shown_as_on_a_clock(seconds: float | None, shown: str) -> None:
    assert clock(seconds) == shown
