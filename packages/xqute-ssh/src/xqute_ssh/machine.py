"""What a server has for jobs, and whether there is room for one beside others. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from xqute import Resources

__all__ = ["Holding", "Machine", "impossible"]

#: What a machine without a queue knows nothing of.
_FOREIGN = ("gpu_type", "disk_mib", "queue", "account", "constraint")


class Holding(NamedTuple):
    """What a job has: what it asked for, and which graphics processors it got."""

    resources: Resources
    gpus: tuple[str, ...]


class Machine(NamedTuple):
    """What there is.

    Attributes:
        cpus: Processor cores that the user may use.
        memory_mib: Memory in MiB; None: unknown.
        gpus: The ids of graphics processors, as in ``CUDA_VISIBLE_DEVICES``.
    """

    cpus: int
    memory_mib: int | None
    gpus: tuple[str, ...]

    def fit(self, wanted: Resources, held: Iterable[Holding]) -> tuple[str, ...] | None:
        """Give the graphics processors for a job (perhaps none); None: there is no room for it."""
        cpus, memory_mib, used = wanted.cpus, wanted.memory_mib or 0, set[str]()
        for holding in held:
            cpus += holding.resources.cpus
            memory_mib += holding.resources.memory_mib or 0
            used.update(holding.gpus)
        free = [gpu for gpu in self.gpus if gpu not in used]
        if cpus > self.cpus or memory_mib > (self.memory_mib or memory_mib):
            return None
        return tuple(free[: wanted.gpus]) if len(free) >= wanted.gpus else None


def impossible(wanted: Resources) -> str:
    """Say why no server can ever run a job, whichever it is; empty: one may."""
    for name in _FOREIGN:
        if getattr(wanted, name) is not None:
            return f"resources: {name} means nothing to servers without a queue"
    if wanted.nodes > 1:
        return f"resources: {wanted.nodes} nodes were asked for, and a job runs on one server"
    return ""
