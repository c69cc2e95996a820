"""Connections that are lost, servers that go away, and what is true of jobs afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from xqute import JobCause, JobOutcome, JobStatus, SpecPath, Xqute
from xqute.scheduler import Phase
from xqute.testing import bash, until
from xqute_ssh import SshScheduler
from xqute_ssh.commands import build_call
from xqute_ssh.entry import Entry
from xqute_ssh.killing import Killing
from xqute_ssh.link import Link, LinkError

#: Says that it runs, waits for a file, says so again, and ends.
WAITS = 'echo run >>runs.$XQUTE_JOB_INDEX; until [[ -e go ]]; do sleep 0.02; done; exit "$1"'


class Box:
    """One server, the folder its jobs run in, and runs on it."""

    def __init__(self, server, folder, *, staged=False):
        self.server = server
        self.folder = folder
        self.staged = staged
        folder.mkdir(exist_ok=True)

    def xqute(self, opts=None, **keywords):
        opts = {"servers": {"box": self.server.options()}, "cwd": str(self.folder), **(opts or {})}
        if self.staged:
            opts["mounted_workdir"] = f"{self.folder}/there"
        keywords.setdefault("forks", 20)
        return Xqute("ssh", workdir=self.folder / "work", scheduler_opts=opts, **keywords)

    async def feed_running(self, xq, n):
        """Feed jobs that wait, and wait until they all run, and that is known."""
        jobs = [await xq.feed(bash(WAITS, str(number))) for number in range(n)]
        await until(lambda: all(job.jid and self.runs(job) == 1 for job in jobs), "all run", 60)
        return jobs

    def go(self):
        (self.folder / "go").touch()

    def runs(self, job):
        """How often its command was run."""
        path = self.folder / f"runs.{job.index}"
        return len(path.read_text().splitlines()) if path.exists() else 0


def link_of(xq):
    [host] = xq.scheduler._fleet.hosts
    return host.link


async def until_back(xq, old):
    await until(lambda: link_of(xq) not in (None, old), "there is a new connection", 60)


@pytest.fixture(params=[False, True], ids=["shared", "unshared"])
def box(request, own_sshd, tmp_path):
    return Box(own_sshd("box"), tmp_path / "box", staged=request.param)


@pytest.mark.concurrency
async def test_jobs_outlive_a_connection_and_their_ends_are_true(box):
    """Those that end meanwhile, and those that end later; none is run twice."""
    async with box.xqute() as xq:
        jobs = await box.feed_running(xq, 6)
        old = link_of(xq)
        box.server.stop()
        await until(lambda: link_of(xq) is None, "the loss is noticed", 60)
        later = [await xq.feed(bash(WAITS, "9")) for _ in range(3)]
        box.go()
        box.server.start()
        await until_back(xq, old)
    assert [job.rc for job in jobs] == list(range(6))
    assert [job.rc for job in later] == [9] * 3
    assert {box.runs(job) for job in [*jobs, *later]} == {1}
    assert jobs[0].outcome == JobOutcome.SUCCEEDED


@pytest.mark.concurrency
async def test_a_start_that_was_not_acknowledged_waits_for_its_server_and_runs_once(box):
    async with box.xqute() as xq:
        [first] = await box.feed_running(xq, 1)
        old = link_of(xq)
        agent = agent_of(box)
        os.kill(agent, signal.SIGSTOP)  # it reads no command any more
        jobs = [await xq.feed(bash(WAITS, "4")) for _ in range(5)]
        [host] = xq.scheduler._fleet.hosts
        await until(lambda: len(host.entries) == 6, "all are sent")
        box.server.cut()
        await until_back(xq, old)
        await until(lambda: all(box.runs(job) == 1 for job in jobs), "all run", 60)
        await until(lambda: not Path(f"/proc/{agent}").exists(), "the old agent was ended", 60)
        box.go()
    assert [job.rc for job in jobs] == [4] * 5
    assert {box.runs(job) for job in [first, *jobs]} == {1}


async def test_an_agent_that_answers_no_more_is_replaced(box, monkeypatch):
    """Also where no packet is missing: behind a proxy, or stopped."""
    monkeypatch.setattr("xqute_ssh.connection._PULSE_INTERVAL_S", 0.1)
    monkeypatch.setattr("xqute_ssh.connection._PULSE_TIMEOUT_S", 3.0)
    async with box.xqute() as xq:
        jobs = await box.feed_running(xq, 2)
        old, agent = link_of(xq), agent_of(box)
        os.kill(agent, signal.SIGSTOP)
        await until_back(xq, old)
        await until(lambda: not Path(f"/proc/{agent}").exists(), "the old agent was ended", 60)
        box.go()
    assert [job.rc for job in jobs] == [0, 1]
    assert {box.runs(job) for job in jobs} == {1}


async def test_a_connection_is_replaced_while_all_threads_wait_for_its_files(
    own_sshd, tmp_path, monkeypatch
):
    monkeypatch.setattr("xqute_ssh.connection._PULSE_INTERVAL_S", 0.1)
    monkeypatch.setattr("xqute_ssh.connection._PULSE_TIMEOUT_S", 3.0)
    opens, links = Link.sftp, []

    def hangs(link):
        links.append(link)
        transport = link._client.get_transport()
        if link is links[0] and transport is not None:
            transport.join(60)
        return opens(link)

    monkeypatch.setattr(Link, "sftp", hangs)
    box = Box(own_sshd("box"), tmp_path / "box", staged=True)
    there = SpecPath(__file__, mounted=box.folder / "in")
    async with asyncio.timeout(60), box.xqute() as xq:
        jobs = [await xq.feed(["cmp", "in", __file__], inputs=[there]) for _ in range(6)]
        await until(lambda: len(links) >= 4, "they wait", 30)
        os.kill(agent_of(box), signal.SIGSTOP)
    assert [job.rc for job in jobs] == [0] * 6, [job.reason for job in jobs]


def test_a_connection_that_comes_when_the_run_is_over_is_closed(servers, tmp_path, monkeypatch):
    opens, links = Link.open, []
    entered, over = threading.Event(), threading.Event()

    def is_slow(server, *args):
        if server.name == "slow":
            entered.set()
            over.wait(60)
        link = opens(server, *args)
        if server.name == "slow":
            links.append(link)
        return link

    monkeypatch.setattr(Link, "open", is_slow)

    async def connect():
        options = {"quick": servers["a"].options(), "slow": servers["b"].options()}
        workdir = SpecPath(tmp_path / "here", mounted=tmp_path / "there")
        async with SshScheduler(workdir, servers=options):
            await until(entered.is_set, "it connects")

    asyncio.run(connect())
    over.set()

    async def is_closed():
        await until(lambda: links and links[0]._client.get_transport() is None, "it is closed", 30)

    asyncio.run(is_closed())


async def test_a_proxy_command_that_dies_is_a_connection_that_is_lost(servers, relay, tmp_path):
    options = servers["a"].options(proxy_command=f"python3 {relay} %h %p")
    box = Box(servers["a"], tmp_path / "box")
    async with box.xqute({"servers": {"box": options}}) as xq:
        jobs = await box.feed_running(xq, 2)
        old = link_of(xq)
        os.kill(int(relay.with_suffix(".pid").read_text()), signal.SIGKILL)
        await until_back(xq, old)
        box.go()
    assert [job.rc for job in jobs] == [0, 1]
    assert {box.runs(job) for job in jobs} == {1}


async def test_a_start_whose_server_never_comes_back_is_lost(own_sshd, tmp_path):
    box = Box(own_sshd("box"), tmp_path / "box", staged=True)
    async with box.xqute({"unacknowledged_timeout": 1.0}) as xq:
        await (await xq.feed("true")).wait()
        os.kill(agent_of(box), signal.SIGSTOP)
        job = await xq.feed("true")
        [host] = xq.scheduler._fleet.hosts
        await until(lambda: host.entries, "it is sent")
        agent = agent_of(box)
        box.server.stop()
        os.kill(agent, signal.SIGKILL)
        await asyncio.wait_for(job.wait(), 60)
    assert (job.outcome, job.rc) == (JobOutcome.LOST, -3)
    assert "never acknowledged" in job.reason


def agent_of(box):
    """The agent's process: the one that says that it is in charge."""
    run_dir = box.folder / ("there" if box.staged else "work") / ".run"
    return int((run_dir / "ssh.box").read_text().split()[1])


