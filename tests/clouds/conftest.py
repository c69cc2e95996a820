"""Stores that stand for the three clouds, and what watches that none of them is waited for."""

from __future__ import annotations

import asyncio
import re
import traceback

import cloud_workdir
import pytest

from xqute import _clouds

#: What must not wait for a request on the event loop, and who may: the tests, also when the other
#: has called them.
_NEVER_WAITS = re.compile(r"/xqute/(_engine/|_standalone\.py)")
_MAY_WAIT = re.compile(r"/xqute/testing/|/tests/")


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
            stack = traceback.extract_stack()[:-1]
            for frame in reversed(stack):
                if _MAY_WAIT.search(frame.filename):
                    break
                if _NEVER_WAITS.search(frame.filename):
                    seen.append("".join(traceback.format_list(stack[-6:])))
                    break
        return find(uri)

    monkeypatch.setattr(_clouds, "_find", looked)
    yield
    assert not seen, f"{len(seen)} requests on the event loop; the first:\n{seen[0]}"
