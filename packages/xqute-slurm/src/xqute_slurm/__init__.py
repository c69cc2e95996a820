"""Runs xqute's jobs on a Slurm cluster: `Xqute("slurm")`, `xqute run -s slurm`."""

from __future__ import annotations

from .scheduler import SlurmScheduler

__all__ = ["SlurmScheduler"]
