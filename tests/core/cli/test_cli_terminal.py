"""What a person sees: the real command on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time

import pytest

pytestmark = pytest.mark.usefixtures("job_processes")

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
COLOUR = re.compile(rb"\x1b\[[0-9;]*(3|4|9)[0-9]")


class Terminal:
    """A terminal of 24 lines; what is written to it can be read."""

    def __init__(self, width):
        self._fd, self.fd = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self.seen = b""

    def read_until(self, pattern, deadline_s=30):
        end_s = time.monotonic() + deadline_s
        while not re.search(pattern, self.seen):
            assert time.monotonic() < end_s, f"{pattern!r} was not seen in {self.seen!r}"
            self._read()

    def read_all(self, process):
        """Everything until the process has ended, as the lines that are left on the screen."""
        os.close(self.fd)
        while self._read():
            pass
        os.close(self._fd)
        assert process.wait(30) is not None
        return screen(self.seen.decode())

    def _read(self):
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the last process has closed it
            return b""
        self.seen += data
        return data

    def type(self, data):
        os.write(self._fd, data)


def screen(text):
    """The lines that are left when the erasing of lines has been done."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.endswith("A"):
            row -= int(token[2:-1] or 1)
        elif token.endswith("K"):
            lines[row] = lines[row][:column] if token[2:-1] != "2" else ""
        elif not token.startswith("\x1b"):
            lines[row] = (
                lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            )
            column += len(token)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture
def start(cli):
    """Start the command with standard error, and whatever else is asked for, on a terminal."""

    def start(*args, width=100, on=("stderr",), env=None):
        terminal = Terminal(width)
        streams = dict.fromkeys(on, terminal.fd)
        env = {"TERM": "xterm-256color", **(env or {})}
        return cli.start(*args, env=env, start_new_session=True, **streams), terminal

    return start


def test_a_line_tells_where_the_run_is_and_gives_way_to_the_account(start, cli, tmp_path):
    command = "until [ -e go-{} ]; do sleep 0.01; done; exit {}"
    process, terminal = start("run", "-j2", command, ":::", "0", "1", "0")
    terminal.read_until(rb"0/3.*2 running")
    (tmp_path / "go-1").touch()
    terminal.read_until(rb"1/3.*2 running.*1 failed.*/s.*left")
    (tmp_path / "go-0").touch()
    lines = terminal.read_all(process)
    assert process.returncode == 1
    assert lines[0].startswith("#1 until [ -e go-")
    assert lines[1] == "   failed: exit code 1"
    assert lines[2].startswith("2 succeeded, 1 failed in ")
    assert len(lines) == 3
    assert terminal.seen.count(HIDE_CURSOR) == terminal.seen.count(SHOW_CURSOR) > 0
    assert terminal.seen.rindex(SHOW_CURSOR) > terminal.seen.rindex(HIDE_CURSOR)
    assert COLOUR.search(terminal.seen)


def test_standard_output_holds_data_alone(start):
    process, terminal = start("run", "-k", "sleep 0.2; echo {}", ":::", "a", "b", "c")
    terminal.read_all(process)
    assert process.stdout.read() == b"a\nb\nc\n"


def test_output_on_the_same_terminal_is_whole_and_above_the_line(start):
    names = [f"job-{number}-is-here" for number in range(30)]
    process, terminal = start(
        "run", "-k", "sleep 0.05; echo {}", ":::", *names, on=("stdout", "stderr")
    )
    lines = terminal.read_all(process)
    assert lines[:30] == names
    assert lines[30].startswith("30 succeeded in ")
    assert len(lines) == 31
    assert re.search(rb"[0-9]+/30.*running", terminal.seen)


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_the_line_fits_the_terminal(start, tmp_path, width):
    command = "until [ -e go ]; do sleep 0.01; done; : {}"
    process, terminal = start("run", command, ":::", *map(str, range(5)), width=width)
    terminal.read_until(rb"0/5")
    terminal.read_until(rb"\x1b\[2K")  # drawn a second time
    shown = screen(terminal.seen.decode())
    assert len(shown) == 1
    assert len(shown[0]) <= width
    (tmp_path / "go").touch()
    terminal.read_all(process)
    assert process.returncode == 0