async def test_a_kill_while_the_connection_is_lost_is_done_when_it_is_back(box):
    async with box.xqute() as xq:
        xq.scheduler.kill_grace_s = 1.0
        [job] = await box.feed_running(xq, 1)
        old = link_of(xq)
        box.server.stop()
        await until(lambda: link_of(xq) is None, "the loss is noticed", 60)
        killing = asyncio.ensure_future(xq.scheduler.kill_job_and_update_status(job))
        await until(lambda: job.status is JobStatus.KILLING, "it is being killed")
        box.server.start()
        await until_back(xq, old)
        await asyncio.wait_for(killing, 60)
    assert job.outcome == JobOutcome.KILLED
    assert job.rc in (137, 143)


async def test_a_kill_that_a_dying_connection_has_taken_is_sent_again(box):
    """A cable is pulled long before that is noticed."""
    async with box.xqute() as xq:
        xq.scheduler.kill_grace_s = 0.1
        [job] = await box.feed_running(xq, 1)
        sent, send = [], link_of(xq).send
        link_of(xq).send = lambda code: (sent.append(code), send(code))
        os.kill(agent_of(box), signal.SIGSTOP)
        killing = asyncio.ensure_future(xq.scheduler.kill_job_and_update_status(job))
        try:
            await until(lambda: any("xq_kill" in c and "KILL" in c for c in sent), "KILL is sent")
            box.server.cut()
            await asyncio.wait_for(killing, 30)
        finally:
            box.go()
    assert (job.outcome, job.rc) == (JobOutcome.KILLED, 137)


