"""Paths that know how this process and how the job see one and the same file.

Local ones are `pathlib` paths, those of a cloud are cloudpathlib's. cloudpathlib imports every SDK
that is installed, so it and all names that need it are loaded at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._local import LocalPath, MountedLocalPath, MountedPath, SpecLocalPath, SpecPath

if TYPE_CHECKING:
    from ._cloud import (
        AnyPath,
        AzureBlobPath,
        CloudPath,
        GSPath,
        MissingSDKError,
        MountedAzureBlobPath,
        MountedCloudPath,
        MountedGSPath,
        MountedS3Path,
        PathType,
        S3Path,
        SpecAzureBlobPath,
        SpecCloudPath,
        SpecGSPath,
        SpecS3Path,
    )

__all__ = [
    "AnyPath",
    "AzureBlobPath",
    "CloudPath",
    "GSPath",
    "LocalPath",
    "MissingSDKError",
    "MountedAzureBlobPath",
    "MountedCloudPath",
    "MountedGSPath",
    "MountedLocalPath",
    "MountedPath",
    "MountedS3Path",
    "PathType",
    "S3Path",
    "SpecAzureBlobPath",
    "SpecCloudPath",
    "SpecGSPath",
    "SpecLocalPath",
    "SpecPath",
    "SpecS3Path",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import _cloud

        globals()[name] = value = getattr(_cloud, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
