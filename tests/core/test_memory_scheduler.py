"""The in-memory scheduler does as it is told, and the engine makes the best of what goes wrong."""

from __future__ import annotations

import asyncio

import pytest

from xqute import ConfigError, JobCause, JobOutcome, JobStatus, SubmitError, Xqute
from xqute.scheduler import Phase
from xqute.testing import (
    Behaviour,
    Fault,
    HookRecorder,
    ManualClock,
    MemoryScheduler,
    Tells,
    until,
)


class QuickMemoryScheduler(MemoryScheduler):
    """Asks, kills and gives up soon."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, recheck_interval=0.02, **kwargs)
        self.first_recheck_s = 0.02
        self.lost_grace_s = 0.05
        self.kill_grace_s = 0.05


async def run(tmp_path, n_jobs=1, plugins=(), forks=100, strategy="ignore", **opts):
    """Run jobs to their end within ten seconds; give the run."""
    xq = Xqute(
        QuickMemoryScheduler,
        workdir=tmp_path,
        forks=forks,
        plugins=plugins,
        error_strategy=strategy,
        scheduler_opts=opts,
    )
    async with asyncio.timeout(10), xq:
        for _ in range(n_jobs):
            await xq.feed("x")
    return xq


def always(**behaviour):
    return lambda job: Behaviour(**behaviour)


# --- as usual ----------------------------------------------------------------------------------


async def test_jobs_succeed_at_once_and_leave_no_folder(tmp_path):
    xq = await run(tmp_path, 100)
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}
    assert [job.jid for job in xq.jobs] == list(range(1, 101))
    assert [path.name for path in tmp_path.iterdir()] == [".run"]


async def test_it_records_what_was_asked_of_it(tmp_path):
    xq = await run(tmp_path, 10, batch=4)
    calls = xq.scheduler.calls
    assert sum(calls.submit) == 10
    assert max(calls.submit) <= 4
    assert calls.kill == []
    assert repr(calls).startswith(f"<Calls: {len(calls.submit)} submits of 10 jobs")


def test_batch_says_which_jobs_go_together(tmp_path):
    scheduler = MemoryScheduler(tmp_path, batch=4)
    jobs = [scheduler.create_job(index, "x") for index in range(10)]
    plans = scheduler.plan_submissions(jobs)
    assert [len(plan.jobs) for plan in plans] == [4, 4, 2]
    assert [job for plan in plans for job in plan.jobs] == jobs
    assert len({plan.key for plan in plans}) == 3


async def test_a_behaviour_says_how_each_attempt_ends(tmp_path):
    def behave(job):
        return Behaviour(rc=0 if job.trial_count == 2 else 5)

    xq = await run(tmp_path, 3, strategy="retry", behave=behave)
    assert [(job.rc, job.trial_count) for job in xq.jobs] == [(0, 2)] * 3


async def test_a_behaviour_gives_cause_and_reason(tmp_path):
    behave = always(rc=9, cause=JobCause.OUT_OF_MEMORY, reason="used 2 of 1 GiB")
    [job] = (await run(tmp_path, behave=behave)).jobs
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 9)
    assert (job.cause, job.reason) == (JobCause.OUT_OF_MEMORY, "used 2 of 1 GiB")


async def test_an_end_without_exit_code_is_no_success(tmp_path):
    [job] = (await run(tmp_path, behave=always(rc=None))).jobs
    assert (job.status, job.outcome) == (JobStatus.FAILED, JobOutcome.LOST)


async def test_the_same_script_gives_each_job_the_same_story(tmp_path):
    def behave(job):
        return Behaviour(rc=job.index % 3, tells=Tells.TWICE if job.index % 2 else Tells.ONCE)

    stories = []
    for name in ("first", "second"):
        recorder = HookRecorder()
        faults = {"submit": [Fault.SAME_ID, None, Fault.LOSE_ANSWER]}
        await run(tmp_path / name, 50, [recorder], strategy="retry", behave=behave, faults=faults)
        stories.append(
            [[call[:3] for call in recorder.calls if call.index == n] for n in range(50)]
        )
    assert stories[0] == stories[1]


async def test_no_turn_of_the_loop_tells_of_many_jobs(tmp_path):
    scheduler = MemoryScheduler(tmp_path, batch=1000)
    jobs = [scheduler.create_job(index, "x") for index in range(1000)]
    told, sizes = [], []
    scheduler.watch(lambda job, state: told.append(job))
    [plan] = scheduler.plan_submissions(jobs)
    await scheduler.submit(plan)
    while len(told) < len(jobs):
        n_before = len(told)
        await asyncio.sleep(0)
        sizes.append(len(told) - n_before)
    assert told == jobs
    assert max(sizes) <= 32


# --- time --------------------------------------------------------------------------------------


def test_a_manual_clock_calls_in_the_order_of_time():
    clock = ManualClock()
    called = []
    clock.call_later(2, called.append, "second")
    clock.call_later(1, called.append, "first")
    clock.call_later(1, clock.call_later, 0.5, called.append, "mid")
    clock.call_later(2, called.append, "third")
    clock.advance(1.9)
    assert called == ["first", "mid"]
    assert clock.now_s == 1.9
    clock.advance(0.1)
    assert called == ["first", "mid", "second", "third"]
    clock.advance(100)
    assert clock.now_s == 102


async def test_hours_pass_at_once_by_a_manual_clock(tmp_path):
    clock = ManualClock()
    behave = always(rc=3, starts_after_s=3600, runs_s=7200)
    async with Xqute(
        MemoryScheduler, workdir=tmp_path, scheduler_opts={"behave": behave, "clock": clock}
    ) as xq:
        job = await xq.feed("x")
        await until(lambda: job.status is JobStatus.SUBMITTED, "submitted")
        assert (await xq.scheduler.poll_jobs([job]))[job].phase is Phase.PENDING
        clock.advance(3600)
        await until(lambda: job.status is JobStatus.RUNNING, "running")
        clock.advance(7199)
        assert await xq.scheduler.job_is_running(job)
        clock.advance(1)
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 3)


# --- without an engine -------------------------------------------------------------------------


async def turns(n=5):
    for _ in range(n):
        await asyncio.sleep(0)


def alone(tmp_path, **opts):
    """A scheduler without an engine, a job of its, what it tells, and its clock."""
    clock = ManualClock()
    scheduler = MemoryScheduler(tmp_path, clock=clock, **opts)
    told = []
    scheduler.watch(lambda job, state: told.append(state.phase))
    return scheduler, scheduler.create_job(0, "x"), told, clock


@pytest.mark.parametrize(
    ("tells", "expected"),
    [
        (Tells.ONCE, [Phase.RUNNING, Phase.ENDED]),
        (Tells.TWICE, [Phase.RUNNING, Phase.RUNNING, Phase.ENDED, Phase.ENDED]),
        (Tells.BACKWARDS, [Phase.ENDED, Phase.RUNNING]),
        (Tells.NOTHING, []),
    ],
)
async def test_a_behaviour_says_what_is_told(tmp_path, tells, expected):
    behave = always(runs_s=1, tells=tells)
    scheduler, job, told, clock = alone(tmp_path, behave=behave)
    await scheduler.submit_job(job)
    await turns()
    clock.advance(1)
    await turns()
    assert told == expected


async def test_news_come_as_late_as_the_behaviour_says(tmp_path):
    scheduler, job, told, clock = alone(tmp_path, behave=always(runs_s=1, told_after_s=5))
    await scheduler.submit_job(job)
    clock.advance(4)
    await turns()
    assert told == []
    assert (await scheduler.poll_jobs([job]))[job].phase is Phase.ENDED, "who asks knows better"
    clock.advance(2)
    await turns()
    assert told == [Phase.RUNNING, Phase.ENDED]


async def test_a_lost_answer_is_a_job_accepted(tmp_path):
    faults = {"submit": [Fault.LOSE_ANSWER]}
    scheduler, job, told, _ = alone(tmp_path, behave=always(runs_s=1), faults=faults)
    with pytest.raises(SubmitError) as lost:
        await scheduler.submit_job(job)
    assert (lost.value.transient, lost.value.maybe_submitted) == (True, True)
    await turns()
    assert told == [Phase.RUNNING]


async def test_answers_come_as_late_as_the_script_says(tmp_path):
    faults = {"submit": [7], "poll": [8.0], "kill": [9]}
    scheduler, job, told, clock = alone(tmp_path, behave=always(runs_s=100), faults=faults)
    questions = [
        (7, lambda: scheduler.submit_job(job), [Phase.RUNNING]),
        (8, lambda: scheduler.poll_jobs([job]), [Phase.RUNNING]),
        (9, lambda: scheduler.kill_jobs([job]), [Phase.RUNNING, Phase.ENDED]),
    ]
    for seconds, ask, expected in questions:
        answer = asyncio.ensure_future(ask())
        await turns()
        assert told == expected, "it happens at once"
        clock.advance(seconds - 0.5)
        await turns()
        assert not answer.done()
        clock.advance(0.5)
        await answer
    assert (scheduler.calls.submit, scheduler.calls.poll, scheduler.calls.kill) == ([1], [1], [1])


# --- what goes wrong at submission -------------------------------------------------------------


async def test_a_lost_answer_runs_the_job_once(tmp_path):
    xq = await run(tmp_path, behave=always(runs_s=0.1), faults={"submit": [Fault.LOSE_ANSWER]})
    assert xq.jobs[0].outcome == JobOutcome.SUCCEEDED
    assert xq.scheduler.calls.submit == [1]


async def test_a_refusal_for_good_fails_the_job(tmp_path):
    xq = await run(tmp_path, 2, forks=1, faults={"submit": [Fault.REFUSE]})
    refused, accepted = xq.jobs
    assert (refused.outcome, refused.rc) == (JobOutcome.SUBMIT_FAILED, -2)
    assert "refused by script" in refused.read_file("job.stderr")
    assert accepted.outcome == JobOutcome.SUCCEEDED


async def test_a_refusal_for_now_is_asked_again(tmp_path):
    xq = await run(tmp_path, faults={"submit": [Fault.REFUSE_FOR_NOW]})
    assert xq.jobs[0].outcome == JobOutcome.SUCCEEDED
    assert (xq.jobs[0].trial_count, len(xq.scheduler.calls.submit)) == (0, 2)


async def test_any_exception_fails_the_jobs_of_the_submission_only(tmp_path):
    xq = await run(tmp_path, 6, batch=3, faults={"submit": [ZeroDivisionError("oops")]})
    n_together = xq.scheduler.calls.submit[0]
    failed = [job.outcome == JobOutcome.SUBMIT_FAILED for job in xq.jobs]
    assert failed == [True] * n_together + [False] * (6 - n_together)
    assert "oops" in xq.jobs[0].reason


async def test_one_job_of_a_submission_may_be_refused(tmp_path):
    def behave(job):
        if job.index == 1:
            raise SubmitError("not this one")
        return Behaviour()

    xq = await run(tmp_path, 3, batch=3, behave=behave)
    assert [str(job.outcome) for job in xq.jobs] == ["succeeded", "submit_failed", "succeeded"]
    assert "not this one" in xq.jobs[1].reason


async def test_an_answer_without_the_job_is_no_acceptance(tmp_path):
    xq = await run(tmp_path, faults={"submit": [Fault.NO_ANSWER]})
    assert xq.jobs[0].outcome == JobOutcome.SUBMIT_FAILED


async def test_news_may_be_faster_than_the_answer(tmp_path):
    recorder = HookRecorder()
    xq = await run(tmp_path, 1, [recorder], behave=always(rc=4), faults={"submit": [0.05]})
    assert xq.jobs[0].rc == 4
    assert recorder.of(xq.jobs[0])[-3:] == ["submitted", "started", "failed"]


async def test_an_id_that_is_given_out_twice_mixes_nothing_up(tmp_path):
    def behave(job):
        return Behaviour(rc=job.index, runs_s=0.05)

    xq = await run(tmp_path, 5, behave=behave, faults={"submit": [None] + [Fault.SAME_ID] * 4})
    assert {job.jid for job in xq.jobs} == {1}
    assert [job.rc for job in xq.jobs] == [0, 1, 2, 3, 4]


# --- what goes wrong with news -----------------------------------------------------------------


@pytest.mark.parametrize("tells", [Tells.TWICE, Tells.BACKWARDS, Tells.NOTHING])
async def test_hooks_are_called_once_whatever_is_told(tmp_path, tells):
    recorder = HookRecorder()
    behave = always(rc=6, runs_s=0.05, tells=tells)
    [job] = (await run(tmp_path, 1, [recorder], behave=behave)).jobs
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 6)
    assert recorder.of(job) == ["init", "queued", "submitting", "submitted", "started", "failed"]


async def test_late_news_of_an_attempt_are_not_taken_for_the_next(tmp_path):
    """Attempt 0 is found to have ended by asking; its start and end are told in attempt 1."""

    def behave(job):
        if job.trial_count:
            return Behaviour(rc=0, runs_s=0.4)
        return Behaviour(rc=9, runs_s=0.01, told_after_s=0.2)

    recorder = HookRecorder()
    [job] = (await run(tmp_path, 1, [recorder], strategy="retry", behave=behave)).jobs
    assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.SUCCEEDED, 0, 1)
    assert recorder.of(job).count("started") == 2


async def test_a_job_that_vanishes_is_lost(tmp_path):
    [job] = (await run(tmp_path, behave=always(vanishes=True))).jobs
    assert (job.status, job.outcome, job.rc) == (JobStatus.FAILED, JobOutcome.LOST, -3)


async def test_a_job_that_is_denied_for_a_moment_is_not_lost(tmp_path):
    behave = always(runs_s=0.3, tells=Tells.NOTHING)
    xq = await run(tmp_path, behave=behave, faults={"poll": [None, Fault.DENY]})
    assert xq.jobs[0].outcome == JobOutcome.SUCCEEDED


async def test_a_job_that_is_denied_for_long_is_lost(tmp_path):
    behave = always(runs_s=5, tells=Tells.NOTHING)
    xq = await run(tmp_path, behave=behave, faults={"poll": [Fault.DENY] * 1000})
    assert xq.jobs[0].outcome == JobOutcome.LOST


async def test_answers_that_fail_or_come_late_lose_no_job(tmp_path):
    faults = {"poll": [OSError("away"), Fault.NO_ANSWER, 0.1, OSError("away")]}
    behave = always(rc=2, runs_s=0.15, tells=Tells.NOTHING)
    xq = await run(tmp_path, 3, behave=behave, faults=faults)
    assert [job.rc for job in xq.jobs] == [2, 2, 2]


# --- kills -------------------------------------------------------------------------------------


async def kill_one(tmp_path, behaviour, **opts):
    xq = Xqute(
        QuickMemoryScheduler,
        workdir=tmp_path,
        scheduler_opts={"behave": lambda job: behaviour, **opts},
    )
    async with asyncio.timeout(10), xq:
        job = await xq.feed("x")
        await until(lambda: job.jid is not None, "submitted")
        await xq.scheduler.kill_job_and_update_status(job)
    return xq, job


async def test_term_ends_a_job_with_143(tmp_path):
    xq, job = await kill_one(tmp_path, Behaviour(runs_s=60))
    assert (job.outcome, job.rc) == (JobOutcome.KILLED, 143)
    assert xq.scheduler.calls.kill == [1]


async def test_a_job_that_ignores_term_is_killed_with_137(tmp_path):
    xq, job = await kill_one(tmp_path, Behaviour(runs_s=60, ignores_term=True))
    assert (job.outcome, job.rc) == (JobOutcome.KILLED, 137)
    assert xq.scheduler.calls.kill == [1, 1]


@pytest.mark.parametrize("incident", [Fault.NO_ANSWER, OSError("away")])
async def test_a_kill_that_fails_is_repeated_by_force(tmp_path, incident):
    _, job = await kill_one(tmp_path, Behaviour(runs_s=60), faults={"kill": [incident]})
    assert (job.outcome, job.rc) == (JobOutcome.KILLED, 137)


async def test_a_pending_job_is_removed(tmp_path):
    _, job = await kill_one(tmp_path, Behaviour(starts_after_s=60))
    assert job.status is JobStatus.FINISHED
    assert job.rc < 0, "there is no exit code: it never ran"
    assert job.started_at is None
    assert job.outcome == JobOutcome.CANCELLED


# --- scripts that make no sense ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"sumbit": [None]}, "'sumbit'"),
        ({"kill": [Fault.DENY]}, "DENY cannot happen at 'kill'"),
        ({"poll": [Fault.LOSE_ANSWER]}, "LOSE_ANSWER cannot happen at 'poll'"),
    ],
)
def test_a_script_that_makes_no_sense_is_refused(tmp_path, script, words):
    with pytest.raises(ConfigError, match=words):
        MemoryScheduler(tmp_path, faults=script)