async def test_what_a_lost_connection_has_not_swept_is_swept_by_the_next():
    asked, lost = [], asyncio.Event()

    async def ask(build):
        asked.append(build(0))
        await lost.wait()
        if len(asked) < 3:
            raise LinkError

    killing = Killing(SimpleNamespace(connection=SimpleNamespace(ask=ask)))
    entries = [Entry(number, None, "tag", "/folder", None) for number in range(3)]
    for entry in entries:
        entry.pid = 100 + entry.number
    sweeps = [asyncio.ensure_future(killing.sweep(entry)) for entry in entries]
    await until(lambda: asked, "the first is asked for")
    lost.set()
    results = await asyncio.gather(*sweeps, return_exceptions=True)
    assert [type(result) for result in results] == [LinkError, LinkError, type(None)]
    assert len(asked) == 3
    assert "'102'" in asked[-1]


async def test_nothing_is_left_of_a_job_that_ends_like_one_whose_claim_is_taken(box):
    async with box.xqute() as xq:
        job = await xq.feed(bash('sleep 30 & echo "$!" >left; exit 121'))
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 121)
    left = Path("/proc", (box.folder / "left").read_text().strip())
    await until(lambda: not left.exists(), "what it has left is ended")


@pytest.mark.needs("mount", "unshare", root=True)
async def test_jobs_of_a_server_that_was_rebooted_are_lost_and_say_so(own_sshd, tmp_path):
    """A reboot: no process is left, and the boot id is another."""
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("11111111-1111-1111-1111-111111111111\n")
    mount = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
    box = Box(own_sshd("box", within=("unshare", "-m", "sh", "-c", mount, "sh")), tmp_path / "box")
    async with box.xqute() as xq:
        jobs = await box.feed_running(xq, 3)
        old = link_of(xq)
        box.server.stop()
        for job in jobs:
            os.killpg(int(str(job.jid).partition("@")[0]), signal.SIGKILL)
        boot_id.write_text("22222222-2222-2222-2222-222222222222\n")
        box.server.start()
        await until_back(xq, old)
    assert {(job.outcome, job.cause) for job in jobs} == {(JobOutcome.LOST, JobCause.HOST_REBOOTED)}
    assert all("started anew" in job.reason for job in jobs)


@pytest.mark.needs("mount", "unshare", root=True)
async def test_a_site_that_kills_at_logout_is_told(own_sshd, tmp_path, caplog):
    etc, run = tmp_path / "etc", tmp_path / "run"
    (etc).mkdir()
    (run / "sessions").mkdir(parents=True)
    (etc / "logind.conf").write_text(
        "[Login]\n#Kill=no\nKillUserProcesses=yes\nKillExcludeUsers=\n"
    )
    mount = (
        f"mkdir -p /etc/systemd /run/systemd && mount --bind {etc} /etc/systemd && "
        f'mount --bind {run} /run/systemd && exec "$@"'
    )
    box = Box(own_sshd("box", within=("unshare", "-m", "sh", "-c", mount, "sh")), tmp_path / "box")
    async with box.xqute() as xq:
        jobs = await box.feed_running(xq, 2)
        old = link_of(xq)
        box.server.cut()
        for job in jobs:
            os.killpg(int(str(job.jid).partition("@")[0]), signal.SIGKILL)
        await until_back(xq, old)
    assert "enable-linger" in caplog.text
    assert {job.outcome for job in jobs} == {JobOutcome.LOST}
    assert all("when they log out" in job.reason for job in jobs)


