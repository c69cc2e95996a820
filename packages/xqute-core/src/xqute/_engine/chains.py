"""Per job, one queue of hooks and what waits for them: a slow hook holds only its job."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from ..job import Job

__all__ = ["Chains"]

Step = Callable[[], Awaitable[None] | None]


class Chains:
    """Runs the steps of each job in order, those of different jobs side by side.

    A job without steps costs nothing: neither an entry nor a task.
    """

    def __init__(self) -> None:
        self._steps: dict[Job, deque[Step]] = {}
        self._tasks: dict[asyncio.Task[None], Job] = {}

    def __len__(self) -> int:
        """How many jobs have steps that are under way or wait."""
        return len(self._steps)

    def __contains__(self, job: Job) -> bool:
        """Whether steps of the job are under way."""
        return job in self._steps

    def is_within(self, job: Job) -> bool:
        """Whether the caller is a step of the job itself."""
        task = asyncio.current_task()
        return task is not None and self._tasks.get(task) is job

    def add(self, job: Job, step: Step) -> None:
        """Run a step that may await, after the job's earlier ones."""
        if job in self._steps:
            self._steps[job].append(step)
        else:
            self._steps[job] = deque([step])
            self._spawn(job)

    def then(self, job: Job, step: Callable[[], None]) -> None:
        """Run a step that does not await: at once if none of the job's are under way."""
        if job in self._steps:
            self._steps[job].append(step)
        else:
            step()

    def _spawn(self, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._run(self._steps[job]))
        self._tasks[task] = job
        task.add_done_callback(partial(self._on_done, job))

    async def _run(self, steps: deque[Step]) -> None:
        while steps:
            awaitable = steps.popleft()()
            if awaitable is not None:
                # Given up at a stop: the steps that keep the books still have to be done.
                with suppress(asyncio.CancelledError):
                    await awaitable

    def _on_done(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if self._steps[job]:
            self._spawn(job)  # it was cancelled before it began
        else:
            del self._steps[job]
        if not task.cancelled():
            task.result()

    async def idle(self) -> None:
        """Return when no steps are under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def give_up(self) -> None:
        """Cancel the hooks that are being awaited; what follows them is still done."""
        for task in self._tasks:
            task.cancel()
