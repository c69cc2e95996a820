"""The engine: takes fed jobs through submission, running and retry to their end, and stops them.

A job goes one way: `Submitting` -> `Watching` -> `Ending`, and from there back for another attempt
or out. This module puts these parts together and is what the rest of xqute talks to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

from .._protocol import Event
from ..defaults import JobCause, JobStatus
from ..errors import InvalidJobError
from ..job import Job
from ..plugin import HookTable
from ..scheduler import Scheduler
from ..utils import logger
from ..wrapper import check_command, check_env
from .ending import Ending
from .flight import Flight
from .journal import Journal
from .killer import Killer
from .ledger import Ledger
from .lifecycle import End
from .recovery import Recovery
from .run import ENDED, Run
from .submitting import Submitting
from .watching import Watching

__all__ = ["Engine"]

#: How long feeding may keep the event loop from others.
_TURN_S = 0.001
#: What a plugin may make of a job before its submission: where it is, submitted by it, or ended.
_AT_THE_GATE = (JobStatus.QUEUED, JobStatus.SUBMITTED, JobStatus.RUNNING, *ENDED)


class Engine:
    """Drives jobs over one scheduler.

    Args:
        scheduler: The backend.
        hooks: The plugins of the run.
        journal: Where it is written what happens.
        ledger: What earlier runs have left.
        resume: Whether the successes of earlier runs are adopted.
        on_change: What to do about jobs that run and have another command now: "error", "rerun".
        retry_lost: Whether a job whose fate is unknown may be run again.
        on_ended: Told of each job that has ended for good, after its hooks.
        on_released: Told of each job that is let go of and has not ended.
        on_halt: Told of the job whose failure is to end the run.

    Attributes:
        n_open: How many jobs were fed, or are being fed, and have not ended for good.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hooks: HookTable,
        *,
        journal: Journal,
        ledger: Ledger,
        resume: bool,
        on_change: str,
        retry_lost: bool,
        on_ended: Callable[[Job], None],
        on_released: Callable[[Job], None],
        on_halt: Callable[[Job], None],
    ) -> None:
        self.n_open = 0
        self._on_ended = on_ended
        self._on_released = on_released
        self._run = Run(scheduler, hooks, journal)
        self._ending = Ending(
            self._run,
            retry_lost=retry_lost,
            queue=lambda job: self._submitting.queue(job),  # noqa: PLW0108  # it is made below
            close=self._close_job,
            halt=on_halt,
        )
        self._watching = Watching(
            self._run,
            self._ending,
            on_room=lambda: self._submitting.pump_soon(),  # noqa: PLW0108  # it is made below
            on_timeout=lambda flight: self._killer.kill([flight]),
            on_kill_due=lambda flight: self._begin_kill([flight]),
        )
        self._submitting = Submitting(
            self._run, self._ending, self._watching, release=self._release
        )
        self._killer = Killer(scheduler, self._watching.reconciler, self._give_up_kill)
        self._recovery = Recovery(
            self._run,
            self._ending,
            self._watching,
            ledger=ledger,
            resume=resume,
            on_change=on_change,
            queue=self._submitting.queue,
            kill=self._kill_flights,
        )
        self._waiters: dict[Job, list[asyncio.Future[None]]] = {}
        self._turn_began_s = 0.0
        #: What ends the patience with each `on_job_init` that is being awaited.
        self._inits: set[asyncio.Timeout] = set()
        #: When a stop waits no longer for answers to submissions.
        self._deadline: asyncio.TimerHandle | None = None
        scheduler.watch(self._watching.on_report)

    @property
    def scheduler(self) -> Scheduler:
        """The backend."""
        return self._run.scheduler

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is submitted."""
        return self._run.is_stopping

    @property
    def on_event(self) -> Callable[[Event], None]:
        """What is to be told of the events that jobs leave."""
        return self._watching.on_event

    async def feed(self, job: Job) -> None:
        """Take a job over; returns when `on_job_init` is done and the job is on its way.

        Raises:
            InvalidJobError: If its command or environment cannot be passed; `JobChangedError`: it
                is still there from an earlier run, with another one. The job is not taken.
        """
        self.n_open += 1  # before anything is awaited: the run lasts until it has ended, too
        try:
            await self._take(job)
        except BaseException:
            self._release(job)
            raise

    async def _take(self, job: Job) -> None:
        if time.perf_counter() - self._turn_began_s > _TURN_S:
            await asyncio.sleep(0)
            self._turn_began_s = time.perf_counter()
        if job.current_status not in ENDED:
            job.enter(JobStatus.INIT)
        job.driver = self
        if "on_job_init" in self._run.hooks:
            await self._init(job)
        if job.current_status not in ENDED:
            _check(job)
        self._run.scheduler.stage(job)
        if self._recovery.knows(job) and job.current_status not in ENDED:
            await self._recovery.take(job)
        else:
            self._submitting.queue(job)

    async def _init(self, job: Job) -> None:
        try:
            async with asyncio.timeout(None) as patience:
                self._inits.add(patience)
                await self._run.hooks.acall("on_job_init", self._run.scheduler, job)
        except TimeoutError:
            logger.warning("%r: on_job_init was given up, for the run is stopped at once", job)
        finally:
            self._inits.discard(patience)

    def _close_job(self, job: Job) -> None:
        self._run.files.unstage(job)
        self._forget(job)
        self._on_ended(job)

    def _release(self, job: Job) -> None:
        """Let go of a job that has not ended."""
        job.driver = None
        self._forget(job)
        self._on_released(job)

    def _forget(self, job: Job) -> None:
        self.n_open -= 1
        for waiter in self._waiters.pop(job, ()):
            if not waiter.done():
                waiter.set_result(None)

    # --- what jobs, plugins and schedulers ask of their run ------------------------------------

    def drives(self, job: Job) -> bool:
        """Whether this engine has the job in its hands."""
        return job.driver is self

    async def wait(self, job: Job) -> None:
        """Return when the job has ended for good."""
        if self.drives(job):
            waiter = self._run.loop.create_future()
            self._waiters.setdefault(job, []).append(waiter)
            await waiter

    def status_is_set(self, job: Job, status: JobStatus) -> bool:
        """A plugin sets a status: decide whether it counts."""
        here = job.current_status
        flight = self._watching.flight_of(job)
        if flight is not None:
            counts = self._watching.status_is_set(flight, status)
        elif self._submitting.is_at_the_gate(job):
            counts = status in _AT_THE_GATE
        elif here in (*ENDED, JobStatus.RETRYING):
            counts = status in (*ENDED, JobStatus.RETRYING)
        else:
            counts = status in ENDED
        if not counts and status is not job.current_status:
            logger.warning("%r is %s: a plugin cannot make it %s", job, here.name, status.name)
        return counts

    async def kill(self, job: Job) -> None:
        """Kill one job, hooks included, and return when it has ended, or a plugin refuses.

        Asked by a hook of the job itself it returns when the attempt is over: the next hook cannot
        be called before that one is done.
        """
        flight = self._watching.flight_of(job)
        is_within = self._run.chains.is_within(job)
        if flight is not None and flight.is_submitted and is_within:
            flight.kill_requested = True
            await self._gate_kill(flight)
        else:
            self.kill_all([job])
        if flight is not None and not flight.is_closed and not flight.kill_refused:
            over = self._run.loop.create_future()
            flight.over.append(over)
            await over
        if not is_within and not (flight is not None and flight.kill_refused):
            await self.wait(job)

    # --- killing and stopping ------------------------------------------------------------------

    def kill_all(self, jobs: Iterable[Job]) -> None:
        """Kill those of the jobs that are with the backend, and cancel those that are not yet."""
        flights = []
        for job in jobs:
            flight = self._watching.flight_of(job)
            if flight is None:
                if self.drives(job) and not self._ending.cancel_backoff(job):
                    self._submitting.cancel(job)
            elif not flight.kill_requested:
                flight.kill_requested = True
                if flight.is_submitted:
                    flights.append(flight)
        self._begin_kill(flights)

    def _begin_kill(self, flights: list[Flight]) -> None:
        if "on_job_killing" not in self._run.hooks:
            self._kill_flights(flights)
            return
        for flight in flights:
            self._run.chains.add(flight.job, partial(self._gate_kill, flight))

    async def _gate_kill(self, flight: Flight) -> None:
        flight.kill_refused = not await self._run.ask_hook(flight.job, "on_job_killing")
        if flight.kill_refused:
            flight.kill_requested = False  # it may be asked again
            flight.tell_waiters()
        else:
            self._kill_flights([flight])

    def _kill_flights(self, flights: list[Flight]) -> None:
        flights = [flight for flight in flights if not flight.is_closed]
        self._run.journal.killing(flight.job for flight in flights)
        for flight in flights:
            if flight.job.current_status in (JobStatus.SUBMITTED, JobStatus.RUNNING):
                self._run.transition(flight.job, JobStatus.KILLING)
        if flights:
            self._killer.kill(flights)

    def _give_up_kill(self, flight: Flight) -> None:
        within_s = self._run.scheduler.kill_timeout_s
        reason = f"its kill was not confirmed within {within_s:g} s"
        logger.error("%r: %s", flight.job, reason)
        self._watching.lose(flight, End.lost(reason, JobCause.REQUESTED))

    def stop(self, *, kill: bool) -> None:
        """Cancel what waits and, if asked to, kill what runs. Nothing new is submitted."""
        self._run.is_stopping = True
        self._ending.cancel_backoffs()
        self._submitting.cancel_all()
        self._deadline = self._run.loop.call_later(
            self._run.scheduler.kill_grace_s, self._submitting.interrupt
        )
        if kill:
            self.kill_all([flight.job for flight in self._watching.flights.values()])

    def stop_at_once(self) -> None:
        """No more grace: KILL what runs, and give up hooks that are being waited for."""
        self._run.chains.give_up()
        while self._inits:
            self._inits.pop().reschedule(self._run.loop.time())
        self._submitting.interrupt()
        flights = list(self._watching.flights.values())
        for flight in flights:
            flight.kill_requested = True
        self._run.journal.killing(flight.job for flight in flights)
        self._killer.force(flights)

    async def detach(self) -> None:
        """Let go of all jobs; what runs, runs on, and a later run may take it up."""
        self._run.is_detached = True
        self._ending.release_backoffs(self._release)
        await self._run.chains.idle()
        await self._submitting.detach()
        await self._recovery.detach(self._release)
        for flight in self._watching.let_go():
            self._release(flight.job)
        await self._run.chains.idle()

    async def close(self) -> None:
        """Stop watching. Jobs that still run, run on."""
        if self._deadline is not None:
            self._deadline.cancel()
        await self._killer.close()
        await self._watching.close()
        files, scheduler = self._run.files, self._run.scheduler
        try:
            await files.close(str(scheduler.workdir), scheduler.staging)
        except OSError as exc:
            logger.warning("Not all files of jobs could be written: %s", exc)


def _check(job: Job) -> None:
    try:
        check_command(job.cmd)
        if job.has_envs:
            for name, value in job.envs.items():
                check_env(name, str(value))
    except InvalidJobError as exc:
        raise InvalidJobError(f"Job {job.index}: {exc}") from exc
