"""Starts what stands for the stores of the three clouds, for the SDKs of this process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SetEnv = Callable[[str, str], object]
#: The emulator's, as its documentation has it.
_AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


class NotHereError(Exception):
    """What is needed is not installed; says what."""


@contextlib.contextmanager
def store(scheme: str, folder: Path, setenv: SetEnv) -> Iterator[Callable[[], int]]:
    """Start a store with an empty bucket, `<scheme>://bucket`; give what counts requests to it.

    Raises:
        NotHereError: If its server is not installed.
    """
    start = {"gs": _start_gs, "s3": _start_s3, "az": _start_az}[scheme]
    with start(folder, setenv), _counted() as n_requests:
        yield n_requests


@contextlib.contextmanager
def _counted() -> Iterator[Callable[[], int]]:
    """Count what the SDKs send; they use one of two libraries for it."""
    import requests
    from botocore.httpsession import URLLib3Session

    n_sent = 0

    def counting(send):
        def count(*args, **kwargs):
            nonlocal n_sent
            n_sent += 1
            return send(*args, **kwargs)

        return count

    sends = [(requests.Session, "request"), (URLLib3Session, "send")]
    kept = [(owner, name, getattr(owner, name)) for owner, name in sends]
    for owner, name, send in kept:
        setattr(owner, name, counting(send))
    try:
        yield lambda: n_sent
    finally:
        for owner, name, send in kept:
            setattr(owner, name, send)


@contextlib.contextmanager
def _start_gs(folder, setenv):
    path = Path(__file__).parent / "gbatch" / "running.py"
    spec = importlib.util.spec_from_file_location("gbatch_running", path)
    running = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(running)
    with running.bucket_store(folder) as url:
        setenv("STORAGE_EMULATOR_HOST", url)
        setenv("GOOGLE_CLOUD_PROJECT", "project")
        setenv("NO_GCE_CHECK", "true")
        yield


@contextlib.contextmanager
def _start_s3(folder, setenv):
    import boto3

    port = _choose_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port, folder):
        setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        setenv("AWS_ACCESS_KEY_ID", "x")
        setenv("AWS_SECRET_ACCESS_KEY", "x")
        setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.Session().client("s3").create_bucket(Bucket="bucket")
        yield


def _choose_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        return chosen.getsockname()[1]


@contextlib.contextmanager
def _running(command, port: int, folder: Path) -> Iterator[None]:
    """Run a server until the block ends; it answers when the block begins."""
    path = folder / "server.log"
    with path.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, path.read_text()
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def _find_azurite() -> Path:
    """Where `azure/install` has put it, or AZURITE says it is."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    where = Path(cache, "xqute-tests", "azurite", "node_modules", "azurite", "dist", "src", "blob")
    found = Path(os.environ.get("AZURITE") or where / "main.js")
    if not found.is_file():
        raise NotHereError("azurite, which stands for Azure, is not installed")
    return found


@contextlib.contextmanager
def _start_az(folder, setenv):
    from azure.storage.blob import ContainerClient

    program = _find_azurite()
    port = _choose_port()
    options = f"--inMemoryPersistence --blobHost 127.0.0.1 --blobPort {port} --skipApiVersionCheck"
    command = ["node", program, *options.split(), "--silent", "--disableTelemetry"]
    connection = (
        "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        f"AccountKey={_AZURE_KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    )
    with _running(command, port, folder):
        setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
        ContainerClient.from_connection_string(connection, "bucket").create_container()
        yield
