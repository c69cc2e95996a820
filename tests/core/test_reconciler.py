"""The questions to a backend are about attempts, and nothing is concluded for one that is over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from xqute._engine.file_work import FileWork
from xqute._engine.flight import Flight
from xqute._engine.reconciler import Reconciler
from xqute.testing import MemoryScheduler, until


class Slow(MemoryScheduler):
    """Answers when it is told to, and notes what it was asked."""

    name = "slow"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.polled = []

    async def find_submitted(self, keys):
        self.is_asked.set()
        await self.may_answer.wait()
        return dict.fromkeys(keys, "4711")

    async def poll_jobs(self, jobs):
        self.polled += jobs
        return {}


@pytest.fixture
async def asked(tmp_path):
    """A reconciler that has begun to ask about two attempts: one without an id, and one with."""
    scheduler = Slow(tmp_path)
    unknown, known = (Flight(scheduler.create_job(i, ["true"]), "0") for i in (0, 1))
    known.job.jid = "1"
    reports = []
    run = SimpleNamespace(scheduler=scheduler, files=FileWork())
    reconciler = Reconciler(run, lambda job, state: reports.append((job, state)))
    for flight in (unknown, known):
        reconciler.add(flight, 0.0)
    await asyncio.wait_for(scheduler.is_asked.wait(), 20)
    yield scheduler, unknown, known
    await reconciler.close()
    assert reports == []


async def answered(scheduler):
    scheduler.may_answer.set()
    await until(lambda: scheduler.polled, "the other question is asked, too")


async def test_an_id_that_is_found_is_the_jobs(asked):
    scheduler, unknown, known = asked
    await answered(scheduler)
    assert unknown.job.jid == "4711"
    assert scheduler.polled == [unknown.job, known.job]


async def test_an_id_that_is_found_too_late_is_not_the_next_attempts(asked):
    scheduler, unknown, known = asked
    unknown.close()
    await answered(scheduler)
    assert unknown.job.jid is None
    assert scheduler.polled == [known.job]


async def test_an_attempt_that_is_over_meanwhile_is_not_asked_about(asked):
    scheduler, unknown, known = asked
    known.close()
    await answered(scheduler)
    assert scheduler.polled == [unknown.job]
