"""Submitting, killing and polling jobs one by one, for a scheduler without a run around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from . import _files, _protocol
from .defaults import RC_LOST, RC_NOT_SUBMITTED, JobCause, JobStatus
from .errors import InvalidJobError
from .job import Job
from .utils import logger

if TYPE_CHECKING:
    from .scheduler import Scheduler

__all__ = ["kill", "poll", "submit"]

T = TypeVar("T")

_ENDED = (JobStatus.FINISHED, JobStatus.FAILED)
_IN_BACKEND = (JobStatus.SUBMITTED, JobStatus.RUNNING, JobStatus.KILLING)


async def submit(scheduler: Scheduler, job: Job) -> None:
    """Submit a job unless the backend has it already, with its hooks."""
    if await scheduler.job_is_submitted_or_running(job):
        logger.info("%s: %r is already submitted or running", scheduler.name, job)
        return
    hooks = scheduler.hooks
    if False in await hooks.acall("on_job_submitting", scheduler, job):
        return
    await _do(job, partial(_clean, scheduler, job))
    try:
        if not job.cmd:
            raise InvalidJobError(f"Job {job.index} has an empty command")
        job.jid = await scheduler.submit_job(job)
    except Exception as exc:  # noqa: BLE001  # told in the job's stderr
        logger.error("%s: %r could not be submitted: %s", scheduler.name, job, exc)
        await _do(job, partial(job.write_file, "job.stderr", f"{type(exc).__name__}: {exc}\n"))
        await _do(job, partial(job.write_file, "job.rc", str(RC_NOT_SUBMITTED)))
        await asyncio.to_thread(job.upload)
        job.enter(JobStatus.FAILED)
        await hooks.acall("on_job_failed", scheduler, job)
        return
    job.enter(JobStatus.SUBMITTED)
    job.told_status = JobStatus.SUBMITTED
    await hooks.acall("on_job_submitted", scheduler, job)


async def kill(scheduler: Scheduler, job: Job) -> None:
    """Kill a job with its hooks, or have the run kill it that drives it."""
    if scheduler.driver is not None and scheduler.driver.drives(job):
        await scheduler.driver.kill(job)
        return
    hooks = scheduler.hooks
    if False in await hooks.acall("on_job_killing", scheduler, job):
        return
    job.enter(JobStatus.KILLING)
    await scheduler.kill_job(job)
    job.enter(JobStatus.FINISHED)
    job.told_status = JobStatus.FINISHED
    await hooks.acall("on_job_killed", scheduler, job)


async def poll(scheduler: Scheduler, jobs: Sequence[Job], counter: int) -> tuple[int, int]:
    """Call the hooks for what has changed; give how many the backend has, how many have ended."""
    hooks = scheduler.hooks
    n_in_backend = n_ended = 0
    for job in jobs:
        told = job.current_status if job.told_status is None else job.told_status
        status = await _do(job, partial(_look, job))
        if status in _IN_BACKEND and not await scheduler.job_is_submitted_or_running(job):
            status = await _do(job, partial(_settle, scheduler, job))
        job.told_status = status
        if status in _ENDED and told not in _ENDED and job.staging is not None:
            await asyncio.to_thread(job.upload)
        n_ended += status in _ENDED
        n_in_backend += status in _IN_BACKEND
        if told is JobStatus.SUBMITTED and status is not told:
            await hooks.acall("on_job_started", scheduler, job)
        if status is JobStatus.RUNNING:
            await hooks.acall("on_job_polling", scheduler, job, counter)
        elif status in _ENDED and told not in _ENDED:
            killed = told is JobStatus.KILLING
            how = "on_job_succeeded" if status is JobStatus.FINISHED else "on_job_failed"
            await hooks.acall("on_job_killed" if killed else how, scheduler, job)
    return n_in_backend, n_ended


async def _do(job: Job, work: Callable[[], T]) -> T:
    """Give what comes of work on a job's files: in a thread, if they are in a cloud."""
    return await asyncio.to_thread(work) if job.is_far else work()


def _clean(scheduler: Scheduler, job: Job) -> None:
    job.clean()
    # Nothing of an earlier submission runs any more: its claims are void.
    tag = scheduler.claim_tag(job)
    _files.remove(_protocol.start_claim_path(job.local_dir, tag))
    _files.remove(_protocol.end_claim_path(job.local_dir, tag))


def _look(job: Job) -> JobStatus:
    return job.status


def _settle(scheduler: Scheduler, job: Job) -> JobStatus:
    """The backend has the job no more: if it has not told its end by now, nobody will."""
    if job.status in _IN_BACKEND:
        tag = scheduler.claim_tag(job)
        _protocol.write_end(job.local_dir, tag, RC_LOST, JobStatus.FAILED, JobCause.DISAPPEARED)
    return job.status
