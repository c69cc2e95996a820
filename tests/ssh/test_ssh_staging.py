"""Without a shared workdir: scripts and inputs go out, logs and outputs come back."""

from __future__ import annotations

import asyncio
import os
import random
import stat
import subprocess

import pytest

from xqute import JobCause, JobOutcome, SchedulerError, SpecPath, Xqute
from xqute.errors import InvalidJobError
from xqute.testing import bash, until
from xqute_ssh import files
from xqute_ssh.staging import plan_transfers

BYTES = bytes(range(256)) * 20 + b"\0\0\n\\n\\\n%s%% -v 'x'\n"


@pytest.fixture(params=["a", "one"], ids=["two channels", "one channel"])
def unshared(request, servers, tmp_path):
    """Make a run on a server that has a workdir of its own."""

    def make(**keywords):
        opts = {
            "servers": {"box": servers[request.param].options()},
            "mounted_workdir": f"{tmp_path}/there",
            "log_interval": 0.05,
            **keywords.pop("opts", {}),
        }
        return Xqute("ssh", workdir=tmp_path / "here", scheduler_opts=opts, **keywords)

    return make


async def test_inputs_go_out_and_outputs_come_back_byte_for_byte(unshared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "odd \udcff'name").write_bytes(BYTES)
    (tmp_path / "data" / "deep" / "empty").touch()
    (tmp_path / "run.sh").write_text(
        "#!/bin/sh\nmkdir -p out/deep; cp data/odd* out; wc -c >out/deep/n\n"
    )
    (tmp_path / "run.sh").chmod(0o755)
    async with unshared() as xq:
        job = await xq.feed(
            bash("./run.sh && ls data/deep"), inputs=["data", "run.sh"], outputs=["out"]
        )
    assert (job.outcome, job.stdout_file.read_text()) == (JobOutcome.SUCCEEDED, "empty\n")
    assert (tmp_path / "out" / "odd \udcff'name").read_bytes() == BYTES
    assert (tmp_path / "out" / "deep" / "n").read_text() == "0\n"