async def test_jobs_go_elsewhere_while_a_server_is_away_and_come_again_later(own_sshd, tmp_path):
    servers = {name: own_sshd(name) for name in ("a", "b")}
    options = {name: server.options() for name, server in servers.items()}

    def places(jobs):
        return {str(job.jid).rpartition(":")[2] for job in jobs}

    async with Xqute("ssh", workdir=tmp_path, forks=4, scheduler_opts={"servers": options}) as xq:
        hosts = xq.scheduler._fleet.hosts if xq.scheduler._fleet else None
        first = [await xq.feed(["sleep", "0.3"]) for _ in range(4)]
        hosts = xq.scheduler._fleet.hosts
        for job in first:
            await job.wait()
        await until(lambda: all(host.link for host in hosts), "both are there", 60)
        servers["a"].stop()
        await until(lambda: sum(host.link is None for host in hosts) == 1, "one is away", 60)
        second = [await xq.feed("true") for _ in range(8)]
        for job in second:
            await job.wait()
        servers["a"].start()
        await until(lambda: all(host.link for host in hosts), "it is back", 60)
        third = [await xq.feed(["sleep", "0.3"]) for _ in range(4)]
    assert places(second) == {str(servers["b"].port)}
    assert places(third) == {str(server.port) for server in servers.values()}
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


async def test_slots_are_kept_and_the_least_loaded_server_comes_first(servers, tmp_path):
    names = {"a": 1, "b": 3}
    options = {name: servers[name].options(slots=slots) for name, slots in names.items()}
    async with Xqute("ssh", workdir=tmp_path, forks=10, scheduler_opts={"servers": options}) as xq:
        await (await xq.feed("true")).wait()
        hosts = xq.scheduler._fleet.hosts
        await until(lambda: all(host.link for host in hosts), "both are there", 60)
        jobs = [
            await xq.feed(bash("until [[ -e ../go ]]; do sleep 0.02; done"), cwd=tmp_path / "0")
            for _ in range(6)
        ]
        await until(lambda: sum(job.status is JobStatus.RUNNING for job in jobs) == 4, "full", 60)
        assert {host.server.name: host.places.load for host in hosts} == names
        (tmp_path / "go").touch()
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


async def test_logins_that_a_server_refuses_for_now_are_tried_again(own_sshd, tmp_path):
    """Each of 12 names is a connection of its own to a server that takes two logins at once."""
    server = own_sshd("busy", lines=("MaxStartups 2:100:2",))
    options = {f"s{number}": server.options() for number in range(12)}
    # The same address twice would be one server.
    for number, option in enumerate(options.values()):
        option["host"] = f"127.0.{number}.1"
        option["host_keys"], option["known_hosts"] = "accept-new", str(tmp_path / "known")
    server.stop()
    server.address = "0.0.0.0"
    server.start()
    async with Xqute("ssh", workdir=tmp_path, forks=12, scheduler_opts={"servers": options}) as xq:
        await xq.feed("true")
        hosts = xq.scheduler._fleet.hosts
        await until(lambda: all(host.link for host in hosts), "all are there", 90)


async def test_one_session_carries_everything(own_sshd, tmp_path):
    box = Box(own_sshd("box"), tmp_path / "box")
    async with box.xqute() as xq:
        for number in range(40):
            await xq.feed(bash("exit $1", str(number % 3)))
    sessions = re.findall("Starting session", box.server.log.read_text())
    assert len(sessions) == 1
    assert [job.rc for job in xq.jobs] == [number % 3 for number in range(40)]


