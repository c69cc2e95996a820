"""Promises about the two claims of an attempt, by which it starts once and ends once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Self

import pytest

from ... import _protocol
from ...defaults import JobOutcome, JobStatus
from .._needs import Needs, needs
from .._rig import Rig, bash, marker, replace

_APPENDS = 'echo run >>"$XQUTE_JOB_METADIR/runs"'
_WAITS = "until [[ -e $XQUTE_JOB_METADIR/go ]]; do sleep 0.01; done"


class _HiddenEnds:
    """Within its block no recorded end can be read: as if the file system were slow."""

    def __init__(self) -> None:
        self.n_looks = 0

    def __enter__(self) -> Self:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(_protocol, "read_end_record", self._see_nothing)
        return self

    def __exit__(self, *exc: object) -> None:
        self._patch.undo()

    def _see_nothing(self, metadir: str, tag: str) -> None:
        self.n_looks += 1


class ClaimPromises:
    """Revoked starts, late ends, doubled starts, and wrappers that lose their starter."""

    @needs(Needs.COMMANDS)
    async def test_a_revoked_attempt_never_runs(self, rig: Rig) -> None:
        """Once the driver holds the start claim, the command cannot start, however late.

        Looking something up never proves that it will not start later; this does.
        """
        async with rig.backend() as backend:
            scheduler = backend.scheduler
            job = backend.create(bash(_APPENDS))
            job.clean()
            assert _protocol.revoke_start(job.local_dir, scheduler.claim_tag(job), "kit")
            job.jid = await scheduler.submit_job(job)
            await backend.until_gone(job)
            # A second one after it: whatever the first was going to do, it has done.
            await backend.until_gone(await backend.submit(bash(_APPENDS)))
            assert rig.read(backend.jobs[1], "runs") == b"run\n"
        assert rig.read(job, "runs") is None
        assert rig.read(job, "job.rc") is None
        assert rig.read(job, "job.status") is None

    @needs(Needs.COMMANDS)
    async def test_two_starts_of_one_attempt_run_the_command_once(self, rig: Rig) -> None:
        """A backend that starts a job twice (a requeue, a repeated request) does no harm."""
        async with rig.backend() as backend:
            job = backend.create(bash(f"{_APPENDS}; sleep 0.2"))
            job.clean()
            ids = [await backend.scheduler.submit_job(job) for _ in range(2)]
            for jid in ids:
                job.jid = jid
                await backend.until_gone(job)
            tag = backend.scheduler.claim_tag(job)
            await rig.until(
                lambda: _protocol.read_end_record(job.local_dir, tag) is not None, "it has ended"
            )
        assert rig.read(job, "runs") == b"run\n"
        assert rig.read(job, "job.rc") == b"0"

    @needs(Needs.COMMANDS)
    async def test_a_late_end_changes_nothing(self, rig: Rig) -> None:
        """Once the driver holds the end claim, what the attempt does later counts no more."""
        script = f"echo ready; {_WAITS}; exit 7"
        async with rig.backend() as backend:
            scheduler = backend.scheduler
            job = await backend.submit(bash(script))
            await rig.until_ready(job)
            assert _protocol.write_end(job.local_dir, scheduler.claim_tag(job), -3, 7, "KIT")
            job.write_file("go", "")
            await backend.until_gone(job)
        assert rig.read(job, "job.rc") == b"-3"
        assert rig.read(job, "job.status") == b"7"

    @needs(Needs.COMMANDS)
    async def test_an_end_that_is_seen_late_is_believed(self, rig: Rig) -> None:
        """On a slow file system the backend may know that a job is gone before its end is visible.

        Within `lost_grace_s` that is no loss.
        """
        script = f"echo ready; {_WAITS}; exit 7"
        async with rig.running() as xq:
            replace(xq.scheduler, "lost_grace_s", 1.0)
            job = await rig.feed_ready(xq, bash(script))
            with _HiddenEnds() as ends:
                job.write_file("go", "")
                await rig.until(lambda: ends.n_looks > 0, "its end was looked for, in vain")
        assert (job.outcome, job.rc) == (JobOutcome.FAILED, 7)

    @needs(Needs.COMMANDS, Needs.PROCESSES)
    async def test_a_wrapper_that_was_killed_is_no_success(self, rig: Rig) -> None:
        """A job that disappears without telling its end has failed, or is lost, and says so."""
        word = marker()
        async with rig.running() as xq:
            job = await rig.feed_ready(xq, bash('echo ready; exec -a "$1" sleep 60', word))
            claim = _protocol.read_start_claim(job.local_dir, xq.scheduler.claim_tag(job))
            assert claim is not None
            await rig.until(lambda: job.jid is not None, "the backend has said its id")
            wrapper = rig.contract.find_wrapper(job, claim.pid)
            assert wrapper
            for pid in (*wrapper, *rig.find_processes(word)):
                with suppress(ProcessLookupError):  # it went with another one
                    os.kill(pid, signal.SIGKILL)
        assert job.status is JobStatus.FAILED
        assert job.outcome in (JobOutcome.FAILED, JobOutcome.LOST)
        assert job.rc != 0
        assert job.cause
        assert job.reason

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_job_outlives_the_driver_that_started_it(self, rig: Rig) -> None:
        """The driver may be killed at any moment; its jobs run on, and tell their ends."""
        script = f"{_WAITS}; echo done; exit 7"
        with rig.driver(bash(script)) as driver:
            await asyncio.to_thread(driver.expect, "submitted", 0)
        job = rig.scheduler().create_job(0, bash("true"))
        assert rig.read(job, "job.rc") is None
        job.write_file("go", "")
        await rig.until(lambda: rig.read(job, "job.status") == b"7", "it has told its end")
        assert rig.read(job, "job.rc") == b"7"
        assert rig.output(job) == b"done\n"
