"""A scheduler without processes, for tests: jobs end as they are told, it fails on demand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ..errors import SubmitError
from ..job import Job
from ..scheduler import BackendState, Phase, Scheduler, Submission
from ._behaviour import Behaviour, Calls, Fault, Faults, Incident, ManualClock, Tells

__all__ = ["MemoryJob", "MemoryScheduler"]

#: How many ends are told in one turn of the event loop, so that no turn takes long.
_CHUNK: Final = 32
_SUCCEEDS: Final = Behaviour()


class MemoryJob(Job):
    """A job without a folder: what others keep in files, it keeps in memory."""

    __slots__ = ("_texts",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._texts: dict[str, str] | None = None
        super().__init__(*args, **kwargs)

    def _make_folder(self) -> None:
        """Make none."""

    @property
    def jid(self) -> int | str | None:
        """The id that the scheduler gave it; None: none yet."""
        return self._jid

    @jid.setter
    def jid(self, jid: int | str | None) -> None:
        self._jid = jid

    def read_file(self, name: str) -> str | None:
        """Give what was written under that name; None if nothing was."""
        return None if self._texts is None else self._texts.get(name)

    def write_file(self, name: str, text: str) -> None:
        """Keep a text under a name."""
        if self._texts is None:
            self._texts = {}
        self._texts[name] = text

    def clean(self, retry: bool = False) -> None:
        """Forget what the attempt left."""
        self._texts = self._jid = self._rc = None


class _Run:
    """One attempt in the backend's hands."""

    __slots__ = ("behaviour", "jid", "job", "state")

    def __init__(self, job: Job, jid: int, behaviour: Behaviour) -> None:
        self.job = job
        self.jid = jid
        self.behaviour = behaviour
        self.state = BackendState(Phase.PENDING, jid=jid)


