"""The routers `SpecPath` and `MountedPath`, what their classes share, and those of local paths."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path, PosixPath, PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["LocalPath", "MountedLocalPath", "MountedPath", "SpecLocalPath", "SpecPath"]

LocalPath = PosixPath
PathLike: TypeAlias = "str | os.PathLike[str]"

CLOUD_SCHEMES = ("gs", "s3", "az")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

if TYPE_CHECKING:

    class _Path(Path):
        """How a type checker sees any of the classes: `pathlib`'s, and a little more."""

        @property
        def fspath(self) -> str: ...
        def rmtree(self) -> None: ...
        def absolute(self) -> Path: ...  # type: ignore[override]
        def expanduser(self) -> Path: ...  # type: ignore[override]
        def readlink(self) -> Path: ...  # type: ignore[override]
        def relative_to(self, *args: Any, **kwargs: Any) -> Path: ...  # type: ignore[override]
        def resolve(self, strict: bool = False) -> Path: ...  # type: ignore[override]
else:
    _Path = object


class _TwoSided(_Path):
    """One path as two sides see it: what the classes of both kinds, Spec and Mounted, share.

    Attributes:
        _kind: The router of the class, which stands for its kind.
        _twin: The class of the other kind for the same store.
        _keyword: The name of the other side.
        _other: The same path as the other side sees it: of the other kind, without another side of
            its own, shared and never changed. None: the same text on both sides, which is common
            and costs nothing.
    """

    __slots__ = ()

    _kind: ClassVar[type[_TwoSided]]
    _twin: ClassVar[type[Any]]
    _keyword: ClassVar[str]
    _other: Any

    if TYPE_CHECKING:

        @classmethod
        def _blank(cls, path: Any) -> Self: ...
        def _setup(self, path: Any, other: Any, client: Any) -> None: ...
        def _unpaired(self) -> Self: ...
        def _as_twin(self) -> Any: ...

    @classmethod
    def _new(cls, path: Any) -> Self:
        """An instance still to be initialised; from a router, of the class that `path` needs."""
        scheme = _parse_scheme(path)
        if cls is cls._kind:
            cls = _class_for(cls, scheme)  # noqa: PLW0642
        elif scheme:
            raise ValueError(f"{str(path)!r} is not local: it cannot be a {cls.__name__}")
        return cls._blank(path)

    def is_mounted(self) -> bool:
        """Whether the two sides differ."""
        return self._other is not None and str(self._other) != str(self)

    def __repr__(self) -> str:
        other = f", {self._keyword}={str(self._other)!r}" if self.is_mounted() else ""
        return f"{type(self).__name__}({str(self)!r}{other})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self._other)

    def _given(self, path: Any, other: Any) -> Any:
        """The other side of a new path: `other`, else what `path` brings along."""
        if other is None:
            return path._other if isinstance(path, self._kind) else None
        side = self._twin._kind(other)
        side._other = None
        return side

    def _settle(self, new: Self, other: Any) -> Self:
        """`new`, derived from this path, with the other side that was derived likewise."""
        if new is self:  # the parent of a root
            if other is None:
                return self
            new = self._unpaired()
        new._other = other
        return new

    def _flip(self) -> Any:
        """This path as the other side sees it."""
        side = self._other_or_twin()._unpaired()
        if self._other is not None:
            side._other = self._unpaired()
        return side

    def _other_or_twin(self) -> Any:
        return self._as_twin() if self._other is None else self._other

    def _concerns_other(self, segments: tuple[Any, ...]) -> bool:
        """Whether a path made of this one and these segments can differ on the other side."""
        if self._other is not None:
            return True
        for segment in segments:  # any() costs twice as much, and this is done for every path
            if isinstance(segment, self._kind) and segment._other is not None:
                return True
        return False

    def _across(self, segment: Any) -> Any:
        """A segment as the other side sees it."""
        if isinstance(segment, self._kind) and segment._other is not None:
            return segment._other
        return segment

    def _same_other(self, path: _TwoSided) -> bool:
        """Whether a path of this kind with this text has the same other side."""
        if self._other is None and path._other is None:
            return True
        return str(self._other or self) == str(path._other or path)


class SpecPath(_TwoSided):
    """A path as this process sees it; `mounted` is the same path as the job sees it.

    Calling it gives a `SpecLocalPath`, or for a URI a `SpecGSPath`, `SpecS3Path` or
    `SpecAzureBlobPath`: real `pathlib` or cloudpathlib paths, and all of them instances of this
    class. What is derived from one (`/`, `with_suffix`, `parent`, `iterdir`, ...) is of its class,
    and derived on both sides.

    Args:
        path: A path or a URI (`gs://`, `s3://`, `az://`). A SpecPath brings its other side along.
        mounted: The same path as the job sees it; of any sort, too. None: the same text.
        client: For a cloud path, the cloudpathlib client to use; None: that of `path`, or the
            default client once one is needed. A `mounted` of the same cloud gets it too, unless it
            has its own.

    Raises:
        ValueError: A URI of any other scheme.
        TypeError: Not a path, or a client for a local path.
        MissingSDKError: The SDK of the cloud is not installed; the message says how to install it.
    """

    __slots__ = ()
    _keyword = "mounted"

    def __new__(
        cls, path: PathLike, mounted: PathLike | None = None, *, client: Any = None
    ) -> Self:
        del mounted, client  # as `__init__` gets them, too
        return cls._new(path)

    def __init__(
        self, path: PathLike, mounted: PathLike | None = None, *, client: Any = None
    ) -> None:
        self._setup(path, mounted, client)

    @property
    def mounted(self) -> MountedPath:
        """The path as the job sees it; its `spec` is this path."""
        return self._flip()  # type: ignore[no-any-return]


