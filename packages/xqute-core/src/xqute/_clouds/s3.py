"""Objects in Amazon S3, and in stores that speak its protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import boto3  # type: ignore[import-untyped]
from boto3.exceptions import Boto3Error  # type: ignore[import-untyped]
from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    NoCredentialsError,
)

from ..errors import WorkdirError
from . import Found

__all__ = ["AmazonBucket"]

#: What one request for deletions may hold.
_BATCH: Final = 1000
_CONFIG: Final = Config(connect_timeout=10, read_timeout=20, retries={"max_attempts": 5})
#: Who uploads has threads already.
_TRANSFER: Final = TransferConfig(use_threads=False)
_ABSENT: Final = frozenset({"NoSuchKey", "404", "NotFound"})
#: Refused for its condition: somebody else's object is there, or is being written.
_REFUSED: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_WHY: Final = {
    **dict.fromkeys(("AccessDenied", "403"), "permission denied"),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch"), "permission denied"),
    "NoSuchBucket": "there is no such bucket",
}


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _explain(exc: ClientError) -> str:
    why = _WHY.get(_code(exc))
    return f"{why}: {exc}" if why else str(exc)


class AmazonBucket:
    """A bucket, reached as the environment and configuration files of AWS say."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._local = threading.local()
        self._guard = threading.Lock()
        self._session: Any = None

    @contextmanager
    def _client(self, key: str) -> Iterator[Any]:
        """Give this thread's client; what goes wrong with it is an OSError."""
        uri = f"s3://{self._name}/{key}"
        try:
            client = getattr(self._local, "client", None)
            if client is None:
                client = self._local.client = self._make_client()
            yield client
        except ClientError as exc:
            raise WorkdirError(f"{uri}: {_explain(exc)}") from exc
        except NoCredentialsError as exc:
            raise WorkdirError(f"{uri}: no AWS credentials: {exc}; try: aws configure") from exc
        except Boto3Error as exc:  # an upload in pieces has its own
            reason = exc.__context__
            words = _explain(reason) if isinstance(reason, ClientError) else str(exc)
            raise WorkdirError(f"{uri}: {words}") from exc
        except BotoCoreError as exc:
            raise WorkdirError(f"{uri}: {exc}") from exc

    def _make_client(self) -> Any:
        """A session takes 0.1 s to make, so there is one; and one thread at a time may use it."""
        with self._guard:
            if self._session is None:
                self._session = boto3.Session()
            return self._session.client("s3", config=_CONFIG)

    def get(self, key: str, limit_bytes: int | None) -> bytes | None:
        """Give the content, or its beginning."""
        with self._client(key) as client:
            try:
                body = client.get_object(Bucket=self._name, Key=key)["Body"]
            except ClientError as exc:
                if _code(exc) in _ABSENT:
                    return None
                raise
            data: bytes = body.read(limit_bytes)
            body.close()
            return data

    def put(self, key: str, data: bytes) -> None:
        """Write, over what is there."""
        with self._client(key) as client:
            client.put_object(Bucket=self._name, Key=key, Body=data)

    def upload(self, key: str, path: str) -> None:
        """Write what a file has; more than a few MB in pieces."""
        with self._client(key) as client:
            client.upload_file(path, self._name, key, Config=_TRANSFER)

    def create(self, key: str, data: bytes) -> bool:
        """Write only if nothing is there."""
        return self._put_if(key, data, IfNoneMatch="*")

    def _put_if(self, key: str, data: bytes, **condition: str) -> bool:
        with self._client(key) as client:
            try:
                client.put_object(Bucket=self._name, Key=key, Body=data, **condition)
            except ClientError as exc:
                if _code(exc) in _REFUSED | _ABSENT:
                    return False
                raise
        return True

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with self._client(key) as client:
            try:
                client.head_object(Bucket=self._name, Key=key)
            except ClientError as exc:
                if _code(exc) in _ABSENT:
                    return False
                raise
        return True

    def keys(self, prefix: str) -> list[str]:
        """Give all keys that begin so."""
        with self._client(prefix) as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=prefix
            )
            return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def delete(self, keys: list[str]) -> None:
        """Delete many, a thousand in one request."""
        for start in range(0, len(keys), _BATCH):
            some = [{"Key": key} for key in keys[start : start + _BATCH]]
            with self._client(keys[start]) as client:
                answer = client.delete_objects(
                    Bucket=self._name, Delete={"Objects": some, "Quiet": True}
                )
            for error in answer.get("Errors", ()):
                uri = f"s3://{self._name}/{error['Key']}"
                raise WorkdirError(f"{uri}: not deleted: {error['Code']}: {error['Message']}")

    def copy(self, key: str, to: str) -> None:
        """Copy within the bucket."""
        source = {"Bucket": self._name, "Key": key}
        with self._client(key) as client:
            try:
                client.copy_object(Bucket=self._name, Key=to, CopySource=source)
            except ClientError as exc:
                if _code(exc) in _ABSENT:
                    raise FileNotFoundError(f"s3://{self._name}/{key}") from exc
                raise

    def look(self, key: str) -> Found | None:
        """Give an object with its ETag."""
        with self._client(key) as client:
            try:
                answer = client.get_object(Bucket=self._name, Key=key)
            except ClientError as exc:
                if _code(exc) in _ABSENT:
                    return None
                raise
            data = answer["Body"].read()
            return Found(data, answer["ETag"], answer["LastModified"].timestamp())

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Write over the object with this ETag."""
        return self._put_if(key, data, IfMatch=version)
