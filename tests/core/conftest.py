"""What the suites of the core share: facts to wait for, recorders, programs, live processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid

import pytest

from xqute import Scheduler, Xqute, plugin

#: On the command lines of what runs jobs.
RUNS_JOBS = re.compile(rb"/job\.wrapped\.|\0xqute-fork-server\0")


@pytest.fixture(params=["started", "forked"])
def each_way(request):
    """Once with wrappers that are mostly started, once with all of them forked."""
    if request.param == "forked":
        request.getfixturevalue("every_wrapper_forked")
    return request.param


@pytest.fixture
def until():
    """Wait for a fact: `await until(lambda: path.exists())` gives the first true value."""

    async def wait_until(condition, deadline_s=20.0):
        loop = asyncio.get_running_loop()
        end_s = loop.time() + deadline_s
        while not (value := condition()):
            assert loop.time() < end_s, "what was waited for did not come true"
            await asyncio.sleep(0.005)
        return value

    return wait_until


class Recorder:
    """A plugin that notes which hook was called for which job, and how the job was then."""

    def __init__(self, name="recorder"):
        self.name = name
        #: (hook, index, status, trial_count)
        self.calls = []
        self.shutdowns = []
        self.inits = []

    def hooks(self, index=None):
        return [call[0] for call in self.calls if index is None or call[1] == index]

    def _note(self, hook, job):
        self.calls.append((hook, job.index, job.status, job.trial_count))

    @plugin.impl
    def on_init(self, xqute):
        self.inits.append(xqute)

    @plugin.impl
    def on_shutdown(self, xqute, sig):
        self.shutdowns.append(sig)

    @plugin.impl
    async def on_job_init(self, scheduler, job):
        self._note("init", job)

    @plugin.impl
    async def on_job_queued(self, scheduler, job):
        self._note("queued", job)

    @plugin.impl
    async def on_job_submitting(self, scheduler, job):
        self._note("submitting", job)

    @plugin.impl
    async def on_job_submitted(self, scheduler, job):
        self._note("submitted", job)

    @plugin.impl
    async def on_job_started(self, scheduler, job):
        self._note("started", job)

    @plugin.impl
    async def on_job_killing(self, scheduler, job):
        self._note("killing", job)

    @plugin.impl
    async def on_job_killed(self, scheduler, job):
        self._note("killed", job)

    @plugin.impl
    async def on_job_failed(self, scheduler, job):
        self._note("failed", job)

    @plugin.impl
    async def on_job_succeeded(self, scheduler, job):
        self._note("succeeded", job)


@pytest.fixture
def make_recorder():
    return Recorder


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def make_plugin():
    """Make a plugin of coroutine functions `f(scheduler, job)`: `make_plugin(on_job_started=f)`."""

    def make(name="acting", **implementations):
        body = {"name": name}
        for hook, function in implementations.items():
            function.__name__ = hook
            body[hook] = plugin.impl(function)
        return type("Acting", (), body)()

    return make


def _is_alive(pid):
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def is_alive():
    return _is_alive


@pytest.fixture
def job_processes(tmp_path):
    """Give the live processes of jobs under `tmp_path`; none may be left when the test is over."""
    needle = os.fsencode(tmp_path)

    def find():
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            if int(name) == os.getpid() or not _is_alive(name):
                continue
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    cmdline = file.read()
                with open(f"/proc/{name}/environ", "rb") as file:
                    is_command = b"XQUTE_JOB_METADIR=" + needle in file.read()
            except OSError:
                continue  # it is gone, or somebody else's
            if is_command or (needle in cmdline and RUNS_JOBS.search(cmdline)):
                found.append(int(name))
        return found

    yield find
    # A wrapper that has told its end may need a moment to be gone.
    end_s = time.monotonic() + 5
    while (left := find()) and time.monotonic() < end_s:
        time.sleep(0.005)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "processes of jobs were left running"


class Driver:
    """A Python program in a process of its own; its last line on stdout is a JSON value."""

    def __init__(self, source, cwd, args, **popen):
        # A file for each: the one before may be about to read its own.
        path = cwd / f"driver-{uuid.uuid4().hex}.py"
        path.write_text(textwrap.dedent(source))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(path), *map(str, args)],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )

    def send(self, sig):
        self.process.send_signal(sig)

    def finish(self, rc=0, timeout_s=60):
        """Wait for its end; give the value that it printed."""
        stdout, self.stderr = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == rc, f"rc {self.process.returncode}: {self.stderr}"
        lines = stdout.splitlines()
        return json.loads(lines[-1]) if lines else None


@pytest.fixture
def start_driver(tmp_path):
    """Start a program: `start_driver(source, arg, ...)`; its working directory is `tmp_path`."""
    drivers = []

    def start(source, *args, **popen):
        drivers.append(Driver(source, tmp_path, args, **popen))
        return drivers[-1]

    yield start
    for driver in drivers:
        if driver.process.poll() is None:
            driver.process.kill()
        driver.process.communicate()


class Gate:
    """What jobs wait at: `command()` runs until `open()`."""

    def __init__(self, path):
        self.path = path

    def command(self, then="exit 0"):
        return ["bash", "-c", 'until [[ -e $0 ]]; do sleep 0.01; done; eval "$1"', self.path, then]

    def open(self):
        self.path.touch()


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


@pytest.fixture
def run_jobs():
    """Run commands to their ends: `jobs = await run_jobs(folder, command, ..., forks=2)`."""

    async def run(folder, *commands, **keywords):
        xq = Xqute(workdir=folder / "w", **keywords)
        for command in commands:
            await xq.put(command)
        await asyncio.wait_for(xq.run_until_complete(), 30)
        return xq.jobs

    return run


class ProcessScheduler(Scheduler):
    """As a third party writes one: runs the script by asyncio's own subprocesses."""

    name = "process"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.processes = {}

    async def submit_job(self, job):
        process = await asyncio.create_subprocess_exec(
            "/bin/bash",
            str(self.wrapped_job_script(job)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes[process.pid] = process
        return process.pid

    async def kill_job(self, job):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(job.jid), signal.SIGKILL)

    async def job_is_running(self, job):
        process = self.processes.get(int(job.jid))
        return process is not None and process.returncode is None

    async def close(self):
        for process in self.processes.values():
            await process.wait()


@pytest.fixture
def process_scheduler():
    """A scheduler class with the three methods; derive from it to change one."""
    return ProcessScheduler


@pytest.fixture
def mounted(tmp_path):
    """Mount a tmpfs: `mounted("size=64k")` gives its path. Needs `mount` and root's rights."""
    made = []

    def mount(options):
        path = tmp_path / f"mnt{len(made)}"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def impatient(monkeypatch):
    """A disk that takes nothing is waited for, but not for long."""
    monkeypatch.setattr("xqute._engine.submitting._DISK_PATIENCE_S", 0.5)
    monkeypatch.setattr("xqute._engine.journal._GIVE_UP_S", 0.5)
