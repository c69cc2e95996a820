"""Runs xqute jobs in containers: Docker, Podman, Apptainer and Singularity.

xqute.run(commands, scheduler="container", scheduler_opts={"image": "python:3.13"})
"""

from __future__ import annotations

from typing import Any

from .options import DEFAULT_MOUNTED_ROOT, DEFAULT_MOUNTED_WORKDIR
from .scheduler import ContainerScheduler

__all__ = ["DEFAULT_MOUNTED_ROOT", "DEFAULT_MOUNTED_WORKDIR", "ContainerScheduler", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("xqute-container")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
