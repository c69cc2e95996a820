"""Objects in Google Cloud Storage."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import google.auth.exceptions
from google.api_core import exceptions as google_errors
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-untyped]

from ..errors import WorkdirError
from . import Found

__all__ = ["GoogleBucket"]

_TYPE: Final = "application/octet-stream"
#: What one batch request may hold.
_BATCH: Final = 100
#: Refused for a moment.
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
#: Seconds for one request, and for it and its repetitions.
_TIMEOUT_S: Final = 20.0
_RETRY: Final = DEFAULT_RETRY.with_timeout(60.0)
_ANY: Final[dict[str, Any]] = {"timeout": _TIMEOUT_S, "retry": _RETRY}


class GoogleBucket:
    """A bucket, reached as the environment says (application default credentials, or an emulator).

    Uploads go as one request each, and are safe to repeat.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._local = threading.local()

    @contextmanager
    def _bucket(self, key: str) -> Iterator[Any]:
        """Give this thread's bucket; what goes wrong with it is an OSError."""
        uri = f"gs://{self._name}/{key}"
        try:
            bucket = getattr(self._local, "bucket", None)
            if bucket is None:
                client = storage.Client()
                bucket = self._local.bucket = client.bucket(self._name)
            yield bucket
        except google.auth.exceptions.GoogleAuthError as exc:
            raise WorkdirError(
                f"{uri}: no valid Google credentials: {exc}; try: "
                "gcloud auth application-default login"
            ) from exc
        except (google_errors.Forbidden, google_errors.Unauthorized) as exc:
            raise WorkdirError(f"{uri}: permission denied: {exc.message}") from exc
        except google_errors.NotFound as exc:
            raise WorkdirError(f"{uri}: there is no such bucket or object: {exc.message}") from exc
        except google_errors.GoogleAPIError as exc:
            raise WorkdirError(f"{uri}: {exc}") from exc
        except (FileNotFoundError, WorkdirError):
            raise
        except OSError as exc:  # requests' errors are OSErrors, too
            raise WorkdirError(f"{uri}: {exc}") from exc

    def _upload(self, bucket: Any, key: str, data: bytes, **conditions: Any) -> None:
        blob = bucket.blob(key)
        blob.upload_from_string(data, content_type=_TYPE, **_ANY, **conditions)

    def get(self, key: str, limit_bytes: int | None) -> bytes | None:
        """Give the content; the limit saves nothing here that a request would not cost."""
        with self._bucket(key) as bucket:
            try:
                data: bytes = bucket.blob(key).download_as_bytes(checksum=None, **_ANY)
            except google_errors.NotFound:
                return None
        return data if limit_bytes is None else data[:limit_bytes]

    def put(self, key: str, data: bytes) -> None:
        """Write, over what is there."""
        with self._bucket(key) as bucket:
            self._upload(bucket, key, data)

    def upload(self, key: str, path: str) -> None:
        """Write what a file has; more than a few MB in pieces."""
        with self._bucket(key) as bucket:
            bucket.blob(key).upload_from_filename(path, content_type=_TYPE, **_ANY)

    def create(self, key: str, data: bytes) -> bool:
        """Write only if generation 0, none, is there.

        A repeated request may find the object of the first one: that is ours.
        """
        with self._bucket(key) as bucket:
            try:
                self._upload(bucket, key, data, if_generation_match=0)
            except google_errors.PreconditionFailed:
                return False
        return True

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with self._bucket(key) as bucket:
            return bool(bucket.blob(key).exists(**_ANY))

    def keys(self, prefix: str) -> list[str]:
        """Give all keys that begin so."""
        with self._bucket(prefix) as bucket:
            found = bucket.client.list_blobs(
                bucket, prefix=prefix, fields="items(name),nextPageToken", **_ANY
            )
            return [blob.name for blob in found]

    def delete(self, keys: list[str]) -> None:
        """Delete many, a hundred in one request."""
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            with self._bucket(some[0]) as bucket:
                codes = _RETRY(partial(_delete_batch, bucket, some))()
            for key, code in zip(some, codes, strict=True):
                if code not in (200, 204, 404):
                    raise WorkdirError(f"gs://{self._name}/{key}: not deleted: HTTP {code}")

    def copy(self, key: str, to: str) -> None:
        """Copy within the bucket."""
        with self._bucket(key) as bucket:
            try:
                bucket.copy_blob(bucket.blob(key), bucket, to, **_ANY)
            except google_errors.NotFound as exc:
                raise FileNotFoundError(f"gs://{self._name}/{key}") from exc

    def look(self, key: str) -> Found | None:
        """Give an object with its generation."""
        with self._bucket(key) as bucket:
            for _ in range(3):
                blob = bucket.get_blob(key, **_ANY)
                if blob is None:
                    return None
                try:
                    data = blob.download_as_bytes(
                        checksum=None, if_generation_match=blob.generation, **_ANY
                    )
                except (google_errors.NotFound, google_errors.PreconditionFailed):
                    continue  # changed in between
                return Found(data, str(blob.generation), blob.updated.timestamp())
        raise WorkdirError(f"gs://{self._name}/{key} changes faster than it can be read")

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Write over this generation."""
        with self._bucket(key) as bucket:
            try:
                self._upload(bucket, key, data, if_generation_match=int(version))
            except (google_errors.PreconditionFailed, google_errors.NotFound):
                return False
        return True


def _delete_batch(bucket: Any, keys: list[str]) -> list[int]:
    """Delete with one request, and give what HTTP would have answered to each.

    The SDK's own batches have parts without a Content-ID, without which the documentation promises
    no order of the answers, and emulators give none:
    https://cloud.google.com/storage/docs/batch
    """
    client = bucket.client
    boundary = "xqute-batch"
    parts = [
        f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <{number}>\r\n\r\n"
        f"DELETE /storage/v1{bucket.path}/o/{quote(key, safe='')} HTTP/1.1\r\n\r\n\r\n"
        for number, key in enumerate(keys)
    ]
    answer = client._http.post(
        f"{client._connection.API_BASE_URL}/batch/storage/v1",
        data=("".join(parts) + f"--{boundary}--\r\n").encode(),
        headers={"Content-Type": f"multipart/mixed; boundary={boundary}"},
        timeout=_TIMEOUT_S,
    )
    if answer.status_code != HTTPStatus.OK:
        raise google_errors.from_http_response(answer)  # type: ignore[no-untyped-call]
    found = re.findall(
        rb"Content-I[dD]: <response-(\d+)>.*?HTTP/\d\S* (\d{3})", answer.content, re.DOTALL
    )
    codes = {int(number): int(code) for number, code in found}
    if codes.keys() != set(range(len(keys))):
        raise WorkdirError(f"gs://{bucket.name}: the answer to a batch of deletions is incomplete")
    for code in codes.values():
        if code in _PASSING:  # of one of them alone, and so not told by the whole
            raise google_errors.from_http_status(code, "a deletion")  # type: ignore[no-untyped-call]
    return [codes[number] for number in range(len(keys))]
