"""The jobs of xqute on Grid Engine: ``Xqute("sge")``, or ``xqute run -s sge``."""

from __future__ import annotations

from typing import Any

from .scheduler import SgeScheduler

__all__ = ["SgeScheduler"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("xqute-sge")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
