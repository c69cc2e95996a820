"""What a dead driver leaves is taken up by the next: in memory, in virtual time, at each edge."""

from __future__ import annotations

import asyncio
import inspect
import selectors
from collections import Counter

import pytest

from xqute import JobOutcome, JobStatus, Xqute, _faults
from xqute.defaults import DEFAULT_KILL_TIMEOUT_S
from xqute.errors import JobChangedError, SchedulerError
from xqute.testing import Behaviour, HookRecorder, ManualClock, MemoryScheduler, Tells, until

RUNS_S = 3600.0


class DiesError(KeyboardInterrupt):
    """The driver is dead: nothing of it is done any more. (No handler of its own may catch it.)"""


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop in the time of a `ManualClock`, which goes on when nothing else is to be done.

    So jobs of hours take no time, and every run is the same.
    """

    def __init__(self, clock):
        self.clock = clock
        self.n_in_threads = 0
        super().__init__(_ClockedSelector(self))

    def time(self):
        return self.clock.now_s

    def run_in_executor(self, *args):
        future = super().run_in_executor(*args)
        self.n_in_threads += 1
        future.add_done_callback(self._on_done)
        return future

    def _on_done(self, _future):
        self.n_in_threads -= 1


class _ClockedSelector(selectors.DefaultSelector):
    def __init__(self, loop):
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        clock = self._loop.clock
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self._loop.n_in_threads:
            return super().select(10)
        waits = [] if timeout is None else [timeout]
        if clock.next_due_s is not None:
            waits.append(clock.next_due_s - clock.now_s)
        assert waits, "nothing will ever happen again"
        clock.advance(max(min(waits), 1e-6))
        return super().select(0)


class World:
    """A workdir and its backend, which driver after driver works with."""

    def __init__(self, workdir, behave=None, batch=1):
        self.workdir = workdir
        self.clock = ManualClock()
        self.behave = behave or (lambda job: Behaviour(runs_s=RUNS_S))
        self.batch = batch
        self.schedulers = []
        self.accepted = Counter()
        self._dead = []

    def _behave(self, job):
        behaviour = self.behave(job)
        self.accepted[job.index] += 1
        return behaviour

    def make_scheduler(self, *args, **keywords):
        scheduler = MemoryScheduler(
            *args,
            behave=self._behave,
            batch=self.batch,
            clock=self.clock,
            remembers=True,
            predecessor=self.schedulers[-1] if self.schedulers else None,
            **keywords,
        )
        self.schedulers.append(scheduler)
        return scheduler

    def xqute(self, **keywords):
        world = self

        class Made(MemoryScheduler):
            def __new__(cls, *args, **keywords):
                return world.make_scheduler(*args, **keywords)

        return Xqute(
            Made, workdir=self.workdir, scheduler_opts=keywords.pop("opts", {}), **keywords
        )

    def live(self, main, dies_at=None):
        """Run `main()` as one driver; give what it returns, or None if it died.

        Args:
            main: A coroutine function.
            dies_at: The driver dies at its so many-th edge, or at (edge, n-th time).
        """
        n_left = None
        if dies_at is not None:
            edge, n_left = (None, dies_at) if isinstance(dies_at, int) else dies_at

        def on_reach(reached):
            nonlocal n_left
            if n_left and edge in (None, reached):
                n_left -= 1
                if not n_left:
                    raise DiesError

        loop = ClockedLoop(self.clock)
        loop.set_exception_handler(lambda loop, context: None)  # the dead do not complain
        _faults.on_reach = on_reach
        try:
            return loop.run_until_complete(main())
        except DiesError:
            # What is left of it must not be tidied up: a dead driver does not.
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task._log_destroy_pending = False
                if inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CREATED:
                    task.get_coro().close()
            self._dead.append(tasks)
            return None
        finally:
            _faults.on_reach = None
            loop.close()

    def run(self, *commands, dies_at=None, plugins=(), **keywords):
        """Have one driver run commands; give its jobs, or None if it died."""

        async def main():
            xq = self.xqute(plugins=plugins, **keywords)
            for command in commands:
                await xq.feed(command)
            await xq.run_until_complete()
            return xq.jobs

        return self.live(main, dies_at)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


COMMANDS = ("first", "second", "third")


# --- a death at every edge ---------------------------------------------------------------------


def n_edges_of(world, **keywords):
    """Count the edges that a run that is not killed comes to."""
    n = 0

    def count(_edge):
        nonlocal n
        n += 1

    async def main():
        _faults.on_reach = count
        xq = world.xqute(**keywords)
        for command in COMMANDS:
            await xq.feed(command)
        await xq.run_until_complete()

    world.live(main)
    return n


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("has_hooks", [False, True])
def test_whenever_a_driver_dies_each_job_is_submitted_once_and_succeeds(tmp_path, batch, has_hooks):
    n_edges = n_edges_of(World(tmp_path / "whole", batch=batch), forks=2)
    assert n_edges > 3 * len(_faults.EDGES) - 6
    for n in range(1, n_edges + 1):
        world = World(tmp_path / str(n), batch=batch)
        recorder = HookRecorder()
        plugins = [recorder] if has_hooks else []
        assert world.run(*COMMANDS, forks=2, plugins=plugins, dies_at=n) is None
        jobs = world.run(*COMMANDS, forks=2, plugins=plugins, resume=True)
        assert [(job.outcome, job.rc) for job in jobs] == [(JobOutcome.SUCCEEDED, 0)] * 3, n
        assert world.accepted == {0: 1, 1: 1, 2: 1}, f"at edge {n}"
        if has_hooks:
            counts = recorder.counts("on_job_succeeded")
            assert all(1 <= counts[job.index] <= 2 for job in jobs), (
                "at least once, for each driver"
            )


@pytest.mark.parametrize("edge", _faults.EDGES)
def test_drivers_may_die_one_after_the_other(world, edge):
    """Each gets a little further than the one before."""
    world.behave = lambda job: Behaviour(runs_s=RUNS_S, rc=job.index % 2)
    for n in range(1, 4):
        world.run(*COMMANDS, forks=2, resume=True, dies_at=(edge, n))
    jobs = world.run(*COMMANDS, forks=2, resume=True)
    assert [job.rc for job in jobs] == [0, 1, 0]
    assert world.accepted[0] == world.accepted[2] == 1


def test_every_edge_is_reached(world):
    reached = set()

    async def main():
        _faults.on_reach = reached.add
        xq = world.xqute()
        await xq.feed("x")
        await xq.run_until_complete()
        await asyncio.sleep(0)

    world.live(main)
    assert reached == set(_faults.EDGES)


# --- alive, ended, forgotten -------------------------------------------------------------------


def test_a_job_that_waits_in_a_queue_is_taken_up(world):
    world.behave = lambda job: Behaviour(starts_after_s=RUNS_S, runs_s=RUNS_S, rc=7)
    assert world.run("x", dies_at=("after-journal", 1)) is None
    recorder = HookRecorder()
    [job] = world.run("x", plugins=[recorder])
    assert (job.outcome, job.rc, job.adopted) == (JobOutcome.FAILED, 7, True)
    assert recorder.of(job) == ["init", "started", "failed"]
    assert world.accepted == {0: 1}
    assert world.clock.now_s == pytest.approx(2 * RUNS_S, abs=30)


def test_what_nobody_saw_end_has_its_true_exit_code(world):
    world.behave = lambda job: Behaviour(runs_s=RUNS_S, rc=7)
    assert world.run("x", dies_at=("after-journal", 1)) is None
    world.make_scheduler(world.workdir)  # so that nobody is told
    world.clock.advance(10 * RUNS_S)
    [job] = world.run("x", resume=True)
    assert (job.outcome, job.rc, job.adopted) == (JobOutcome.FAILED, 7, True)
    assert world.accepted == {0: 1}


def test_a_lost_answer_in_a_batch_is_found_job_by_job(tmp_path, monkeypatch):
    # However busy the machine is, they are fed in one turn of the event loop, and so one batch.
    monkeypatch.setattr("xqute._engine.engine._TURN_S", float("inf"))
    world = World(tmp_path, behave=lambda job: Behaviour(runs_s=RUNS_S, rc=job.index), batch=3)
    assert world.run(*COMMANDS, forks=3, dies_at=("after-sending", 1)) is None
    jobs = world.run(*COMMANDS, forks=3)
    assert [(job.jid, job.rc, job.adopted) for job in jobs] == [
        *((1, 0, True), (2, 1, True), (3, 2, True))
    ]
    assert world.accepted == {0: 1, 1: 1, 2: 1}


def test_nothing_is_submitted_until_the_backend_tells_what_it_has(world, monkeypatch):
    assert world.run("x", dies_at=("after-sending", 1)) is None
    n_asked = 0
    find = MemoryScheduler.find_submitted

    async def is_away(self, keys):
        nonlocal n_asked
        n_asked += 1
        assert world.accepted == {0: 1}
        if n_asked < 5:
            raise SchedulerError("the controller is away")
        return await find(self, keys)

    monkeypatch.setattr(MemoryScheduler, "find_submitted", is_away)
    [job] = world.run("x")
    assert (job.outcome, job.adopted, n_asked) == (JobOutcome.SUCCEEDED, True, 5)
    assert world.accepted == {0: 1}


def test_a_job_that_the_backend_forgot_is_lost_after_the_grace(world):
    assert world.run("x", dies_at=("after-journal", 1)) is None
    world.schedulers[-1]._runs.clear()
    began_s = world.clock.now_s
    [job] = world.run("x")
    assert (job.outcome, job.rc) == (JobOutcome.LOST, -3)
    assert world.clock.now_s - began_s >= world.schedulers[-1].lost_grace_s
    assert world.accepted == {0: 1}, "it may have run: only the user knows whether it may again"


def test_a_backend_that_tells_nothing_by_itself_is_asked(world):
    world.behave = lambda job: Behaviour(runs_s=RUNS_S, rc=7, tells=Tells.NOTHING)
    assert world.run("x", dies_at=("after-journal", 1)) is None
    [job] = world.run("x")
    assert (job.rc, job.adopted) == (7, True)


# --- what is meant by resume, on_change and a kill ---------------------------------------------


def test_resume_adopts_only_what_has_succeeded_as_the_same(world):
    world.behave = lambda job: Behaviour(rc=job.index % 2)
    world.run(*COMMANDS)
    jobs = world.run("first", "second", "changed", resume=True)
    assert [job.adopted for job in jobs] == [True, False, False]
    assert world.accepted == {0: 1, 1: 2, 2: 2}


def test_without_resume_what_has_ended_runs_again(world):
    world.run(*COMMANDS)
    jobs = world.run(*COMMANDS)
    assert [job.adopted for job in jobs] == [False] * 3
    assert world.accepted == {0: 2, 1: 2, 2: 2}


def test_a_changed_command_is_an_error_while_the_old_one_lives(world):
    assert world.run("old", dies_at=("after-journal", 1)) is None

    async def main():
        xq = world.xqute(resume=True)
        with pytest.raises(JobChangedError, match="Job 0"):
            await xq.feed("new")
        job = await xq.feed("old")
        await xq.run_until_complete()
        return job

    job = world.live(main)
    assert (job.outcome, job.adopted) == (JobOutcome.SUCCEEDED, True)
    assert world.accepted == {0: 1}


def test_a_changed_command_ends_the_old_one_and_runs(world):
    assert world.run("old", dies_at=("after-journal", 1)) is None
    began_s = world.clock.now_s
    [job] = world.run("new", on_change="rerun")
    assert (job.outcome, job.rc, job.adopted) == (JobOutcome.SUCCEEDED, 0, False)
    assert world.accepted == {0: 2}
    took_s = world.clock.now_s - began_s
    assert took_s == pytest.approx(RUNS_S, abs=30), "the old one was not waited for"


@pytest.mark.parametrize("stays_s", [5.0, 1e6], ids=["a moment", "for ever"])
def test_the_new_one_waits_until_the_backend_has_the_old_one_no_more(world, monkeypatch, stays_s):
    """An end is told by the job itself, and its backend may still be clearing away after it."""
    assert world.run("old", dies_at=("after-journal", 1)) is None
    asked_s, submitted_s = [], []

    async def is_there(self, job):
        asked_s.append(world.clock.now_s)
        if len(asked_s) == 2:
            raise SchedulerError("that is not known now")
        return world.clock.now_s < asked_s[0] + stays_s

    def behave(job):
        submitted_s.append(world.clock.now_s)
        return Behaviour()

    monkeypatch.setattr(MemoryScheduler, "job_is_running", is_there)
    world.behave = behave
    [job] = world.run("new", on_change="rerun")
    assert (job.outcome, job.adopted) == (JobOutcome.SUCCEEDED, False)
    assert len(asked_s) > 3
    [submitted_s] = submitted_s
    assert submitted_s - asked_s[0] == pytest.approx(min(stays_s, DEFAULT_KILL_TIMEOUT_S), abs=1.5)


def test_a_kill_intent_is_carried_out_by_the_next_run(world, monkeypatch):
    async def dies(self, jobs, force=False):
        raise DiesError

    async def main():
        xq = world.xqute()
        job = await xq.feed("x")
        await until(lambda: job.status is JobStatus.RUNNING, "it runs")
        await xq.scheduler.kill_job_and_update_status(job)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryScheduler, "kill_jobs", dies)
        assert world.live(main) is None
    began_s = world.clock.now_s
    [job] = world.run("x")
    assert (job.outcome, job.adopted) == (JobOutcome.SUCCEEDED, False)
    assert world.accepted == {0: 2}
    assert world.schedulers[-1].calls.kill == [1]
    assert world.clock.now_s - began_s == pytest.approx(RUNS_S, abs=30)


def test_a_run_that_was_left_is_come_back_to(world):
    async def leaves():
        xq = world.xqute(forks=1)
        jobs = [await xq.feed(command) for command in COMMANDS]
        await until(lambda: jobs[0].status is JobStatus.RUNNING, "it runs")
        await xq.detach()
        return [job.outcome for job in jobs]

    assert world.live(leaves) == [None] * 3
    jobs = world.run(*COMMANDS)
    assert [(job.outcome, job.adopted) for job in jobs] == [
        (JobOutcome.SUCCEEDED, True),
        (JobOutcome.SUCCEEDED, False),
        (JobOutcome.SUCCEEDED, False),
    ]
    assert world.accepted == {0: 1, 1: 1, 2: 1}


def test_a_failure_of_a_job_that_was_taken_up_is_tried_again(world):
    world.behave = lambda job: Behaviour(runs_s=RUNS_S, rc=0 if job.trial_count else 7)
    assert world.run("x", dies_at=("after-journal", 1)) is None
    [job] = world.run("x", error_strategy="retry")
    assert (job.outcome, job.trial_count) == (JobOutcome.SUCCEEDED, 1)
    assert world.accepted == {0: 2}