class MountedPath(_TwoSided):
    """A path as the job sees it; `spec` is the same path as this process sees it.

    The mirror image of `SpecPath`, which see: calling it gives a `MountedLocalPath`, or for a URI a
    `MountedGSPath`, `MountedS3Path` or `MountedAzureBlobPath`.
    """

    __slots__ = ()
    _keyword = "spec"

    def __new__(cls, path: PathLike, spec: PathLike | None = None, *, client: Any = None) -> Self:
        del spec, client  # as `__init__` gets them, too
        return cls._new(path)

    def __init__(self, path: PathLike, spec: PathLike | None = None, *, client: Any = None) -> None:
        self._setup(path, spec, client)

    @property
    def spec(self) -> SpecPath:
        """The path as this process sees it; its `mounted` is this path."""
        return self._flip()  # type: ignore[no-any-return]


SpecPath._kind = SpecPath
MountedPath._kind = MountedPath


def _parse_scheme(path: Any) -> str:
    """The scheme of a cloud's URI, or "" for a local path.

    Raises:
        ValueError: A URI of any other scheme.
        TypeError: Not a path.
    """
    if isinstance(path, PurePath):
        return ""
    # To ask a path of cloudpathlib for its text by os.fspath would download the file.
    text = str(path) if hasattr(path, "cloud_prefix") else os.fspath(path)
    uri = _URI.match(text) if isinstance(text, str) else None
    if uri is None:
        return ""
    scheme = uri[1].lower()
    if scheme not in CLOUD_SCHEMES:
        known = ", ".join(f"{known}://" for known in CLOUD_SCHEMES)
        raise ValueError(f"{text!r} has an unknown scheme: known are {known} and local paths")
    return scheme


def _class_for(kind: type[_TwoSided], scheme: str) -> type[Any]:
    """The class of that kind for a scheme; cloudpathlib is loaded for a cloud's alone."""
    if not scheme:
        return SpecLocalPath if kind is SpecPath else MountedLocalPath
    from . import _cloud

    return _cloud.CLASSES[kind, scheme]


