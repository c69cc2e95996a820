"""The SpecPath and MountedPath classes of the clouds; importing it loads cloudpathlib and every SDK installed."""

from __future__ import annotations

import functools
import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from cloudpathlib import (
    AnyPath,
    AzureBlobClient,
    AzureBlobPath,
    CloudPath,
    GSClient,
    GSPath,
    S3Client,
    S3Path,
)
from cloudpathlib.exceptions import (
    CloudPathFileExistsError,
    CloudPathFileNotFoundError,
    CloudPathIsADirectoryError,
    MissingDependenciesError,
)

from ..errors import XquteError
from ._local import LocalPath, MountedPath, SpecPath, _TwoSided

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudpathlib.client import Client

__all__ = [
    "AnyPath",
    "AzureBlobPath",
    "CloudPath",
    "GSPath",
    "MissingSDKError",
    "MountedAzureBlobPath",
    "MountedCloudPath",
    "MountedGSPath",
    "MountedS3Path",
    "PathType",
    "S3Path",
    "SpecAzureBlobPath",
    "SpecCloudPath",
    "SpecGSPath",
    "SpecS3Path",
]

PathType: TypeAlias = LocalPath | CloudPath


class MissingSDKError(XquteError, ModuleNotFoundError):
    """The SDK of a cloud is not installed; the message has the line that installs it."""


class _Cloud:
    """What cloudpathlib's path classes ask their registry for, answered without the registry.

    The registry is shared by the whole process, and other libraries put their own classes there.
    """

    def __init__(
        self, extra: str, path_class: type[CloudPath], client_class: type[Client[Any]]
    ) -> None:
        self.name = extra
        self.path_class = path_class
        self.client_class = client_class

    def validate_completeness(self) -> None:
        try:
            self.path_class._cloud_meta.validate_completeness()
        except MissingDependenciesError as exc:
            raise MissingSDKError(
                f"{self.path_class.cloud_prefix} needs an SDK that is not installed:"
                f' pip install "xqute-core[{self.name}]"'
            ) from exc


@functools.cache
def _listing_class(client_class: type[Client[Any]]) -> type[Client[Any]]:
    class Listing(client_class):  # type: ignore[misc,valid-type]
        """A client that makes what it lists by `make`, and shares everything else with the real one.

        The real one would ask the registry for a class, get another library's, and be refused by that as a
        client of the wrong class.
        """

        __slots__ = ("make",)
        #: With the mode "cloudpath_object" a path that dies takes its cached files with it; not this one's.
        file_cache_mode = property(lambda self: None)  # type: ignore[assignment]  # noqa: ARG005

        def CloudPath(self, cloud_path: Any, *parts: str) -> Any:  # noqa: N802
            return self.make(cloud_path, *parts)

        def __del__(self) -> None:
            """Leave the shared cache alone."""

    return Listing