async def test_the_shells_of_an_agent_serve_one_job_after_another(box):
    """As many as there are jobs at once; one that was killed is replaced."""
    async with box.xqute(forks=2) as xq:
        jobs = [await xq.feed(["true"]) for _ in range(20)]
        for job in jobs:
            await job.wait()
        agent = agent_of(box)
        shells = children_of(agent)
        assert 1 <= len(shells) <= 2
        for shell in shells:
            os.kill(shell, signal.SIGKILL)
        # What is on its way to one that is about to die is lost with it.
        await until(lambda: not any(map(lives, shells)), "they are dead")
        later = [await xq.feed(bash("exit 4")) for _ in range(4)]
        for job in later:
            await job.wait()
        assert agent_of(box) == agent
        assert children_of(agent).isdisjoint(shells)
    assert [job.rc for job in jobs] == [0] * 20
    assert [job.rc for job in later] == [4] * 4
    await until(lambda: not Path(f"/proc/{agent}").exists(), "the agent has ended", 60)
    assert shells.isdisjoint(map(int, filter(str.isdigit, os.listdir("/proc"))))


def lives(pid):
    try:
        return stat_of(pid)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid):
    return {int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()}


async def test_a_hundred_jobs_are_killed_in_one_round_trip_per_server(
    servers, tmp_path, monkeypatch
):
    """Where none is so young that its shell may have missed the first TERM."""
    monkeypatch.setattr("xqute_ssh.killing._YOUNG_S", 0.0)
    asked = []
    options = {name: servers[name].options() for name in ("a", "b")}
    async with Xqute("ssh", workdir=tmp_path, forks=100, scheduler_opts={"servers": options}) as xq:
        xq.scheduler.kill_grace_s = 30.0
        script = "trap 'exit 3' TERM; echo ready; while :; do sleep 54321 & wait; done"
        jobs = [await xq.feed(bash(script)) for _ in range(100)]
        await until(lambda: all(_says(job, "ready\n") for job in jobs), "all are ready", 90)
        # They know it before their driver does.
        runs = JobStatus.RUNNING
        await until(lambda: all(job.status is runs for job in jobs), "the driver knows it", 90)
        await until(lambda: len(sleepers("54321")) == 100, "all sleep", 90)
        for host in xq.scheduler._fleet.hosts:
            assert host.places.load == 50
            _watch(host, asked)
        await xq.scheduler.kill_running_jobs(jobs)
    assert {job.outcome for job in jobs} == {JobOutcome.KILLED}
    assert asked.count(("a", "xq_kill")) == asked.count(("b", "xq_kill")) == 1
    assert not sleepers("54321")


def _says(job, text):
    return job.stdout_file.exists() and job.stdout_file.read_text() == text


def _watch(host, asked):
    send = host.link.send

    def watched(code):
        asked.append((host.server.name, code.split()[0]))
        send(code)

    host.link.send = watched


def read(path):
    return Path(path).read_text()


def stat_of(pid):
    """Its state, parent, group, session, ...; [19]: when it began."""
    return read(f"/proc/{pid}/stat").rpartition(") ")[2].split()


async def test_a_process_number_that_is_used_again_is_nobodys_job(servers, tmp_path):
    """Neither a stranger's process, nor one that has ended and was not waited for."""
    stranger = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220  # it blocks nobody
    zombie = subprocess.Popen(["true"])  # noqa: ASYNC220
    try:
        await until(lambda: stat_of(zombie.pid)[0] == "Z", "it has ended")
        ticks = stat_of(zombie.pid)[19]
        boot = read("/proc/sys/kernel/random/boot_id").strip()
        async with SshScheduler(tmp_path, servers={"box": servers["a"].options()}) as scheduler:
            jobs = []
            for index, (pid, began) in enumerate(((stranger.pid, "1"), (zombie.pid, ticks))):
                job = scheduler.create_job(index, "true")
                (job.metadir / f"job.start.{scheduler.claim_tag(job)}").write_text(
                    f"box {boot} {pid} {began} -\n"
                )
                job.jid = f"{pid}@{scheduler._fleet.hosts[0].server.address}"
                jobs.append(job)
            states = await scheduler.poll_jobs(jobs)
            assert {state.phase for state in states.values()} == {Phase.GONE}
            for force in (False, True):
                await scheduler.kill_jobs(jobs, force=force)
            [host] = scheduler._fleet.hosts
            # Also if somebody takes it for one.
            await host.connection.ask(lambda n: build_call("kill", n, "KILL", stranger.pid, "1"))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        zombie.wait()


