"""What a job has written in a server's own workdir is home when its end is told."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest import mock

import paramiko
import pytest

from xqute import JobOutcome, JobStatus, SpecPath, Xqute, plugin
from xqute.scheduler import Phase
from xqute.testing import bash, until
from xqute_ssh import SshScheduler, staging
from xqute_ssh.files import Files
from xqute_ssh.link import Link, LinkError
from xqute_ssh.recovery import Attempt, find_attempts

#: More than comes with the word of an end.
MUCH = 20_000


class Reads:
    """Reads the files of each job in the hook of its end."""

    name = "reads"

    def __init__(self):
        self.files = {}

    async def _read(self, job):
        names = ("job.stdout", "job.stderr", "job.rc", "job.status")
        self.files[job.index, job.trial_count] = [(job.metadir / n).read_bytes() for n in names]

    @plugin.impl
    async def on_job_succeeded(self, scheduler, job):
        await self._read(job)

    @plugin.impl
    async def on_job_failed(self, scheduler, job):
        await self._read(job)

    @plugin.impl
    async def on_job_killed(self, scheduler, job):
        await self._read(job)


@pytest.fixture
def unshared(tmp_path):
    def make(server, **keywords):
        opts = {
            "servers": {"box": server.options()},
            "mounted_workdir": f"{tmp_path}/there",
            "log_interval": 0.05,
            "cwd": str(tmp_path),
        }
        reads = Reads()
        plugins = [reads]
        return reads, Xqute(
            "ssh", workdir=tmp_path, plugins=plugins, scheduler_opts=opts, **keywords
        )

    return make


def said(index, text=b"x"):
    return b"%d:" % index + text * MUCH + b"\n"


def all_is_home(reads, n_jobs):
    """Each job's hook has read all that it has said; its exit code is its index."""
    for index in range(n_jobs):
        status = b"7" if index else b"6"
        assert reads.files[index, 0] == [said(index), b"err\n", b"%d" % index, status]


SAYS = f'printf -v s "%{MUCH}s" ""; printf "%s:%s\\n" "$1" "${{s// /x}}"; echo err >&2; '


@pytest.mark.concurrency
@pytest.mark.parametrize("name", ["a", "one"], ids=["two channels", "one channel"])
async def test_much_of_many_jobs_that_end_together_is_home_at_each_end(servers, unshared, name):
    reads, xq = unshared(servers[name], forks=16)
    script = SAYS + 'touch ready.$1; until [[ -e go ]]; do sleep 0.02; done; exit "$1"'
    async with xq:
        for index in range(16):
            await xq.feed(bash(script, str(index)))
        folder = xq.scheduler.workdir
        await until(lambda: len(list(folder.glob("ready.*"))) == 16, "all have spoken", 60)
        (folder / "go").touch()
    all_is_home(reads, 16)


@pytest.mark.concurrency
async def test_what_was_written_while_the_connection_was_lost_is_home(own_sshd, unshared, tmp_path):
    server = own_sshd("box")
    reads, xq = unshared(server, forks=8)
    script = "touch ready.$1; until [[ -e go ]]; do sleep 0.02; done; " + SAYS + 'exit "$1"'
    async with xq:
        for index in range(8):
            await xq.feed(bash(script, str(index)))
        await until(lambda: len(list(tmp_path.glob("ready.*"))) == 8, "all run", 60)
        [host] = xq.scheduler._fleet.hosts
        server.stop()
        await until(lambda: host.link is None, "the loss is noticed", 60)
        (tmp_path / "go").touch()
        await until(
            lambda: len(list((tmp_path / "there").glob("*/job.end.*"))) == 8, "all have ended", 60
        )
        server.start()
    all_is_home(reads, 8)


@pytest.mark.concurrency
async def test_a_connection_that_is_lost_in_mid_homing_loses_nothing(own_sshd, unshared, tmp_path):
    """Again and again, while much is on its way home."""
    server = own_sshd("box")
    reads, xq = unshared(server, forks=8)
    async with xq:
        for index in range(24):
            await xq.feed(bash(f'{SAYS}exit "$1"', str(index)))
        for n in (4, 10, 16):
            await until(lambda n=n: len(reads.files) >= n, f"{n} have ended", 60)
            server.cut()
    all_is_home(reads, 24)


