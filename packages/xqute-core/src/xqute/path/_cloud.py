"""The classes of SpecPath and MountedPath for clouds; loads cloudpathlib, and so every SDK."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
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
from ._local import MountedPath, SpecPath, _TwoSided

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

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

PathType: TypeAlias = Path | CloudPath


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
def _listing_class(client_class: type[Any]) -> type[Any]:
    class Listing(client_class):  # type: ignore[misc]
        """A client that lists paths of `path_class`, and shares all else with the real one.

        The real one asks the registry for a class, may be given that of another library, and is
        then refused by it for being of the wrong class itself.
        """

        __slots__ = ("path_class",)
        #: In the mode "cloudpath_object" a path that dies takes its cached files along; no path
        #: that was made for a listing may.
        file_cache_mode = property(lambda self: None)  # noqa: ARG005

        def CloudPath(self, cloud_path: Any, *parts: str) -> Any:  # noqa: N802
            return self.path_class("/".join([str(cloud_path), *parts]), client=self)

        def __del__(self) -> None:
            """Leave everything alone: it is shared."""

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
        def _settle(self, new: Self, other: Any) -> Self: ...
        def _other_or_twin(self) -> Any: ...
        def _concerns_other(self, segments: tuple[Any, ...]) -> bool: ...
        def _across(self, segment: Any) -> Any: ...
        def _same_other(self, path: Any) -> bool: ...

    @classmethod
    def _blank(cls, path: Any) -> Self:  # noqa: ARG003
        return object.__new__(cls)

    def _setup(self, path: Any, other: Any, client: Any) -> None:
        if client is None:
            client = getattr(path, "_client", None)  # `path.client` would make one
        CloudPath.__init__(self, str(path), client=client)
        side = self._given(path, other)
        if other is not None and isinstance(side, self._plain_class()) and side._client is None:
            side._client = client
        equal = side is None or (str(side) == str(self) and side._client is client)
        self._other = None if equal else side

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
        # Some clients end a folder with a slash; but what is found is this path / its name.
        new = self._bare(str(path).rstrip("/") if path.name else str(path))
        other = self._other
        return self._settle(new, other and other.joinpath(*path.relative_to(self).parts))

    def _lister(self) -> Self:
        """This path, with a client that lists paths of this class whatever the registry says."""
        client_class: Any = type(self.client)
        view = object.__new__(_listing_class(client_class))
        view.__dict__ = self.client.__dict__
        view.path_class = type(self)
        return type(self)(str(self), client=view)

    # Derivations that are done to both sides.

    def with_segments(self, *segments: Any) -> Self:
        new = self._new_cloudpath("/".join(map(str, segments)))
        if not self._concerns_other(segments):
            return new
        return self._settle(new, self._other_or_twin().with_segments(*map(self._across, segments)))

    def joinpath(self, *segments: Any) -> Self:
        for segment in segments:
            if isinstance(segment, CloudPath):  # os.fspath would download it
                raise TypeError(f"cannot join a cloud path to {self}: {segment}")
        new = super().joinpath(*segments)
        if not self._concerns_other(segments):
            return new
        return self._settle(new, self._other_or_twin().joinpath(*map(self._across, segments)))

    def __truediv__(self, key: Any) -> Self:
        new = super().__truediv__(key)
        if new is NotImplemented or not self._concerns_other((key,)):
            return new
        return self._settle(new, self._other_or_twin() / self._across(key))

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

    def iterdir(self) -> Generator[Self, None, None]:
        for path in super(_CloudSide, self._lister()).iterdir():
            if not self.samefile(path):  # the placeholder of this very folder
                yield self._adopt(path)

    def glob(self, *args: Any, **kwargs: Any) -> Generator[Self, None, None]:
        for path in super(_CloudSide, self._lister()).glob(*args, **kwargs):
            yield self._adopt(path)

    def rglob(self, *args: Any, **kwargs: Any) -> Generator[Self, None, None]:
        for path in super(_CloudSide, self._lister()).rglob(*args, **kwargs):
            yield self._adopt(path)

    def walk(
        self, *args: Any, **kwargs: Any
    ) -> Generator[tuple[Self, list[str], list[str]], None, None]:
        for folder, folders, files in super(_CloudSide, self._lister()).walk(*args, **kwargs):
            yield self._adopt(folder), folders, files

    # What has no counterpart on the other side is a plain path.

    def absolute(self) -> CloudPath:  # type: ignore[override]
        return self._plain()

    def resolve(self, strict: bool = False) -> CloudPath:  # type: ignore[override]
        return self._plain()

    def samefile(self, other_path: Any) -> bool:
        return str(self).rstrip("/") == str(other_path).rstrip("/")

    def rename(self, target: Any) -> Self:
        """Move this object, or everything under this folder, to another place in this cloud.

        An object there is overwritten. A folder is moved object by object, not at once; what is
        written into it meanwhile, and an empty object that shows it as a folder, may stay behind.

        Args:
            target: A path or URI of this cloud.

        Returns:
            The target: itself if it is a path of this class, and so with both its sides; else a
            path of this class with that text on both sides.

        Raises:
            FileNotFoundError: There is nothing here.
            FileExistsError: This is a folder, and something is there.
            IsADirectoryError: This is an object, and a folder is there.
            ValueError: The target is not of this cloud, or within this folder.
        """
        return self.replace(target)

    def replace(self, target: Any) -> Self:
        """The same as `rename`: a cloud knows no other."""
        goal = target if type(target) is type(self) else self._bare(str(target))
        if self.samefile(goal):
            return goal
        if self.is_file():
            if goal.is_dir():
                raise CloudPathIsADirectoryError(f"cannot rename {self} to a folder: {goal}")
            self.client._move_file(self, goal)
        elif not self.is_dir():
            raise CloudPathFileNotFoundError(f"cannot rename {self}: there is nothing")
        else:
            self._replace_folder(goal)
        return goal

    def _replace_folder(self, goal: Self) -> None:
        here, there = str(self).rstrip("/"), str(goal).rstrip("/")
        if there.startswith(f"{here}/"):
            raise ValueError(f"cannot rename {self} to a place within it: {goal}")
        if goal.exists():
            raise CloudPathFileExistsError(f"cannot rename {self}: there is something at {goal}")
        try:
            super().replace(goal)  # where Azure has real folders, it moves them
        except CloudPathIsADirectoryError:
            lister = self._lister()
            for path, is_folder in list(lister.client._list_dir(lister, recursive=True)):
                if not is_folder:
                    self.client._move_file(path, self._bare(there + str(path).removeprefix(here)))

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
        return self._same_other(other) if isinstance(other, self._kind) else True

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self._plain_class()(str(self)))
        return self._hash

    def _order(self, other: Any, compare: Callable[[Any, Any], bool]) -> Any:
        if not isinstance(other, self._plain_class()):
            return NotImplemented
        return compare(self.parts, other.parts)

    def __lt__(self, other: Any) -> Any:
        return self._order(other, operator.lt)

    def __le__(self, other: Any) -> Any:
        return self._order(other, operator.le)

    def __gt__(self, other: Any) -> Any:
        return self._order(other, operator.gt)

    def __ge__(self, other: Any) -> Any:
        return self._order(other, operator.ge)

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


CLASSES: dict[tuple[type[_TwoSided], str], type[Any]] = {}
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
