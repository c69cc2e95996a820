"""Where many jobs go in one submission, they wait for each other, but not for long."""

from __future__ import annotations

import asyncio
import time

from xqute import SubmitError, Xqute
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
