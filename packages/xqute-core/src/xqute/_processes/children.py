"""Children of this process: starting them with nothing of ours, and looking at how they end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Container, Mapping
from enum import Enum, auto

from ..defaults import SIGNAL_BASE

__all__ = ["End", "look_at", "spawn", "wait"]

#: What a driver may ignore or block and a job must not inherit so.
_DEFAULT_SIGNALS = [
    sig
    for sig in signal.Signals
    if sig not in (signal.SIGKILL, signal.SIGSTOP) and sig < getattr(signal, "SIGRTMIN", 32)
]
_STDERR = 2


def spawn(
    argv: list[str],
    environ: Mapping[bytes, bytes],
    *,
    channel: int | None = None,
    ours: Container[int] = (),
) -> int:
    """Start a process in a session of its own, with default signals, and give its id.

    Args:
        argv: The path of a program, and its arguments.
        environ: Its environment.
        channel: A descriptor to be its stdin and stdout; None: it has no streams.
        ours: Descriptors that are known not to be inheritable.

    Raises:
        OSError: If it cannot be started.
    """
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            environ,
            file_actions=_file_actions(channel, ours),
            setsid=True,
            setsigmask=[],
            setsigdef=_DEFAULT_SIGNALS,
        )
    except NotImplementedError:
        # A libc whose posix_spawn makes no sessions (macOS).
        stream = subprocess.DEVNULL if channel is None else channel
        process = subprocess.Popen(
            argv,
            env=environ,
            stdin=stream,
            stdout=stream,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # It is reaped here, so that Popen must not think it is its business.
        process.returncode = 0
        return process.pid


def _file_actions(channel: int | None, ours: Container[int]) -> list[tuple[object, ...]]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # In this order, for the channel may be any descriptor.
    streams: list[tuple[object, ...]]
    if channel is None:
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ]
    else:
        streams = [(os.POSIX_SPAWN_DUP2, channel, 0), (os.POSIX_SPAWN_DUP2, 0, 1)]
    return [
        *streams,
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        *(
            (os.POSIX_SPAWN_CLOSE, fd)
            for fd in _inheritable_fds(ours)
            if fd < limit  # one beyond it (the limit was lowered) cannot be closed so
        ),
    ]


def _inheritable_fds(ours: Container[int]) -> list[int]:
    """Descriptors that a child would inherit: mostly what the starter of this process left open."""
    try:
        names = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return []
    fds = []
    for fd in map(int, names):
        try:
            if fd > _STDERR and fd not in ours and os.get_inheritable(fd):
                fds.append(fd)
        except OSError:
            continue  # the descriptor of the listing itself
    return fds


class End(Enum):
    """How a child has ended."""

    NOT_YET = auto()
    EXITED = auto()
    SIGNALLED = auto()
    #: Something else in this process has reaped it.
    REAPED = auto()


def look_at(pid: int) -> End:
    """Tell whether a child has ended, without reaping it."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return End.REAPED
    if result is None:
        return End.NOT_YET
    return End.EXITED if result.si_code == os.CLD_EXITED else End.SIGNALLED


def wait(pid: int) -> int | None:
    """Reap a child that has ended, and give its exit code; None: there is none to be had."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else SIGNAL_BASE + result.si_status
