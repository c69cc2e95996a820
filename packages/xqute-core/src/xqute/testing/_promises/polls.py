"""Promises about what a backend answers when it is asked about jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...defaults import JobOutcome
from ...errors import SchedulerError
from ...job import Job
from ...scheduler import BackendState, Phase
from .._rig import Rig, replace

_MANY_TIMES = 5
_THERE = frozenset({Phase.PENDING, Phase.RUNNING})


class PollPromises:
    """`job_is_running` and `poll_jobs`, and what is made of answers that do not come."""

    async def test_a_job_is_running_until_it_has_ended(self, rig: Rig) -> None:
        """From its submission, pending or running; and not after its end."""
        async with rig.backend() as backend:
            lives = await backend.submit(rig.command(0, runs_s=60))
            ends = await backend.submit(rig.command(0))
            assert await backend.scheduler.job_is_running(lives)
            await backend.until_gone(ends)
            assert await backend.scheduler.job_is_running(lives)

    async def test_a_job_that_was_never_submitted_is_not_running(self, rig: Rig) -> None:
        """No id, no job: the answer is False, and no error."""
        async with rig.backend() as backend:
            never = backend.create(rig.command(0))
            assert await backend.scheduler.job_is_running(never) is False
            assert await backend.scheduler.job_is_submitted_or_running(never) is False

    async def test_an_id_of_another_makes_no_job_run(self, rig: Rig) -> None:
        """Ids are used again, by other jobs and other users: an id alone proves nothing.

        What has the id must not be taken for the job, nor be killed for it.
        """
        async with rig.elsewhere().backend() as other, rig.backend() as backend:
            foreign = await other.submit(rig.command(0, runs_s=60))
            await other.until_running(foreign)
            job = backend.create(rig.command(0))
            job.jid = foreign.jid
            assert await backend.scheduler.job_is_running(job) is False
            await backend.scheduler.kill_job(job)
            await backend.scheduler.kill_jobs([job], force=True)
            assert await other.scheduler.job_is_running(foreign), "it was killed for another"

    async def test_asking_about_many_is_asking_about_each(self, rig: Rig) -> None:
        """`poll_jobs` tells of each job what `job_is_running` does: running, ended, never there."""
        async with rig.backend() as backend:
            running = [await backend.submit(rig.command(0, runs_s=60)) for _ in range(3)]
            ended = [await backend.submit(rig.command(rc)) for rc in (0, 3)]
            await backend.until_running(*running)
            await backend.until_gone(*ended)
            jobs = [ended[0], *running, ended[1], backend.create(rig.command(0))]
            states = await backend.scheduler.poll_jobs(jobs)
            assert set(states) <= set(jobs), "nothing is said of jobs that were not asked about"
            said = {job: states[job].phase in _THERE for job in jobs}
            assert said == {job: await backend.scheduler.job_is_running(job) for job in jobs}
            assert said == {job: job in running for job in jobs}

    async def test_asking_about_none_is_no_error(self, rig: Rig) -> None:
        """An empty question has an empty answer."""
        async with rig.backend() as backend:
            assert dict(await backend.scheduler.poll_jobs([])) == {}
            await backend.scheduler.kill_jobs([])

    async def test_a_backend_that_does_not_answer_loses_no_job(self, rig: Rig) -> None:
        """An error, or an answer without the job, means "unknown", and unknown is not gone."""
        n_asked = 0
        async with rig.running(forks=2) as xq:
            poll_jobs = xq.scheduler.poll_jobs

            async def fails(_jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
                nonlocal n_asked
                n_asked += 1
                if n_asked == _MANY_TIMES:
                    replace(xq.scheduler, "poll_jobs", poll_jobs)
                if n_asked % 2:
                    raise SchedulerError("the controller is away")
                return {}

            replace(xq.scheduler, "poll_jobs", fails)
            replace(xq.scheduler, "recheck_interval", 0.02)
            jobs = [await xq.feed(rig.command(rc, runs_s=0.5)) for rc in (0, 5)]
        assert n_asked > 1
        assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED, JobOutcome.FAILED]
        assert [job.rc for job in jobs] == [0, 5]
