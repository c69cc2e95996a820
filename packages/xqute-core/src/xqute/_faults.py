"""The instants at which a driver's death is most telling. Nothing happens there, but in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["EDGES", "reach", "reach_soon"]

#: In the order in which a job passes them.
EDGES: Final = (
    "before-intent",
    "before-sending",
    "after-sending",
    "after-answer",
    "after-journal",
    "before-hooks",
    "after-hooks",
    "after-hooked",
)

#: Called with the edge; set by `xqute.testing`.
on_reach: Callable[[str], None] | None = None


def reach(edge: str) -> None:
    """Say that an edge is reached."""
    if on_reach is not None:
        on_reach(edge)


def reach_soon(edge: str) -> None:
    """Say that an edge is reached once the journal has what was last put into it."""
    if on_reach is not None:
        asyncio.get_running_loop().call_soon(reach, edge)
