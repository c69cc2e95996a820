"""For authors of schedulers and of programs over xqute: the contract as tests, a fake backend.

`SchedulerContract` needs pytest, which is imported with it; the rest does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._behaviour import Behaviour, Calls, Fault, Faults, ManualClock, Tells
from ._chaos import CHAOS_EDGES, ChaosReport, run_chaos
from ._memory import MemoryJob, MemoryScheduler
from ._needs import Needs, overrides_contract
from ._recorder import HookCall, HookRecorder
from ._rig import Rig, TooLateError, bash, until

if TYPE_CHECKING:
    from ._contract import SchedulerContract

__all__ = [
    "CHAOS_EDGES",
    "Behaviour",
    "Calls",
    "ChaosReport",
    "Fault",
    "Faults",
    "HookCall",
    "HookRecorder",
    "ManualClock",
    "MemoryJob",
    "MemoryScheduler",
    "Needs",
    "Rig",
    "SchedulerContract",
    "Tells",
    "TooLateError",
    "bash",
    "overrides_contract",
    "run_chaos",
    "until",
]


def __getattr__(name: str) -> Any:
    if name == "SchedulerContract":
        import pytest

        # So that a broken promise shows what was there instead.
        pytest.register_assert_rewrite(f"{__name__}._promises")
        from ._contract import SchedulerContract

        return SchedulerContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
