"""Files of a workdir that is in a cloud: the few things that are done to objects, by URI.

Everything here blocks, and may be called in any thread: each has a client of the cloud's own SDK.
No SDK is imported before the first URI of its cloud is used. All errors are OSErrors that name the
URI.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from ..errors import WorkdirError

__all__ = [
    "Found",
    "check",
    "copy",
    "create",
    "delete",
    "exists",
    "get",
    "is_far",
    "look",
    "names",
    "put",
    "replace",
    "upload",
]


class Found(NamedTuple):
    """An object as it was found.

    Attributes:
        data: Its content.
        version: What changes with every write; `replace` wants it.
        written_s: When it was written, in seconds since the epoch, by the clock of the cloud.
    """

    data: bytes
    version: str
    written_s: float


class Bucket(Protocol):
    """One bucket (or container) of a cloud. Keys are full names; all errors are OSErrors."""

    def get(self, key: str, limit_bytes: int | None) -> bytes | None:
        """Give the content, or its beginning; None: there is no such object."""

    def put(self, key: str, data: bytes) -> None:
        """Write, over what is there."""

    def upload(self, key: str, path: str) -> None:
        """Write what a local file has, over what is there."""

    def create(self, key: str, data: bytes) -> bool:
        """Write only if there is no such object, which the cloud decides; False: there is."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def keys(self, prefix: str) -> list[str]:
        """Give all keys that begin so: one request for a thousand."""

    def delete(self, keys: list[str]) -> None:
        """Delete many in few requests; one that is not there is no error."""

    def copy(self, key: str, to: str) -> None:
        """Copy within the bucket; FileNotFoundError if there is no such object."""

    def look(self, key: str) -> Found | None:
        """Give an object with its version; None: there is none."""

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Write over this very version; False: it has changed, or is gone."""


_buckets: dict[str, Bucket] = {}
_guard = threading.Lock()


def is_far(path: str) -> bool:
    """Whether a path is a URI of a cloud."""
    return "://" in path


def _open_gs(name: str) -> Bucket:
    from .gs import GoogleBucket

    return GoogleBucket(name)


def _open_s3(name: str) -> Bucket:
    from .s3 import AmazonBucket

    return AmazonBucket(name)


def _open_az(name: str) -> Bucket:
    from .az import AzureContainer

    return AzureContainer(name)


#: By scheme: what opens a bucket, and the extra of xqute-core that brings its SDK.
_CLOUDS: Final[dict[str, tuple[Callable[[str], Bucket], str]]] = {
    "gs": (_open_gs, "gs"),
    "s3": (_open_s3, "s3"),
    "az": (_open_az, "azure"),
}


def _find(uri: str) -> tuple[Bucket, str]:
    """Give the bucket of a URI, and the key in it.

    Raises:
        WorkdirError: If there is no such cloud, its SDK is missing, or there is no access to it.
    """
    scheme, _, path = uri.partition("://")
    name, _, key = path.partition("/")
    place = f"{scheme}://{name}"
    bucket = _buckets.get(place)
    if bucket is not None:
        return bucket, key
    with _guard:
        if place not in _buckets:
            if scheme not in _CLOUDS or not name:
                known = ", ".join(f"{known}://" for known in _CLOUDS)
                raise WorkdirError(f"{uri} is no place for files: known are {known}")
            open_bucket, extra = _CLOUDS[scheme]
            try:
                _buckets[place] = open_bucket(name)
            except ImportError as exc:
                raise WorkdirError(
                    f"{place} needs an SDK that is not installed ({exc}):"
                    f' pip install "xqute-core[{extra}]"'
                ) from exc
        return _buckets[place], key


def get(uri: str, limit_bytes: int | None = None) -> bytes | None:
    """Give the content of an object, or its beginning; None: there is none."""
    bucket, key = _find(uri)
    return bucket.get(key, limit_bytes)


def put(uri: str, data: bytes) -> None:
    """Write an object, over what is there."""
    bucket, key = _find(uri)
    bucket.put(key, data)


def create(uri: str, data: bytes) -> bool:
    """Write an object unless there is one; False: there is. The cloud sees to it that one wins."""
    bucket, key = _find(uri)
    return bucket.create(key, data)


def exists(uri: str) -> bool:
    """Whether there is such an object."""
    bucket, key = _find(uri)
    return bucket.exists(key)


def names(folder: str) -> list[str]:
    """Give the names of all objects below a folder, deep ones with their slashes."""
    bucket, key = _find(f"{folder}/")
    return [found.removeprefix(key) for found in bucket.keys(key) if found != key]


def delete(uris: Iterable[str]) -> None:
    """Delete many objects in few requests; one that is not there is no error."""
    by_bucket: dict[int, tuple[Bucket, list[str]]] = {}
    for uri in uris:
        bucket, key = _find(uri)
        by_bucket.setdefault(id(bucket), (bucket, []))[1].append(key)
    for bucket, keys in by_bucket.values():
        bucket.delete(keys)


def copy(uri: str, to: str) -> None:
    """Copy an object within its bucket; FileNotFoundError if there is none."""
    bucket, key = _find(uri)
    bucket.copy(key, _find(to)[1])


def look(uri: str) -> Found | None:
    """Give an object with its version; None: there is none."""
    bucket, key = _find(uri)
    return bucket.look(key)


def replace(uri: str, data: bytes, version: str) -> bool:
    """Write an object over this very version; False: it has changed, or is gone."""
    bucket, key = _find(uri)
    return bucket.replace(key, data, version)


def upload(uri: str, path: str) -> None:
    """Write what a local file has, over what is there; it may be large."""
    bucket, key = _find(uri)
    bucket.upload(key, path)


def check(folder: str) -> None:
    """See that objects can be written in a folder, and mark it as one for mounts.

    Raises:
        WorkdirError: If not: no such bucket, no permission, no credentials, no SDK, no answer.
    """
    try:
        put(f"{folder}/", b"")
    except WorkdirError:
        raise
    except OSError as exc:
        raise WorkdirError(f"The workdir {folder} cannot be used: {exc}") from exc