@pytest.mark.parametrize("lost", [EOFError(), paramiko.SSHException("Server connection dropped")])
async def test_a_file_channel_that_is_lost_says_nothing_about_a_file(tmp_path, lost):
    """Nor need anybody have noticed: whoever has told the end of such a job lacked its output."""
    channel = mock.create_autospec(paramiko.SFTPClient, instance=True)
    channel.get_channel.return_value.closed = False
    channel.stat.side_effect = lost
    link = mock.create_autospec(Link, instance=True)
    link.sftp.return_value = channel
    with ThreadPoolExecutor() as executor:
        files = Files(link, executor, mock.AsyncMock())
        with pytest.raises(LinkError):
            await files.follow("/there/job.stdout", str(tmp_path / "job.stdout"), 0)
    channel.close.assert_called_once_with()


@pytest.mark.concurrency
async def test_what_a_killed_job_has_written_is_home(servers, unshared, tmp_path):
    reads, xq = unshared(servers["a"], forks=8)
    says_more = "trap 'echo more; exit 3' TERM; "
    async with xq:
        xq.scheduler.kill_grace_s, xq.scheduler.kill_timeout_s = 0.5, 60.0
        jobs = []
        for index in range(8):
            trap = says_more if index % 2 else "trap '' TERM; "
            script = f"{trap}{SAYS}touch ready.$1; while :; do sleep 0.05; done"
            jobs.append(await xq.feed(bash(script, str(index))))
        await until(lambda: len(list(tmp_path.glob("ready.*"))) == 8, "all have spoken", 60)
        await until(lambda: all(job.status is JobStatus.RUNNING for job in jobs), "we know it", 60)
        await xq.scheduler.kill_running_jobs(jobs)
    assert {job.outcome for job in jobs} == {JobOutcome.KILLED}
    for index, job in enumerate(jobs):
        out, err, rc, status = reads.files[index, 0]
        assert out == said(index) + (b"more\n" if index % 2 else b"")
        assert err.startswith(b"err\n")  # and then what bash says of the signal
        assert int(rc) == job.rc
        assert status in (b"6", b"7")


async def test_a_question_that_is_overtaken_by_the_end_fetches_nothing_again(servers, unshared):
    """When the answer comes, the job has ended, and its files may have been moved to a cloud."""
    _, xq = unshared(servers["a"])
    async with asyncio.timeout(60), xq:
        job = await xq.feed(["true"])
        await job.wait()
        [host] = xq.scheduler._fleet.hosts
        check = host.check
        fetched = []

        async def is_overtaken(identities):
            answers = await check(identities)
            shutil.rmtree(job.metadir)
            return answers

        host.check, host.adopt = is_overtaken, fetched.append
        states = await xq.scheduler.poll_jobs([job])
    assert (states[job].phase, states[job].rc) == (Phase.ENDED, 0)
    assert fetched == []


@pytest.mark.parametrize("then", ["the server goes away", "the question is given up"])
async def test_a_question_does_not_wait_for_a_server_that_is_away(
    own_sshd, tmp_path, monkeypatch, then
):
    """An end is on its way home, and others are to be asked about."""
    server = own_sshd("box")
    workdir = SpecPath(tmp_path / "here", mounted=f"{tmp_path}/there")
    scheduler = SshScheduler(workdir, servers={"box": server.options()})
    comes_home, is_home = asyncio.Event(), asyncio.Event()

    async def fetch_all(*_args):
        comes_home.set()
        await is_home.wait()
        return ""

    monkeypatch.setattr("xqute_ssh.host.fetch_all", fetch_all)
    async with asyncio.timeout(60), scheduler:
        [host] = scheduler._fleet.hosts
        job = scheduler.create_job(0, ["true"])
        job.jid = f"-@{host.server.address}"
        there = tmp_path / "there" / "0"
        there.mkdir()
        (there / f"job.end.{scheduler.claim_tag(job)}").write_text("0 6 \n")
        question = asyncio.ensure_future(scheduler.poll_jobs([job]))
        await comes_home.wait()
        if then == "the server goes away":
            server.stop()
            states = await question
        else:
            question.cancel()
            await asyncio.wait([question])
            states = await scheduler.poll_jobs([job])
        assert states[job].phase is Phase.RUNNING
        is_home.set()
        await until(lambda: not host.entries, "it is home")


# --- attempts that are being sent ---------------------------------------------------------------


