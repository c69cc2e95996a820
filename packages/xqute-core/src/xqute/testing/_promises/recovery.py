"""Promises about drivers that die, and about those that come after them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

import pytest

from ...defaults import RC_LOST, SIGNAL_BASE, JobOutcome, JobStatus
from ...errors import JobChangedError, SubmitError, WorkdirLockedError
from ...job import Job
from ...scheduler import BackendState, Phase, Scheduler, Submission
from ...utils import CommandType
from .._driver import BEFORE_KILLING, KILLED, WHILE_SENDING, Driver
from .._needs import Needs, needs
from .._recorder import HookRecorder
from .._rig import Rig, bash, marker, replace
from .kills import KIN

_RUNS = 'echo run >>"$XQUTE_JOB_METADIR/runs"; echo ready'
_WAITS = "until [[ -e $XQUTE_JOB_METADIR/go ]]; do sleep 0.01; done"


def _waiting(rc: int = 7) -> list[str]:
    """Give a command that notes that it runs, and waits for the file "go"."""
    return bash(f"{_RUNS}; {_WAITS}; exit {rc}")


async def _dies_at(rig: Rig, instant: str, *commands: CommandType, **keywords: object) -> None:
    """Have a driver feed commands, and kill itself at an instant."""
    with rig.driver(*commands, dies_at=(instant, 1), **keywords) as driver:
        rc = await asyncio.to_thread(driver.wait)
    assert rc == KILLED, f"it did not die at {instant!r}: {driver}"


async def _is_killed_when_it_has(rig: Rig, *word: object, commands: Sequence[CommandType]) -> None:
    """Have a driver feed commands, and kill it when it has told something."""
    with rig.driver(*commands) as driver:
        await _hear(driver, *word)


async def _hear(driver: Driver, *word: object) -> None:
    await asyncio.to_thread(driver.expect, *word)


def _job_of(rig: Rig, index: int = 0) -> Job:
    """Give a job as somebody sees it who has but its folder."""
    return rig.scheduler().create_job(index, bash("true"))


async def _until_ended(rig: Rig, job: Job) -> None:
    await rig.until(lambda: rig.read(job, "job.status") in (b"6", b"7"), f"{job!r} has ended")


def _n_submitted(recorder: HookRecorder) -> dict[int, int]:
    return recorder.counts("on_job_submitted")


class RecoveryPromises:
    """The driver may be killed at any instant, and the next one takes up where it was."""

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_driver_killed_before_a_submission_loses_no_job(self, rig: Rig) -> None:
        """What it was about to send is sent by the next driver, once."""
        for place, edge in ((rig, "before-intent"), (rig.elsewhere(), "before-sending")):
            await _dies_at(place, edge, bash(f"{_RUNS}; exit 7"))
            [job] = await place.run(bash(f"{_RUNS}; exit 7"))
            assert place.read(job, "runs") == b"run\n", edge
            assert (job.outcome, job.rc) == (JobOutcome.FAILED, 7)

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_driver_killed_during_a_submission_runs_nothing_twice(self, rig: Rig) -> None:
        """Whether the backend has got the job or not, and however late: its command runs once."""
        await _dies_at(rig, WHILE_SENDING, _waiting())
        async with rig.running() as xq:
            job = await rig.feed_ready(xq, _waiting())
            job.write_file("go", "")
        assert rig.read(job, "runs") == b"run\n"
        assert (job.outcome, job.rc) == (JobOutcome.FAILED, 7)

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_an_answer_lost_with_its_driver_runs_nothing_twice(self, rig: Rig) -> None:
        """The backend has the job, and nobody has noted its id: it is found, or never starts."""
        for place, edge in ((rig, "after-sending"), (rig.elsewhere(), "after-answer")):
            await _dies_at(place, edge, _waiting())
            async with place.running() as xq:
                job = await place.feed_ready(xq, _waiting())
                job.write_file("go", "")
            assert place.read(job, "runs") == b"run\n", edge
            assert (job.outcome, job.rc) == (JobOutcome.FAILED, 7)

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_driver_killed_after_a_submission_leaves_the_job_to_the_next(
        self, rig: Rig
    ) -> None:
        """The id is noted: the next driver watches the job, and does not submit it again."""
        await _dies_at(rig, "after-journal", _waiting())
        async with rig.running() as xq:
            job = await rig.feed_ready(xq, _waiting())
            job.write_file("go", "")
        assert rig.read(job, "runs") == b"run\n"
        assert (job.outcome, job.rc, job.adopted) == (JobOutcome.FAILED, 7, True)

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_re_attached_job_tells_its_true_end(self, rig: Rig) -> None:
        """Exit codes, output and hooks are those of a job of one's own."""
        recorder = HookRecorder()
        commands = [_waiting(rc) for rc in (0, 7)]
        with rig.driver(*commands, forks=2) as driver:
            for index in range(2):
                await _hear(driver, "submitted", index)
                await rig.until_ready(_job_of(rig, index))
        async with rig.running(plugins=[recorder]) as xq:
            jobs = [await xq.feed(command) for command in commands]
            for job in jobs:
                await rig.until(lambda job=job: job.status is JobStatus.RUNNING, "it runs")  # type: ignore[misc]
                job.write_file("go", "")
        assert [(job.outcome, job.rc, job.adopted) for job in jobs] == [
            (JobOutcome.SUCCEEDED, 0, True),
            (JobOutcome.FAILED, 7, True),
        ]
        assert [rig.output(job) for job in jobs] == [b"ready\n"] * 2
        assert [rig.read(job, "runs") for job in jobs] == [b"run\n"] * 2
        assert [recorder.of(job)[-2:] for job in jobs] == [
            ["started", "succeeded"],
            ["started", "failed"],
        ]

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_what_ended_while_no_driver_lived_has_its_true_end(self, rig: Rig) -> None:
        """With `resume` a success is adopted, with its exit code; a failure is run again."""
        commands = [_waiting(rc) for rc in (0, 7)]
        with rig.driver(*commands, forks=2) as driver:
            for index in range(2):
                await _hear(driver, "submitted", index)
                await rig.until_ready(_job_of(rig, index))
        for index in range(2):
            job = _job_of(rig, index)
            job.write_file("go", "")
            await _until_ended(rig, job)
        succeeds, fails = await rig.run(*commands, resume=True)
        assert (succeeds.outcome, succeeds.rc, succeeds.adopted) == (JobOutcome.SUCCEEDED, 0, True)
        assert rig.read(succeeds, "runs") == b"run\n"
        assert (fails.outcome, fails.rc, fails.adopted) == (JobOutcome.FAILED, 7, False)
        assert rig.read(fails, "runs") == b"run\nrun\n"

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_revoked_attempt_that_starts_late_does_nothing(self, rig: Rig) -> None:
        """A submission that arrives when its driver is dead, and the next has given it up."""
        await _dies_at(rig, "before-sending", bash(f"{_RUNS}; exit 7"))
        [job] = await rig.run(bash(f"{_RUNS}; exit 7"))
        assert rig.read(job, "runs") == b"run\n"
        tags = [
            path.name.removeprefix("job.start.")
            for path in job.metadir.iterdir()
            if path.name.startswith("job.start.")
        ]
        for tag in tags:  # the dead driver's, and the one that has run
            async with rig.backend() as backend:
                late = backend.create(bash(f"{_RUNS}; exit 7"))
                late.run_id, attempt = tag.rsplit("-", 1)
                late.trial_count = int(attempt)
                try:
                    late.jid = await backend.scheduler.submit_job(late)
                except SubmitError:
                    continue  # so much the better
                await backend.until_gone(late)
        assert len(tags) > 1
        assert rig.read(job, "runs") == b"run\n"
        assert rig.read(job, "job.rc") == b"7"

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER, Needs.PROCESSES)
    async def test_a_late_end_of_a_lost_job_changes_nothing(self, rig: Rig) -> None:
        """The backend denies that it has a re-attached job: LOST is said once, and stays so."""
        script = f"{_RUNS}; {_WAITS}; echo over"
        await _is_killed_when_it_has(rig, "submitted", 0, commands=[bash(script)])
        await rig.until_ready(_job_of(rig))
        async with rig.running() as xq:
            _deny(xq.scheduler)
            job = await xq.feed(bash(script))
        assert (job.outcome, job.rc) == (JobOutcome.LOST, RC_LOST)
        job.write_file("go", "")
        await rig.until(lambda: rig.output(job).endswith(b"over\n"), "its command has ended")
        await rig.until(lambda: not rig.find_processes(str(job.metadir)), "its wrapper has, too")
        assert rig.read(job, "job.rc") == b"%d" % RC_LOST
        assert rig.read(job, "job.status") == b"7"

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_job_that_the_backend_forgets_tells_its_end(self, rig: Rig) -> None:
        """That the backend has no such job loses none: within the grace it tells its end itself."""
        await _is_killed_when_it_has(rig, "submitted", 0, commands=[_waiting()])
        await rig.until_ready(_job_of(rig))
        async with rig.running() as xq:
            replace(xq.scheduler, "lost_grace_s", 4.0)
            asked = _deny(xq.scheduler)
            job = await xq.feed(_waiting())
            await rig.until(lambda: bool(asked), "the backend was asked")
            job.write_file("go", "")
        assert rig.read(job, "runs") == b"run\n"
        assert (job.outcome, job.rc) == (JobOutcome.FAILED, 7)

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_two_drivers_cannot_own_one_workdir(self, rig: Rig) -> None:
        """The second is refused, and told who the first is; the first is not disturbed."""
        with rig.driver(_waiting(0)) as driver:
            await _hear(driver, "submitted", 0)
            async with rig.running() as xq:
                with pytest.raises(WorkdirLockedError) as refused:
                    await xq.feed(_waiting(0))
            assert f"pid {driver.pid} " in str(refused.value)
            assert os.uname().nodename in str(refused.value)
            job = _job_of(rig)
            await rig.until_ready(job)
            job.write_file("go", "")
            await _hear(driver, "over", [["succeeded", 0, False]])
        assert rig.read(job, "runs") == b"run\n"

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER, Needs.PROCESSES)
    async def test_a_kill_of_a_re_attached_job_leaves_nothing_behind(self, rig: Rig) -> None:
        """It ends as one's own would: also what ignores TERM, and what has lost its parent."""
        word = marker()
        command = bash("".join([*KIN, 'echo ready; exec -a "$1" sleep 60']), word)
        await _is_killed_when_it_has(rig, "submitted", 0, commands=[command])
        await rig.until_ready(_job_of(rig))
        async with rig.running() as xq:
            job = await xq.feed(command)
            await rig.until(lambda: job.status is JobStatus.RUNNING, "it runs")
            await rig.until(lambda: len(rig.find_processes(word)) == len(KIN) + 1, "all run")
            await xq.scheduler.kill_job_and_update_status(job)
        assert (job.outcome, job.adopted) == (JobOutcome.KILLED, True)
        await rig.until(lambda: not rig.find_processes(word), "its processes are gone")
        assert job.rc > SIGNAL_BASE

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER)
    async def test_a_re_attached_job_that_ignores_term_is_killed(self, rig: Rig) -> None:
        """After the grace period it is sent KILL, and has the exit code of that: 137."""
        command = bash("trap '' TERM; echo ready; exec sleep 60")
        await _is_killed_when_it_has(rig, "submitted", 0, commands=[command])
        await rig.until_ready(_job_of(rig))
        async with rig.running() as xq:
            job = await rig.feed_running(xq, command)
            await xq.scheduler.kill_job_and_update_status(job)
        assert (job.outcome, job.rc, job.adopted) == (JobOutcome.KILLED, 137, True)

    @needs(Needs.COMMANDS, Needs.NEW_DRIVER, Needs.PROCESSES)
    async def test_a_kill_intent_is_finished_by_the_next_run(self, rig: Rig) -> None:
        """A driver dies when it is about to kill: the next one kills, and then runs it anew."""
        word = marker()
        script = (
            f'{_RUNS}; [[ $(<"$XQUTE_JOB_METADIR/runs") == run ]] || exit 0\n'
            "trap '' TERM; exec -a \"$1\" sleep 60"
        )
        with rig.driver(bash(script, word), dies_at=(BEFORE_KILLING, 1)) as driver:
            await _hear(driver, "submitted", 0)
            await rig.until_ready(_job_of(rig))
            await rig.until(lambda: len(rig.find_processes(word)) == 1, "it runs")
            driver.say("kill", 0)
            assert await asyncio.to_thread(driver.wait) == KILLED
        [job] = await rig.run(bash(script, word))
        assert (job.outcome, job.rc) == (JobOutcome.SUCCEEDED, 0)
        assert rig.read(job, "runs") == b"run\nrun\n"
        await rig.until(lambda: not rig.find_processes(word), "its processes are gone")

    # --- without a death -----------------------------------------------------------------------

    async def test_resume_adopts_successes_and_runs_failures_again(self, rig: Rig) -> None:
        """A success is not submitted again: it has its exit code, its hook, and `adopted`."""
        commands = [rig.command(rc) for rc in (0, 5)]
        await rig.run(*commands)
        recorder = HookRecorder()
        succeeded, failed = await rig.run(*commands, resume=True, plugins=[recorder])
        assert (succeeded.status, succeeded.outcome) == (JobStatus.FINISHED, JobOutcome.SUCCEEDED)
        assert (succeeded.rc, succeeded.adopted) == (0, True)
        assert (failed.outcome, failed.rc, failed.adopted) == (JobOutcome.FAILED, 5, False)
        assert recorder.of(succeeded) == ["init", "succeeded"]
        assert _n_submitted(recorder) == {1: 1}

    async def test_without_resume_only_what_is_alive_is_adopted(self, rig: Rig) -> None:
        """What has ended runs again, with 0 or not; what is still there is not submitted again."""
        commands = [rig.command(0), rig.command(5), rig.command(0, runs_s=60)]
        first = rig.xqute(forks=3)
        jobs = [await first.feed(command) for command in commands]
        await rig.until(
            lambda: (
                [job.has_ended for job in jobs] == [True, True, False]
                and jobs[2].status is JobStatus.RUNNING
            ),
            "two have ended, and the last one runs",
        )
        await first.detach()
        recorder = HookRecorder()
        async with rig.running(forks=3, plugins=[recorder]) as xq:
            again = [await xq.feed(command) for command in commands]
            await again[0].wait()
            await again[1].wait()
            await rig.until(lambda: again[2].status is JobStatus.RUNNING, "the last one runs")
            xq.cancel()
        assert [job.adopted for job in again] == [False, False, True]
        assert [job.outcome for job in again] == [
            *(JobOutcome.SUCCEEDED, JobOutcome.FAILED, JobOutcome.KILLED)
        ]
        assert _n_submitted(recorder) == {0: 1, 1: 1}

    async def test_a_changed_command_of_a_live_job_is_refused(self, rig: Rig) -> None:
        """Neither is it taken for the other nor run beside it: an error names the job."""
        first = rig.xqute()
        command = rig.command(0, runs_s=60)
        await rig.feed_running(first, command)
        await first.detach()
        async with rig.running() as xq:
            with pytest.raises(JobChangedError, match=r"[Jj]ob 0\b"):
                await xq.feed(rig.command(3, runs_s=60))
            job = await rig.feed_running(xq, command)
            assert job.adopted, "as what it was it is taken up"
            xq.cancel()
        assert job.outcome == JobOutcome.KILLED

    async def test_on_change_rerun_ends_the_old_and_runs_the_new(self, rig: Rig) -> None:
        """The old one is dead before the new one is submitted, and the end is the new one's."""
        first = rig.xqute()
        old = await rig.feed_running(first, rig.command(0, runs_s=60))
        await first.detach()
        was_alive: list[bool] = []
        async with rig.running(on_change="rerun") as xq, rig.scheduler() as other:
            submit = xq.scheduler.submit

            async def looks(submission: Submission) -> object:
                # Another looks: the run's own is not to follow for our sake what it is done with.
                probe = other.create_job(0, rig.command(0))
                probe.jid, probe.run_id = old.jid, first.scheduler.run_id
                await other.reattach([probe])
                was_alive.append(await other.job_is_running(probe))
                return await submit(submission)

            replace(xq.scheduler, "submit", looks)
            job = await xq.feed(rig.command(3))
        assert was_alive == [False]
        assert (job.outcome, job.rc, job.adopted) == (JobOutcome.FAILED, 3, False)

    async def test_a_run_may_be_left_and_come_back_to(self, rig: Rig) -> None:
        """After `detach` what runs runs on, what waits was not submitted; the next run has both."""
        commands = [rig.command(0, runs_s=0.5), rig.command(3)]
        first = rig.xqute(forks=1)
        left = [await first.feed(command) for command in commands]
        await rig.until(lambda: left[0].status is JobStatus.RUNNING, "the first one runs")
        await first.detach()
        assert [job.outcome for job in left] == [None, None]
        recorder = HookRecorder()
        runs, waits = await rig.run(*commands, resume=True, plugins=[recorder])
        assert (runs.outcome, runs.rc, runs.adopted) == (JobOutcome.SUCCEEDED, 0, True)
        assert (waits.outcome, waits.rc, waits.adopted) == (JobOutcome.FAILED, 3, False)
        assert _n_submitted(recorder) == {1: 1}


def _deny(scheduler: Scheduler) -> list[int]:
    """Have a scheduler say that it has no job; give how many it was asked about, each time."""
    asked: list[int] = []

    async def poll_jobs(jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        asked.append(len(jobs))
        return {job: BackendState(Phase.GONE) for job in jobs}

    replace(scheduler, "poll_jobs", poll_jobs)
    return asked