def sleepers(word):
    """The processes of `sleep` with this argument."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"sleep\0{word}\0" in file.read_text():
                found.append(file.parent.name)
        except OSError:
            continue  # it has ended meanwhile
    return found


_DRIVER = """
import json, sys
import xqute
task = json.loads(sys.argv[1])
commands = [["bash", "-c", task["script"], "bash", str(n % 5)] for n in range(task["n"])]
keywords = {"workdir": task["workdir"], "scheduler_opts": task["opts"], "forks": task["forks"]}
if task.get("resume"):
    keywords["resume"] = True
jobs = xqute.run(commands, scheduler="ssh", **keywords)
print(json.dumps([[job.rc, str(job.outcome), job.reason] for job in jobs]))
"""


def start_driver(task, within=(), **keywords):
    argv = [*within, sys.executable, "-c", _DRIVER, json.dumps(task)]
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords
    )


def count_runs(folder, n):
    return [len((folder / f"runs.{number}").read_text().splitlines()) for number in range(n)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("staged", [False, True], ids=["shared", "unshared"])
@pytest.mark.concurrency
def test_a_driver_that_is_killed_again_and_again_loses_nothing(servers, tmp_path, seed, staged):
    """Each time without warning; the last one finds every success done once, and all true ends."""
    n, n_kills = 30, int(os.environ.get("KIT_SSH_KILLS", "5"))
    opts = {
        "servers": {name: servers[name].options() for name in ("a", "b")},
        "cwd": str(tmp_path),
    }
    if staged:
        # A server has a workdir of its own: one name, one server.
        opts["servers"].pop("b")
        opts["mounted_workdir"] = f"{tmp_path}/there"
    task = {
        "script": 'echo run >>runs.$XQUTE_JOB_INDEX; sleep 0.3; exit "$1"',
        "n": n,
        "workdir": str(tmp_path / "work"),
        "opts": opts,
        "forks": 4,
        "resume": True,
    }
    luck = random.Random(seed)
    for _ in range(n_kills):
        driver = start_driver(task)
        try:
            driver.wait(luck.uniform(0.4, 2.5))
        except subprocess.TimeoutExpired:
            driver.kill()
        driver.communicate()
    driver = start_driver(task)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err.decode()
    ends = json.loads(out)
    # A failure is run again by the next driver: only successes are adopted.
    assert [rc for rc, _, _ in ends] == [number % 5 for number in range(n)], err.decode()
    runs = count_runs(tmp_path, n)
    assert all(count == 1 for number, count in enumerate(runs) if number % 5 == 0), runs


@pytest.mark.timeout(300)
@pytest.mark.needs("ip", "unshare", root=True)
def test_a_cable_that_is_pulled_for_20_s_loses_no_job(keys, tmp_path):
    """Two servers with addresses of their own; one cannot be reached for a while, in mid-run."""
    net = Net(f"xq{os.getpid()}")
    servers = []
    try:
        net.up()
        for number, name in enumerate(("east", "west"), 1):
            server = sys.modules["xqute_test_sshd"].Sshd(
                keys,
                f"{name}-{os.getpid()}",
                within=("ip", "netns", "exec", net.host(number)),
                address=f"10.199.0.{number}",
                port=22,
            )
            servers.append(server)
            server.start()
        n = 48
        task = {
            "script": 'echo run >>runs.$XQUTE_JOB_INDEX; sleep 3; exit "$1"',
            "n": n,
            "workdir": str(tmp_path / "work"),
            "opts": {
                "servers": {server.name: server.options() for server in servers},
                "cwd": str(tmp_path),
            },
            "forks": 8,
        }
        driver = start_driver(task, net.within())
        try:
            deadline = time.monotonic() + 60
            while len(list(tmp_path.glob("runs.*"))) < 10:
                assert time.monotonic() < deadline
                assert driver.poll() is None, driver.communicate()
                time.sleep(0.02)
            net.pull(1)
            time.sleep(20)  # that is how long it is pulled
            net.plug(1)
            out, err = driver.communicate(timeout=200)
        finally:
            driver.kill()
            driver.communicate()
    finally:
        for server in servers:
            server.stop()
        net.down()
    assert [rc for rc, _, _ in json.loads(out)] == [number % 5 for number in range(n)], err.decode()
    assert count_runs(tmp_path, n) == [1] * n
    assert "lost" in err.decode()


class Net:
    """Two hosts and a client, each in a network namespace, on one bridge; nothing leaves them."""

    def __init__(self, name):
        self._name = name
        self._client = f"{name}c"

    def host(self, number):
        return f"{self._name}h{number}"

    def within(self):
        return ("ip", "netns", "exec", self._client)

    def up(self):
        ip("netns", "add", self._client)
        ip("-n", self._client, "link", "set", "lo", "up")
        ip("-n", self._client, "link", "add", "br0", "type", "bridge")
        ip("-n", self._client, "addr", "add", "10.199.0.254/24", "dev", "br0")
        ip("-n", self._client, "link", "set", "br0", "up")
        for number in (1, 2):
            host = self.host(number)
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
            ip(
                *("-n", self._client, "link", "add", f"p{number}", "type", "veth"),
                *("peer", "name", "eth0", "netns", host),
            )
            ip("-n", host, "addr", "add", f"10.199.0.{number}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", self._client, "link", "set", f"p{number}", "master", "br0", "up")

    def pull(self, number):
        ip("-n", self._client, "link", "set", f"p{number}", "down")

    def plug(self, number):
        ip("-n", self._client, "link", "set", f"p{number}", "up")

    def down(self):
        for name in (self._client, self.host(1), self.host(2)):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.mark.alone
async def test_the_end_of_a_job_is_heard_of_within_20_ms(servers, tmp_path):
    """Median over 40 jobs, from the end claim's time to the hook, on loopback."""
    from xqute import plugin

    class Hears:
        name = "hears"

        def __init__(self):
            self.delays_s = []

        @plugin.impl
        async def on_job_succeeded(self, scheduler, job):
            [claim] = job.metadir.glob("job.end.*")
            self.delays_s.append(time.time() - claim.stat().st_mtime)

    hears = Hears()
    opts = {"servers": {"box": servers["a"].options()}}
    async with Xqute("ssh", workdir=tmp_path, plugins=[hears], scheduler_opts=opts) as xq:
        for _ in range(40):
            await xq.feed("true")
    assert sorted(hears.delays_s)[20] <= 0.020


