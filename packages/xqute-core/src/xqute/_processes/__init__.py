"""Processes of this machine: starting wrappers, hearing of their exits, ending what they leave."""

from __future__ import annotations

from .sessions import runs_script
from .table import ProcessTable

__all__ = ["ProcessTable", "runs_script"]
