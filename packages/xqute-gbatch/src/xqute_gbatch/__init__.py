"""Runs jobs on Google Cloud Batch, with their files in a bucket."""

from __future__ import annotations

from .options import DEFAULT_MOUNTED_ROOT
from .scheduler import GbatchScheduler

__all__ = ["DEFAULT_MOUNTED_ROOT", "GbatchScheduler", "__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("xqute-gbatch")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