class _CloudSide(CloudPath):
    """A path of cloudpathlib that derives its other side, class and client along with itself.

    No derivation makes a client: it works without credentials.
    """

    _other: Any = None
    # For __del__, should __init__ not get far.
    _handle: Any = None
    _client: Any = None
    _hash: int | None = None

    if TYPE_CHECKING:
        _kind: ClassVar[type[Any]]
        _twin: ClassVar[type[Any]]

        def __init__(self, path: Any, other: Any = None, *, client: Any = None) -> None: ...
        def _given(self, path: Any, other: Any) -> Any: ...
        def _settle(self, new: Any, other: Any) -> Self: ...
        def _concerns_other(self, segments: tuple[Any, ...]) -> bool: ...
        def _across(self, segment: Any) -> Any: ...
        def _other_or_twin(self) -> Any: ...
        def _same(self, other: Any) -> bool: ...

    def _setup(self, path: Any, other: Any, client: Any) -> None:
        if client is None:
            client = getattr(path, "_client", None)  # `path.client` would make one
        CloudPath.__init__(self, str(path), client=client)
        side = self._given(path, other)
        if other is not None and isinstance(side, self._plain_class()) and side._client is None:
            side._client = client
        self._pair(side)

    def _pair(self, other: Any) -> None:
        equal = other is not None and str(other) == str(self) and other._client is self._client
        self._other = None if equal else other

    def _bare(self, text: str) -> Self:
        return type(self)(text, client=self._client)

    def _unpaired(self) -> Self:
        return self._bare(str(self))

    def _as_twin(self) -> Any:
        return self._twin(str(self), client=self._client)

    @classmethod
    def _plain_class(cls) -> type[CloudPath]:
        return cls._cloud_meta.path_class

    def _plain(self) -> CloudPath:
        plain = self._plain_class()(str(self))
        plain._client = self._client
        return plain

    def _new_cloudpath(self, path: Any, *parts: str) -> Self:
        text = "/".join([str(path).removeprefix("/"), *parts])
        return self._bare(text if text.startswith(self.anchor) else f"{self.anchor}{text}")

    def _adopt(self, path: CloudPath) -> Self:
        """What was found at or under this path by its `_lister`."""
        new = self._bare(str(path))
        other = self._other
        return self._settle(new, other and other.joinpath(*path.relative_to(self).parts))

    def _lister(self) -> Self:
        """This path, with a client that lists paths of this class whatever the registry says."""
        view = object.__new__(_listing_class(type(self.client)))
        view.__dict__ = self.client.__dict__
        view.make = self._new_cloudpath  # type: ignore[attr-defined]
        return type(self)(str(self), client=view)

    # Derivations that are done to both sides.

    def with_segments(self, *segments: Any) -> Self:
        new = self._new_cloudpath("/".join(map(str, segments)))
        if not self._concerns_other(segments):
            return new
        return self._settle(new, self._other_or_twin().with_segments(*map(self._across, segments)))

    def __truediv__(self, key: Any) -> Self:
        new = super().__truediv__(key)
        if new is NotImplemented or not self._concerns_other((key,)):
            return new
        return self._settle(new, self._other_or_twin() / self._across(key))

    def joinpath(self, *segments: Any) -> Self:
        path = self
        for segment in segments:
            path /= (
                segment if isinstance(segment, (str, PurePath, CloudPath)) else os.fspath(segment)
            )
        return path

    def with_name(self, name: str) -> Self:
        return self._settle(super().with_name(name), self._other and self._other.with_name(name))

    def with_stem(self, stem: str) -> Self:
        return self._settle(super().with_stem(stem), self._other and self._other.with_stem(stem))

    def with_suffix(self, suffix: str) -> Self:
        other = self._other
        return self._settle(super().with_suffix(suffix), other and other.with_suffix(suffix))

    @property
    def parent(self) -> Self:
        return self._settle(super().parent, self._other and self._other.parent)

    @property
    def parents(self) -> tuple[Self, ...]:
        found = []
        other = self._other
        for new in super().parents:
            other = other and other.parent
            found.append(self._settle(new, other))
        return tuple(found)

    def iterdir(self) -> Iterator[Self]:  # type: ignore[override]
        for path in super(_CloudSide, self._lister()).iterdir():
            if str(path).rstrip("/") != str(self).rstrip("/"):  # not the folder's own placeholder
                yield self._adopt(path)

    def glob(self, *args: Any, **kwargs: Any) -> Iterator[Self]:  # type: ignore[override]
        return map(self._adopt, super(_CloudSide, self._lister()).glob(*args, **kwargs))

    def rglob(self, *args: Any, **kwargs: Any) -> Iterator[Self]:  # type: ignore[override]
        return map(self._adopt, super(_CloudSide, self._lister()).rglob(*args, **kwargs))

    def walk(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Self, list[str], list[str]]]:  # type: ignore[override]
        for folder, folders, files in super(_CloudSide, self._lister()).walk(*args, **kwargs):
            yield self._adopt(folder), folders, files

    # What has no counterpart on the other side is a plain path.

    def absolute(self) -> CloudPath:  # type: ignore[override]
        return self._plain()

    def resolve(self, strict: bool = False) -> CloudPath:  # type: ignore[override]  # noqa: ARG002
        return self._plain()

    def samefile(self, other_path: Any) -> bool:
        return str(self) == str(other_path)

    def rename(self, target: Any) -> Self:
        """Move this object, or everything under this folder, to another place in this cloud.

        An object there is overwritten. A folder is moved object by object, not at once.

        Args:
            target: A path or URI of this cloud.

        Returns:
            The target: itself if it is a path of this class, and so with both its sides; else a path of this
            class with that text on both sides.

        Raises:
            FileNotFoundError: There is nothing here.
            FileExistsError: This is a folder, and something is there.
            IsADirectoryError: This is an object, and a folder is there.
            ValueError: The target is not of this cloud, or within this folder.
        """
        return self.replace(target)

    def replace(self, target: Any) -> Self:
        """The same as `rename`: a cloud knows no other."""
        goal = (
            target if type(target) is type(self) else type(self)(str(target), client=self._client)
        )
        here, there = (str(path).rstrip("/") for path in (self, goal))
        if here == there:
            return goal
        if self.is_file():
            if goal.is_dir():
                raise CloudPathIsADirectoryError(
                    f"cannot rename {self} to {goal}: that is a folder"
                )
            self.client._move_file(self, goal)
            return goal
        if not self.is_dir():
            raise CloudPathFileNotFoundError(f"cannot rename {self}: there is nothing")
        if there.startswith(f"{here}/"):
            raise ValueError(f"cannot rename {self} to {goal}: that is within it")
        if goal.exists():
            raise CloudPathFileExistsError(f"cannot rename {self} to {goal}: something is there")
        try:
            super().replace(goal)  # where Azure has real folders, it moves them
        except CloudPathIsADirectoryError:
            lister = self._lister()
            for path, is_folder in list(lister.client._list_dir(lister, recursive=True)):
                if not is_folder:
                    self.client._move_file(path, self._bare(there + str(path).removeprefix(here)))
        return goal

    def rmtree(self) -> None:
        """Remove everything under this folder.

        Raises:
            NotADirectoryError: This is an object.
        """
        super(_CloudSide, self._lister()).rmtree()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, self._plain_class()):
            return NotImplemented
        if str(self) != str(other):
            return False
        return self._same(other) if isinstance(other, self._kind) else True

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self._plain_class()(str(self)))
        return self._hash

    def __lt__(self, other: Any) -> bool:
        return (
            self.parts < other.parts if isinstance(other, self._plain_class()) else NotImplemented
        )

    def __le__(self, other: Any) -> bool:
        return (
            self.parts <= other.parts if isinstance(other, self._plain_class()) else NotImplemented
        )

    def __gt__(self, other: Any) -> bool:
        return (
            self.parts > other.parts if isinstance(other, self._plain_class()) else NotImplemented
        )

    def __ge__(self, other: Any) -> bool:
        return (
            self.parts >= other.parts if isinstance(other, self._plain_class()) else NotImplemented
        )

    def __copy__(self) -> Self:
        return self._settle(self._unpaired(), self._other)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # a path does not change, and its client is shared