async def test_an_attempt_that_is_being_sent_is_not_taken_for_one_that_was_lost(servers, tmp_path):
    """Whoever asks for its key at the wrong moment does not have it revoked."""
    workdir = SpecPath(tmp_path / "here", mounted=f"{tmp_path}/there")
    scheduler = SshScheduler(workdir, servers={"box": servers["a"].options()})
    async with scheduler:
        ended = asyncio.Event()
        states = []

        def hear(_job, state):
            states.append(state)
            if state.phase is not Phase.RUNNING:
                ended.set()

        scheduler.watch(hear)
        job = scheduler.create_job(0, bash("echo done; exit 3"))
        job.clean()
        [host] = scheduler._fleet.hosts
        asked, send = [], host.link.send
        host.link.send = lambda code: (asked.append(code.split()[0]), send(code))
        question = asyncio.ensure_future(scheduler.find_submitted([scheduler.submission_key(job)]))
        # Its question is on its way.
        await until(lambda: asked == ["xq_check"], "it asks the server")
        job.jid = await scheduler.submit_job(job)
        await question
        await asyncio.wait_for(ended.wait(), 60)
    assert "xq_revoke" not in asked
    assert (states[-1].phase, states[-1].rc) == (Phase.ENDED, 3)
    assert job.stdout_file.read_text() == "done\n"


@pytest.mark.parametrize("order", [1, -1], ids=["it comes first", "it comes last"])
async def test_who_runs_an_attempt_has_it(order):
    """Servers that are containers have one boot, and not each other's processes."""

    def make(name, *words):
        async def check(identities):
            return [words for _ in identities]

        return SimpleNamespace(check=check, is_staged=False, server=SimpleNamespace(address=name))

    hosts = [make("me@a:22", "running", "5", "7"), make("me@b:22", "gone")][::order]
    attempts = {"xq-r-0-0": Attempt("/here/0", "/here/0", "r-0")}
    assert await find_attempts(hosts, attempts) == {"xq-r-0-0": "5@me@a:22"}


async def test_a_server_that_is_named_no_more_is_warned_of(servers, tmp_path, caplog):
    scheduler = SshScheduler(tmp_path, servers={"box": servers["a"].options()})
    async with asyncio.timeout(60), scheduler:
        job = scheduler.create_job(0, ["true"])
        job.jid = "5@me@elsewhere:22"
        await scheduler.reattach([job])
    assert "1 jobs of an earlier run are on me@elsewhere:22" in caplog.text


async def test_an_attempt_that_was_revoked_before_is_found_to_be_lost(servers, tmp_path):
    """The driver died, or the connection, before it was written here."""
    workdir = SpecPath(tmp_path / "here", mounted=f"{tmp_path}/there")
    scheduler = SshScheduler(workdir, servers={"box": servers["a"].options()})
    async with asyncio.timeout(60), scheduler:
        job = scheduler.create_job(0, ["true"])
        claim = f"job.start.{scheduler.claim_tag(job)}"
        (job.metadir / claim).touch()
        there = tmp_path / "there" / "0"
        there.mkdir()
        (there / claim).write_text("revoked driver\n")
        assert await scheduler.find_submitted([scheduler.submission_key(job)]) == {}
        assert (job.metadir / claim).read_text() == "revoked driver\n"


async def test_an_end_that_is_home_is_home_with_all_that_belongs_to_it(
    servers, tmp_path, monkeypatch
):
    """A driver that dies while it writes leaves no end claim without exit code and status."""
    workdir = SpecPath(tmp_path / "here", mounted=f"{tmp_path}/there")
    options = {"box": servers["a"].options()}
    create, died = staging._create, []

    def dies(path, data):
        if "/job.end." in path:
            died.append({name: job.read_file(f"job.{name}") for name in ("rc", "status", "stdout")})
            raise OSError(5, "dead")
        create(path, data)

    monkeypatch.setattr(staging, "_create", dies)
    async with SshScheduler(workdir, servers=options) as scheduler:
        job = scheduler.create_job(0, bash("echo done; exit 3"))
        run_id = scheduler.claim_tag(job).removesuffix("-0")
        job.clean()
        job.jid = await scheduler.submit_job(job)
        await until(lambda: died, "its end is written", 60)
    monkeypatch.undo()
    assert died == [{"rc": "3", "status": "7", "stdout": "done\n"}]
    async with SshScheduler(workdir, servers=options) as scheduler:
        again = scheduler.create_job(0, bash("echo done; exit 3"))
        again.jid, again.run_id = job.jid, run_id
        states = await scheduler.poll_jobs([again])
        assert (states[again].phase, states[again].rc) == (Phase.ENDED, 3)
    assert list(job.metadir.glob("job.end.*"))
