"""What all tests share: a clean environment, the markers `needs` and `concurrency`, a seed."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
import time
import zlib

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("xqute")
    group.addoption(
        "--soak", type=int, default=1, metavar="N", help="run each `concurrency` test N times"
    )
    group.addoption(
        "--seed", type=int, default=None, metavar="S", help="seed of the `seed` fixture and random"
    )
    group.addoption(
        "--kills", type=int, default=8, metavar="N", help="kill N drivers at random in test_chaos"
    )


def pytest_configure(config):
    # A shell that starts the tests in the background has them, and all they start, ignore SIGINT.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.seed is None:  # a worker of pytest-xdist is given the option it has here
        config.option.seed = random.randrange(2**32)


def pytest_report_header(config):
    return f"seed: {config.option.seed} (repeat with --seed={config.option.seed})"


def pytest_generate_tests(metafunc):
    rounds = metafunc.config.option.soak
    if rounds > 1 and metafunc.definition.get_closest_marker("concurrency"):
        metafunc.fixturenames.append("soak_round")
        metafunc.parametrize("soak_round", range(rounds), ids=lambda n: f"round{n}")


def pytest_collection_modifyitems(config, items):
    """Deselect the promises that a suite of the kit does not try: no skip, for they could run.

    Its class says which are tried: `tried`, a set of names; None: all.
    """
    away = [item for item in items if not _is_tried(item)]
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = filter(_is_tried, items)


def _is_tried(item):
    suite = getattr(item, "cls", None)
    tried = getattr(suite, "tried", None)
    return tried is None or item.originalname in tried or item.originalname not in suite.promises()


@pytest.fixture
def every_wrapper_forked(monkeypatch):
    """Have the local scheduler start no wrapper anew that a fork server may run."""
    from xqute._processes.fork_servers import ForkServers

    run = ForkServers.run

    def run_at_last(servers, script):
        servers._was_wanted = True
        give_up_s = time.monotonic() + 30
        while (server := run(servers, script)) is None:
            assert time.monotonic() < give_up_s, "no fork server gets ready"
            # The one that was started, or that has another process ready in a moment.
            next_ = [server for server in servers._servers.values() if server.process is None]
            if not next_:
                break
            # Not for long: one that was killed just after a fork has nobody to tell of that.
            select.select(next_, [], [], 0.05)
            for server in next_:
                servers.hear(server)
        return server

    monkeypatch.setattr(ForkServers, "run", run_at_last)


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        missing = [program for program in marker.args if shutil.which(program) is None]
        if marker.kwargs.get("root") and os.geteuid() != 0:
            missing.append("root's rights")
        if missing:
            reason = f"needs {', '.join(missing)}"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{reason}; in CI that is a failure", pytrace=False)
            pytest.skip(reason)


def _fail_in_ci(report):
    """A skip for want of a module (`pytest.importorskip`) is a failure in CI."""
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if "could not import" in reason and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{reason.removeprefix('Skipped: ')}; in CI that is a failure"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _fail_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _fail_in_ci((yield))


@pytest.fixture(autouse=True)
def seed(request):
    """An int of each test and round its own, the same again with --seed; `random` has it too."""
    base = request.config.option.seed
    value = zlib.crc32(f"{base} {request.node.nodeid}".encode())
    random.seed(value)
    request.node.add_report_section("setup", "seed", f"{value} (repeat with --seed={base})")
    return value


@pytest.fixture(autouse=True, scope="session")
def _clean_environment():
    """Tests see no setting of the person who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("XQUTE_") or name in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"}:
                patch.delenv(name)
        # `xqute` and `python` are those of the interpreter that runs the tests, activated or not.
        patch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
        yield
