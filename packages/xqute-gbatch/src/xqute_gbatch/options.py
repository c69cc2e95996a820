"""What a user may say: mounts, labels, ids and resources, checked before anything is started. Pure.

The rules are Batch's own: https://cloud.google.com/batch/docs/reference/rest/v1/projects.locations.jobs
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xqute.errors import ConfigError

if TYPE_CHECKING:
    from xqute.resources import Resources

__all__ = [
    "DEFAULT_MOUNTED_ROOT",
    "MOUNTED_WORKDIR",
    "Mount",
    "build_job_id",
    "check_labels",
    "check_prefix",
    "check_resources",
    "find_cwd",
    "parse_mounts",
    "sanitize_label",
]

DEFAULT_MOUNTED_ROOT: Final = "/mnt/disks"
MOUNTED_WORKDIR: Final = f"{DEFAULT_MOUNTED_ROOT}/xqute_workdir"

_PREFIX: Final = r"[a-zA-Z][a-zA-Z0-9-]{0,47}"
_LABEL_KEY: Final = r"[a-z][a-z0-9_-]{0,62}"
_MAX_ID: Final = 63
_MAX_LABELS: Final = 64
_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_BUCKET: Final = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"

#: Portable resources that Batch does not know.
_FOREIGN: Final = ("queue", "account", "constraint")


class Mount(NamedTuple):
    """A bucket, or a folder of one, that jobs see as a folder.

    Attributes:
        remote_path: ``bucket/folder``, as Batch spells it.
        path: Where jobs see it.
        name: The variable in which jobs find that path; empty: none.
    """

    remote_path: str
    path: str
    name: str = ""


def check_prefix(prefix: str) -> str:
    """Give a prefix that job ids can begin with.

    Raises:
        ConfigError: If they cannot.
    """
    if not re.fullmatch(_PREFIX, prefix):
        raise ConfigError(
            f"jobname_prefix must match ^{_PREFIX}$, since ids of Batch jobs begin with it:"
            f" {prefix!r}"
        )
    return prefix


def build_job_id(prefix: str, key: str) -> str:
    """Give the id of the Batch job for a submission key; the prefix is cut where it is too long."""
    tail = key.removeprefix("xq-").lower()
    head = prefix.lower()[: _MAX_ID - 1 - len(tail)].rstrip("-")
    return f"{head}-{tail}"


def sanitize_label(text: str) -> str:
    """Give the nearest text that a label's value can be."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def check_labels(labels: Any) -> dict[str, str]:
    """Give labels as Batch takes them: values are made to fit, keys must.

    Raises:
        ConfigError: If a key cannot be one, or there are too many.
    """
    if not isinstance(labels, Mapping):
        raise ConfigError(f"labels must be a mapping of names to texts: {labels!r}")
    for key in labels:
        if not isinstance(key, str) or not re.fullmatch(_LABEL_KEY, key):
            raise ConfigError(f"A label's name must match ^{_LABEL_KEY}$: {key!r}")
    if len(labels) > _MAX_LABELS:
        raise ConfigError(f"A Batch job has {_MAX_LABELS} labels at the most, not {len(labels)}")
    return {key: sanitize_label(str(value)) for key, value in labels.items()}


def parse_mounts(mounts: str | Sequence[str] | None, what: str = "mount") -> list[Mount]:
    """Give what ``gs://bucket/folder:/path`` and ``NAME=gs://bucket/folder`` stand for.

    Raises:
        ConfigError: If one is neither.
    """
    if mounts is None:
        return []
    if isinstance(mounts, str):
        mounts = [mounts]
    given: Any = mounts
    if not isinstance(given, Iterable) or not all(isinstance(text, str) for text in given):
        raise ConfigError(f"{what} must be a text or a list of texts: {mounts!r}")
    return [_parse_mount(text, what) for text in mounts]


def _parse_mount(text: str, what: str) -> Mount:
    wanted = f"{what} must be 'gs://bucket/folder:/path' or 'NAME=gs://bucket/folder': {text!r}"
    name, equals, uri = text.partition("=")
    if equals and re.fullmatch(_NAME, name):
        path = f"{DEFAULT_MOUNTED_ROOT}/{name}"
    else:
        name = ""
        uri, colon, path = text.rpartition(":")
        if not colon or not path.startswith("/") or path.startswith("//"):
            raise ConfigError(wanted)
    remote = uri.removeprefix("gs://").strip("/")
    if ":" in remote or not re.fullmatch(_BUCKET, remote.partition("/")[0]):
        raise ConfigError(wanted)
    return Mount(remote, path, name)


def find_cwd(wanted: str | bool, mounts: Sequence[Mount]) -> str:
    """Give where the mount is that `volume_as_cwd` names; True: the only one.

    Raises:
        ConfigError: If there is no such mount.
    """
    if wanted is True and len(mounts) == 1:
        return mounts[0].path
    for mount in mounts:
        if wanted in (mount.name, mount.path):
            return mount.path
    known = ", ".join(mount.name or mount.path for mount in mounts) or "none"
    raise ConfigError(f"volume_as_cwd must be one of the mounts ({known}): {wanted!r}")


def check_resources(resources: Resources) -> Resources:
    """Give resources that Batch has.

    Raises:
        ConfigError: If it knows no such thing.
    """
    for name in _FOREIGN:
        if getattr(resources, name) is not None:
            raise ConfigError(f"resources: Google Cloud Batch knows no {name}")
    if resources.nodes != 1:
        raise ConfigError(f"resources: a job here has one node, not {resources.nodes} nodes")
    return resources
