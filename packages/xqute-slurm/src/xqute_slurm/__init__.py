"""Runs xqute's jobs on a Slurm cluster: `Xqute("slurm")`, `xqute run -s slurm`."""

from __future__ import annotations

from typing import Any

from .scheduler import SlurmScheduler

__all__ = ["SlurmScheduler", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("xqute-slurm")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