class SpecCloudPath(SpecPath, _CloudSide):  # type: ignore[misc]
    """A cloud's path as this process sees it; a `cloudpathlib.CloudPath`."""


class MountedCloudPath(MountedPath, _CloudSide):  # type: ignore[misc]
    """A cloud's path as the job sees it; a `cloudpathlib.CloudPath`."""


_GS = _Cloud("gs", GSPath, GSClient)
_S3 = _Cloud("s3", S3Path, S3Client)
_AZURE = _Cloud("azure", AzureBlobPath, AzureBlobClient)


class SpecGSPath(SpecCloudPath, GSPath):  # type: ignore[misc]
    """A path in Google Cloud Storage as this process sees it."""

    _cloud_meta = _GS  # type: ignore[assignment]


class MountedGSPath(MountedCloudPath, GSPath):  # type: ignore[misc]
    """A path in Google Cloud Storage as the job sees it."""

    _cloud_meta = _GS  # type: ignore[assignment]


class SpecS3Path(SpecCloudPath, S3Path):  # type: ignore[misc]
    """A path in S3 as this process sees it."""

    _cloud_meta = _S3  # type: ignore[assignment]


class MountedS3Path(MountedCloudPath, S3Path):  # type: ignore[misc]
    """A path in S3 as the job sees it."""

    _cloud_meta = _S3  # type: ignore[assignment]


class SpecAzureBlobPath(SpecCloudPath, AzureBlobPath):  # type: ignore[misc]
    """A path in Azure Blob Storage as this process sees it."""

    _cloud_meta = _AZURE  # type: ignore[assignment]


class MountedAzureBlobPath(MountedCloudPath, AzureBlobPath):  # type: ignore[misc]
    """A path in Azure Blob Storage as the job sees it."""

    _cloud_meta = _AZURE  # type: ignore[assignment]


CLASSES: dict[tuple[type[_TwoSided], str], type[_TwoSided]] = {}
for _scheme, _spec, _mounted in (
    ("gs", SpecGSPath, MountedGSPath),
    ("s3", SpecS3Path, MountedS3Path),
    ("az", SpecAzureBlobPath, MountedAzureBlobPath),
):
    _spec._twin, _mounted._twin = _mounted, _spec
    CLASSES[SpecPath, _scheme] = _spec
    CLASSES[MountedPath, _scheme] = _mounted

for _class in (MissingSDKError, SpecCloudPath, MountedCloudPath, *CLASSES.values()):
    _class.__module__ = "xqute.path"  # the name that pickles keep
