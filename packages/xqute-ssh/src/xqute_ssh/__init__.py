"""xqute over SSH: jobs on other machines, over one connection to each.

xqute.run(["hostname"], scheduler="ssh", scheduler_opts={"servers": ["node1", "node2"]})
"""

from __future__ import annotations

from typing import Any

from .scheduler import SshScheduler

__all__ = ["SshScheduler", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("xqute-ssh")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
