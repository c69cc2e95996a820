"""How jobs of the in-memory scheduler behave, what goes wrong there, and a clock for tests."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

from ..errors import ConfigError

__all__ = ["Behaviour", "Calls", "Fault", "Faults", "ManualClock", "Tells"]


class Tells(Enum):
    """What the backend tells of a job by itself."""

    ONCE = auto()
    #: Each change twice.
    TWICE = auto()
    #: The end, and after it the start.
    BACKWARDS = auto()
    #: Nothing: only who asks is answered.
    NOTHING = auto()


class Behaviour(NamedTuple):
    """What becomes of one attempt of a job. Times are seconds of the scheduler's clock.

    Attributes:
        rc: Its exit code; None: it ends, and the backend does not know how.
        runs_s: From its start to its end.
        starts_after_s: From its submission to its start; until then it is pending.
        cause: Why it ended, a `JobCause`, as the backend says; None: it says nothing.
        reason: The same in words.
        ignores_term: Whether only a kill with force ends it.
        vanishes: Whether, instead of starting, it is forgotten: nothing is told, and who asks
            hears GONE.
        tells: What the backend tells by itself.
        told_after_s: How late it does; who asks is answered truly before.
    """

    rc: int | None = 0
    runs_s: float = 0.0
    starts_after_s: float = 0.0
    cause: str | None = None
    reason: str = ""
    ignores_term: bool = False
    vanishes: bool = False
    tells: Tells = Tells.ONCE
    told_after_s: float = 0.0


class Fault(Enum):
    """What goes wrong with one call; which calls know it is said at each."""

    #: submit: the jobs are accepted, but the caller gets SubmitError(maybe_submitted, transient).
    LOSE_ANSWER = auto()
    #: submit: refused for good.
    REFUSE = auto()
    #: submit: refused for now, SubmitError(transient).
    REFUSE_FOR_NOW = auto()
    #: submit: each job gets the native id that was handed out last.
    SAME_ID = auto()
    #: submit: accepted, but the answer names none of the jobs. poll: likewise. kill: nothing is
    #: done.
    NO_ANSWER = auto()
    #: poll: every job is said to be GONE.
    DENY = auto()


#: What happens at one call: None as usual, a number: it happens, the answer comes so many seconds
#: later; an exception: it is raised, and nothing happens; or a `Fault`.
Incident = Fault | float | Exception | None

_KNOWN: Mapping[str, frozenset[Fault]] = {
    "submit": frozenset(Fault) - {Fault.DENY},
    "kill": frozenset({Fault.NO_ANSWER}),
    "poll": frozenset({Fault.NO_ANSWER, Fault.DENY}),
}


class Faults:
    """The script of what goes wrong: one incident a call, in order; then all goes well.

    Args:
        script: By "submit", "kill" and "poll", the incidents.

    Raises:
        ConfigError: If there is no such call, or the call knows no such fault.
    """

    def __init__(self, script: Mapping[str, Iterable[Incident]] | None = None) -> None:
        script = {call: tuple(incidents) for call, incidents in (script or {}).items()}
        for call, incidents in script.items():
            known = _KNOWN.get(call)
            if known is None:
                raise ConfigError(f"faults: there is no {call!r}, only {', '.join(_KNOWN)}")
            for incident in incidents:
                if isinstance(incident, Fault) and incident not in known:
                    raise ConfigError(f"faults: {incident.name} cannot happen at {call!r}")
        self._left = {call: iter(incidents) for call, incidents in script.items()}

    def next(self, call: str) -> Incident:
        """Give what happens at this call, and forget it."""
        left = self._left.get(call)
        return None if left is None else next(left, None)


class Calls:
    """What was asked of a scheduler: for each call, with how many jobs."""

    __slots__ = ("kill", "poll", "submit")

    def __init__(self) -> None:
        self.submit: list[int] = []
        self.kill: list[int] = []
        self.poll: list[int] = []

    def __repr__(self) -> str:
        parts = [f"{len(sizes)} {name}s of {sum(sizes)} jobs" for name, sizes in self._items()]
        return f"<Calls: {', '.join(parts)}>"

    def _items(self) -> list[tuple[str, list[int]]]:
        return [("submit", self.submit), ("kill", self.kill), ("poll", self.poll)]


class ManualClock:
    """A clock that stands still until it is advanced, so that tests of hours take no time.

    Attributes:
        now_s: Seconds since it was made.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._serial = itertools.count()

    def __repr__(self) -> str:
        return f"<ManualClock: {self.now_s:g} s, {len(self._due)} calls due>"

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Have `callback` called when the clock has advanced by `delay_s`."""
        entry = (self.now_s + delay_s, next(self._serial), callback, args)
        heapq.heappush(self._due, entry)

    @property
    def next_due_s(self) -> float | None:
        """When the next call is due, in seconds of this clock; None: none is."""
        return self._due[0][0] if self._due else None

    def advance(self, seconds: float) -> None:
        """Let time pass: what falls due is called, each at its time, in order."""
        until_s = self.now_s + seconds
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, callback, args = heapq.heappop(self._due)
            callback(*args)
        self.now_s = until_s
