"""Per job, one queue of hooks and what waits for them: a slow hook holds only its job."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from ..job import Job

__all__ = ["Chains"]

Step = Callable[[], Awaitable[None] | None]


class Chains:
    """Runs the steps of each job in order, those of different jobs side by side.

    A job without steps costs nothing: neither an entry nor a task.
    """

    def __init__(self) -> None:
        self._steps: dict[Job, deque[Step]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many jobs have steps that are under way or wait."""
        return len(self._steps)

    def __contains__(self, job: Job) -> bool:
        """Whether steps of the job are under way."""
        return job in self._steps

    def add(self, job: Job, step: Step) -> None:
        """Run a step that may await, after the job's earlier ones."""
        if job in self._steps:
            self._steps[job].append(step)
            return
        self._steps[job] = deque([step])
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def then(self, job: Job, step: Callable[[], None]) -> None:
        """Run a step that does not await: at once if none of the job's are under way."""
        if job in self._steps:
            self._steps[job].append(step)
        else:
            step()

    async def _run(self, job: Job) -> None:
        steps = self._steps[job]
        try:
            while steps:
                awaitable = steps.popleft()()
                if awaitable is not None:
                    try:
                        await awaitable
                    except asyncio.CancelledError:
                        # Given up at a stop: the steps that keep the books still have to be done.
                        continue
        finally:
            del self._steps[job]

    def give_up(self) -> None:
        """Cancel the hooks that are being awaited; what follows them is still done."""
        for task in self._tasks:
            task.cancel()
