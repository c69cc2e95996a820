"""A proxy before a store, with which it is slow, refuses what it is asked, or lists late."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

#: By scheme: the variable that names the store, and what a listing looks like.
_STORES = {
    "gs": ("STORAGE_EMULATOR_HOST", r"GET /storage/v1/b/[^/]+/o\?"),
    "s3": ("AWS_ENDPOINT_URL_S3", r"GET .*list-type=2"),
    "az": ("AZURE_STORAGE_CONNECTION_STRING", r"GET .*comp=list"),
}
#: What concerns one connection alone.
_OF_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Faults:
    """What the proxy does to requests.

    Attributes:
        delay_s: How long each takes at least.
        status: Called with "METHOD /path?query name"; a status to answer with, or None.
        lag_s: How old a listing may be.
        asked: All requests.
    """

    def __init__(self, listing: str) -> None:
        self.delay_s = 0.0
        self.status: Callable[[str], int | None] = lambda request: None
        self.lag_s = 0.0
        self.asked: list[str] = []
        self._listing = listing
        self._listed: dict[str, tuple[float, Answer]] = {}

    def refuse_once(self, status: int = 503) -> None:
        """Refuse each request the first time that it is made."""
        seen: set[str] = set()

        def answer(request: str) -> int | None:
            if request in seen:
                return None
            seen.add(request)
            return status

        self.status = answer

    def answer(self, request: str, ask: Callable[[], Answer]) -> Answer:
        self.asked.append(request)
        time.sleep(self.delay_s)
        status = self.status(request)
        if status is not None:
            return Answer(status, [], b"")
        if not self.lag_s or not re.match(self._listing, request):
            return ask()
        then_s, answer = self._listed.get(request, (-self.lag_s, None))
        if answer is None or time.monotonic() - then_s > self.lag_s:
            answer = ask()
            self._listed[request] = (time.monotonic(), answer)
        return answer


@contextlib.contextmanager
def faulty(scheme: str) -> Iterator[Faults]:
    """Put a proxy before the store that the environment names; it does nothing by itself."""
    variable, listing = _STORES[scheme]
    kept = os.environ[variable]
    port = re.search(r"127\.0\.0\.1:(\d+)", kept)[1]
    faults = Faults(listing)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                super().handle_one_request()

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):
                return self._pass_on
            raise AttributeError(name)

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def ask() -> Answer:
                connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
                try:
                    connection.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    for name, value in self.headers.items():
                        connection.putheader(name, value)
                    connection.endheaders(body)
                    answer = connection.getresponse()
                    return Answer(answer.status, answer.getheaders(), answer.read())
                finally:
                    connection.close()

            # Google's uploads are named in their bodies.
            named = re.search(rb'"name": ?"([^"]+)"', body[:500])
            name = f" {named[1].decode()}" if named else ""
            answer = faults.answer(f"{self.command} {self.path}{name}", ask)
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                if name.lower() not in _OF_HOP:
                    self.send_header(name, value)
            # The answer to HEAD has the length of what it does not bring.
            lengths = [value for name, value in answer.headers if name.lower() == "content-length"]
            length = lengths[0] if lengths and self.command == "HEAD" else str(len(answer.body))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    try:
        os.environ[variable] = kept.replace(f":{port}", f":{server.server_port}")
        yield faults
    finally:
        os.environ[variable] = kept
        server.shutdown()
        thread.join()
        server.server_close()
