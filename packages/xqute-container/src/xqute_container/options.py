"""What a user asks for: program, image, volumes, user; checked, and nothing is done yet."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from xqute import wrapper
from xqute.errors import ConfigError, InvalidJobError

__all__ = [
    "DEFAULT_MOUNTED_ROOT",
    "DEFAULT_MOUNTED_WORKDIR",
    "Pull",
    "Runtime",
    "User",
    "Volume",
    "check_envs",
    "check_image",
    "check_pull",
    "check_sources",
    "detect_runtime",
    "parse_cwd_volume",
    "parse_entrypoint",
    "parse_user",
    "parse_volumes",
]

DEFAULT_MOUNTED_ROOT: Final = "/mnt/disks"
DEFAULT_MOUNTED_WORKDIR: Final = f"{DEFAULT_MOUNTED_ROOT}/xqute_workdir"
_MOUNTED_CWD: Final = f"{DEFAULT_MOUNTED_ROOT}/.cwd"

_NAMED: Final = r"([A-Za-z_][A-Za-z0-9_]*)=(.*)"
_USER: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?"
_SYNTAX: Final = "write 'host:container', 'host:container:ro' or 'NAME=host'"


class Runtime(StrEnum):
    """What kind of program runs the containers."""

    DOCKER = "docker"
    PODMAN = "podman"
    APPTAINER = "apptainer"


class Pull(StrEnum):
    """When an image is fetched from its registry."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class Volume(NamedTuple):
    """A file or folder of the host that jobs see.

    Attributes:
        source: Its absolute path on the host.
        target: Its absolute path in the container.
        read_only: Whether jobs cannot write to it.
        name: The variable in which jobs find `target`; empty: none.
    """

    source: str
    target: str
    read_only: bool = False
    name: str = ""


class User(NamedTuple):
    """As whom jobs run: ids, or None where a name is given that only the image can tell."""

    uid: int | None
    gid: int | None


def detect_runtime(binary: str) -> Runtime:
    """Tell from its name what a program is; an unknown one is taken for one like Docker."""
    name = os.path.basename(binary)
    if "apptainer" in name or "singularity" in name:
        return Runtime.APPTAINER
    return Runtime.PODMAN if "podman" in name else Runtime.DOCKER


def check_image(image: str, runtime: Runtime) -> str:
    """Give the image as the program names it: without ``docker://`` for Docker and Podman.

    Raises:
        ConfigError: If it can be no image.
    """
    name = str(image)
    if runtime is not Runtime.APPTAINER:
        name = name.removeprefix("docker://")
    if not name or name.startswith("-") or not name.isprintable() or name != name.strip():
        raise ConfigError(f"image {image!r} is no name of an image")
    return name


def check_pull(pull: str) -> Pull:
    """Give the pull policy of that name.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return Pull(pull)
    except ValueError:
        raise ConfigError(f"pull must be one of {', '.join(Pull)}: {pull!r}") from None


def parse_entrypoint(entrypoint: str | Sequence[str]) -> list[str]:
    """Give the words of an entrypoint; a string is split like a shell does.

    Raises:
        ConfigError: If there are none.
    """
    words = shlex.split(entrypoint) if isinstance(entrypoint, str) else list(map(str, entrypoint))
    if not words or not words[0]:
        raise ConfigError(f"entrypoint {entrypoint!r} is empty: name a bash of the image")
    return words


def parse_user(user: str) -> User:
    """Give the ids in ``uid[:gid]``; a name has none here.

    Raises:
        ConfigError: If it can be no user.
    """
    if not re.fullmatch(_USER, user, re.ASCII):
        raise ConfigError(f"user {user!r} is none: write a name or a number, or 'user:group'")
    uid, _, gid = user.partition(":")
    return User(
        int(uid) if uid.isdigit() else None,
        int(gid) if gid.isdigit() else None,
    )


def check_envs(envs: Mapping[str, object]) -> dict[str, str]:
    """Give variables with their values as text.

    Raises:
        ConfigError: If one cannot be passed to a job.
    """
    checked = {str(name): str(value) for name, value in envs.items()}
    for name, value in checked.items():
        try:
            wrapper.check_env(name, value)
        except InvalidJobError as exc:
            raise ConfigError(f"envs: {exc}") from exc
    return checked


# --- volumes -----------------------------------------------------------------------------------


def parse_volumes(texts: Iterable[str], more: Iterable[Volume] = ()) -> tuple[Volume, ...]:
    """Give the volumes in order, each once.

    Args:
        texts: As the user writes them.
        more: Others.

    Raises:
        ConfigError: If one cannot be understood, or two want the same place or name.
    """
    found: dict[str, Volume] = {}
    names: dict[str, Volume] = {}
    for volume in [*map(_parse_volume, map(str, texts)), *more]:
        text = _render(volume)
        other = found.setdefault(volume.target, volume)
        if (other.source, other.read_only) != (volume.source, volume.read_only):
            raise ConfigError(
                f"volume {text}: {volume.target} is already taken by {_render(other)}"
            )
        if volume.name:
            other = names.setdefault(volume.name, volume)
            if other.target != volume.target:
                raise ConfigError(f"volume {text}: {volume.name} already stands for {other.target}")
            found[volume.target] = volume
    return tuple(found.values())


def parse_cwd_volume(text: str) -> Volume:
    """Give the volume in which jobs run; without a place of its own it is mounted at ``.cwd``.

    Raises:
        ConfigError: If it cannot be understood.
    """
    try:
        return _parse_volume(text)
    except ConfigError:
        return _parse_volume(f"{text}:{_MOUNTED_CWD}")


def check_sources(volumes: Iterable[Volume]) -> None:
    """See that what is to be mounted is there: engines would make an empty folder of root's.

    Raises:
        ConfigError: If it is not, and which.
    """
    for volume in volumes:
        if not os.path.exists(volume.source):
            raise ConfigError(
                f"volume {_render(volume)}: there is no {volume.source} on this machine"
            )


def _parse_volume(text: str) -> Volume:
    if not text.isprintable():
        raise ConfigError(f"volume {text!r} cannot be understood: {_SYNTAX}")
    name, rest, read_only = "", text, False
    if named := re.fullmatch(_NAMED, text):
        name, rest = named.groups()
        check_envs({name: ""})
    for option in ("ro", "rw"):
        if rest.endswith(f":{option}"):
            rest, read_only = rest.removesuffix(f":{option}"), option == "ro"
            break
    # A host's path may hold colons, a container's place begins with a slash.
    source, colon, place = rest.rpartition(":/")
    target = f"/{place}"
    if not colon:
        if not name or (":" in rest and not os.path.exists(os.path.expanduser(rest))):
            raise ConfigError(f"volume {text!r} cannot be understood: {_SYNTAX}")
        source, target = rest, f"{DEFAULT_MOUNTED_ROOT}/{name}"
    target = posixpath.normpath(target)
    if ":" in target:
        raise ConfigError(f"volume {text!r} cannot be understood: {_SYNTAX}")
    if not source or target.strip("/") == "":
        raise ConfigError(f"volume {text!r}: {'no host path' if not source else 'not onto /'}")
    return Volume(os.path.abspath(os.path.expanduser(source)), target, read_only, name)


def _render(volume: Volume) -> str:
    name = f"{volume.name}=" if volume.name else ""
    return f"'{name}{volume.source}:{volume.target}{':ro' if volume.read_only else ''}'"
