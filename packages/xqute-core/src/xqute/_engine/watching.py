"""The jobs that the backend has: what is heard of them, and when they count as ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from .._protocol import EndRecord, Event, StartClaim
from ..defaults import JobStatus
from ..job import Job
from ..scheduler import BackendState, Phase, Scheduler
from ..utils import logger
from .ending import Ending
from .flight import Flight
from .lifecycle import End
from .reconciler import Reconciler
from .run import ENDED, Run
from .settle import believe, claim_lost, judge, read_start

__all__ = ["Watching"]

#: Seconds between two calls of `on_job_polling` for one job.
_POLLING_HOOK_INTERVAL_S = 1.0
#: How long a killed job that the backend has forgotten may take to tell its end itself.
_KILLED_GRACE_S = 0.5
#: How often a backend says that a job runs before its start is looked for in a cloud.
_MANY_CHECKS = 3
#: How long a doubtful end may go untold while the backend is asked, and until that is (again).
_EXPLANATION_S, _EXPLANATION_PAUSE_S = 15.0, 0.5


class Watching:
    """Follows each attempt from its submission to its end.

    Args:
        run: The run.
        ending: Told of each end.
        on_room: Called when an attempt has ended, so that another may be submitted.
        on_timeout: Called with an attempt that is to be ended for its timeout.
        on_kill_due: Called with an attempt that was to be killed before it was submitted.
    """

    def __init__(
        self,
        run: Run,
        ending: Ending,
        *,
        on_room: Callable[[], None],
        on_timeout: Callable[[Flight], None],
        on_kill_due: Callable[[Flight], None],
    ) -> None:
        self.flights: dict[int, Flight] = {}
        self.reconciler = Reconciler(run, self.on_report)
        self._run = run
        self._ending = ending
        self._on_room = on_room
        self._on_timeout = on_timeout
        self._on_kill_due = on_kill_due
        self._polling: asyncio.TimerHandle | None = None
        self._n_pollings = 0

    def flight_of(self, job: Job) -> Flight | None:
        """Give the attempt of a job that is with the backend, or just on its way there."""
        flight = self.flights.get(job.index)
        return flight if flight is not None and flight.job is job else None

    def take_off(self, job: Job) -> Flight:
        """Follow a job that is about to be submitted; what is heard of it early is kept."""
        flight = Flight(job, self._run.scheduler.claim_tag(job))
        self.flights[job.index] = flight
        return flight

    def turn_back(self, flight: Flight) -> None:
        """Forget an attempt that was not submitted after all."""
        del self.flights[flight.job.index]
        flight.close()

    def is_submitted(self, flight: Flight) -> None:
        """The backend has accepted the attempt."""
        flight.is_submitted = True
        flight.job.submitted_at = time.time()
        self.reconciler.add(flight)
        early, flight.early = flight.early, []
        for state in early:
            self.on_report(flight.job, state)
        if flight.kill_requested and not flight.is_closed:
            self._on_kill_due(flight)

    def look_for_end(self, flight: Flight) -> None:
        """Look whether an attempt has ended in its submission, and has told so in files alone.

        That is how a scheduler makes believe, which runs nothing.
        """
        scheduler = self._run.scheduler
        is_plain = type(scheduler).submit is Scheduler.submit and scheduler.leaves_events
        if is_plain and not flight.is_closed and not flight.job.is_far:
            self._look(flight, None)

    # --- what is heard -------------------------------------------------------------------------

    def on_report(self, job: Job, state: BackendState) -> None:
        """Hear what the backend says of a job."""
        flight = self.flight_of(job)
        if flight is None:
            return
        if not flight.is_submitted:
            flight.early.append(state)
        elif self._is_of_another_attempt(job, state):
            logger.debug("What is said of %s is no news of %r", state.jid, job)
        elif state.phase is Phase.ENDED:
            work = partial(judge, flight, state, self._run.scheduler, is_over=True)
            self._run.files.do(job, work, partial(self._land, flight))
        elif state.phase is Phase.GONE:
            self._look(flight, state, otherwise=partial(self._miss, flight, state))
        else:
            flight.gone_since_s = None
            flight.was_seen = True
            self._hear_it_is_there(flight, state)

    def _is_of_another_attempt(self, job: Job, state: BackendState) -> bool:
        if state.jid is not None and job.jid is None:
            self._run.assign_jid(job, state.jid)  # its answer was lost: so we learn the id
        return state.jid is not None and state.jid != job.jid

    def on_event(self, event: Event) -> None:
        """Hear what a job says of itself. It is a hint: what counts are the claims."""
        flight = self.flights.get(event.index)
        if flight is None or flight.job.trial_count != event.attempt:
            return
        runs = event.status == JobStatus.RUNNING
        if not flight.is_submitted:
            flight.early.append(BackendState(Phase.RUNNING if runs else Phase.GONE))
            return
        flight.checks = 0
        if runs:
            self.mark_started(flight, event.epoch_ms / 1000)
        elif event.status == JobStatus.FINISHED and event.run and event.run == flight.run:
            # Its name says all that the claim would, and spares the request.
            self._land(flight, believe(flight, EndRecord(event.rc, event.status, ""), None))
        else:
            soon = partial(self.reconciler.add, flight, _EXPLANATION_PAUSE_S)
            self._look(flight, None, otherwise=soon)  # it may not be seen yet

    def _hear_it_is_there(self, flight: Flight, state: BackendState) -> None:
        """The backend has it, pending or running; jobs that tell by themselves know better."""
        scheduler = self._run.scheduler
        if not (scheduler.uses_wrapper and scheduler.leaves_events):
            if state.phase is Phase.RUNNING:
                self.mark_started(flight)
        elif not flight.job.is_far:
            self._look(flight, state, otherwise=partial(self._look_for_start, flight))
        elif self._is_silent(flight, state):
            # Not for its end: between that claim and the event it still uploads files.
            self._look_for_start(flight)

    @staticmethod
    def _is_silent(flight: Flight, state: BackendState) -> bool:
        """Whether a job that runs should have told so by now: a look at its files is a request."""
        runs = state.phase is Phase.RUNNING and flight.job.started_at is None
        return runs and flight.checks >= _MANY_CHECKS

    def _look_for_start(self, flight: Flight) -> None:
        if flight.job.started_at is not None:
            return

        def then(claim: StartClaim | None) -> None:
            if claim is not None and not claim.revoked and not flight.is_closed:
                self.mark_started(flight)

        self._run.files.do(flight.job, partial(read_start, flight), then)

    def _look(
        self,
        flight: Flight,
        state: BackendState | None,
        otherwise: Callable[[], None] | None = None,
    ) -> None:
        """Look whether the end of the attempt is recorded; if not, call `otherwise`."""

        def then(end: End | None) -> None:
            if end is None:
                if otherwise is not None and not flight.is_closed:
                    otherwise()
            elif not flight.is_closed and not self._is_to_be_explained(flight, end, state):
                self._land(flight, end)

        self._run.files.do(flight.job, partial(judge, flight, state, self._run.scheduler), then)

    def _is_to_be_explained(self, flight: Flight, end: End, state: BackendState | None) -> bool:
        """Whether an end is not told yet, because the backend may soon say why it came."""
        told = state is not None and state.phase is Phase.GONE
        if told or not end.doubtful or not self._run.scheduler.explains_failures:
            return False
        now_s = self._run.loop.time()
        if flight.unexplained_until_s is None:
            flight.unexplained_until_s = now_s + _EXPLANATION_S
            self.reconciler.add(flight, 0.0)
            at_last = BackendState(Phase.GONE)
            self._run.loop.call_later(_EXPLANATION_S, self._look, flight, at_last)
        elif now_s < flight.unexplained_until_s:
            self.reconciler.add(flight, _EXPLANATION_PAUSE_S)
        return now_s < flight.unexplained_until_s

    def _miss(self, flight: Flight, state: BackendState) -> None:
        """The backend does not know the job, and no end is recorded: not yet, or never."""
        if flight.is_closed:
            return
        grace_s = self._run.scheduler.lost_grace_s
        if flight.kill_requested:
            grace_s = min(grace_s, _KILLED_GRACE_S)
        now_s = self._run.loop.time()
        if flight.gone_since_s is None:
            flight.gone_since_s = now_s
        missed_s = now_s - flight.gone_since_s
        if missed_s < grace_s:
            self.reconciler.add(flight, grace_s - missed_s)
        else:
            work = partial(claim_lost, flight, state, self._run.scheduler)
            self._run.files.do(flight.job, work, partial(self._land, flight))

    # --- what follows --------------------------------------------------------------------------

    def mark_started(self, flight: Flight, started_at: float | None = None) -> None:
        """The attempt runs; told once."""
        job = flight.job
        if job.started_at is not None:
            return
        job.started_at = started_at or flight.began_at or time.time()
        if job.current_status is JobStatus.SUBMITTED:
            self._run.transition(job, JobStatus.RUNNING)
        self._run.call_hook(job, "on_job_started")
        scheduler = self._run.scheduler
        timeout_s = scheduler.timeout_of(job)
        if timeout_s:
            if not scheduler.enforces_timeout:
                # The wrapper does, and tells so; this is for one that cannot.
                timeout_s += scheduler.kill_grace_s + 5
            if flight.began_at is not None:
                # The clock may have been set back since.
                timeout_s = max(0.0, timeout_s - max(0.0, time.time() - flight.began_at))
            flight.timer = self._run.loop.call_later(timeout_s, self._time_out, flight)
        if self._polling is None and "on_job_polling" in self._run.hooks:
            self._polling = self._run.loop.call_later(_POLLING_HOOK_INTERVAL_S, self._poll_hooks)

    def _time_out(self, flight: Flight) -> None:
        flight.timed_out = True
        self._on_timeout(flight)

    def _poll_hooks(self) -> None:
        self._n_pollings += 1
        for flight in self.flights.values():
            job = flight.job
            if job.current_status is JobStatus.RUNNING and job not in self._run.chains:
                self._run.call_hook(job, "on_job_polling", self._n_pollings)
        self._polling = None
        if self.flights:
            self._polling = self._run.loop.call_later(_POLLING_HOOK_INTERVAL_S, self._poll_hooks)

    def lose(self, flight: Flight, end: End) -> None:
        """Give an attempt up: nothing more is to be heard of it."""
        self._land(flight, end)

    def _land(self, flight: Flight, end: End | None) -> None:
        """The attempt has ended, if there is an end: the backend has nothing of it any more."""
        if end is not None and self.flight_of(flight.job) is flight and not flight.is_landing:
            flight.is_landing = True
            self._run.files.upload(flight.job, partial(self._landed, flight, end))

    def _landed(self, flight: Flight, end: End) -> None:
        """The files of the attempt are where they belong."""
        job = flight.job
        if self.flight_of(job) is not flight:
            return  # a plugin was faster
        if end.ran:
            self.mark_started(flight)
        del self.flights[job.index]
        flight.close()
        self._on_room()
        if flight.on_landing is None or not flight.on_landing(end):
            self._ending.finish(job, end)

    def status_is_set(self, flight: Flight, status: JobStatus) -> bool:
        """A plugin sets the status of a job that the backend has: decide whether it counts."""
        if not flight.is_submitted:
            return False
        if status is JobStatus.RUNNING:
            self.mark_started(flight)
            return False  # because it is done already
        if status is JobStatus.KILLING:
            flight.kill_requested = True
            return True
        if status not in ENDED:
            return False
        del self.flights[flight.job.index]
        flight.close()
        self._on_room()
        # The status is entered when this returns.
        self._run.loop.call_soon(partial(self._ending.finish_as_set, flight.job, tell=True))
        return True

    def let_go(self) -> list[Flight]:
        """Watch none of the attempts any more, and give them."""
        flights = list(self.flights.values())
        self.flights.clear()
        for flight in flights:
            flight.close()
        return flights

    async def close(self) -> None:
        """Watch no more."""
        if self._polling is not None:
            self._polling.cancel()
        await self.reconciler.close()
