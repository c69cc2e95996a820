"""The engine: takes fed jobs through submission, running and retry to their end, and stops them.

A job flows one way through few places, and is in one at a time: `_waiting` (queued), `_plans` (about
to be submitted), `_flights` (with the backend), ended. All that is heard of a job comes to
`_on_report` or `on_event`; all that happens to it goes through `_transition`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from .. import _protocol
from ..defaults import JobCause, JobErrorStrategy, JobOutcome, JobStatus
from ..errors import InvalidJobError, SubmitError
from ..job import Job
from ..plugin import HookTable
from ..scheduler import BackendState, Phase, Scheduler, Submission
from ..utils import logger
from ..wrapper import check_command, check_env
from .chains import Chains
from .flight import Flight
from .killer import Killer
from .lifecycle import HOOK_OF_OUTCOME, TRANSITIONS, End, Retry, backoff_s, plan_retry
from .reconciler import Reconciler
from .settle import claim_lost, judge

if TYPE_CHECKING:
    from .._protocol import Event

__all__ = ["Engine"]

_ENDED = (JobStatus.FINISHED, JobStatus.FAILED)
#: How long the event loop may be kept from others, by feeding or submitting.
_TURN_S = 0.002
#: How many jobs are planned at once, at the most.
_PLAN_SIZE = 1024


class Engine:
    """Drives jobs over one scheduler. Everything but `feed` is called on the event loop and returns at once.

    Args:
        scheduler: The backend.
        hooks: The plugins of the run.
        retry_lost: Whether a job whose fate is unknown may be run again.
        on_ended: Told of each job that has ended for good, after its hooks.
        on_halt: Told of the job whose failure is to end the run.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hooks: HookTable,
        *,
        retry_lost: bool,
        on_ended: Callable[[Job], None],
        on_halt: Callable[[Job], None],
    ) -> None:
        self.scheduler = scheduler
        self.hooks = hooks
        self.n_open = 0
        self.is_stopping = False
        self._retry_lost = retry_lost
        self._on_ended = on_ended
        self._on_halt = on_halt
        self._chains = Chains()
        self._waiting: deque[Job] = deque()
        self._gated: set[Job] = set()
        self._doomed: set[Job] = set()
        self._ready: deque[Job] = deque()
        self._plans: deque[Submission] = deque()
        self._n_planned = 0
        self._flights: dict[int, Flight] = {}
        self._submitters: set[asyncio.Task[None]] = set()
        self._is_pumping = False
        self._n_refusals = 0
        self._held_until_s = 0.0
        self._backoffs: dict[Job, asyncio.TimerHandle] = {}
        self._waiters: dict[Job, list[asyncio.Future[None]]] = {}
        self._last_turn_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._reconciler = Reconciler(scheduler, self._on_report)
        self._killer = Killer(scheduler, self._reconciler, self._give_up_kill)
        self._polling: asyncio.TimerHandle | None = None
        self._n_polls = 0
        scheduler.watch(self._on_report)

    # --- feeding -------------------------------------------------------------------------------

    async def feed(self, job: Job) -> None:
        """Take a job over; returns when `on_job_init` is done and the job waits for submission.

        Raises:
            InvalidJobError: If its command or environment cannot be passed. The job is not taken.
        """
        job.driver = self
        if "on_job_init" in self.hooks:
            await self.hooks.acall("on_job_init", self.scheduler, job)
        try:
            check_command(job.cmd)
            for name, value in job.envs.items() if job.has_envs else ():
                check_env(name, value)
        except InvalidJobError as exc:
            job.driver = None
            raise InvalidJobError(f"Job {job.index}: {exc}") from None
        self.n_open += 1
        if self.is_stopping:
            self._finish(job, End.cancelled())
            return
        self._queue(job)
        await self._yield_turn()

    async def _yield_turn(self) -> None:
        """Let others have the event loop, if this has had it for a while."""
        now_s = time.perf_counter()
        if now_s - self._last_turn_s > _TURN_S:
            await asyncio.sleep(0)
            self._last_turn_s = time.perf_counter()

    def _queue(self, job: Job) -> None:
        if job._status not in _ENDED:
            self._transition(job, JobStatus.QUEUED)
            self._hook(job, "on_job_queued")
        self._chains.then(job, partial(self._wait_for_room, job))

    def _is_doomed(self, job: Job) -> bool:
        """Whether a job that was about to be submitted is to be cancelled instead."""
        return self.is_stopping or job in self._doomed

    def _wait_for_room(self, job: Job) -> None:
        if self._is_doomed(job) and job._status not in _ENDED:
            self._finish(job, End.cancelled())
            return
        self._waiting.append(job)
        self._pump_soon()

    # --- the one place where a status changes --------------------------------------------------

    def _transition(self, job: Job, status: JobStatus) -> None:
        """Change the status of a job as the table allows. A journal belongs here, before the hooks."""
        if status not in TRANSITIONS[job._status]:
            raise AssertionError(f"{job!r} cannot go from {job._status.name} to {status.name}")
        job.enter(status)

    def _hook(self, job: Job, hook: str) -> None:
        """Have a hook called, after the earlier ones of the job."""
        if hook in self.hooks:
            self._chains.add(job, partial(self.hooks.acall, hook, self.scheduler, job))

    # --- submitting ----------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_soon(self._pump)

    @property
    def _n_taken(self) -> int:
        return len(self._gated) + len(self._ready) + self._n_planned + len(self._flights)

    def _pump(self) -> None:
        """Fill the free forks from those that wait, plan them, and see that they get submitted."""
        self._is_pumping = False
        if self.is_stopping:
            return
        wait_s = self._held_until_s - self._loop.time()
        if wait_s > 0:
            self._is_pumping = True
            self._loop.call_later(wait_s, self._pump)
            return
        room = min(self.scheduler.forks - self._n_taken, _PLAN_SIZE)
        while self._waiting and room > 0:
            job = self._waiting.popleft()
            if job._status in _ENDED:
                self._close_by_plugin(job)
                continue
            room -= 1
            if "on_job_submitting" in self.hooks:
                self._gated.add(job)
                self._chains.add(job, partial(self._gate, job))
            else:
                self._ready.append(job)
        if self._ready:
            plans = self.scheduler.plan_submissions(list(self._ready))
            self._n_planned += len(self._ready)
            self._ready.clear()
            self._plans.extend(plans)
        while len(self._submitters) < min(len(self._plans), self.scheduler.submission_batch):
            task = self._loop.create_task(self._submit_plans())
            self._submitters.add(task)
            task.add_done_callback(self._submitters.discard)

    async def _gate(self, job: Job) -> None:
        """Ask the plugins whether a job may be submitted."""
        try:
            answers = await self.hooks.acall("on_job_submitting", self.scheduler, job)
        finally:
            self._gated.discard(job)
        if job._status in _ENDED:
            self._close_by_plugin(job)
        elif job._status in (JobStatus.SUBMITTED, JobStatus.RUNNING):
            self._watch_foreign(job)
        elif False in answers or self._is_doomed(job):
            self._finish(job, End.cancelled())
        else:
            self._ready.append(job)
        self._pump_soon()

    def _watch_foreign(self, job: Job) -> None:
        """Watch a job that a plugin has submitted by itself."""
        flight = self._take_off(job)
        flight.is_submitted = True
        job.submitted_at = time.time()
        self._reconciler.add(flight)
        if job._status is JobStatus.RUNNING:
            self._mark_started(flight)

    async def _submit_plans(self) -> None:
        while self._plans:
            submission = self._plans.popleft()
            self._n_planned -= len(submission.jobs)
            await self._submit(submission)
            await self._yield_turn()

    async def _submit(self, submission: Submission) -> None:
        """Submit one plan. Whatever happens, each of its jobs is somewhere afterwards."""
        flights = []
        for job in submission.jobs:
            if job._status in _ENDED:
                self._close_by_plugin(job)
                continue
            if self._is_doomed(job):
                self._finish(job, End.cancelled())
                continue
            try:
                if not job.cmd:
                    raise InvalidJobError(f"Job {job.index} has an empty command")
                job.clean()
            except (OSError, InvalidJobError) as exc:
                self._refused(job, exc)
            else:
                flights.append(self._take_off(job))
        if len(flights) < len(submission.jobs):
            # The plan is spoilt: what is left of it is planned anew.
            for flight in flights:
                del self._flights[flight.job.index]
                self._waiting.appendleft(flight.job)
            self._pump_soon()
            return
        try:
            answers = await self.scheduler.submit(submission)
        except asyncio.CancelledError:
            gone = SubmitError("The submission was interrupted", maybe_submitted=True)
            answers = dict.fromkeys(submission.jobs, gone)
        except Exception as exc:
            answers = dict.fromkeys(submission.jobs, exc)
        for flight in flights:
            answer = answers.get(flight.job, SubmitError("The backend gave no answer for this job"))
            if isinstance(answer, Exception):
                self._submission_failed(flight, answer)
            else:
                self._submitted(flight, answer)

    def _take_off(self, job: Job) -> Flight:
        tag = self.scheduler.claim_tag(job)
        flight = Flight(job, tag)
        self._flights[job.index] = flight
        return flight

    def _submitted(self, flight: Flight, jid: int | str | None) -> None:
        job = flight.job
        self._n_refusals = 0
        try:
            if jid is not None:
                job.jid = jid
        except OSError as exc:
            logger.warning("The id %s of %r cannot be written: %s", jid, job, exc)
        job.submitted_at = time.time()
        flight.is_submitted = True
        self._transition(job, JobStatus.SUBMITTED)
        self._hook(job, "on_job_submitted")
        self._reconciler.add(flight)
        if flight.early is not None:
            for state in flight.early:
                self._on_report(job, state)
        if flight.kill_requested and job.index in self._flights:
            self._killer.kill([flight])

    def _submission_failed(self, flight: Flight, exc: Exception) -> None:
        job = flight.job
        transient = isinstance(exc, SubmitError) and exc.transient
        maybe = isinstance(exc, SubmitError) and exc.maybe_submitted
        if maybe and not self._revoke(flight):
            # It started all the same: then it is ours, under an id that is to be found out.
            logger.info("%r was submitted in spite of: %s", job, exc)
            self._submitted(flight, None)
            return
        del self._flights[job.index]
        if flight.kill_requested:
            self._finish(job, End.cancelled())
        elif transient and not self.is_stopping:
            self._hold(exc)
            if maybe:
                self._renew_attempt(job)
            self._waiting.appendleft(job)
            self._pump_soon()
        else:
            self._refused(job, exc)

    def _revoke(self, flight: Flight) -> bool:
        """Make sure that an attempt never starts; False: it has started."""
        job = flight.job
        try:
            return _protocol.revoke_start(job.local_dir, flight.tag, "driver")
        except OSError as exc:
            logger.warning("The start of %r cannot be revoked: %s", job, exc)
            return False

    def _renew_attempt(self, job: Job) -> None:
        """Make the next attempt of a job the current one."""
        try:
            job.clean(retry=True)
        except OSError as exc:
            logger.warning("The files of attempt %d of %r stay: %s", job.trial_count, job, exc)
        job.trial_count += 1

    def _hold(self, exc: Exception) -> None:
        """Submit nothing for a while, and longer each time that the backend refuses."""
        wait_s = backoff_s(self._n_refusals)
        if self._n_refusals == 0:
            logger.warning("%s: submissions wait, %s", self.scheduler.name, exc)
        self._n_refusals += 1
        self._held_until_s = self._loop.time() + wait_s

    def _refused(self, job: Job, exc: Exception) -> None:
        end = End.not_submitted(exc)
        logger.debug("%r was not submitted: %s", job, end.reason)
        try:
            job.write_file("job.stderr", f"{end.reason}\n")
            job.write_file("job.rc", str(end.rc))
        except OSError as write_exc:
            logger.warning("The refusal of %r cannot be written: %s", job, write_exc)
        self._finish(job, end)

    # --- watching ------------------------------------------------------------------------------

    def _on_report(self, job: Job, state: BackendState) -> None:
        """Hear what the backend says of a job."""
        flight = self._flights.get(job.index)
        if flight is None or flight.job is not job:
            return
        if not flight.is_submitted:
            flight.early = [*(flight.early or ()), state]
            return
        if state.phase is Phase.RUNNING:
            flight.gone_since_s = None
            if not self.scheduler.uses_wrapper or not self.scheduler.leaves_events:
                self._mark_started(flight)
            elif not self._look(flight, state):
                self._mark_started_by_claim(flight)
        elif state.phase is Phase.PENDING:
            flight.gone_since_s = None
        elif state.phase is Phase.ENDED:
            self._settle(flight, state)
        elif not self._look(flight, state):
            self._miss(flight, state)

    def on_event(self, event: Event) -> None:
        """Hear what a job says of itself. It is a hint: what counts are the claims."""
        flight = self._flights.get(event.index)
        if flight is None or flight.job.trial_count != event.attempt:
            return
        if not flight.is_submitted:
            state = BackendState(Phase.RUNNING if event.status == JobStatus.RUNNING else Phase.GONE)
            flight.early = [*(flight.early or ()), state]
            return
        self._reconciler.heard_of(flight)
        if event.status == JobStatus.RUNNING:
            self._mark_started(flight, event.epoch_ms / 1000)
        else:
            self._look(flight, None)

    def _look(self, flight: Flight, state: BackendState | None) -> bool:
        """Look whether the job has recorded its end; True if it has."""
        end = judge(flight, state, self.scheduler)
        if end is None:
            return False
        self._land(flight, end)
        return True

    def _mark_started_by_claim(self, flight: Flight) -> None:
        job = flight.job
        if job._status is JobStatus.SUBMITTED:
            claim = _protocol.read_start_claim(job.local_dir, flight.tag)
            if claim is not None and not claim.revoked:
                self._mark_started(flight)

    def _mark_started(self, flight: Flight, started_at: float | None = None) -> None:
        job = flight.job
        if job.started_at is not None:
            return
        job.started_at = time.time() if started_at is None else started_at
        if job._status is JobStatus.SUBMITTED:
            self._transition(job, JobStatus.RUNNING)
        self._hook(job, "on_job_started")
        timeout_s = self.scheduler.timeout_of(job)
        if timeout_s:
            if not self.scheduler.enforces_timeout:
                timeout_s += self.scheduler.kill_grace_s + 5
            flight.timer = self._loop.call_later(timeout_s, self._time_out, flight)
        if self._polling is None and "on_job_polling" in self.hooks:
            self._polling = self._loop.call_later(1, self._poll_hooks)

    def _time_out(self, flight: Flight) -> None:
        flight.timed_out = True
        self._killer.kill([flight])

    def _poll_hooks(self) -> None:
        self._n_polls += 1
        for flight in self._flights.values():
            job = flight.job
            if job._status is JobStatus.RUNNING and job not in self._chains:
                self._chains.add(job, partial(self._call_polling, job))
        self._polling = self._loop.call_later(1, self._poll_hooks) if self._flights else None

    async def _call_polling(self, job: Job) -> None:
        await self.hooks.acall("on_job_polling", self.scheduler, job, self._n_polls)

    def _settle(self, flight: Flight, state: BackendState) -> None:
        """The backend says that the attempt is over, and how."""
        self._land(flight, judge(flight, state, self.scheduler, is_over=True))

    def _miss(self, flight: Flight, state: BackendState) -> None:
        """The backend does not know the job, and no end is recorded. Not yet?"""
        now_s = self._loop.time()
        if flight.gone_since_s is None:
            flight.gone_since_s = now_s
        missed_s = now_s - flight.gone_since_s
        if missed_s < self.scheduler.lost_grace_s:
            self._reconciler.add(flight, self.scheduler.lost_grace_s - missed_s)
            return
        end = claim_lost(flight, state, self.scheduler)
        if end is not None:
            self._land(flight, end)

    def _give_up_kill(self, flight: Flight) -> None:
        reason = f"its kill was not confirmed within {self.scheduler.kill_timeout_s:g} s"
        logger.error("%r: %s", flight.job, reason)
        self._land(flight, End.lost(reason, JobCause.REQUESTED))

    # --- ending --------------------------------------------------------------------------------

    def _land(self, flight: Flight, end: End | None) -> None:
        """The attempt has ended: the backend has nothing of it any more."""
        if end is None:
            return
        job = flight.job
        if self._flights.pop(job.index, None) is not flight:
            return
        if end.ran:
            self._mark_started(flight)
        flight.close()
        self._pump_soon()
        self._finish(job, end)

    def _finish(self, job: Job, end: End) -> None:
        """The attempt has ended, wherever it was: say so, and decide what follows."""
        job.outcome, job.cause, job.reason = end.outcome, end.cause, end.reason
        job.rc = end.rc
        job.ended_at = time.time()
        self._transition(job, end.status)
        retry = self._plan_retry(job, end)
        if retry is not None:
            self._transition(job, JobStatus.RETRYING)
        hook = HOOK_OF_OUTCOME.get(end.outcome)
        if hook is not None:
            self._hook(job, hook)
        self._chains.then(job, partial(self._follow_up, job, end, retry))

    def _plan_retry(self, job: Job, end: End) -> Retry | None:
        if self.is_stopping:
            return None
        strategy = self.scheduler.error_strategy
        return plan_retry(
            job, end, strategy, self.scheduler.num_retries, retry_lost=self._retry_lost
        )

    def _follow_up(self, job: Job, end: End, retry: Retry | None) -> None:
        """After the terminal hook: it may have changed the verdict."""
        if end.status is JobStatus.FINISHED and job._status is JobStatus.FAILED:
            why = "a plugin judged it a failure"
            self._demote(job, End(JobOutcome.FAILED, end.rc, JobCause.PLUGIN, why))
        elif job._status is JobStatus.RETRYING and not self._is_doomed(job):
            # A plugin may ask for a retry where none was planned.
            self._retry(job, retry or Retry(0.0, charged=True))
        else:
            if job._status is JobStatus.RETRYING:
                self._transition(job, JobStatus.FAILED)
            elif job._status is JobStatus.FINISHED and end.status is JobStatus.FAILED:
                job.outcome = JobOutcome.SUCCEEDED
            self._close(job)

    def _demote(self, job: Job, end: End) -> None:
        job.outcome, job.cause, job.reason = end.outcome, end.cause, end.reason
        retry = self._plan_retry(job, end)
        if retry is not None:
            self._transition(job, JobStatus.RETRYING)
        self._hook(job, "on_job_failed")
        self._chains.then(job, partial(self._follow_up, job, end, retry))

    def _retry(self, job: Job, retry: Retry) -> None:
        if retry.charged:
            job.failures += 1
        else:
            job.restarts += 1
        logger.debug("%r is tried again in %.1f s: %s", job, retry.delay_s, job.reason)
        self._renew_attempt(job)
        job.outcome = job.cause = None
        job.reason = ""
        job.submitted_at = job.started_at = job.ended_at = None
        if retry.delay_s:
            self._backoffs[job] = self._loop.call_later(retry.delay_s, self._back_again, job)
        else:
            self._queue(job)

    def _back_again(self, job: Job) -> None:
        del self._backoffs[job]
        self._queue(job)

    def _close_by_plugin(self, job: Job) -> None:
        """A plugin has ended a job before it was submitted."""
        succeeded = job._status is JobStatus.FINISHED
        job.outcome = JobOutcome.SUCCEEDED if succeeded else JobOutcome.FAILED
        job.cause = JobCause.PLUGIN
        job.ended_at = time.time()
        self._close(job)

    def _close(self, job: Job) -> None:
        """The job has ended for good, and its hooks are done."""
        job.driver = None
        self.n_open -= 1
        self._doomed.discard(job)
        for waiter in self._waiters.pop(job, ()):
            if not waiter.done():
                waiter.set_result(None)
        failed = job._status is JobStatus.FAILED
        self._on_ended(job)
        if failed and self.scheduler.error_strategy is JobErrorStrategy.HALT and not self.is_stopping:
            self._on_halt(job)

    # --- what plugins and users do -------------------------------------------------------------

    def status_is_set(self, job: Job, status: JobStatus) -> bool:
        """A plugin sets a status: decide whether it counts. In flight, a terminal one ends the watching."""
        flight = self._flights.get(job.index)
        if flight is not None and flight.job is job:
            counts = flight.is_submitted and self._status_is_set_in_flight(flight, status)
        elif job._status in (*_ENDED, JobStatus.RETRYING):
            counts = status in (*_ENDED, JobStatus.RETRYING)
        elif job in self._gated:
            counts = True
        else:
            counts = status in _ENDED
        if not counts:
            here = job._status.name
            logger.warning("%r is %s: a plugin cannot make it %s", job, here, status.name)
        return counts

    def _status_is_set_in_flight(self, flight: Flight, status: JobStatus) -> bool:
        job = flight.job
        if status in _ENDED:
            del self._flights[job.index]
            flight.close()
            succeeded = status is JobStatus.FINISHED
            job.outcome = JobOutcome.SUCCEEDED if succeeded else JobOutcome.FAILED
            job.cause = JobCause.PLUGIN
            job.ended_at = time.time()
            self._pump_soon()
            self._hook(job, HOOK_OF_OUTCOME[job.outcome])
            self._chains.then(job, partial(self._close, job))
        elif status is JobStatus.KILLING:
            flight.kill_requested = True
        elif status is JobStatus.RUNNING:
            self._mark_started(flight)
            return False  # the engine has set it
        else:
            return False
        return True

    def drives(self, job: Job) -> bool:
        """Whether this engine has the job in its hands."""
        return job.driver is self

    async def wait(self, job: Job) -> None:
        """Return when the job has ended for good."""
        if job.driver is self:
            future = self._loop.create_future()
            self._waiters.setdefault(job, []).append(future)
            await future

    async def kill(self, job: Job) -> None:
        """Kill one job, hooks included, and return when it has ended."""
        self.kill_all([job])
        await self.wait(job)

    def kill_all(self, jobs: Iterable[Job]) -> None:
        """Kill those of the jobs that are with the backend, and cancel those that wait."""
        at_once = []
        for job in jobs:
            flight = self._flights.get(job.index)
            if flight is None or flight.job is not job:
                self._cancel(job)
            elif not flight.kill_requested:
                flight.kill_requested = True
                if not flight.is_submitted:
                    continue
                if "on_job_killing" in self.hooks:
                    self._chains.add(job, partial(self._gate_kill, flight))
                else:
                    at_once.append(flight)
        self._kill_flights(at_once)

    async def _gate_kill(self, flight: Flight) -> None:
        answers = await self.hooks.acall("on_job_killing", self.scheduler, flight.job)
        if False not in answers and self._flights.get(flight.job.index) is flight:
            self._kill_flights([flight])

    def _kill_flights(self, flights: list[Flight]) -> None:
        for flight in flights:
            if flight.job._status is not JobStatus.KILLING:
                self._transition(flight.job, JobStatus.KILLING)
        if flights:
            self._killer.kill(flights)

    def _cancel(self, job: Job) -> None:
        """Cancel a job that is not with the backend: now if it waits, else at its next step."""
        if job.driver is not self or job._status in _ENDED:
            return
        handle = self._backoffs.pop(job, None)
        if handle is not None:
            handle.cancel()
        elif job in self._waiting:
            self._waiting.remove(job)
        else:
            self._doomed.add(job)
            return
        self._finish(job, End.cancelled())

    # --- stopping ------------------------------------------------------------------------------

    def stop(self, *, kill: bool) -> None:
        """Cancel what waits and, if asked to, kill what runs. Nothing new is submitted."""
        self.is_stopping = True
        for job in list(self._backoffs):
            self._cancel(job)
        self._cancel_waiting()
        if kill:
            self.kill_all([flight.job for flight in self._flights.values()])

    def _cancel_waiting(self) -> None:
        """Cancel those that wait, a thousand at a time, so that a million do not block the loop."""
        for queue in (self._ready, self._waiting):
            for _ in range(min(len(queue), 1000)):
                job = queue.popleft()
                if job._status in _ENDED:
                    self._close_by_plugin(job)
                else:
                    self._finish(job, End.cancelled())
        if self._ready or self._waiting:
            self._loop.call_soon(self._cancel_waiting)

    def stop_at_once(self) -> None:
        """No more grace: KILL what runs, and give up hooks that are being waited for."""
        self._chains.give_up()
        flights = [flight for flight in self._flights.values() if flight.is_submitted]
        for flight in flights:
            flight.kill_requested = True
        self._killer.force(flights)
        for task in self._submitters:
            task.cancel()

    async def close(self) -> None:
        """Stop watching. Jobs that still run, run on."""
        if self._polling is not None:
            self._polling.cancel()
        await self._killer.close()
        await self._reconciler.close()