class _LocalSide(LocalPath):
    """A `pathlib` path that derives its other side along with itself."""

    __slots__ = ("_other",)
    _other: Any

    if TYPE_CHECKING:
        _kind: ClassVar[type[Any]]
        _twin: ClassVar[type[Any]]

        def _given(self, path: Any, other: Any) -> Any: ...
        def _settle(self, new: Self, other: Any) -> Self: ...
        def _other_or_twin(self) -> Any: ...
        def _concerns_other(self, segments: tuple[Any, ...]) -> bool: ...
        def _across(self, segment: Any) -> Any: ...
        def _same_other(self, path: Any) -> bool: ...

    @classmethod
    def _blank(cls, *segments: Any) -> Self:
        return LocalPath.__new__(cls, *segments)

    @classmethod
    def _bare(cls, *segments: Any) -> Self:
        """A path of this class without another side; cheaper than the constructor."""
        new = cls._blank(*segments)
        if sys.version_info >= (3, 12):
            LocalPath.__init__(new, *segments)
        new._other = None
        return new

    def _setup(self, path: Any, other: Any, client: Any) -> None:
        if client is not None:
            raise TypeError(f"{str(path)!r} is a local path: it takes no client")
        if sys.version_info >= (3, 12):
            LocalPath.__init__(self, path)
        side = self._given(path, other)
        self._other = None if side is None or str(side) == str(self) else side

    def _unpaired(self) -> Self:
        return self._bare(self)

    def _as_twin(self) -> Any:
        return self._twin._bare(self)

    def _below(self, path: LocalPath) -> Self:
        """A plain path that was found under this one."""
        if self._other is None:
            return self._bare(path)
        return self.joinpath(path.relative_to(self.fspath))

    # Derivations that are done to both sides. On 3.12+ pathlib makes new paths by `with_segments`.

    def with_segments(self, *segments: Any) -> Self:
        new = self._bare(*segments)
        if self._concerns_other(segments):
            new._other = self._other_or_twin().with_segments(*map(self._across, segments))
        return new

    def joinpath(self, *segments: Any) -> Self:
        if sys.version_info >= (3, 12):
            new = self._bare(self, *segments)
        else:  # half the cost there
            new = super().joinpath(*segments)
            new._other = None
        if self._concerns_other(segments):
            new._other = self._other_or_twin().joinpath(*map(self._across, segments))
        return new

    def __truediv__(self, key: Any) -> Self:
        try:
            return self.joinpath(key)
        except TypeError:
            return NotImplemented

    def __rtruediv__(self, key: Any) -> Any:
        if isinstance(key, PurePath):  # Python asks the subclass on the right first
            return key.joinpath(self.fspath)
        try:
            new = self._bare(key, self)
            return self._settle(new, None if self._other is None else key / self._other)
        except TypeError:
            return NotImplemented

    def with_name(self, name: str) -> Self:
        new = super().with_name(name)
        return self._settle(new, None if self._other is None else self._other.with_name(name))

    def with_stem(self, stem: str) -> Self:
        new = super().with_stem(stem)
        return self._settle(new, None if self._other is None else self._other.with_stem(stem))

    def with_suffix(self, suffix: str) -> Self:
        new = super().with_suffix(suffix)
        return self._settle(new, None if self._other is None else self._other.with_suffix(suffix))

    @property
    def parent(self) -> Self:
        new = super().parent
        return self._settle(new, None if self._other is None else self._other.parent)

    @property
    def parents(self) -> tuple[Self, ...]:
        found: list[Self] = []
        for _ in super().parents:
            found.append((found[-1] if found else self).parent)
        return tuple(found)

    def iterdir(self) -> Generator[Self, None, None]:
        for name in os.listdir(self):
            yield self.joinpath(name)

    def glob(self, *args: Any, **kwargs: Any) -> Generator[Self, None, None]:
        for path in LocalPath(self).glob(*args, **kwargs):
            yield self._below(path)

    def rglob(self, *args: Any, **kwargs: Any) -> Generator[Self, None, None]:
        for path in LocalPath(self).rglob(*args, **kwargs):
            yield self._below(path)

    if sys.version_info >= (3, 12):

        def walk(
            self, *args: Any, **kwargs: Any
        ) -> Generator[tuple[Self, list[str], list[str]], None, None]:
            for folder, folders, files in LocalPath(self).walk(*args, **kwargs):
                yield self._below(folder), folders, files

    # What has no counterpart on the other side is a plain path.

    def absolute(self) -> LocalPath:  # type: ignore[override]
        return LocalPath(self).absolute()

    def expanduser(self) -> LocalPath:  # type: ignore[override]
        return LocalPath(self).expanduser()

    def readlink(self) -> LocalPath:  # type: ignore[override]
        return LocalPath(self).readlink()

    def relative_to(self, *args: Any, **kwargs: Any) -> LocalPath:  # type: ignore[override]
        return LocalPath(self).relative_to(*args, **kwargs)

    def resolve(self, strict: bool = False) -> LocalPath:  # type: ignore[override]
        return LocalPath(self).resolve(strict)

    def is_relative_to(self, *args: Any, **kwargs: Any) -> bool:
        return LocalPath(self).is_relative_to(*args, **kwargs)

    @classmethod
    def cwd(cls) -> Self:
        return cls(os.getcwd())

    @classmethod
    def home(cls) -> Self:
        return cls(LocalPath.home())

    def rename(self, target: Any) -> Self:
        """Rename as `pathlib` does.

        Returns:
            The target as a path of this class: with both its sides if it is of this kind, else with
            that text on both.

        Raises:
            TypeError: The target is a cloud path.
        """
        self._check_local(target)
        os.rename(self, target)
        return type(self)(target)

    def replace(self, target: Any) -> Self:
        """Replace as `pathlib` does; see `rename` for what is returned."""
        self._check_local(target)
        os.replace(self, target)
        return type(self)(target)

    def _check_local(self, target: Any) -> None:
        if hasattr(target, "cloud_prefix"):
            raise TypeError(f"cannot rename {self.fspath!r} to {str(target)!r}: copy it there")

    @property
    def fspath(self) -> str:
        """The path for a program that takes no URIs: the path itself."""
        return str(self)

    def rmtree(self) -> None:
        """Remove this folder and everything in it.

        Raises:
            OSError: It is not there, is no folder, or something in it cannot be removed.
        """
        shutil.rmtree(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _LocalSide) and other._kind is self._kind:
            return super().__eq__(other) and self._same_other(other)
        return super().__eq__(other)

    __hash__ = LocalPath.__hash__


class SpecLocalPath(SpecPath, _LocalSide):  # type: ignore[misc]
    """A local path as this process sees it; a `pathlib.Path`."""

    __slots__ = ()


class MountedLocalPath(MountedPath, _LocalSide):  # type: ignore[misc]
    """A local path as the job sees it; a `pathlib.Path`."""

    __slots__ = ()


SpecLocalPath._twin = MountedLocalPath
MountedLocalPath._twin = SpecLocalPath

for _class in (SpecPath, MountedPath, SpecLocalPath, MountedLocalPath):
    _class.__module__ = "xqute.path"  # the name that pickles keep
