"""Stores that stand for the three clouds, and what watches that none of them is waited for."""

from __future__ import annotations

import asyncio
import os
import traceback

import cloud_workdir
import pytest

from xqute import _clouds

#: What must not wait for a request on the event loop; tests themselves and what users ask for may.
_NEVER_WAIT = (f"xqute{os.sep}_engine{os.sep}", f"xqute{os.sep}_standalone.py")


@pytest.fixture(scope="class")
def store(request, tmp_path_factory):
    """The store of the cloud that the test's class names."""
    scheme = request.cls.scheme
    with cloud_workdir.open_store(scheme, tmp_path_factory.mktemp(scheme)):
        yield


@pytest.fixture
def nothing_waits(monkeypatch):
    """Fail if a run makes a request on the event loop."""
    find = _clouds._find
    seen = []

    def looked(uri):
        if asyncio._get_running_loop() is not None:
            stack = traceback.extract_stack()
            if any(part in frame.filename for frame in stack for part in _NEVER_WAIT):
                seen.append("".join(traceback.format_list(stack[-6:-1])))
        return find(uri)

    monkeypatch.setattr(_clouds, "_find", looked)
    yield
    assert not seen, f"{len(seen)} requests on the event loop; the first:\n{seen[0]}"
