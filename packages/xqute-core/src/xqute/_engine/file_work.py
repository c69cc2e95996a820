"""Where the files of jobs are read and written: at once or, those in a cloud, in threads."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from .. import _clouds, _protocol
from .._clouds import soon
from ..defaults import JobOutcome
from ..job import Job
from ..utils import logger

__all__ = ["FileWork"]

T = TypeVar("T")

#: Requests under way at once.
_N_THREADS: Final = 16


class FileWork:
    """Does what touches a job's files, in order for each job, and never waits on the event loop.

    What is given as `work` may run in a thread: it may read a job's state, and not change it. What
    is given as `then` runs on the event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool: ThreadPoolExecutor | None = None
        #: By job, what is to be done in threads; the first of each is under way.
        self._queues: dict[Job, deque[tuple[Callable[[], Any], Callable[[Any], object]]]] = {}
        self._under_way: set[asyncio.Future[Any]] = set()
        #: Jobs with files here that the bucket did not take.
        self._held_back: set[Job] = set()

    def do(self, job: Job, work: Callable[[], T], then: Callable[[T], object]) -> None:
        """Have `then` called with what `work` gives: before this returns, or later."""
        if job.is_far:
            self._do_later(job, work, lambda future: then(future.result()))
        else:
            then(work())

    async def call(self, job: Job, work: Callable[[], T]) -> T:
        """Give what `work` gives, or raise what it raises."""
        return await self.call_far(job, work) if job.is_far else work()

    async def call_far(self, job: Job, work: Callable[[], T]) -> T:
        """Likewise for work that makes requests, wherever the job has its files."""
        answer: asyncio.Future[asyncio.Future[T]] = self._loop.create_future()

        def then(done: asyncio.Future[T]) -> None:
            if not answer.done():  # who asked may have been cancelled
                answer.set_result(done)

        self._do_later(job, work, then)
        return (await answer).result()

    def upload(self, job: Job, then: Callable[[], object]) -> None:
        """Have `then` called when the files of a job are where its workdir says they are."""
        if job.staging is None:
            then()
        else:
            self._do_later(job, partial(self._upload, job), lambda _: then())

    def unstage(self, job: Job) -> None:
        """Have what is in the staging folder of a job removed; it has ended, and was uploaded."""
        if job.staging is not None:
            self._do_later(job, partial(self._unstage, job), asyncio.Future.result)

    def _do_later(
        self,
        job: Job,
        work: Callable[[], T],
        then: Callable[[asyncio.Future[T]], object],
    ) -> None:
        queue = self._queues.setdefault(job, deque())
        queue.append((work, then))
        if len(queue) == 1:
            self._begin(job, work)

    def _begin(self, job: Job, work: Callable[[], Any]) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="xqute-files")
        # No task: a loop that ends cancels those, and what became of the job is still to be told.
        future = self._loop.run_in_executor(self._pool, work)
        self._under_way.add(future)
        future.add_done_callback(partial(self._on_done, job))

    def _on_done(self, job: Job, future: asyncio.Future[Any]) -> None:
        self._under_way.discard(future)
        queue = self._queues[job]
        try:
            queue[0][1](future)
        finally:
            queue.popleft()
            if queue:
                self._begin(job, queue[0][0])
            else:
                del self._queues[job]

    def _upload(self, job: Job) -> None:
        try:
            job.upload()
            self._held_back.discard(job)
        except OSError as exc:
            self._held_back.add(job)
            logger.error("The files of %r stay in %s: %s", job, job.local_dir, exc)

    def _unstage(self, job: Job) -> None:
        """Remove a job's files, but not the word that an attempt must never start.

        One that is LOST may still be at work there.
        """
        if job in self._held_back or job.outcome is JobOutcome.LOST:
            return
        try:
            names = os.listdir(job.local_dir)
            _, kept = _protocol.sort_claims(names)
            if not kept:
                shutil.rmtree(job.local_dir)
                return
            for name in names:
                path = f"{job.local_dir}/{name}"
                if os.path.isdir(path):
                    shutil.rmtree(path)
                elif name not in kept:
                    os.unlink(path)
        except FileNotFoundError:
            return  # somebody has removed it
        except OSError as exc:
            logger.warning("Files of %r stay in %s: %s", job, job.local_dir, exc)

    async def close(self, workdir: str, staging: str | None) -> None:
        """Return when all is done, and what was to be written in the workdir is.

        The staging folder is removed if no job has anything in it.

        Raises:
            OSError: If something could not be written.
        """
        while self._under_way:
            await asyncio.wait(self._under_way)
        if _clouds.is_far(workdir):
            await asyncio.to_thread(_close_workdir, workdir, staging)
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


def _close_workdir(workdir: str, staging: str | None) -> None:
    if staging is not None and os.path.isdir(staging) and not set(os.listdir(staging)) - {".run"}:
        shutil.rmtree(os.path.dirname(staging))
    soon.settle(workdir)
