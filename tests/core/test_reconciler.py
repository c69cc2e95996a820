"""The questions to a backend are about attempts, and nothing is concluded for one that is over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from xqute._engine.file_work import FileWork
from xqute._engine.flight import Flight
from xqute._engine.reconciler import Reconciler
from xqute.scheduler import BackendState, Phase
from xqute.schedulers.local_scheduler import LocalScheduler
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


class Forgetful(LocalScheduler):
    """Finds no submission, and has none of the jobs that it is asked about."""

    name = "forgetful"

    async def find_submitted(self, keys):
        return {}

    async def poll_jobs(self, jobs):
        return {job: BackendState(Phase.GONE, reason=str(job.jid)) for job in jobs}


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ("elsewhere - 7 8 219.3\n", BackendState(Phase.GONE, reason="219.3")),
        ("elsewhere - 7 8 -\n", BackendState(Phase.PENDING)),
        ("revoked driver\n", BackendState(Phase.GONE)),
        (None, BackendState(Phase.GONE)),
    ],
)
async def test_an_attempt_without_an_id_is_asked_about_by_that_in_its_claim(tmp_path, claim, told):
    """The driver died before it was told the id, and the wrapper on another machine."""
    scheduler = Forgetful(tmp_path)
    flight = Flight(scheduler.create_job(0, ["true"]), "a-0")
    if claim is not None:
        flight.job.write_file("job.start.a-0", claim)
    reports = []
    run = SimpleNamespace(scheduler=scheduler, files=FileWork())
    reconciler = Reconciler(run, lambda _, state: reports.append(state))
    reconciler.add(flight, 0.0)
    await until(lambda: reports, "it is told")
    await reconciler.close()
    assert reports[0] == told
