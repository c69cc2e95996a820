"""What schedulers of batch clusters are made of: client programs, arrays, one question for all.

A backend inherits `ClusterScheduler` and says how its own client programs are called and what they
answer; see the methods there that raise NotImplementedError.
"""

from __future__ import annotations

from .programs import (
    Answer,
    ProgramError,
    Refusal,
    as_submit_error,
    client_program,
    run_program,
)
from .scheduler import ClusterScheduler, QueueRow

__all__ = [
    "Answer",
    "ClusterScheduler",
    "ProgramError",
    "QueueRow",
    "Refusal",
    "as_submit_error",
    "client_program",
    "run_program",
]
