"""Drivers that are killed: their jobs run on, and the next driver takes them up from the bucket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from xqute import JobOutcome, Xqute, _clouds
from xqute._engine.far_journal import FarJournal, _cache_of
from xqute.testing import until
from xqute_gbatch import GbatchScheduler

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.needs("fusermount3", "unshare", "openssl", root=True),
]

_APPENDS = 'echo run >>"$XQUTE_JOB_METADIR/runs"'
_WAITS = "until [[ -e $XQUTE_METADIR/go ]]; do sleep 0.05; done"
#: One job runs on, one ends while perhaps nobody looks.
SCRIPTS = [f"{_APPENDS}; {_WAITS}; echo done; exit 5", f"{_APPENDS}; exit 0"]

DRIVER = """
    import asyncio, json, os, sys
    from xqute import Xqute
    from xqute_gbatch import GbatchScheduler

    class Quick(GbatchScheduler):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            self.upload_interval_s = 0.2

    async def main(workdir, scripts):
        opts = {
            "project": "project",
            "location": "here",
            "client_options": json.loads(os.environ["GBATCH_TEST_OPTIONS"]),
            "recheck_interval": 0.5,
        }
        async with Xqute(Quick, workdir=workdir, scheduler_opts=opts, forks=4) as xq:
            for script in scripts:
                await xq.feed(["bash", "-c", script])
            while not all(job.started_at for job in xq.jobs):
                await asyncio.sleep(0.05)
            print("started", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


def start_and_kill(workdir):
    """Have a driver start the jobs, and be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), workdir, json.dumps(SCRIPTS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        assert line == "started\n", process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def read(job, name):
    return _clouds.get(f"{job.metadir}/{name}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """What a machine keeps of journals."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("machine", ["the same machine", "another machine"])
async def test_the_next_driver_takes_up_what_a_killed_one_has_started(
    batch, make_workdir, cache, machine, monkeypatch
):
    workdir = make_workdir()
    start_and_kill(workdir)
    if machine == "another machine":
        # Nothing is left but what is in the bucket, and the lock is as old as it has to be.
        shutil.rmtree(cache)
        _clouds.delete([f"{workdir}/.run/lock"])
    before = batch.ask("calls")["CreateJob"]
    opts = {
        "project": "project",
        "location": "here",
        "client_options": batch.options,
        "recheck_interval": 0.3,
    }
    async with Xqute(
        GbatchScheduler, workdir=workdir, scheduler_opts=opts, forks=4, resume=True
    ) as xq:
        jobs = [await xq.feed(["bash", "-c", script]) for script in SCRIPTS]
        await jobs[1].wait()
        _clouds.put(f"{workdir}/go", b"")
    assert [(job.outcome, job.rc) for job in jobs] == [
        (JobOutcome.FAILED, 5),
        (JobOutcome.SUCCEEDED, 0),
    ]
    assert all(job.adopted for job in jobs)
    assert [read(job, "runs") for job in jobs] == [b"run\n", b"run\n"]
    assert read(jobs[0], "job.stdout") == b"done\n"
    assert batch.ask("calls")["CreateJob"] == before, "a job was submitted twice"


async def test_a_journal_of_parts_is_read_from_the_bucket_alone(make_workdir, store_url, cache):
    folder = f"{make_workdir()}/.run/journal"
    journal, ledger = await FarJournal.open(folder, "0123abcd", durable=False)
    assert ledger.entries == {}
    job = GbatchScheduler("gs://bucket/x", project="p", location="l").create_job(7, ["true"])
    assert journal.sending(None, [(job, "digest")]) is None
    await journal.sync()
    journal.accepted(job, "native")
    await journal.sync()
    names = _clouds.names(folder)
    assert len(names) == 3
    assert all(name.startswith("000001-0123abcd.jsonl.") for name in names)

    shutil.rmtree(cache)
    later, ledger = await FarJournal.open(folder, "89abcdef", durable=False)
    assert (ledger.entries[7].jid, ledger.entries[7].run_id) == ("native", "0123abcd")
    await later.close()
    assert "000002-89abcdef.jsonl" in _clouds.names(folder)
    assert not any(name.startswith("000002-89abcdef.jsonl.") for name in _clouds.names(folder))

    os.makedirs(_cache_of(folder), exist_ok=True)
    _clouds.delete([f"{folder}/{name}" for name in _clouds.names(folder)])
    again, ledger = await FarJournal.open(folder, "fedcba98", durable=False)
    assert ledger.entries == {}, "what this machine remembers of a folder that was removed"
    await again.close()
    os.close(journal._fd)


async def test_what_nobody_waits_for_is_uploaded_soon(make_workdir, store_url, cache):
    folder = f"{make_workdir()}/.run/journal"
    journal, _ = await FarJournal.open(folder, "0123abcd", durable=False)
    job = GbatchScheduler("gs://bucket/x", project="p", location="l").create_job(7, ["true"])
    journal.accepted(job, "native")
    await until(lambda: len(_clouds.names(folder)) == 2, "there is a second part", 20)
    await journal.close()
    assert _clouds.names(folder) == ["000001-0123abcd.jsonl"]
