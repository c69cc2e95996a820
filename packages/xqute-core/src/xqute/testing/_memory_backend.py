"""What the in-memory schedulers have in place of a backend: it outlives each of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ..job import Job
from ..scheduler import BackendState, Phase
from ._behaviour import Behaviour, ManualClock, Tells

__all__ = ["SUCCEEDS", "MemoryBackend"]

#: How many ends are told in one turn of the event loop, so that no turn takes long.
_CHUNK: Final = 32
#: The behaviour of a job of which nothing else is said: it ends when it is accepted.
SUCCEEDS: Final = Behaviour()


class _Run:
    """One attempt in the backend's hands."""

    __slots__ = ("behaviour", "jid", "job", "key", "state")

    def __init__(self, job: Job, jid: int, key: str, behaviour: Behaviour) -> None:
        self.job = job
        self.jid = jid
        self.key = key
        self.behaviour = behaviour
        self.state = BackendState(Phase.PENDING, jid=jid)


class MemoryBackend:
    """Has jobs, lets them begin and end as their behaviours say, and tells of that.

    Args:
        clock: Whose seconds the behaviours are measured in; None: the event loop's.
        remembers: Whether it can tell of jobs that have ended as often as it is asked; else once.

    Attributes:
        report: Told of every change, from the next turn of the event loop on; None: nobody is.
        n_ids: How many ids were given.
    """

    def __init__(self, clock: ManualClock | None, *, remembers: bool) -> None:
        self.clock = clock
        self.remembers = remembers
        self.report: Callable[[Job, BackendState], None] | None = None
        self.n_ids = 0
        self.runs: dict[Job, _Run] = {}
        self._news: deque[tuple[_Run, BackendState]] = deque()
        self._is_telling = False

    def leave(self) -> None:
        """Tell nobody any more, as long as there is nobody else."""
        self.report = None
        self._news.clear()
        self._is_telling = False

    # --- what is asked of it -------------------------------------------------------------------

    def accept(self, job: Job, key: str, behaviour: Behaviour, *, same_id: bool) -> int:
        """Take a job, and give its id."""
        if not (same_id and self.n_ids):
            self.n_ids += 1
        run = self.runs[job] = _Run(job, self.n_ids, key, behaviour)
        if behaviour is SUCCEEDS:
            self._change(run, Phase.ENDED, 0)
        else:
            self._after(behaviour.starts_after_s, self._begin, run)
        return run.jid

    def kill(self, job: Job, *, force: bool) -> None:
        """End a job, with rc 143, or 137 by force; one that ignores TERM only by force."""
        run = self.runs.get(job)
        if run is None or run.state.phase is Phase.ENDED:
            return
        if run.state.phase is Phase.PENDING:
            self._change(run, Phase.ENDED, reason="removed while pending")
        elif force or not run.behaviour.ignores_term:
            self._change(run, Phase.ENDED, 137 if force else 143)

    def state_of(self, job: Job) -> BackendState:
        """Tell the true state of a job; one that it does not have is GONE."""
        run = self.runs.get(job)
        if run is None:
            return BackendState(Phase.GONE)
        if run.state.phase is Phase.ENDED:
            self._forget(run)
        return run.state

    def find(self, keys: Iterable[str]) -> Mapping[str, int]:
        """Give the id of the first job of each of these submissions that it has."""
        found: dict[str, int] = {}
        wanted = set(keys)
        for run in self.runs.values():
            if run.key in wanted:
                found[run.key] = min(run.jid, found.get(run.key, run.jid))
        return found

    def hand_over(self, jobs: Sequence[Job]) -> None:
        """Know jobs by what a new driver has for them, if it has any of their ids."""
        by_jid = {run.jid: run for run in self.runs.values()}
        for job in jobs:
            run = by_jid.get(job.jid) if isinstance(job.jid, int) else None
            if run is not None and run.job is not job:
                del self.runs[run.job]
                run.job = job
                self.runs[job] = run

    # --- what happens to the jobs --------------------------------------------------------------

    def _after(self, delay_s: float, step: Callable[..., None], *args: Any) -> None:
        if not delay_s:
            step(*args)
        elif self.clock is not None:
            self.clock.call_later(delay_s, step, *args)
        else:
            asyncio.get_running_loop().call_later(delay_s, step, *args)

    def _begin(self, run: _Run) -> None:
        if run.state.phase is not Phase.PENDING:
            return
        if run.behaviour.vanishes:
            self.runs.pop(run.job, None)
            return
        self._change(run, Phase.RUNNING)
        self._after(run.behaviour.runs_s, self._end, run)

    def _end(self, run: _Run) -> None:
        if run.state.phase is Phase.RUNNING:
            behaviour = run.behaviour
            self._change(run, Phase.ENDED, behaviour.rc, behaviour.cause, behaviour.reason)

    def _change(
        self,
        run: _Run,
        phase: Phase,
        rc: int | None = None,
        cause: str | None = None,
        reason: str = "",
    ) -> None:
        """A job is in another state now: say so, as its behaviour has it."""
        run.state = state = BackendState(phase, rc, cause, reason, run.jid)
        behaviour = run.behaviour
        if behaviour.tells is Tells.NOTHING:
            return
        if behaviour.tells is Tells.ONCE:
            news: tuple[BackendState, ...] = (state,)
        elif behaviour.tells is Tells.TWICE:
            news = (state, state)
        elif phase is Phase.ENDED:
            news = (state, BackendState(Phase.RUNNING, jid=run.jid))
        else:
            return
        self._after(behaviour.told_after_s, self._tell, run, news)

    def _tell(self, run: _Run, states: tuple[BackendState, ...]) -> None:
        if self.report is None:
            return
        self._news.extend([(run, state) for state in states])
        if states[0].phase is Phase.ENDED:
            self._forget(run)
        if not self._is_telling:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _tell_some(self) -> None:
        """Tell a few of the news; the rest in the next turn, so that none takes long."""
        for _ in range(min(_CHUNK, len(self._news))):
            run, state = self._news.popleft()
            if self.report is not None:
                self.report(run.job, state)
        self._is_telling = bool(self._news)
        if self._is_telling:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _forget(self, run: _Run) -> None:
        if not self.remembers and self.runs.get(run.job) is run:
            del self.runs[run.job]
