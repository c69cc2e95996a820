"""Kills drivers at random instants and at every edge, starts others, and counts what came of it."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from .. import _faults
from .._engine.far_journal import read_journal
from ..scheduler import Phase
from ._driver import KILLED, WHILE_SENDING, Driver
from ._rig import TooLateError, bash, make_scheduler

if TYPE_CHECKING:
    from ..job import Job
    from ..scheduler import Scheduler
    from ._contract import SchedulerContract

__all__ = ["CHAOS_EDGES", "ChaosReport", "run_chaos"]

#: All instants at which drivers can be made to die where nothing is killed.
CHAOS_EDGES: Final = (*_faults.EDGES, WHILE_SENDING)
#: What each command does: it notes under which start claim it runs, and how it ends.
_SCRIPT: Final = """
dir=$XQUTE_JOB_METADIR tags=''
for claim in "$dir"/job.start.*; do
    tag=${claim##*/job.start.}
    if [[ -e $dir/job.end.$tag ]]; then continue; fi
    read -r first _ <"$claim"
    if [[ $first != revoked ]]; then tags+=,$tag; fi
done
printf 'start %s\\n' "${tags:1}" >>"$dir/chaos"
sleep "$2"
rcs=($3)
rc=${rcs[XQUTE_JOB_TRIAL]-${rcs[-1]}}
printf 'end %s\\n' "$rc" >>"$dir/chaos"
exit "$rc"
"""
#: How often a failure is tried again.
_N_RETRIES: Final = 1
#: At its n-th time at an edge a driver dies, n up to this.
_MOST_TIMES: Final = 4
#: After so many deaths a driver is let live: what is left by then are jobs that fail every time.
_MOST_DEATHS: Final = 6
_GONE_WITHIN_S: Final = 20.0


class _Plan(NamedTuple):
    """What one job is to do: for how long it runs, and its exit code of each attempt."""

    runs_s: float
    rcs: tuple[int, ...]

    @property
    def end(self) -> tuple[str, int]:
        """The outcome and exit code that must be told in the end."""
        rc = self.rcs[min(_N_RETRIES, len(self.rcs) - 1)] if self.rcs[0] else 0
        return ("failed" if rc else "succeeded"), rc

    def command(self, word: str) -> list[str]:
        return bash(_SCRIPT, word, f"{self.runs_s:.3f}", " ".join(map(str, self.rcs)))


@dataclass
class ChaosReport:
    """What `run_chaos` has done, and what came of it.

    Attributes:
        seed: Of the random numbers: which jobs, and which deaths in which order. (Which instants
            these hit is not theirs alone.)
        n_rounds: How many workdirs, each with its jobs.
        n_drivers: How many drivers were started.
        kills: How many of them were killed at random instants.
        hits: How many have died at which edge.
        n_jobs: How many jobs there were.
        n_runs: How often their commands ran: the failed ones run again.
        n_adopted: How many of them the last drivers had from earlier ones.
        lost: What is said of jobs that have no true end: no run, no end, LOST.
        doubled: What is said of commands that ran when they must not.
        untrue: What is said of ends that were told wrongly, or not once.
        left: What is said of what still ran when all was over.
        took_s: Seconds.
    """

    seed: int
    n_rounds: int = 0
    n_drivers: int = 0
    kills: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    n_jobs: int = 0
    n_runs: int = 0
    n_adopted: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled, untrue or left."""
        return not (self.lost or self.doubled or self.untrue or self.left)

    def __str__(self) -> str:
        rows = [
            ("drivers started", self.n_drivers),
            ("killed at a random instant", self.kills),
            *((f"killed at {edge}", n) for edge, n in self.hits.items()),
            ("jobs", self.n_jobs),
            ("runs of their commands", self.n_runs),
            ("ends that an earlier driver's job had", self.n_adopted),
            ("lost", len(self.lost)),
            ("run twice", len(self.doubled)),
            ("ends told wrongly", len(self.untrue)),
            ("left running", len(self.left)),
        ]
        head = f"chaos, seed {self.seed}: {self.n_rounds} rounds in {self.took_s:.0f} s"
        said = [*self.lost, *self.doubled, *self.untrue, *self.left]
        return "\n".join([head, *(f"  {what:<40} {n:>6}" for what, n in rows), *said])

    def check(self) -> None:
        """Raise AssertionError, with all of this, if anything was lost, doubled, untrue or left."""
        assert self.is_good, str(self)


def run_chaos(
    contract: SchedulerContract,
    folder: str | os.PathLike[str],
    *,
    kills: int = 20,
    hits: int = 1,
    edges: Sequence[str] = CHAOS_EDGES,
    n_jobs: int = 24,
    forks: int = 6,
    runs_s: float = 0.1,
    span_s: float | None = None,
    seed: int | None = None,
    deadline_s: float = 3600.0,
) -> ChaosReport:
    """Run jobs by drivers that are killed, each followed by the next, until enough were.

    In each round a workdir gets `n_jobs` jobs: most succeed, some fail, some do at first only (a
    failure is tried again once). A driver with ``resume=True`` is given all of them and killed, and
    so is the next, until one ends by itself. Then it must be so that

    - no job is lost: each has run, each run has ended, and none is said to be LOST;
    - no command has run twice: each run has exactly one start claim that is neither revoked nor
      ended, and no other run has that one; no run begins before the one before it has ended; none
      begins after a success. That failures run again is meant so: by retry, and by the next driver;
    - every end is true: outcome and exit code as the last driver tells them, once, and its files;
    - nothing is left: no process that has the workdir or its commands on its command line, no job
      that the backend says is there.

    Args:
        contract: Of what scheduler: see `SchedulerContract`, and there about drivers of their own.
        folder: Where workdirs are made, if those are local.
        kills: How many drivers are to be killed at random instants, by SIGKILL, half of them with
            all that is in their process group.
        hits: How many are to kill themselves at each edge.
        edges: At which; see `CHAOS_EDGES`.
        n_jobs: How many jobs a round has.
        forks: How many may run at once.
        runs_s: Seconds that a command takes, on the average.
        span_s: Seconds from the beginning of a driver's run until the last instant at which it may
            be killed; None: about as long as a round takes.
        seed: Of the random numbers; None: any.
        deadline_s: Seconds within which all of it must be over.

    Raises:
        TooLateError: If it is not, or a driver hangs.
    """
    seed = random.randrange(2**32) if seed is None else seed  # noqa: S311
    began_s = time.monotonic()
    report = ChaosReport(seed, hits=Counter(dict.fromkeys(edges, 0)))
    rng = random.Random(seed)  # noqa: S311
    span_s = 0.2 + n_jobs * runs_s / forks if span_s is None else span_s
    while report.kills < kills or any(report.hits[edge] < hits for edge in edges):
        if time.monotonic() - began_s > deadline_s:
            raise TooLateError(f"not over within {deadline_s:g} s: {report}")
        plans = [_plan(rng, runs_s) for _ in range(n_jobs)]
        round_ = _Round(contract, Path(folder), report, rng, plans, forks)
        round_.run(kills=kills, hits=hits, edges=edges, span_s=span_s)
        report.took_s = time.monotonic() - began_s
        if not report.is_good:
            break  # it is there to be looked at
    return report


def _plan(rng: random.Random, runs_s: float) -> _Plan:
    kind = rng.random()
    rc = rng.randrange(1, 120)
    rcs = (0,) if kind < 0.7 else (rc,) if kind < 0.85 else (rc, 0)  # noqa: PLR2004  # of 1
    return _Plan(rng.uniform(0, 2 * runs_s), rcs)


class _Round:
    """One workdir, from its first driver to the one that ends by itself."""

    def __init__(
        self,
        contract: SchedulerContract,
        folder: Path,
        report: ChaosReport,
        rng: random.Random,
        plans: Sequence[_Plan],
        forks: int,
    ) -> None:
        self._word = f"xqute-chaos-{secrets.token_hex(6)}"
        self._workdir = contract.make_workdir(folder, self._word)
        self._contract = contract
        self._report = report
        self._rng = rng
        self._plans = plans
        self._commands = [plan.command(self._word) for plan in plans]
        self._forks = forks

    def run(self, *, kills: int, hits: int, edges: Sequence[str], span_s: float) -> None:
        """Have drivers live and die until one ends by itself; then see what came of it."""
        report = self._report
        report.n_rounds += 1
        report.n_jobs += len(self._plans)
        told = None
        n_drivers = report.n_drivers
        while told is None:
            if report.n_drivers - n_drivers == _MOST_DEATHS:
                told = self._live()
                continue
            left = [edge for edge in edges if report.hits[edge] < hits]
            n_left = max(kills - report.kills, 0)
            at_random = self._rng.random() * (n_left + len(left)) < n_left
            if n_left and at_random:
                told = self._live(dies_after_s=self._rng.uniform(0, span_s))
            elif left:
                nth = self._rng.randint(1, _MOST_TIMES)
                told = self._live(dies_at=(self._rng.choice(left), nth))
            else:
                told = self._live()
        self._judge(told)

    def _live(
        self, *, dies_at: tuple[str, int] | None = None, dies_after_s: float | None = None
    ) -> list[list[object]] | None:
        """Let one driver live; give what it has told if it has ended by itself."""
        self._report.n_drivers += 1
        with Driver(
            self._contract,
            self._workdir,
            self._commands,
            dies_at=dies_at,
            is_quiet=self._rng.random() < 1 / 3,
            resume=True,
            forks=self._forks,
            error_strategy="retry",
            num_retries=_N_RETRIES,
        ) as driver:
            deadline_s = self._contract.deadline_s
            with_group = self._rng.random() < 1 / 2
            if dies_after_s is not None:
                driver.expect("ready", deadline_s=deadline_s)
                time.sleep(dies_after_s)
                if driver.is_alive():
                    driver.kill(with_group=with_group)
            rc = driver.wait(deadline_s)
        if rc == 0:
            return driver.told
        if rc != KILLED:
            raise TooLateError(f"it died of something else, rc {rc}: {driver}")
        if dies_at is not None:
            self._report.hits[dies_at[0]] += 1
        else:
            self._report.kills += 1
        return None

    # --- what came of it -----------------------------------------------------------------------

    def _judge(self, told: list[list[object]]) -> None:
        scheduler = make_scheduler(self._contract, self._workdir)
        [ends] = [word[1] for word in told if word[0] == "over"]
        hooks = Counter(word[1] for word in told if word[0] == "ended")
        assert isinstance(ends, list)
        for index, (plan, (outcome, rc, adopted)) in enumerate(zip(self._plans, ends, strict=True)):
            job = scheduler.create_job(index, self._commands[index])
            where = f"job {index} in {self._workdir}"
            self._report.n_adopted += adopted
            lines = (self._contract.read(job, "chaos") or b"").decode().splitlines()
            self._judge_runs(where, lines)
            if outcome == "lost":
                self._report.lost.append(f"{where} is said to be lost; it ran {lines}")
            elif (outcome, rc) != plan.end:
                self._report.untrue.append(f"{where}: {outcome} {rc}, not {plan.end}: {lines}")
            self._judge_files(where, job, plan)
            if hooks and hooks[index] != 1:
                self._report.untrue.append(f"{where}: {hooks[index]} terminal hooks")
        self._judge_rest(scheduler)

    def _judge_runs(self, where: str, lines: Iterable[str]) -> None:
        open_tag, succeeded, tags = None, False, set()
        for line in lines:
            what, word = line.split(" ")
            if what == "start":
                self._report.n_runs += 1
                for wrong, why in (
                    (open_tag, f"begins while {open_tag} runs"),
                    (succeeded, "begins after a success"),
                    (word in tags, "has run before"),
                    ("," in word or not word, "has not one start claim"),
                ):
                    if wrong:
                        self._report.doubled.append(f"{where}: {word!r} {why}: {lines}")
                open_tag = word
                tags.add(word)
            else:
                open_tag, succeeded = None, word == "0"
        if open_tag or not tags:
            self._report.lost.append(f"{where} has not run to an end: {lines}")

    def _judge_files(self, where: str, job: Job, plan: _Plan) -> None:
        outcome, rc = plan.end
        status = b"6" if outcome == "succeeded" else b"7"
        told = self._contract.read(job, "job.rc"), self._contract.read(job, "job.status")
        if told != (b"%d" % rc, status):
            self._report.untrue.append(f"{where}: its files say {told}, not {plan.end}")

    def _judge_rest(self, scheduler: Scheduler) -> None:
        until_s = time.monotonic() + _GONE_WITHIN_S
        while (pids := self._contract.find_processes(self._word)) and time.monotonic() < until_s:
            time.sleep(0.01)  # a wrapper that has told its end may need a moment to be gone
        if pids:
            self._report.left.append(f"processes {pids} of {self._workdir}")
        there = asyncio.run(self._ask(scheduler))
        if there:
            self._report.left.append(f"jobs {there} of {self._workdir}, says the backend")

    async def _ask(self, scheduler: Scheduler) -> list[int]:
        """Give the jobs that the backend still has, of all whose ids the journal knows."""
        jobs = []
        ledger = await asyncio.to_thread(read_journal, f"{scheduler.workdir}/.run/journal")
        for index, entry in ledger.entries.items():
            if entry.jid is not None:
                job = scheduler.create_job(index, self._commands[index])
                job.run_id, job.trial_count = entry.run_id, entry.attempt
                job.jid = entry.jid
                jobs.append(job)
        async with scheduler:
            states = await scheduler.poll_jobs(jobs)
        return [
            job.index
            for job, state in states.items()
            if state.phase in (Phase.PENDING, Phase.RUNNING)
        ]
