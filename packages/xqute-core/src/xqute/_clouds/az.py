"""Objects in Azure Blob Storage."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import ContainerClient

from ..errors import WorkdirError
from . import Found

__all__ = ["AzureContainer"]

#: What one batch request may hold.
_BATCH: Final = 256
#: Waits of 2, 4, 8, ... seconds after a refusal; the SDK's own begin with 18.
_RETRIES: Final[dict[str, Any]] = {
    "initial_backoff": 0,
    "increment_base": 2,
    "random_jitter_range": 1,
    "retry_total": 5,
    "retry_status": 5,
}
_CONNECTION: Final = "AZURE_STORAGE_CONNECTION_STRING"
_WHY: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "permission denied",
    HTTPStatus.FORBIDDEN: "permission denied",
    HTTPStatus.NOT_FOUND: "there is no such container",
}


class AzureContainer:
    """A container of the account that AZURE_STORAGE_CONNECTION_STRING names."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._local = threading.local()

    @contextmanager
    def _container(self, key: str) -> Iterator[ContainerClient]:
        """Give this thread's client; what goes wrong with it is an OSError."""
        uri = f"az://{self._name}/{key}"
        connection = os.environ.get(_CONNECTION)
        if not connection:
            raise WorkdirError(f"{uri}: no Azure credentials: {_CONNECTION} is not set")
        try:
            container = getattr(self._local, "container", None)
            if container is None:
                container = self._local.container = ContainerClient.from_connection_string(
                    connection,
                    self._name,
                    connection_timeout=10,
                    read_timeout=20,
                    **_RETRIES,
                )
            yield container
        except HttpResponseError as exc:
            why = _WHY.get(exc.status_code or 0)
            raise WorkdirError(f"{uri}: {why}: {exc}" if why else f"{uri}: {exc}") from exc
        except (AzureError, ValueError) as exc:
            raise WorkdirError(f"{uri}: {exc}") from exc

    def get(self, key: str, limit_bytes: int | None) -> bytes | None:
        """Give the content, or its beginning."""
        with self._container(key) as container:
            try:
                data: bytes = container.download_blob(key).readall()
            except ResourceNotFoundError:
                return None
        return data if limit_bytes is None else data[:limit_bytes]

    def put(self, key: str, data: bytes) -> None:
        """Write, over what is there."""
        with self._container(key) as container:
            container.upload_blob(key, data, overwrite=True)

    def upload(self, key: str, path: str) -> None:
        """Write what a file has; many MB in pieces."""
        with self._container(key) as container, open(path, "rb") as file:
            container.upload_blob(key, file, overwrite=True)

    def create(self, key: str, data: bytes) -> bool:
        """Write only if nothing is there."""
        with self._container(key) as container:
            try:
                container.upload_blob(key, data, overwrite=False)
            except ResourceExistsError:
                return False
        return True

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with self._container(key) as container:
            return container.get_blob_client(key).exists()

    def keys(self, prefix: str) -> list[str]:
        """Give all keys that begin so."""
        with self._container(prefix) as container:
            return list(container.list_blob_names(name_starts_with=prefix))

    def delete(self, keys: list[str]) -> None:
        """Delete many, 256 in one request."""
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            with self._container(some[0]) as container:
                answers = container.delete_blobs(*some, raise_on_any_failure=False)
                bad = [answer for answer in answers if answer.status_code not in (202, 404)]
            if bad:
                raise WorkdirError(f"az://{self._name}: not deleted: {bad[0].reason}")

    def copy(self, key: str, to: str) -> None:
        """Copy within the container, through here: these files are small."""
        data = self.get(key, None)
        if data is None:
            raise FileNotFoundError(f"az://{self._name}/{key}")
        self.put(to, data)

    def look(self, key: str) -> Found | None:
        """Give an object with its ETag."""
        with self._container(key) as container:
            try:
                download = container.download_blob(key)
            except ResourceNotFoundError:
                return None
            properties = download.properties
            return Found(
                download.readall(), str(properties.etag), properties.last_modified.timestamp()
            )

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Write over the object with this ETag."""
        condition: dict[str, Any] = {
            "etag": version,
            "match_condition": MatchConditions.IfNotModified,
        }
        with self._container(key) as container:
            try:
                container.upload_blob(key, data, overwrite=True, **condition)
            except (ResourceModifiedError, ResourceNotFoundError, ResourceExistsError):
                return False
        return True
