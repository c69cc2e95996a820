"""Attempts of jobs for the tests of the wrapper: rendered, run by a real bash, read back."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from xqute import _protocol, wrapper

HERE = Path(__file__).parent
PARAMETERS = {"timeout_s", "grace_s", "restart", "native_id", "own_pids", "tag", "upload_s"}


@dataclass
class Found:
    """What the command of `probe show` was started with, as bytes."""

    argv: list[bytes]
    env: dict[bytes, bytes]
    cwd: bytes
    stdin: bytes
    fds: list[int]
    ignored: list[int]
    blocked: list[int]

    @classmethod
    def parse(cls, stdout: bytes) -> Found:
        records = stdout.split(b"\0")
        assert records.pop() == b""

        def of(kind: bytes) -> list[bytes]:
            return [record[1:] for record in records if record[:1] == kind]

        return cls(
            argv=of(b"a"),
            env=dict(variable.split(b"=", 1) for variable in of(b"e")),
            cwd=of(b"c")[0],
            stdin=of(b"i")[0],
            fds=list(map(int, of(b"f"))),
            ignored=list(map(int, of(b"g"))),
            blocked=list(map(int, of(b"b"))),
        )


class Attempt:
    """One attempt of one job in a folder of its own."""

    def __init__(
        self, folder, argv, *, index=7, attempt=0, env=None, spool=False, metadir=None, **sections
    ):
        self.folder = metadir or folder
        self.metadir = str(self.folder)
        self.index, self.attempt = index, attempt
        self.tag = sections.get("tag", str(attempt))
        self.spool = folder / "spool"
        self.spool.mkdir(parents=True)
        self.folder.mkdir(exist_ok=True)
        parameters = {name: sections.pop(name) for name in PARAMETERS & sections.keys()}
        self.text = wrapper.render(
            {
                "parameters": wrapper.build_parameters(
                    index=index,
                    attempt=attempt,
                    directory=self.metadir,
                    spool=str(self.spool) if spool else "",
                    **parameters,
                ),
                "environment": wrapper.build_environment(env or {}),
                "cmd": wrapper.quote_command(argv),
                **sections,
            }
        )
        self.script = folder / "job.wrapped.test"
        self.script.write_bytes(self.text.encode("utf-8", "surrogateescape"))
        self.process = None
        self.exit_code = None

    def start(self, *args, bash=("/bin/bash", "-p"), environ=None, **popen):
        """Start the wrapper as a scheduler does: leader of a session, streams from /dev/null."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self.process = subprocess.Popen(
            [*bash, str(self.script), *args],
            **{"start_new_session": True, "env": environ, **streams, **popen},
        )
        self._pidfd = os.pidfd_open(self.process.pid)
        return self

    def is_over(self, wait_s=0.0):
        """Whether the wrapper has ended."""
        return bool(select.select([self._pidfd], [], [], wait_s)[0])

    def wait(self, deadline_s=30.0):
        """The wrapper's exit code, -n for a death by signal n.

        It stays a zombie until `close`: so long nobody else can get its process group's number.
        """
        assert self.is_over(deadline_s), f"it did not end: {self!r}"
        end = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        self.exit_code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return self.exit_code

    def close(self):
        """Kill whatever is left of its process group."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            os.close(self._pidfd)
            self.process = None

    def run(self, **popen):
        self.start(**popen).wait()
        return self

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def until(self, condition, deadline_s=20.0):
        """Wait until a fact is true; give it."""
        end_s = time.monotonic() + deadline_s
        while not (value := condition()):
            assert time.monotonic() < end_s, f"it did not come true: {self!r}"
            time.sleep(0.001)
        return value

    def until_stdout(self, text):
        return self.until(lambda: text in (self.read("job.stdout") or b""))

    def read(self, name):
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    @property
    def stdout(self):
        return self.read("job.stdout")

    @property
    def stderr(self):
        return self.read("job.stderr")

    @property
    def start_claim(self):
        return _protocol.read_start_claim(self.metadir, self.tag)

    @property
    def end(self):
        """(rc, status, cause), once job.rc and job.status are seen to agree with it."""
        record = _protocol.read_end_record(self.metadir, self.tag)
        if record is None:
            return None
        told = (self.read("job.rc"), self.read("job.status"))
        assert told == (b"%d" % record.rc, b"%d" % record.status)
        return tuple(record)

    @property
    def events(self):
        names = os.listdir(self.spool)
        events = list(map(_protocol.parse_event_name, names))
        assert None not in events, names
        return sorted(events, key=lambda event: event.status)

    @property
    def found(self):
        return Found.parse(self.stdout)

    def __repr__(self):
        shown = {path.name: path.read_bytes()[:500] for path in self.folder.glob("job.[!w]*")}
        return f"<Attempt in {self.folder}: {shown}>"


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    """The argv of `probe`: see probe.c."""
    compiler = shutil.which("cc")
    if compiler is None:
        return (sys.executable, "-S", str(HERE / "probe.py"))
    program = tmp_path_factory.mktemp("probe") / "probe"
    subprocess.run([compiler, "-O1", "-o", program, HERE / "probe.c"], check=True)
    return (str(program),)


@pytest.fixture
def make_attempt(tmp_path):
    """`make_attempt(argv, ...)`; whatever is left of its processes is killed at the end."""
    made = []

    def make(argv, **kwargs):
        made.append(Attempt(tmp_path / f"job{len(made)}", argv, **kwargs))
        return made[-1]

    yield make
    for attempt in made:
        attempt.close()