def test_no_color_is_respected(start):
    process, terminal = start("run", "sleep 0.3; exit {}", ":::", "1", env={"NO_COLOR": "1"})
    terminal.read_all(process)
    assert b"0/1" in terminal.seen
    assert not COLOUR.search(terminal.seen)


@pytest.mark.parametrize(
    ("options", "env"), [(["--no-progress"], {}), ([], {"TERM": "dumb"}), (["-q"], {})]
)
def test_no_live_line_where_it_is_not_wanted(start, options, env):
    process, terminal = start("run", *options, "sleep 0.3; : {}", ":::", "a", env=env)
    terminal.read_all(process)
    assert b"0/1" not in terminal.seen
    assert b"\x1b[?25" not in terminal.seen
    assert (b"1 succeeded" in terminal.seen) == (options != ["-q"])


def test_without_a_terminal_there_are_no_escapes(cli):
    done = cli("run", "sleep 0.3; exit {}", ":::", "0", "1", rc=1)
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"0/2" not in done.stderr


def test_ctrl_c_on_the_terminal_stops_and_the_cursor_comes_back(cli, job_processes):
    """As a shell would start it: the terminal is its own, and the key sends the signal."""
    terminal = Terminal(100)

    def take_terminal():
        os.setsid()
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)

    env = {"TERM": "xterm-256color"}
    args = ("run", "sleep 60; : {}", ":::", "a", "b")
    process = cli.start(*args, env=env, stderr=terminal.fd, preexec_fn=take_terminal)
    terminal.read_until(rb"0/2.*running")
    terminal.type(b"\x03")
    lines = terminal.read_all(process)
    assert process.returncode == 130
    text = "\n".join(lines)
    assert "Got SIGINT: stopping gracefully, once more: at once" in text
    assert "killed" in lines[-1]
    assert terminal.seen.rindex(SHOW_CURSOR) > terminal.seen.rindex(HIDE_CURSOR)
    assert job_processes() == []


def test_a_person_who_gives_no_list_is_told_so_at_once(start):
    process, terminal = start("run", on=("stdin", "stderr"))
    assert (
        "There is nothing to run: no TEMPLATE, no list of commands"
        in terminal.read_all(process)[-1]
    )
    assert process.returncode == 2


def test_a_person_may_type_the_arguments(start):
    process, terminal = start("run", "-k", "echo got {}", on=("stdin", "stderr"))
    terminal.read_until(rb"Arguments from the terminal")
    terminal.type(b"a b\n")
    assert process.stdout.readline() == b"got a b\n"
    terminal.type(b"\x04")
    terminal.read_all(process)
    assert process.returncode == 0


def test_the_display_is_drawn_at_most_ten_times_a_second(start, tmp_path):
    command = "until [ -e go ]; do sleep 1; done; : {}"
    process, terminal = start("run", "-j20", command, ":::", *map(str, range(500)))
    terminal.read_until(rb"0/500.*20 running")
    began_s, n_before = time.monotonic(), len(terminal.seen)
    while time.monotonic() - began_s < 3:
        terminal._read()
    n_frames = terminal.seen.count(b"0/500", n_before)
    assert 1 <= n_frames <= 10 * (time.monotonic() - began_s) + 1
    process.send_signal(signal.SIGTERM)
    terminal.read_all(process)
    assert process.returncode == 143


@pytest.mark.concurrency
def test_a_terminal_that_hangs_up_does_not_hurt_the_run(cli, tmp_path):
    """Standard error goes away in the middle: there is nobody to tell, and all jobs run."""
    terminal = Terminal(100)
    command = "until [ -e go ]; do sleep 0.01; done; echo {}"
    args = ("run", "-k", command, ":::", "a", "b")
    process = cli.start(*args, env={"TERM": "xterm"}, stderr=terminal.fd)
    terminal.read_until(rb"0/2.*running")
    os.close(terminal.fd)
    os.close(terminal._fd)
    (tmp_path / "go").touch()
    assert process.stdout.read() == b"a\nb\n"
    assert process.wait(30) == 0
