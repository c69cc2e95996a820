"""What a machine has for jobs, and whether there is room for one beside others."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple, Self

from .resources import Resources

__all__ = ["QUEUE_ONLY", "Holding", "Machine", "impossible"]

_MIB = 1 << 20
#: The resources that mean nothing to a machine without a queue.
QUEUE_ONLY = ("gpu_type", "disk_mib", "queue", "account", "constraint")


class Holding(NamedTuple):
    """What a job has: what it asked for, and which graphics processors it got."""

    resources: Resources
    gpus: tuple[str, ...]


class Machine(NamedTuple):
    """What there is.

    Attributes:
        cpus: Processor cores that the user may use.
        memory_mib: Memory in MiB, or what a control group leaves of it; None: unknown.
        gpus: The ids of graphics processors, as in ``CUDA_VISIBLE_DEVICES``.
    """

    cpus: int
    memory_mib: int | None
    gpus: tuple[str, ...]

    @classmethod
    def detect(cls) -> Self:
        """Look at this machine."""
        return cls(_count_cpus(), _memory_mib(), _find_gpus())

    def fit(self, wanted: Resources, held: Iterable[Holding]) -> tuple[str, ...] | None:
        """Give the graphics processors for a job (perhaps none); None: there is no room for it.

        Args:
            wanted: What it asks for.
            held: What each of the others has.
        """
        cpus, memory_mib, used = wanted.cpus, wanted.memory_mib or 0, set[str]()
        for holding in held:
            cpus += holding.resources.cpus
            memory_mib += holding.resources.memory_mib or 0
            used.update(holding.gpus)
        free = [gpu for gpu in self.gpus if gpu not in used]
        if cpus > self.cpus or memory_mib > (self.memory_mib or memory_mib):
            return None
        return tuple(free[: wanted.gpus]) if len(free) >= wanted.gpus else None


def impossible(wanted: Resources, machine: Machine) -> str:
    """Say why a job can never run on this machine; empty: it can."""
    for name in QUEUE_ONLY:
        if getattr(wanted, name) is not None:
            return f"resources: {name} means nothing on this machine"
    if wanted.nodes > 1:
        return f"resources: {wanted.nodes} nodes were asked for, and this is one machine"
    if wanted.cpus > machine.cpus:
        return f"resources: {wanted.cpus} cpus were asked for, and there are {machine.cpus}"
    if machine.memory_mib is not None and (wanted.memory_mib or 0) > machine.memory_mib:
        return f"resources: {wanted.memory_mib} MiB were asked for, of {machine.memory_mib}"
    if wanted.gpus > len(machine.gpus):
        return f"resources: {wanted.gpus} gpus were asked for, and there are {len(machine.gpus)}"
    return ""


def _count_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _memory_mib() -> int | None:
    limits = []
    with suppress(OSError, ValueError):  # there is no such thing here
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with (
        suppress(OSError, ValueError),  # or it says "max": there is no limit
        open("/sys/fs/cgroup/memory.max", encoding="ascii") as file,
    ):
        limits.append(int(file.read()))
    return min(limits) // _MIB if limits else None


def _find_gpus() -> tuple[str, ...]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1"))
    devices = [re.fullmatch(r"/dev/nvidia([0-9]+)", path) for path in glob.glob("/dev/nvidia*")]
    return tuple(sorted((match[1] for match in devices if match), key=int))
