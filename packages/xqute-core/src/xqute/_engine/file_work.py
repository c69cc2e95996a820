"""Where the files of jobs are read and written: at once or, those in a cloud, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from .. import _clouds
from ..job import Job
from ..utils import logger

__all__ = ["FileWork"]

T = TypeVar("T")

#: Requests under way at once.
_N_THREADS: Final = 16


class FileWork:
    """Does what touches a job's files, in order for each job, and never waits on the event loop.

    What is done in a thread must only read the state of jobs; what it gives is used on the loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool: ThreadPoolExecutor | None = None
        self._last: dict[Job, asyncio.Task[None]] = {}
        #: Whether all that was to be uploaded was.
        self.is_all_uploaded = True

    def upload(self, job: Job, then: Callable[[], object]) -> None:
        """Have `then` called when the files of a job are where its workdir says they are."""
        if job.staging is None:
            then()
        else:
            self._do_later(self._last.get(job), job, partial(self._upload, job), lambda _: then())

    def do(self, job: Job, work: Callable[[], T], then: Callable[[T], object]) -> None:
        """Have `then` called with what `work` gives: before this returns, or later."""
        if job.is_far:
            self._do_later(self._last.get(job), job, work, then)
        else:
            then(work())

    async def call(self, job: Job, work: Callable[[], T]) -> T:
        """Give what `work` gives."""
        if not job.is_far:
            return work()
        before = self._last.get(job)
        if before is not None:
            await asyncio.wait([before])
        return await self.run(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Give what `work` gives in a thread."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="xqute-files")
        return await self._loop.run_in_executor(self._pool, work)

    def _do_later(
        self,
        before: asyncio.Task[None] | None,
        job: Job,
        work: Callable[[], Any],
        then: Callable[[Any], object],
    ) -> None:
        task = self._loop.create_task(self._do(before, work, then))
        self._last[job] = task
        task.add_done_callback(partial(self._on_done, before, job, work, then))

    async def _do(
        self,
        before: asyncio.Task[None] | None,
        work: Callable[[], Any],
        then: Callable[[Any], object],
    ) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        then(await self.run(work))

    def _on_done(
        self,
        before: asyncio.Task[None] | None,
        job: Job,
        work: Callable[[], Any],
        then: Callable[[Any], object],
        task: asyncio.Task[None],
    ) -> None:
        if self._last.get(job) is task:
            del self._last[job]
        if not task.cancelled():
            task.result()
        elif self._pool is not None:
            # A loop that ends cancels every task, but what became of the job is still to be told.
            self._do_later(before, job, work, then)

    def _upload(self, job: Job) -> None:
        uri = f"{job.workdir}/{job.index}"
        try:
            _clouds.upload_folder(job.local_dir, uri)
        except OSError as exc:
            self.is_all_uploaded = False
            logger.error("The files of %r stay in %s: %s", job, job.local_dir, exc)

    async def close(self, folder: str) -> None:
        """Return when all is done and what was to be written in the folder is.

        Raises:
            OSError: If some of it could not be written.
        """
        while self._last:
            await asyncio.wait(list(self._last.values()))
            await asyncio.sleep(0)
        if _clouds.is_far(folder):
            await self.run(partial(_clouds.settle, folder))
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None