class MemoryScheduler(Scheduler):
    """Runs no commands: jobs end on the event loop, at once and with 0 unless `behave` says else.

    Not a stand-in for a real backend where one can be had: it is for what real ones cannot be made
    to do on demand, and for measuring the engine alone.

    Args:
        behave: Asked at each submission of a job how this attempt behaves. If it raises, the job is
            not accepted and that exception is the backend's answer for this job.
        faults: What goes wrong, by call: see `Faults`. Answers lost or late, ids handed out twice,
            refusals, any exception.
        batch: How many jobs go into one submission, at the most.
        clock: Whose seconds the behaviours are measured in; None: the event loop's. With a
            `ManualClock` nothing that takes time happens until the test advances it.

    Attributes:
        calls: What was asked of it.
    """

    name = "memory"
    job_class = MemoryJob
    enforces_timeout = True
    uses_wrapper = False
    outlives_this_machine = False

    def __init__(
        self,
        *args: Any,
        behave: Callable[[Job], Behaviour] | None = None,
        faults: Mapping[str, Iterable[Incident]] | None = None,
        batch: int = 1,
        clock: ManualClock | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.behave = behave
        self.faults = Faults(faults)
        self.batch = batch
        self.clock = clock
        self.calls = Calls()
        self._n_ids = 0
        self._runs: dict[Job, _Run] = {}
        self._news: deque[tuple[Job, BackendState]] = deque()
        self._is_telling = False
        self._report: Callable[[Job, BackendState], None] | None = None

    # --- what the engine asks ------------------------------------------------------------------

    def watch(self, report: Callable[[Job, BackendState], None]) -> None:
        """Tell `report` of every change, from the next turn of the event loop on."""
        self._report = report

    async def close(self) -> None:
        """Tell no more."""
        self._report = None
        self._news.clear()

    def plan_submissions(self, jobs: Sequence[Job]) -> list[Submission]:
        """Put up to `batch` jobs together, in their order."""
        if self.batch == 1:
            return super().plan_submissions(jobs)
        groups = [tuple(jobs[at : at + self.batch]) for at in range(0, len(jobs), self.batch)]
        return [Submission(self.submission_key(group[0]), group) for group in groups]

    async def submit(self, submission: Submission) -> Mapping[Job, int | str | Exception]:
        """Accept the jobs, as far as faults and behaviours allow."""
        self.calls.submit.append(len(submission.jobs))
        incident = self.faults.next("submit")
        if isinstance(incident, Exception):
            raise incident
        if incident in (Fault.REFUSE, Fault.REFUSE_FOR_NOW):
            raise SubmitError("refused by script", transient=incident is Fault.REFUSE_FOR_NOW)
        answers = {
            job: self._accept(job, same_id=incident is Fault.SAME_ID) for job in submission.jobs
        }
        if incident is Fault.LOSE_ANSWER:
            raise SubmitError("answer lost by script", transient=True, maybe_submitted=True)
        if incident is Fault.NO_ANSWER:
            return {}
        await self._delay(incident)
        return answers

    async def submit_job(self, job: Job) -> int | str:
        """Accept one job and give its id, 1, 2, 3, ...

        Raises:
            SubmitError: By script. Or whatever else is scripted.
        """
        answer = (await self.submit(Submission(self.submission_key(job), (job,)))).get(job)
        if answer is None:
            raise SubmitError("no answer, by script", maybe_submitted=True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def kill_job(self, job: Job) -> None:
        """End a job: as if by TERM, or by KILL where it ignores that."""
        await self.kill_jobs([job], force=True)

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """End jobs, with rc 143, or 137 by force; those that ignore TERM only by force."""
        self.calls.kill.append(len(jobs))
        incident = self.faults.next("kill")
        if isinstance(incident, Exception):
            raise incident
        if incident is Fault.NO_ANSWER:
            return
        for job in jobs:
            run = self._runs.get(job)
            if run is None or run.state.phase is Phase.ENDED:
                continue
            if run.state.phase is Phase.PENDING:
                self._change(run, Phase.ENDED, reason="removed while pending")
            elif force or not run.behaviour.ignores_term:
                self._change(run, Phase.ENDED, 137 if force else 143)
        await self._delay(incident)

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Tell the true state of each job; one that it no longer has is GONE."""
        self.calls.poll.append(len(jobs))
        incident = self.faults.next("poll")
        if isinstance(incident, Exception):
            raise incident
        if incident is Fault.NO_ANSWER:
            return {}
        states = {job: self._state_of(job, denied=incident is Fault.DENY) for job in jobs}
        await self._delay(incident)
        return states

    async def job_is_running(self, job: Job) -> bool:
        """Tell whether the job is pending or running."""
        state = (await self.poll_jobs([job]))[job]
        return state.phase in (Phase.PENDING, Phase.RUNNING)

    async def _delay(self, incident: Incident) -> None:
        if not isinstance(incident, int | float):
            return
        if self.clock is None:
            await asyncio.sleep(incident)
        else:
            passed = asyncio.Event()
            self.clock.call_later(incident, passed.set)
            await passed.wait()

    # --- what happens to the jobs --------------------------------------------------------------

    def _accept(self, job: Job, *, same_id: bool) -> int | Exception:
        behaviour = _SUCCEEDS
        if self.behave is not None:
            try:
                behaviour = self.behave(job)
            except Exception as exc:  # noqa: BLE001  # it is the answer, as a backend gives it
                return exc
        if not (same_id and self._n_ids):
            self._n_ids += 1
        run = self._runs[job] = _Run(job, self._n_ids, behaviour)
        if behaviour is _SUCCEEDS:
            self._change(run, Phase.ENDED, 0)
        else:
            self._after(behaviour.starts_after_s, self._begin, run)
        return run.jid

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
            self._forget(run)
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
        self._news.extend([(run.job, state) for state in states])
        if states[0].phase is Phase.ENDED:
            self._forget(run)
        if not self._is_telling:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _tell_some(self) -> None:
        """Tell a few of the news; the rest in the next turn, so that none takes long."""
        for _ in range(min(_CHUNK, len(self._news))):
            job, state = self._news.popleft()
            if self._report is not None:
                self._report(job, state)
        self._is_telling = bool(self._news)
        if self._is_telling:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _state_of(self, job: Job, *, denied: bool) -> BackendState:
        run = self._runs.get(job)
        if denied or run is None:
            return BackendState(Phase.GONE)
        if run.state.phase is Phase.ENDED:
            self._forget(run)
        return run.state

    def _forget(self, run: _Run) -> None:
        if self._runs.get(run.job) is run:
            del self._runs[run.job]
