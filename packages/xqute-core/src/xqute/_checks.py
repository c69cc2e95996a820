"""Whether numbers that users give make sense."""

from __future__ import annotations

from typing import Any

from .errors import ConfigError, InvalidJobError

__all__ = ["check_count", "check_index", "check_seconds"]


def check_count(name: str, value: Any, minimum: int) -> int:
    """Give `value`, a whole number of at least `minimum`; anything else is a ConfigError."""
    if not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}: {value!r}")
    return value


def check_seconds(name: str, value: Any, *, positive: bool = False) -> float:
    """Give `value`, a number of seconds from 0, or over 0; anything else is a ConfigError."""
    if not isinstance(value, int | float) or not (value > 0 if positive else value >= 0):
        least = "over 0" if positive else "from 0"
        raise ConfigError(f"{name} must be a number of seconds {least}: {value!r}")
    return value


def check_index(value: Any) -> int:
    """Give `value`, a whole number from 0; anything else is an InvalidJobError."""
    if not isinstance(value, int) or value < 0:
        raise InvalidJobError(f"A job's index is a whole number from 0: {value!r}")
    return value
