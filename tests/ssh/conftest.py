"""Real SSH servers for the tests, started once a session and ended at its end."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

_SERVICE = Path(__file__).resolve().parents[1] / "services" / "ssh" / "sshd.py"
_spec = importlib.util.spec_from_file_location("xqute_test_sshd", _SERVICE)
sshd_service = sys.modules["xqute_test_sshd"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sshd_service)

#: What the contract's new drivers, which are processes of their own, are told by.
VARIABLE = "KIT_SSH_SERVERS"

_numbers = itertools.count()


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.needs("sshd", "ssh-keygen"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return sshd_service.Keys(tmp_path_factory.mktemp("ssh") / "keys")


@pytest.fixture(scope="session")
def servers(keys):
    """Three servers, and one that allows a single channel; nobody may stop these."""
    with _starting(keys) as start, pytest.MonkeyPatch.context() as patch:
        made = {name: start(name) for name in ("a", "b", "c")}
        made["one"] = start("one", max_sessions=1)
        options = {name: server.options() for name, server in made.items()}
        patch.setenv(VARIABLE, json.dumps(options))
        yield made


@pytest.fixture
def own_sshd(keys):
    """Start a server of this test's own, ended with it."""
    with _starting(keys) as start:
        yield lambda name, **options: start(f"own-{name}-{next(_numbers)}", **options)


@contextmanager
def _starting(keys):
    started = []

    def start(name, **options):
        server = sshd_service.Sshd(keys, name, **options)
        started.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in started:
            server.stop()


@pytest.fixture
def relay(tmp_path):
    """A proxy command: its process id is in `relay.pid` beside it."""
    path = tmp_path / "relay.py"
    path.write_text(
        "import os, pathlib, socket, sys, threading\n"
        "pathlib.Path(__file__).with_suffix('.pid').write_text(str(os.getpid()))\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def out():\n"
        "    while data := s.recv(65536):\n"
        "        sys.stdout.buffer.write(data); sys.stdout.buffer.flush()\n"
        "threading.Thread(target=out, daemon=True).start()\n"
        "while data := sys.stdin.buffer.read1(65536): s.sendall(data)\n"
    )
    return path
