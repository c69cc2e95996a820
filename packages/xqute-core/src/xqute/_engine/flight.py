"""What the engine remembers of a job while the backend has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..job import Job
from ..scheduler import BackendState
from .lifecycle import End

__all__ = ["Flight"]


class Flight:
    """One attempt of a job, from just before its submission to its end.

    Attributes:
        job: The job.
        tag: What the attempt's claims are named after.
        is_landing: Whether its end is known, and only its files are on their way.
        is_submitted: Whether the backend has answered.
        early: What was heard of it before that.
        kill_requested: Whether somebody wants it ended.
        kill_refused: Whether a plugin has refused that, perhaps to end it by itself.
        timed_out: Whether it is being ended for its timeout.
        gone_since_s: Since when (loop time) the backend says that it has no such job.
        timer: What ends it at its timeout.
        is_closed: Whether it is over; whoever still holds it may forget it.
        over: What waits for the end of the attempt, or for a plugin's refusal of its kill.
        unexplained_until_s: Until when (loop time) its doubtful end is not told, so that the
            backend can say why it came; None: there is none.
        due_s: When (loop time) the backend is to be asked about it; None: it is not planned.
        checks: How often the backend was asked since it was last heard of.
        began_at: When (seconds since the epoch) it started, in an earlier run; None: it did not.
        was_seen: Whether the backend has said in this run that it is there.
        on_landing: Asked at its end; if it says True, what follows has been seen to.
    """

    __slots__ = (
        "began_at",
        "checks",
        "due_s",
        "early",
        "gone_since_s",
        "is_closed",
        "is_landing",
        "is_submitted",
        "job",
        "kill_refused",
        "kill_requested",
        "on_landing",
        "over",
        "tag",
        "timed_out",
        "timer",
        "unexplained_until_s",
        "was_seen",
    )

    def __init__(self, job: Job, tag: str) -> None:
        self.job = job
        self.tag = tag
        self.is_submitted = False
        self.is_landing = False
        self.early: list[BackendState] = []
        self.kill_requested = False
        self.kill_refused = False
        self.timed_out = False
        self.gone_since_s: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.is_closed = False
        self.over: list[asyncio.Future[None]] = []
        self.unexplained_until_s: float | None = None
        self.due_s: float | None = None
        self.checks = 0
        self.began_at: float | None = None
        self.was_seen = False
        self.on_landing: Callable[[End], bool] | None = None

    @property
    def run(self) -> str:
        """What the tag begins with, and events in a cloud end with: the run that submitted it."""
        return self.tag.rpartition("-")[0]

    def close(self) -> None:
        """The attempt is over."""
        self.is_closed = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.tell_waiters()

    def tell_waiters(self) -> None:
        """There is news for those who have asked for its kill: it is over, or that was refused."""
        for waiter in self.over:
            if not waiter.done():
                waiter.set_result(None)
        self.over.clear()
