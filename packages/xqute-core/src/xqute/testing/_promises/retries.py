"""Promises about what follows a failure."""

from __future__ import annotations

from ...defaults import JobOutcome, JobStatus
from .._needs import Needs, needs
from .._rig import Rig, bash


class RetryPromises:
    """retry, ignore and halt."""

    @needs(Needs.COMMANDS)
    async def test_each_attempt_keeps_its_files(self, rig: Rig) -> None:
        """Those of earlier attempts are in `job.retry/<n>/`; XQUTE_JOB_TRIAL counts from 0."""
        script = 'n=$XQUTE_JOB_TRIAL; echo "out $n"; echo "err $n" >&2; exit $((n + 3))'
        [job] = await rig.run(bash(script), error_strategy="retry", num_retries=2)
        folders = {0: "job.retry/0/", 1: "job.retry/1/", 2: ""}
        for trial, folder in folders.items():
            assert rig.read(job, f"{folder}job.stdout") == b"out %d\n" % trial
            assert rig.read(job, f"{folder}job.stderr") == b"err %d\n" % trial
            assert rig.read(job, f"{folder}job.rc") == b"%d" % (trial + 3)
            assert rig.read(job, f"{folder}job.status") == b"7"
        assert (job.rc, job.trial_count) == (5, 2)

    async def test_a_retry_that_succeeds_is_a_success(self, rig: Rig) -> None:
        """The last attempt is what counts."""
        codes = (4, 3, 0)
        [job] = await rig.run(rig.command(*codes), error_strategy="retry", num_retries=5)
        assert (job.status, job.outcome, job.rc) == (JobStatus.FINISHED, JobOutcome.SUCCEEDED, 0)
        assert job.trial_count == len(codes) - 1

    async def test_retries_are_as_many_as_allowed(self, rig: Rig) -> None:
        """The run's `num_retries`, or the job's own where it has one."""
        async with rig.running(error_strategy="retry", num_retries=2, forks=2) as xq:
            run_s = await xq.feed(rig.command(5))
            job_s = await xq.feed(rig.command(6), num_retries=1)
        assert [(job.rc, job.trial_count) for job in (run_s, job_s)] == [(5, 2), (6, 1)]
        assert {run_s.outcome, job_s.outcome} == {JobOutcome.FAILED}

    async def test_ignore_lets_the_others_run(self, rig: Rig) -> None:
        """Under "ignore" a failure is one job's matter, and not tried again."""
        jobs = await rig.run(rig.command(1), rig.command(0), rig.command(2), rig.command(0))
        assert [job.rc for job in jobs] == [1, 0, 2, 0]
        assert [job.trial_count for job in jobs] == [0, 0, 0, 0]

    async def test_halt_stops_the_run(self, rig: Rig) -> None:
        """Under "halt" the first failure kills what runs, cancels what waits, and is named."""
        async with rig.running(error_strategy="halt", forks=2) as xq:
            runs = await rig.feed_running(xq, rig.command(0, runs_s=60))
            fails = await xq.feed(rig.command(3))
            waits = await xq.feed(rig.command(0))
        assert xq.halted_by is fails
        assert (fails.outcome, fails.rc) == (JobOutcome.FAILED, 3)
        assert runs.outcome == JobOutcome.KILLED
        assert waits.outcome == JobOutcome.CANCELLED