# --- resources ----------------------------------------------------------------------------------


async def test_jobs_that_need_all_cores_run_one_at_a_time_per_server(servers, tmp_path):
    n_cpus = len(os.sched_getaffinity(0))
    options = {name: servers[name].options() for name in ("a", "b")}
    # Which server it is, its connection says.
    alone = f"{tmp_path}/alone-${{SSH_CONNECTION##* }}"
    async with Xqute("ssh", workdir=tmp_path, forks=8, scheduler_opts={"servers": options}) as xq:
        for _ in range(6):
            script = f'mkdir "{alone}" && sleep 0.1 && rmdir "{alone}"'
            await xq.feed(bash(script), resources={"cpus": n_cpus})
        small = await xq.feed("true")
        greedy = await xq.feed("true", resources={"cpus": n_cpus + 1000})
        queued = await xq.feed("true", resources={"queue": "long"})
    assert [job.rc for job in xq.jobs[:6]] == [0] * 6
    assert small.outcome == JobOutcome.SUCCEEDED
    assert (greedy.outcome, queued.outcome) == (JobOutcome.SUBMIT_FAILED,) * 2
    assert "no server has as much" in greedy.reason
    assert "queue means nothing" in queued.reason


async def test_graphics_processors_are_given_to_one_job_each(own_sshd, tmp_path):
    server = own_sshd("gpus", lines=("SetEnv CUDA_VISIBLE_DEVICES=3,5",))
    opts = {"servers": {"box": server.options()}}
    async with Xqute("ssh", workdir=tmp_path, forks=4, scheduler_opts=opts) as xq:
        script = f"mkdir {tmp_path}/gpu-$CUDA_VISIBLE_DEVICES && sleep 0.1 && "
        script += f"rmdir {tmp_path}/gpu-$CUDA_VISIBLE_DEVICES && echo $CUDA_VISIBLE_DEVICES"
        for _ in range(6):
            await xq.feed(bash(script), resources={"gpus": 1})
    assert [job.rc for job in xq.jobs] == [0] * 6
    assert {job.stdout_file.read_text() for job in xq.jobs} == {"3\n", "5\n"}
