"""Where many jobs go in one submission, they wait for each other, but not for long."""

from __future__ import annotations

import asyncio
import time

import pytest

from xqute import SubmitError, Xqute
from xqute.plugin import plugin
from xqute.testing import Behaviour, Fault, ManualClock, MemoryScheduler, until


def gathering(workdir, linger_s, **keywords):
    opts = {"batch": 1000, **keywords.pop("opts", {})}
    xq = Xqute(MemoryScheduler, workdir=workdir, scheduler_opts=opts, **keywords)
    xq.scheduler.linger_s = linger_s
    return xq


async def test_a_thousand_jobs_go_in_a_few_submissions(tmp_path):
    async with gathering(tmp_path, 60, forks=1000) as xq:
        for _ in range(1000):
            await xq.feed("a")
    assert sum(xq.scheduler.calls.submit) == 1000
    assert len(xq.scheduler.calls.submit) <= 5


def hold_up_the_loop():
    """As a machine with other things to do does."""
    time.sleep(0.06)


async def test_where_the_loop_turns_slowly_what_is_being_fed_goes_together_still(tmp_path):
    async with gathering(tmp_path, 60, forks=1000) as xq:
        for _ in range(20):
            await xq.feed("a")
            hold_up_the_loop()
    assert sum(xq.scheduler.calls.submit) == 20
    assert len(xq.scheduler.calls.submit) <= 2


async def test_a_full_backend_is_refilled_when_half_of_it_is_free(tmp_path):
    clock = ManualClock()
    opts = {"clock": clock, "behave": lambda job: Behaviour(runs_s=1 + job.index)}
    async with gathering(tmp_path, 60, forks=100, opts=opts) as xq:
        for _ in range(1000):
            await xq.feed("a")
        calls = xq.scheduler.calls
        while sum(calls.submit) < 1000:
            clock.advance(1)
            await asyncio.sleep(0)
        clock.advance(2000)
    assert sum(calls.submit) == 1000
    assert len(calls.submit) <= 25


async def test_a_free_place_is_filled_after_a_while(tmp_path):
    clock = ManualClock()
    runs_s = {0: 1, 11: 0}
    opts = {"clock": clock, "behave": lambda job: Behaviour(runs_s=runs_s.get(job.index, 100))}
    async with gathering(tmp_path, 0.2, forks=10, opts=opts) as xq:
        for _ in range(12):
            await xq.feed("a")
        calls = xq.scheduler.calls
        await until(lambda: sum(calls.submit) == 10, "all places are taken")
        n_calls = len(calls.submit)
        clock.advance(2)
        began_s = time.monotonic()
        await until(lambda: sum(calls.submit) == 11, "the free place is taken")
        assert time.monotonic() - began_s > 0.1
        assert calls.submit[n_calls:] == [1]
        clock.advance(1000)


async def test_one_job_hardly_waits(tmp_path):
    began_s = time.monotonic()
    async with gathering(tmp_path, 60, forks=1000) as xq:
        await xq.feed("a")
    assert time.monotonic() - began_s < 10


async def test_a_stop_waits_for_nobody(tmp_path):
    async with gathering(tmp_path, 60, forks=10, opts={"clock": ManualClock()}) as xq:
        await xq.feed("a")
        xq.cancel()
    assert [job.outcome for job in xq.jobs] == ["cancelled"]


async def test_a_refusal_of_many_is_one_refusal_and_keeps_their_order(tmp_path):
    order = []
    opts = {
        "faults": {"submit": [SubmitError("busy", transient=True), Fault.REFUSE_FOR_NOW]},
        "behave": lambda job: order.append(job.index) or Behaviour(),
    }
    began_s = time.monotonic()
    async with gathering(tmp_path, 60, forks=100, opts=opts) as xq:
        for _ in range(40):
            await xq.feed("a")
    assert order == list(range(40))
    assert time.monotonic() - began_s < 20, "forty refusals at once are not forty in a row"


class OneByOne:
    """A clock on which each look takes longer than a turn of the event loop may."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        self.now_s += 1.0
        return self.now_s

    def __getattr__(self, name):
        return getattr(time, name)


class Turns:
    """Counts turns of the event loop, and notes in which each job was submitted."""

    def __init__(self):
        self.n_turns = 0
        self.submitted = {}
        self.on_first = None

    def count(self):
        self.n_turns += 1
        asyncio.get_running_loop().call_soon(self.count)

    @plugin.impl
    async def on_job_submitted(self, scheduler, job):
        if not self.submitted and self.on_first is not None:
            self.on_first()
        self.submitted[job.index] = self.n_turns


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.setattr("xqute._engine.submitting.time", OneByOne())
    return Turns()


async def test_what_was_accepted_together_is_noted_in_many_turns_of_the_loop(tmp_path, turns):
    """Noting takes a file each: a thousand at once would keep the loop from others for long."""
    turns.count()
    async with gathering(tmp_path, 60, forks=50, plugins=[turns]) as xq:
        for _ in range(50):
            await xq.feed("a")
    assert len(set(turns.submitted.values())) == 50
    assert len(xq.scheduler.calls.submit) <= 2


async def test_an_answer_for_many_is_noted_for_all_if_its_task_is_cancelled(tmp_path, turns):
    """As the end of an event loop does it, or a stop: no answer may be lost half-way."""

    def cancel():
        tasks = [t for t in asyncio.all_tasks() if "_submit_plans" in repr(t.get_coro())]
        cancelled.extend(task.cancel() for task in tasks)

    cancelled = []
    turns.on_first = cancel
    async with gathering(tmp_path, 60, forks=50, plugins=[turns]) as xq:
        for _ in range(50):
            await xq.feed("a")
    assert cancelled == [True]
    assert [job.rc for job in xq.jobs] == [0] * 50
    assert [job.trial_count for job in xq.jobs] == [0] * 50
    assert sum(xq.scheduler.calls.submit) == 50, "none was submitted again"
    assert sorted(turns.submitted) == list(range(50))
