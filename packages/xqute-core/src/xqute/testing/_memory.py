"""A scheduler without processes, for tests: jobs end as they are told, it fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import SubmitError
from ..job import Job
from ..scheduler import BackendState, Phase, Scheduler, Submission
from ._behaviour import Behaviour, Calls, Fault, Faults, Incident, ManualClock
from ._memory_backend import SUCCEEDS, MemoryBackend

__all__ = ["MemoryJob", "MemoryScheduler"]


class MemoryJob(Job):
    """A job without a folder: what others keep in files, it keeps in memory."""

    __slots__ = ("_texts",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._texts: dict[str, str] | None = None
        super().__init__(*args, **kwargs)

    def _make_folder(self) -> bool:
        """Make none."""
        return False

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
        remembers: Whether it can tell of jobs that have ended as often as it is asked; else once.
        predecessor: The scheduler of an earlier driver, which may be dead and is told nothing any
            more: this one has the same backend, with the jobs that are in it, its clock and memory.

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
        remembers: bool = False,
        predecessor: MemoryScheduler | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.behave = behave
        self.faults = Faults(faults)
        self.batch = batch
        self.calls = Calls()
        if predecessor is None:
            self._backend = MemoryBackend(clock, remembers=remembers)
        else:
            self._backend = predecessor._backend
            self._backend.leave()
        #: By job, what is in the backend.
        self._runs = self._backend.runs

    @property
    def clock(self) -> ManualClock | None:
        """Whose seconds the behaviours are measured in; None: the event loop's."""
        return self._backend.clock

    # --- what the engine asks ------------------------------------------------------------------

    def watch(self, report: Callable[[Job, BackendState], None]) -> None:
        """Tell `report` of every change, from the next turn of the event loop on."""
        self._backend.leave()
        self._backend.report = report

    async def close(self) -> None:
        """Tell no more."""
        self._backend.leave()

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, int | str]:
        """Find submissions by their keys; the id is that of their first job."""
        return self._backend.find(keys)

    def id_in_submission(self, submission_id: int | str, position: int) -> int | str:
        """Give the id of a job: those of one submission follow one another."""
        return int(submission_id) + position

    async def reattach(self, jobs: Sequence[Job]) -> None:
        """Take over jobs that an earlier scheduler of the same backend has submitted."""
        self._backend.hand_over(jobs)

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
            job: self._accept(job, submission.key, same_id=incident is Fault.SAME_ID)
            for job in submission.jobs
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
            self._backend.kill(job, force=force)
        await self._delay(incident)

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Tell the true state of each job; one that it no longer has is GONE."""
        self.calls.poll.append(len(jobs))
        incident = self.faults.next("poll")
        if isinstance(incident, Exception):
            raise incident
        if incident is Fault.NO_ANSWER:
            return {}
        if incident is Fault.DENY:
            states = {job: BackendState(Phase.GONE) for job in jobs}
        else:
            states = {job: self._backend.state_of(job) for job in jobs}
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

    def _accept(self, job: Job, key: str, *, same_id: bool) -> int | Exception:
        behaviour = SUCCEEDS
        if self.behave is not None:
            try:
                behaviour = self.behave(job)
            except Exception as exc:  # noqa: BLE001  # it is the answer, as a backend gives it
                return exc
        return self._backend.accept(job, key, behaviour, same_id=same_id)