async def test_much_comes_back_whole(unshared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = random.Random(1).randbytes(300_000)
    (tmp_path / "in").write_bytes(data)
    async with unshared() as xq:
        job = await xq.feed(bash("cat in; cat in >&2; cp in out"), inputs=["in"], outputs=["out"])
    assert job.outcome == JobOutcome.SUCCEEDED
    for path in (job.stdout_file, job.stderr_file, tmp_path / "out"):
        assert path.read_bytes() == data


@pytest.fixture
def in_many_turns(monkeypatch):
    """Files go in pieces, so that several are on their way at once; give each turn's modes."""
    monkeypatch.setattr(files, "_TURN_BYTES", 1 << 14)
    monkeypatch.setattr(files, "_PIECE_BYTES", 1 << 14)
    put, modes = files._put_some, set()

    def look(sftp, local, *paths):
        at = put(sftp, local, *paths)
        there = os.path.dirname(paths[-2])
        for entry in os.scandir(there):
            if entry.name.endswith("-part"):
                modes.add(stat.S_IMODE(os.stat(entry).st_mode))
        return at

    monkeypatch.setattr(files, "_put_some", look)
    return modes


@pytest.mark.concurrency
async def test_one_input_of_many_jobs_is_whole_for_each(unshared, tmp_path, in_many_turns):
    data = tmp_path / "in"
    data.write_bytes(random.Random(1).randbytes(300_000))
    data.chmod(0o640)
    there = SpecPath(data, mounted=tmp_path / "box" / "in")
    async with asyncio.timeout(120), unshared(forks=16) as xq:
        jobs = [
            await xq.feed(["cmp", str(there.mounted), str(data)], inputs=[there]) for _ in range(16)
        ]
    assert [job.rc for job in jobs] == [0] * 16
    assert [path.name for path in (tmp_path / "box").iterdir()] == ["in"]
    assert stat.S_IMODE((tmp_path / "box" / "in").stat().st_mode) == 0o640
    assert in_many_turns <= {0o600}


@pytest.mark.concurrency
async def test_one_output_folder_of_many_jobs_is_whole(unshared, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_TURN_BYTES", 1 << 14)
    monkeypatch.setattr(files, "_PIECE_BYTES", 1 << 14)
    folder = SpecPath(tmp_path / "out", mounted=tmp_path / "box")
    (tmp_path / "box").mkdir()
    (tmp_path / "out").mkdir()
    data = tmp_path / "in"
    data.write_bytes(random.Random(1).randbytes(60_000))
    copies = 'cp "$1" "$2/$3"; until [[ $(ls "$2" | wc -l) == 8 ]]; do sleep 0.02; done'
    async with asyncio.timeout(120), unshared(forks=8) as xq:
        words = str(data), str(folder.mounted)
        jobs = [await xq.feed(bash(copies, *words, str(n)), outputs=[folder]) for n in range(8)]
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED] * 8
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found == {str(index): data.read_bytes() for index in range(8)}


async def test_an_output_that_has_no_place_here_fails_a_job(unshared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    async with asyncio.timeout(60), unshared() as xq:
        job = await xq.feed(bash("mkdir taken; touch taken/out"), outputs=["taken/out"])
    assert (job.outcome, job.rc, job.cause) == (JobOutcome.FAILED, 0, JobCause.SETUP)
    assert f"{tmp_path}/taken" in job.reason


_UNUSABLE = {
    "noise": "echo hello; echo there",
    "silence": 'case "$SSH_ORIGINAL_COMMAND" in *sftp*) exec cat >/dev/null; esac',
}


@pytest.mark.parametrize("login", _UNUSABLE.values(), ids=_UNUSABLE.keys())
async def test_a_login_that_is_in_the_way_of_sftp_leaves_it_to_the_agent(
    own_sshd, tmp_path, monkeypatch, login
):
    monkeypatch.chdir(tmp_path)
    server = own_sshd("login", force_command=f"""sh -c '{login}; eval "$SSH_ORIGINAL_COMMAND"'""")
    (tmp_path / "in").write_bytes(BYTES * 10)
    opts = {
        "servers": {"box": server.options(connect_timeout=3)},
        "mounted_workdir": f"{tmp_path}/there",
    }
    async with (
        asyncio.timeout(60),
        Xqute("ssh", workdir=tmp_path / "here", scheduler_opts=opts) as xq,
    ):
        job = await xq.feed(bash("cat in; cp in out"), inputs=["in"], outputs=["out"])
    assert job.outcome == JobOutcome.SUCCEEDED
    assert job.stdout_file.read_bytes() == (tmp_path / "out").read_bytes() == BYTES * 10


@pytest.mark.concurrency
async def test_a_connection_that_is_lost_while_an_input_is_brought_fails_no_job(
    own_sshd, tmp_path, monkeypatch
):
    server = own_sshd("box")
    data = tmp_path / "in"
    data.write_bytes(random.Random(1).randbytes(100_000))
    monkeypatch.setattr(files, "_TURN_BYTES", 1 << 14)
    monkeypatch.setattr(files, "_PIECE_BYTES", 1 << 14)
    put, turns = files._put_some, []

    def cut(*args):
        turns.append(args)
        if len(turns) == 2:
            server.cut()
        return put(*args)

    monkeypatch.setattr(files, "_put_some", cut)
    opts = {"servers": {"box": server.options()}, "mounted_workdir": f"{tmp_path}/there"}
    there = SpecPath(data, mounted=tmp_path / "box" / "in")
    async with (
        asyncio.timeout(60),
        Xqute("ssh", workdir=tmp_path / "here", scheduler_opts=opts) as xq,
    ):
        job = await xq.feed(["cmp", str(there.mounted), str(data)], inputs=[there])
    assert job.outcome == JobOutcome.SUCCEEDED, job.reason


async def test_an_output_that_is_missing_fails_a_job_that_says_it_succeeded(unshared, tmp_path):
    async with unshared(forks=2) as xq:
        job = await xq.feed("true", outputs=[tmp_path / "none"])
        fails = await xq.feed(bash("exit 7"), outputs=[tmp_path / "none"])
    assert (job.outcome, job.cause) == (JobOutcome.FAILED, JobCause.SETUP)
    assert "none" in job.reason
    assert (fails.outcome, fails.rc, fails.cause) == (JobOutcome.FAILED, 7, JobCause.EXIT_CODE)


async def test_what_is_there_already_is_replaced_on_both_sides(unshared, tmp_path, monkeypatch):
    """And where there is nothing to fetch, nothing is made."""
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "there" / "0", tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "in").write_text("what an earlier run has left, and long")
        (folder / "out").write_text("what an earlier run has left, and long")
    (tmp_path / "in").write_text("new")
    async with unshared() as xq:
        await xq.feed(bash("cat in >out; echo d >>out"), inputs=["in"], outputs=["out", "none"])
    assert (tmp_path / "out").read_text() == "newd\n"
    assert not list(tmp_path.glob("none*"))


async def test_an_input_that_is_missing_fails_the_submission(unshared, tmp_path):
    async with unshared() as xq:
        job = await xq.feed(bash("echo ran"), inputs=[tmp_path / "none"])
        other = await xq.feed("true")
    assert job.outcome == JobOutcome.SUBMIT_FAILED
    assert "none" in job.reason
    assert other.outcome == JobOutcome.SUCCEEDED


async def test_a_log_can_be_followed_while_the_job_runs(unshared, tmp_path):
    script = "for n in 1 2 3; do echo $n; until [[ -e go-$n ]]; do sleep 0.01; done; done"
    async with unshared() as xq:
        job = await xq.feed(bash(script))
        for n in (1, 2, 3):
            lines = "".join(f"{line}\n" for line in range(1, n + 1))
            await until(
                lambda lines=lines: (
                    job.stdout_file.exists() and job.stdout_file.read_text() == lines
                ),
                f"line {n} is here",
                30,
            )
            assert job.status_file.read_text() == "4"
            (tmp_path / "there" / "0" / f"go-{n}").touch()
    assert job.stdout_file.read_text() == "1\n2\n3\n"


async def test_a_script_that_is_long_arrives(unshared):
    words = ["x" * 100_000] * 3
    async with unshared() as xq:
        job = await xq.feed(bash('echo "${#1} ${#2} ${#3}"', *words))
    assert job.stdout_file.read_text() == "100000 100000 100000\n"


async def test_a_retry_does_not_see_the_outputs_of_the_attempt_before(unshared):
    script = "((XQUTE_JOB_TRIAL)) && { sleep 0.3; exit 0; }; echo first; exit 3"
    async with unshared(error_strategy="retry", num_retries=1) as xq:
        job = await xq.feed(bash(script))
    assert (job.outcome, job.trial_count) == (JobOutcome.SUCCEEDED, 1)
    assert job.stdout_file.read_text() == ""
    assert (job.retry_dir / "0" / "job.stdout").read_text() == "first\n"


async def test_secrets_are_the_users_alone_on_the_server(unshared, tmp_path):
    async with unshared() as xq:
        await xq.feed("true", envs={"TOKEN": "secret"})
    script = tmp_path / "there" / "0" / "job.wrapped.ssh"
    assert "secret" in script.read_text()
    for path in (script, script.parent):
        assert not path.stat().st_mode & 0o077


async def test_a_workdir_that_the_server_does_not_see_is_an_error_that_names_the_option(
    own_sshd, tmp_path
):
    (tmp_path / "mnt").mkdir()
    script = f'mount -t tmpfs none {tmp_path}/mnt && eval "$SSH_ORIGINAL_COMMAND"'
    server = own_sshd("blind", force_command=f"unshare -m sh -c '{script}'")
    xq = Xqute(
        "ssh", workdir=tmp_path / "mnt" / "w", scheduler_opts={"servers": {"box": server.options()}}
    )
    with pytest.raises(SchedulerError, match="mounted_workdir"):
        await xq.feed("true")


async def test_a_remote_workdir_that_cannot_be_made_is_an_error(servers, tmp_path):
    (tmp_path / "file").touch()
    opts = {
        "servers": {"box": servers["a"].options()},
        "mounted_workdir": f"{tmp_path}/file/there",
    }
    xq = Xqute("ssh", workdir=tmp_path / "here", scheduler_opts=opts)
    with pytest.raises(SchedulerError, match="Not a directory"):
        await xq.feed("true")


@pytest.mark.needs("mount", root=True)
async def test_a_full_disk_there_refuses_jobs_and_loses_none(unshared, tmp_path):
    """They wait, with a warning, until there is room again."""
    there = tmp_path / "there"
    there.mkdir()
    mount("-t", "tmpfs", "-o", "size=400k", "none", there)
    try:
        async with unshared(forks=2) as xq:
            first = await xq.feed("true")
            await first.wait()
            with pytest.raises(OSError, match="No space"):
                (there / "full").write_bytes(b"x" * 500_000)
            jobs = [await xq.feed("true") for _ in range(3)]
            [host] = xq.scheduler._fleet.hosts
            await until(lambda: not host.is_usable, "the server has refused a job", 30)
            assert all(job.outcome is None for job in jobs)
            (there / "full").unlink()
    finally:
        unmount(there)
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}
    assert {job.trial_count for job in jobs} == {0}


def mount(*words):
    subprocess.run(["mount", *words], check=True, capture_output=True)


def unmount(folder):
    subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


# --- what goes where ----------------------------------------------------------------------------


def plan(*paths, workdir=None):
    workdir = workdir or SpecPath("/here", mounted="/there")
    return [tuple(pair) for pair in plan_transfers(paths, workdir=workdir, cwd="/there/0")]


def test_paths_are_planned(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert plan("a/b") == [(f"{tmp_path}/a/b", "/there/0/a/b")]
    assert plan("/here/x/../y") == [("/here/y", "/there/y")]
    assert plan("/hereabouts/x") == [("/hereabouts/x", "/hereabouts/x")]
    assert plan(SpecPath("/data/x", mounted="/mnt/x")) == [("/data/x", "/mnt/x")]
    for path in ("../x", "a/../../x"):
        with pytest.raises(InvalidJobError, match="stays in"):
            plan(path)
