"""Profiles: options of `xqute run` that stand in `xqute.toml` under a name."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ConfigError

__all__ = ["FILE_NAME", "find_file", "load_profile"]

FILE_NAME = "xqute.toml"
#: Used without being asked for, where there is one.
_DEFAULT = "default"


def find_file(folder: str) -> str | None:
    """Give the nearest `xqute.toml` of a folder and those above it."""
    while True:
        path = os.path.join(folder, FILE_NAME)
        if os.path.isfile(path):
            return path
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return None


def load_profile(name: str | None, options: Collection[str]) -> Mapping[str, Any]:
    """Give the options of a profile of the nearest `xqute.toml`.

    Args:
        name: The profile; None: `default`, if there is one.
        options: What a profile may set.

    Raises:
        ConfigError: If there is no such file or profile, it is not TOML, or it sets something else.
    """
    path = find_file(os.getcwd())
    if path is None:
        if name is None:
            return {}
        raise ConfigError(f"Profile {name!r}: no {FILE_NAME} here nor in a folder above")
    try:
        with open(path, "rb") as file:
            profiles = tomllib.load(file).get("profile", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    if not isinstance(profiles, dict):
        raise ConfigError(f"{path}: profiles are tables, [profile.NAME]")
    profile = profiles.get(name or _DEFAULT)
    if profile is None:
        if name is None:
            return {}
        there = ", ".join(map(str, profiles)) or "none"
        raise ConfigError(f"Profile {name!r}: {path} has: {there}")
    if not isinstance(profile, dict):
        raise ConfigError(f"{path}: profile {name!r} is no table")
    found = {}
    for key, value in profile.items():
        option = key.replace("-", "_")
        if option not in options:
            close = difflib.get_close_matches(option, options, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{path}: profile {name or _DEFAULT!r} sets {key!r}: no such option{hint}"
            )
        found[option] = value
    return found
