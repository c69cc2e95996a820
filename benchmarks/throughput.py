"""The benchmark of xqute beside its peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import lag_figures
from measuring import BenchmarkError
from peers import (
    BareLoop,
    Floor,
    GnuParallel,
    HyperQueue,
    NotInstalledError,
    Peer,
    PublicXqute,
    Run,
    XquteLocal,
    XquteWithLagSampler,
)
from reporting import Absent, Figure, Section, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench import Bench

FORKS = 2
TARGETS = {
    "xqute / floor": Target(">=", 0.85),
    "xqute / GNU parallel": Target(">=", 1.5),
    "xqute, driver CPU": Target("<=", 0.6),
    "lag p99, xqute": Target("<=", 10),
}


class Entrant:
    """A peer with its runs so far, or with the reason why there are none."""

    def __init__(self, peer: Peer, jobs: int, tell: Callable[[str], None]) -> None:
        self.peer = peer
        self.jobs = jobs
        self.runs: list[Run] = []
        self.absent: Absent | None = None
        self._tell = tell

    def prepare(self, bench: Bench) -> None:
        """Make the peer ready, and run few jobs that do not count."""
        self._tell(f"throughput, preparing {self.peer.name}")
        try:
            self.peer.prepare()
        except NotInstalledError as exc:
            self.absent = Absent(self.peer.name, f"not installed: {exc}")
            return
        self._run(bench, FORKS)

    def run(self, bench: Bench, number: int) -> None:
        """Run and note one round, unless something is wrong with this peer."""
        if self.absent is None:
            self._tell(f"throughput, round {number}: {self.peer.name}")
            self.runs += self._run(bench, self.jobs)

    def _run(self, bench: Bench, jobs: int) -> list[Run]:
        try:
            return [self.peer.run(jobs, bench.new_folder())]
        except BenchmarkError as exc:
            self.absent = Absent(self.peer.name, str(exc), broken=True)
            return []

    def rate(self) -> Figure | Absent:
        """Its jobs/s."""
        rates = [run.jobs_per_s for run in self.runs]
        return self.absent or Figure.of_median(self.peer.name, "jobs/s", rates)

    def ratio(self, name: str, other: Entrant) -> Figure | Absent:
        """Its jobs/s over the other's, of runs in the same round."""
        absent = self.absent or other.absent
        if absent:
            return Absent(name, absent.why)
        pairs = zip(self.runs, other.runs, strict=True)
        ratios = [ours.jobs_per_s / theirs.jobs_per_s for ours, theirs in pairs]
        return Figure.of_median(name, "times", ratios)


def throughput(bench: Bench) -> Section:
    """Jobs/s of `true`, two at once, for xqute and its peers, and the driver's CPU time a job.

    A round is one run of each, one after the other, each in a process of its own over an empty
    folder; a few jobs of each run before the first round and do not count. The clock is inside the
    process, from the first command handed over until the end of the last is known: interpreters,
    imports and HyperQueue's server have started before. Shell tools have no inside: theirs is
    from exec to exit. Rendering the floor's wrappers is not measured, xqute's own is. Ratios are
    those of runs in the same round. The driver's CPU time is that of xqute's process, user and
    system, without its children. The event loop's lag is sampled in a run of its own.
    """
    sizes = bench.sizes
    section = Section("throughput", f"jobs/s of `true`, {FORKS} at once, {sizes.jobs:,} jobs a run")

    def enter(kind: type[Peer], jobs: int = sizes.jobs) -> Entrant:
        home = bench.peers / kind.__name__.lower()
        home.mkdir(parents=True, exist_ok=True)
        return Entrant(kind(home, FORKS), jobs, bench.tell)

    ours, floor, parallel = enter(XquteLocal), enter(Floor), enter(GnuParallel)
    hyperqueue, public = enter(HyperQueue), enter(PublicXqute, sizes.public_jobs)
    shown = [ours, floor, enter(BareLoop), parallel, hyperqueue, public]
    sampled = enter(XquteWithLagSampler)
    for entrant in (*shown, sampled):
        entrant.prepare(bench)
    for number in range(1, sizes.rounds + 1):
        for entrant in (*shown, sampled):
            entrant.run(bench, number)

    section.rows += [entrant.rate() for entrant in shown]
    section.rows += [
        ours.ratio("xqute / floor", floor),
        ours.ratio("xqute / GNU parallel", parallel),
        ours.ratio("xqute / HyperQueue", hyperqueue),
        ours.ratio("xqute / public xqute", public),
        _cpu(ours),
        *_lags(sampled),
    ]
    section.aim(TARGETS)
    if public.runs:
        section.remarks.append(
            f"{public.peer.name} ran {public.jobs} jobs a run, for it looks for ends once a second"
        )
    outside = [
        f"{entrant.peer.name} {Figure.of_median('', 's', each).value:.2f}"
        for entrant in shown
        if (each := [run.outside_s for run in entrant.runs])
    ]
    section.remarks.append(f"whole processes, from exec to exit, s: {'; '.join(outside)}")
    return section


def _cpu(entrant: Entrant) -> Figure | Absent:
    name = "xqute, driver CPU"
    if entrant.absent:
        return Absent(name, entrant.absent.why)
    each = [run.told["cpu_s"] * 1000 / run.jobs for run in entrant.runs]
    return Figure.of_median(name, "ms/job", each)


def _lags(entrant: Entrant) -> list[Figure | Absent]:
    if entrant.absent:
        return [Absent("lag p99, xqute", entrant.absent.why)]
    return [*lag_figures([run.told for run in entrant.runs], "xqute")]
