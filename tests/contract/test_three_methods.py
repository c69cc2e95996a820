"""A scheduler of nothing but the three required methods keeps the contract."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import ClassVar

import pytest

from xqute import Scheduler
from xqute._engine import spool
from xqute.testing import SchedulerContract


class ThreeMethodsScheduler(Scheduler):
    """What a third party's first scheduler looks like; its processes are sessions of their own."""

    name = "three"
    started: ClassVar = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.processes = {}

    async def submit_job(self, job):
        process = subprocess.Popen(  # noqa: ASYNC220  # as a first scheduler does
            ["bash", str(self.wrapped_job_script(job))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes[process.pid] = process
        self.started.append(process)
        return process.pid

    async def job_is_running(self, job):
        process = self.processes.get(job.jid)
        if process is not None:
            return process.poll() is None
        # An earlier driver's, perhaps; or the id is not, or no longer, that of this job.
        return _runs(job.jid, str(job.metadir / f"job.wrapped.{self.name}"))

    async def kill_job(self, job):
        if job.jid not in self.processes and not await self.job_is_running(job):
            return
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self.kill_grace_s
        _signal_session(int(job.jid), signal.SIGTERM)
        while await self.job_is_running(job) and loop.time() < ends_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while _signal_session(int(job.jid), signal.SIGKILL):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _runs(pid, script):
    """Tell whether a process runs a script."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="latin-1") as file:
            return script in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _signal_session(sid, sig):
    """Signal all processes of a session; tell whether there were any."""
    found = False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
            if int(session) == sid and state not in "ZX":
                found = True
                os.kill(int(pid), sig)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class TestThreeMethods(SchedulerContract):
    def make_scheduler(self, workdir, **keywords):
        return ThreeMethodsScheduler(workdir, **keywords)

    @pytest.fixture(autouse=True)
    def _reaped(self):
        yield
        while ThreeMethodsScheduler.started:
            ThreeMethodsScheduler.started.pop().wait(10)


class TestThreeMethodsWithoutInotify(TestThreeMethods):
    many = 60

    @pytest.fixture(autouse=True)
    def _without_inotify(self, monkeypatch):
        monkeypatch.setattr(spool, "_open_inotify", lambda folder: None)
