"""From waiting to submitted: room, plugins that object, plans, and what a refusal leads to."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

from .. import _faults, _files, _protocol
from ..defaults import JobStatus
from ..errors import InvalidJobError, SchedulerError, SubmitError
from ..job import Job
from ..scheduler import Submission
from ..utils import logger
from .ending import Ending
from .flight import Flight
from .lifecycle import End, backoff_s
from .run import ENDED, Run
from .watching import Watching

__all__ = ["Submitting"]

#: How long submitting may keep the event loop from others.
_TURN_S = 0.001
#: How many jobs are planned, or cancelled, before others have a turn.
_MANY = 256
#: How long (seconds) a disk that takes nothing is waited for.
_DISK_PATIENCE_S = 30.0
#: Where jobs go together: how many at the most, and how long after the last one came no more are
#: expected.
_MANY_TOGETHER, _GATHER_S = 1000, 0.05


class Submitting:
    """Keeps the backend as full as `forks` allows.

    A job is in one place at a time: waiting for room, at the gate (plugins are asked), in a plan,
    or with the backend (then `Watching` has it). All but the first take up room.

    Args:
        run: The run.
        ending: Told of jobs that end here.
        watching: Given what is submitted.
        release: Called with a job that is let go of, to be taken up by a later run.
    """

    def __init__(
        self, run: Run, ending: Ending, watching: Watching, *, release: Callable[[Job], None]
    ) -> None:
        self._run = run
        self._release = release
        self._ending = ending
        self._watching = watching
        self._waiting: deque[Job] = deque()
        self._gated: set[Job] = set()
        self._passed: list[Job] = []
        self._plans: deque[Submission] = deque()
        self._n_planned = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._n_awaited = 0
        self._is_pumping = False
        self._n_refusals = 0
        self._held_until_s = 0.0
        #: Since when (loop time) the disk takes nothing; None: it does.
        self._disk_fails_since_s: float | None = None
        self._came_s = self._last_came_s = self._lingers_since_s = float("-inf")
        self._linger: asyncio.TimerHandle | None = None

    def queue(self, job: Job, *, first: bool = False) -> None:
        """Let a job wait for its submission, once its hooks are done; `first`: before others."""
        if job.current_status not in ENDED:
            self._run.transition(job, JobStatus.QUEUED)
            self._run.call_hook(job, "on_job_queued")
        self._run.chains.then(job, partial(self._wait, job, first=first))

    def _wait(self, job: Job, *, first: bool) -> None:
        if not self._is_diverted(job):
            if first:
                self._waiting.appendleft(job)
            else:
                self._waiting.append(job)
            self._came_s = self._run.loop.time()
            self.pump_soon()

    def _is_diverted(self, job: Job) -> bool:
        """End a job that is not to be submitted any more, and tell whether it was so."""
        if job.current_status in ENDED:
            self._ending.finish_as_set(job, tell=False)
        elif self._run.is_detached:
            self._release(job)
        elif self._run.is_doomed(job):
            self._ending.finish(job, End.cancelled())
        else:
            return False
        return True

    # --- room ----------------------------------------------------------------------------------

    def pump_soon(self) -> None:
        """See in the next turn of the event loop whether something can be submitted."""
        if not self._is_pumping:
            self._is_pumping = True
            self._run.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Fill the room there is from those that wait, plan them, and have them submitted."""
        self._is_pumping = False
        scheduler = self._run.scheduler
        held_s = self._held_until_s - self._run.loop.time()
        if held_s > 0 and not self._run.is_stopping:
            self._is_pumping = True
            self._run.loop.call_later(held_s, self._pump)
            return
        n_taken = (
            len(self._gated)
            + len(self._passed)
            + self._n_planned
            + len(self._watching.flights)
            + len(self._run.unsettled)
        )
        room = scheduler.forks - n_taken
        if scheduler.linger_s and self._lingers(room):
            room = 0
        most = _MANY_TOGETHER if scheduler.linger_s else _MANY
        room = min(room, most)
        if room == most and len(self._waiting) > most:
            self.pump_soon()
        while self._waiting and room > 0:
            job = self._waiting[0]
            try:
                if not self._run.is_doomed(job) and not scheduler.reserve(job, self._on_the_way()):
                    break  # whoever ends makes room, and lets us look again
            except Exception as exc:  # noqa: BLE001  # a backend may raise anything
                self._waiting.popleft()
                self._refuse(job, exc)
                continue
            self._waiting.popleft()
            if self._is_diverted(job):
                continue
            room -= 1
            if "on_job_submitting" in self._run.hooks:
                self._gated.add(job)
                self._run.chains.add(job, partial(self._gate, job))
            else:
                self._passed.append(job)
        if self._passed:
            jobs, self._passed = self._passed, []
            self._plan(jobs)
        self._spread()

    def _on_the_way(self) -> Iterator[Job]:
        """Give the jobs that take up room."""
        yield from self._run.unsettled
        yield from self._gated
        yield from self._passed
        for submission in self._plans:
            yield from submission.jobs
        for flight in self._watching.flights.values():
            yield flight.job

    def _lingers(self, room: int) -> bool:
        """Whether the jobs that wait had better wait for others, to go in fewer submissions."""
        scheduler, loop = self._run.scheduler, self._run.loop
        n_ready = min(room, len(self._waiting))
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        is_full = n_ready >= min(scheduler.forks * (1 - scheduler.refill_below), _MANY_TOGETHER)
        if n_ready <= 0 or is_full or self._run.is_stopping:
            self._lingers_since_s = float("-inf")
            return False
        now_s = loop.time()
        if self._lingers_since_s < 0:
            self._lingers_since_s = now_s
        until_s = self._lingers_since_s + scheduler.linger_s
        if now_s < until_s and len(self._waiting) <= room:
            until_s = min(until_s, self._came_s + _GATHER_S)
            if now_s >= until_s and self._last_came_s != self._came_s:
                # On a busy machine a turn of the event loop may take longer. So there must have
                # been one, at least, for whoever feeds, and nothing fed in it.
                self._last_came_s = self._came_s
                until_s = now_s + _GATHER_S / 10
        if now_s >= until_s:
            self._lingers_since_s = float("-inf")
            return False
        self._linger = loop.call_at(until_s, self.pump_soon)
        return True

    def _plan(self, jobs: list[Job]) -> None:
        scheduler = self._run.scheduler
        plans = scheduler.plan_submissions(jobs)
        planned = [job for submission in plans for job in submission.jobs]
        if len(planned) == len(jobs) and set(planned) == set(jobs):
            self._plans.extend(plans)
            self._n_planned += len(jobs)
            return
        error = SchedulerError(f"{scheduler.name}: plan_submissions must plan each job once")
        for job in jobs:
            self._refuse(job, error)

    async def _gate(self, job: Job) -> None:
        """Ask the plugins whether a job may be submitted."""
        may = await self._run.ask_hook(job, "on_job_submitting")
        self._gated.discard(job)
        self.pump_soon()
        if job.current_status in (JobStatus.SUBMITTED, JobStatus.RUNNING):
            self._follow_foreign(job)
        elif not self._is_diverted(job):
            if may:
                self._passed.append(job)
            else:
                self._ending.finish(job, End.cancelled())

    def _follow_foreign(self, job: Job) -> None:
        """Watch a job that a plugin has submitted by itself."""
        flight = self._watching.take_off(job)
        self._watching.is_submitted(flight)
        if job.current_status is JobStatus.RUNNING:
            self._watching.mark_started(flight)

    # --- submission ----------------------------------------------------------------------------

    def _spread(self) -> None:
        """Submit in one more task if all wait for answers, up to `submission_batch`.

        A backend that answers without waiting is served by one task.
        """
        busy, most = len(self._tasks), self._run.scheduler.submission_batch
        if self._plans and self._n_awaited == busy < most:
            task = self._run.loop.create_task(self._submit_plans())
            self._tasks.add(task)
            task.add_done_callback(self._on_submitter_done)

    def _on_submitter_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._plans:
            self.pump_soon()  # one came in its last moment, or it was cancelled before it began
        if not task.cancelled():
            task.result()

    async def _submit_plans(self) -> None:
        turn = _Turn()
        while self._plans:
            submission = self._plans.popleft()
            self._n_planned -= len(submission.jobs)
            if self._plans:
                self._run.loop.call_soon(self._spread)
            await self._submit(submission)
            await turn.pause()

    async def _submit(self, submission: Submission) -> None:
        """Submit one plan. Whatever happens, each of its jobs is somewhere afterwards."""
        jobs = [job for job in submission.jobs if self._is_fit(job)]
        if len(jobs) < len(submission.jobs):
            # What is left of a spoilt plan is planned anew.
            self._waiting.extendleft(reversed(jobs))
            self.pump_soon()
            return
        flights = [self._watching.take_off(job) for job in jobs]
        self._n_awaited += 1
        try:
            if not await self._announce(submission.key, flights):
                return
            _faults.reach("before-sending")
            answers = await self._run.scheduler.submit(submission)
            _faults.reach("after-sending")
        except asyncio.CancelledError:
            interrupted = SubmitError("interrupted", transient=True, maybe_submitted=True)
            answers = dict.fromkeys(jobs, interrupted)
        except Exception as exc:  # noqa: BLE001  # a backend may raise anything; each job is told
            answers = dict.fromkeys(jobs, exc)
        finally:
            self._n_awaited -= 1
        _faults.reach("after-answer")
        await self._book(flights, answers)

    async def _book(
        self, flights: list[Flight], answers: Mapping[Job, int | str | Exception]
    ) -> None:
        """Note what the backend has said, of all these attempts: also if this task is cancelled."""
        refused = []
        turn = _Turn()
        for flight in flights:
            answer = answers.get(flight.job, SubmitError("The backend gave no answer for this job"))
            if isinstance(answer, Exception):
                refused.append((flight, answer))
            else:
                self._is_accepted(flight, answer)
            with suppress(asyncio.CancelledError):
                await turn.pause()
        # Those that go back to wait are put before the others, so the first must come last.
        for flight, error in reversed(refused):
            await self._is_refused(flight, error)

    def _is_fit(self, job: Job) -> bool:
        """Whether a job can be submitted; False: it has ended instead."""
        if self._is_diverted(job):
            return False
        if not job.cmd:
            self._refuse(job, InvalidJobError(f"Job {job.index} has an empty command"))
            return False
        return True

    async def _announce(self, key: str, flights: list[Flight]) -> bool:
        """Write down what is about to be sent, and make way for it; False: it must not be sent.

        In this order: where the word of earlier attempts is removed, that of the next one is there.
        """
        journal = self._run.journal
        _faults.reach("before-intent")
        jobs = [flight.job for flight in flights]
        is_plain = len(jobs) == 1 and key == self._run.scheduler.submission_key(jobs[0])
        exc = journal.sending(
            None if is_plain else key, [(job, self._run.digest(job)) for job in jobs]
        )
        if exc is None:
            try:
                await journal.sync()
            except OSError as sync_exc:
                exc = sync_exc
        if exc is None:
            exc = await self._clean(flights)
        elif self._awaits_disk():
            self._hold(exc)
        else:
            for flight in flights:
                self._watching.turn_back(flight)
                self._refuse(flight.job, exc)
            return False
        if exc is None:
            return True
        # What is left of a spoilt plan is planned anew.
        left = [flight for flight in flights if not flight.is_closed]
        for flight in left:
            self._watching.turn_back(flight)
        self._waiting.extendleft(flight.job for flight in reversed(left))
        self.pump_soon()
        return False

    async def _clean(self, flights: list[Flight]) -> OSError | None:
        """Remove what earlier attempts have left; a job that this fails for is refused."""
        failure = None
        turn = _Turn()
        for flight in flights:
            await turn.pause()
            try:
                await self._run.files.call(flight.job, flight.job.clean)
            except OSError as exc:
                failure = exc
                if _files.may_pass(exc) and self._awaits_disk():
                    self._hold(exc)
                    break
                self._watching.turn_back(flight)
                self._refuse(flight.job, exc)
        return failure

    def _awaits_disk(self) -> bool:
        """Whether a disk that takes nothing is waited for, still."""
        now_s = self._run.loop.time()
        if self._disk_fails_since_s is None:
            self._disk_fails_since_s = now_s
        return now_s - self._disk_fails_since_s < _DISK_PATIENCE_S

    def _is_accepted(self, flight: Flight, jid: int | str | None) -> None:
        job = flight.job
        self._n_refusals = 0
        self._disk_fails_since_s = None
        if jid is not None:
            self._run.assign_jid(job, jid)
            _faults.reach_soon("after-journal")
        self._run.transition(job, JobStatus.SUBMITTED)
        self._run.call_hook(job, "on_job_submitted")
        self._watching.is_submitted(flight)
        self._watching.look_for_end(flight)

    async def _is_refused(self, flight: Flight, exc: Exception) -> None:
        job = flight.job
        transient = isinstance(exc, SubmitError) and exc.transient
        if _files.may_pass(exc.__cause__):
            transient = transient and self._awaits_disk()
        maybe = isinstance(exc, SubmitError) and exc.maybe_submitted
        if maybe and not await self._run.files.call(job, partial(self._revoke, flight)):
            # It started all the same: it is ours, under an id that we were not told.
            logger.info("%r was submitted in spite of: %s", job, exc)
            self._is_accepted(flight, None)
            return
        self._watching.turn_back(flight)
        if flight.kill_requested:
            self._ending.finish(job, End.cancelled())
        elif transient:
            self._hold(exc)
            if maybe:
                self._ending.renew_attempt(job)
                job.unmade += 1
            if not self._is_diverted(job):
                self._waiting.appendleft(job)
                self.pump_soon()
        else:
            self._refuse(job, exc)

    def _revoke(self, flight: Flight) -> bool:
        """Make sure that an attempt never starts; False: it has, or that cannot be made sure."""
        job = flight.job
        if not self._run.scheduler.uses_wrapper:
            return False
        try:
            return _protocol.revoke_start(job.local_dir, flight.tag, "driver")
        except OSError as exc:
            logger.warning("The start of %r cannot be revoked: %s", job, exc)
            return False

    def _hold(self, exc: Exception) -> None:
        """Submit nothing for a while, longer each time that the backend refuses."""
        if self._held_until_s > self._run.loop.time():
            return  # one refusal may be of many jobs
        if self._n_refusals == 0:
            logger.warning("%s: submissions wait: %s", self._run.scheduler.name, exc)
        self._held_until_s = self._run.loop.time() + backoff_s(self._n_refusals)
        self._n_refusals += 1

    def _refuse(self, job: Job, exc: Exception) -> None:
        """A submission that failed, for good or until a retry: tell it where an output would be."""
        end = End.not_submitted(exc)
        logger.debug("%r was not submitted: %s", job, end.reason)
        try:
            job.note_file("job.stderr", f"{end.reason}\n")
            job.note_file("job.rc", str(end.rc))
        except OSError as write_exc:
            logger.warning("The refusal of %r cannot be written: %s", job, write_exc)
        self.pump_soon()
        self._run.files.upload(job, partial(self._ending.finish, job, end))

    # --- plugins and stopping ------------------------------------------------------------------

    def is_at_the_gate(self, job: Job) -> bool:
        """Whether the plugins are being asked about the job."""
        return job in self._gated

    def cancel(self, job: Job) -> None:
        """Cancel a job that is not with the backend: now if it waits, else when it comes by."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._run.doomed.add(job)
            self._is_diverted(job)
            self.pump_soon()
        else:
            self._run.doomed.add(job)

    def cancel_all(self) -> None:
        """Cancel all that wait, some at a time, so that a million do not block the event loop."""
        for _ in range(min(len(self._waiting), _MANY)):
            self._is_diverted(self._waiting.popleft())
        if self._waiting:
            self._run.loop.call_soon(self.cancel_all)
        self._is_pumping = False  # what is held until the backend may take more is not any longer
        self.pump_soon()

    async def detach(self) -> None:
        """Let go of all that is not with the backend; return when what was on its way is there."""
        planned = [job for submission in self._plans for job in submission.jobs]
        left = [*self._waiting, *self._passed, *planned]
        self._waiting.clear()
        self._passed.clear()
        self._plans.clear()
        self._n_planned = 0
        for job in left:
            self._release(job)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def interrupt(self) -> None:
        """Wait for no answer any more."""
        for task in self._tasks:
            task.cancel()


class _Turn:
    """A turn of the event loop, which is handed on when it has taken long enough."""

    def __init__(self) -> None:
        self._ends_s = time.perf_counter() + _TURN_S

    async def pause(self) -> None:
        """Let others have their turn, if this one is over."""
        if time.perf_counter() > self._ends_s:
            await asyncio.sleep(0)
            self._ends_s = time.perf_counter() + _TURN_S
