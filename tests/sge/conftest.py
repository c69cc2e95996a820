"""A Grid Engine of its own for the tests of a session, and the ordinary user who submits to it."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[1] / "services" / "sge"
PROGRAMS = "/usr/lib/gridengine"
USER = "nobody"  # who submits, where the tests run as root

_PR_CAP_AMBIENT, _RAISE, _CLEAR_ALL = 47, 2, 4
_DAC_READ_SEARCH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _let_read_everything():
    """Python itself may lie where only root can read, such as in /root."""
    header = _Header(0x20080522, 0)
    sets = (_Capabilities * 2)()
    if _libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    bit = 1 << _DAC_READ_SEARCH
    if not sets[0].permitted & bit:
        return
    sets[0].effective |= bit
    sets[0].inheritable |= bit
    if _libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    _libc.prctl(_PR_CAP_AMBIENT, _RAISE, _DAC_READ_SEARCH, 0, 0)


@contextmanager
def ordinary_user():
    """Be an ordinary user, who may read everything; root again at the end of the block."""
    if os.geteuid() != 0:
        yield
        return
    entry = pwd.getpwnam(USER)
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, 0)
    os.setresuid(entry.pw_uid, entry.pw_uid, 0)
    try:
        _let_read_everything()
        yield
    finally:
        _libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


def _free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Cell:
    """A Grid Engine in a folder, with one host and the queue all.q of 32 slots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = _free_ports(2)
        self.start()
        words = (folder / "env.sh").read_text().replace("export ", "").split()
        self.env = dict(word.split("=", 1) for word in words)
        self.env["PATH"] = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        self.work = folder / "work"
        self.work.mkdir()
        self.work.chmod(0o777)

    def start(self) -> None:
        """Start the daemons that do not run; return when the queue is usable."""
        with self.as_root():
            command = [SERVICE / "start.sh", self.folder, *self._ports]
            subprocess.run(command, check=True, timeout=110, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        subprocess.run([SERVICE / "stop.sh", self.folder], check=True, timeout=100)

    @contextmanager
    def as_root(self) -> Iterator[None]:
        """Be who has started the tests, within a test."""
        user, group = os.getuid(), os.getgid()
        if 0 not in os.getresuid() or user == 0:
            yield
            return
        # The real one too: bash takes back an effective one that is not the same.
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        try:
            yield
        finally:
            os.setresgid(group, group, 0)
            os.setresuid(user, user, 0)
            _let_read_everything()

    def run(self, *argv: object, check: bool = True) -> str:
        """Run one of its programs as the user; give what it prints."""
        done = subprocess.run(
            [str(word) for word in argv],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def configure(self, *argv: object) -> str:
        """Run one of its programs as its manager."""
        with self.as_root():
            return self.run(*argv)

    def pid_of(self, daemon: str) -> int:
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def signal(self, daemon: str, sig: int) -> None:
        """Signal `qmaster` or `execd`; after KILL, return when it is gone."""
        pid = self.pid_of(daemon)
        with self.as_root():
            os.kill(pid, sig)
        deadline = time.monotonic() + 20
        while sig == signal.SIGKILL and _is_alive(pid):
            assert time.monotonic() < deadline, f"{daemon} {pid} does not end"
            time.sleep(0.02)

    def clear(self) -> None:
        """Have nothing in the queue."""
        if self.run("qstat", "-u", "*"):
            with self.as_root():
                self.run("qdel", "-f", "-u", "*", check=False)  # some may be gone by then


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def cell():
    """The Grid Engine; its folder has a short path, since its daemons' sockets may be there."""
    folder = Path(tempfile.mkdtemp(prefix="xqute-sge-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        cell = Cell(folder)
        yield cell
    finally:
        subprocess.run([SERVICE / "stop.sh", folder], check=True, timeout=100)


@pytest.fixture
def as_user(cell, monkeypatch, request):
    """Be the ordinary user who knows this Grid Engine, in a folder of their own."""
    for name in [name for name in os.environ if name.startswith(("SGE_", "JOB_"))]:
        monkeypatch.delenv(name)
    for name, value in cell.env.items():
        monkeypatch.setenv(name, value)
    with ordinary_user():
        folder = Path(tempfile.mkdtemp(dir=cell.work))
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder)
        yield folder
        cell.clear()
        monkeypatch.chdir("/")


@pytest.fixture
def tmp_path(request):
    """A folder of the test's; where Grid Engine is used, of the user who submits."""
    if "cell" not in request.fixturenames:
        return Path(request.getfixturevalue("tmp_path_factory").mktemp("sge"))
    return request.getfixturevalue("as_user")
