"""The launcher, started as Grid Engine does, but without one."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import pytest

from xqute.testing import bash, until
from xqute_sge import SgeScheduler, parse
from xqute_sge.launcher import render_launcher

KIN = (
    '(exec -a "$1-child" sleep 60) &\n'
    '(trap "" TERM; exec -a "$1-deaf" sleep 60) &\n'
    '((exec -a "$1-orphan" sleep 60) &)\n'
    'set -m; (exec -a "$1-group" sleep 60) & set +m\n'
)


class Launched:
    """A launcher at work, in a session of its own, for the last of some jobs."""

    def __init__(
        self,
        folder,
        *commands,
        grace_s=5.0,
        limit_s=None,
        wait_s=20.0,
        revoked=False,
        hidden=False,
        restarts=False,
        env=None,
    ):
        self.folder = folder
        scheduler = SgeScheduler(folder, r=restarts)
        (folder / ".run" / "events").mkdir(parents=True)
        jobs = [scheduler.create_job(index, command) for index, command in enumerate(commands)]
        for job in jobs:
            scheduler.wrapped_job_script(job)
        self.job = jobs[-1]
        tag = scheduler.claim_tag(self.job)
        self.note = self.job.metadir / f"job.sge.{tag}"
        if revoked:
            (self.job.metadir / f"job.start.{tag}").write_text("revoked driver\n")
        self.hidden = folder / "hidden"
        if hidden:
            (self.job.metadir / "job.wrapped.sge").rename(self.hidden)
        script = folder / "launcher.sh"
        script.write_text(
            render_launcher(
                head="#!/bin/bash\n#$ -S /bin/bash",
                workdir=str(scheduler.workdir),
                folders=[str(job.index) for job in jobs],
                tag=tag,
                wrapper="job.wrapped.sge",
                grace_s=grace_s,
                limit_s=limit_s,
                wait_s=wait_s,
                restarts=restarts,
            )
        )
        task = str(len(jobs)) if len(jobs) > 1 else "undefined"
        self.process = subprocess.Popen(
            ["bash", "--login", str(script)],
            env={**os.environ, "JOB_ID": "5", "SGE_TASK_ID": task, **(env or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    async def until_ready(self):
        await until(lambda: self.output.startswith("ready\n"), "the command is ready", 20)

    @property
    def output(self):
        file = self.job.metadir / "job.stdout"
        return file.read_text() if file.exists() else ""

    def ends(self):
        """Give the launcher's exit code and what it said."""
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said.decode()

    def signal_all(self, sig):
        """Signal every process of the session, as Grid Engine does."""
        for pid in session_of(self.process.pid):
            with suppress(ProcessLookupError):  # the first may have ended the others
                os.kill(pid, sig)


def session_of(leader):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state not in "ZX":
            found.append(int(pid))
    return found


@pytest.fixture
def launch(tmp_path):
    launched = []

    def start(*commands, **keywords):
        launched.append(Launched(tmp_path, *commands, **keywords))
        return launched[-1]

    yield start
    for one in launched:
        one.signal_all(signal.SIGKILL)
        one.process.communicate(timeout=10)


@pytest.mark.parametrize("rc", [0, 1, 98, 101, 255])
def test_it_exits_as_its_command_did(launch, rc):
    launched = launch(bash(f"exit {rc}"))
    assert launched.ends() == (rc, "")
    assert launched.job.rc == rc


@pytest.mark.parametrize("rc", [99, 100, 117, 118, 119, 120])
def test_codes_that_mean_something_else_are_the_jobs_alone(launch, rc):
    launched = launch(bash(f"exit {rc}"))
    assert launched.ends()[0] == parse.RC_UNSPEAKABLE
    assert launched.job.rc == rc


def test_a_task_of_an_array_finds_its_own_folder(launch):
    launched = launch(bash("exit 1"), bash("exit 2"), bash('echo "$XQUTE_JOB_INDEX"; exit 3'))
    assert launched.ends()[0] == 3
    assert launched.output == "2\n"


def test_the_start_claim_tells_the_whole_native_id(launch):
    launched = launch(bash("exit 1"), bash("exit 0"))
    launched.ends()
    [claim] = launched.job.metadir.glob("job.start.*")
    assert claim.read_text().split()[-1] == "5.2"


async def test_a_deletion_gives_the_command_time_to_clean_up(launch):
    launched = launch(bash("trap 'echo clean; exit 9' TERM; echo ready; sleep 60 & wait"))
    await launched.until_ready()
    launched.signal_all(signal.SIGUSR2)
    assert launched.ends()[0] == parse.RC_DELETED
    assert (launched.output, launched.job.rc) == ("ready\nclean\n", 9)
    assert launched.note.read_text() == f"{parse.RC_DELETED}\n"


async def test_a_command_that_ignores_it_is_killed_after_the_grace_and_its_end_is_told(launch):
    launched = launch(bash("trap '' TERM; echo ready; exec sleep 60"), grace_s=0.2)
    await launched.until_ready()
    launched.signal_all(signal.SIGUSR2)
    assert launched.ends()[0] == parse.RC_DELETED
    assert launched.job.rc == 137


async def test_a_deletion_leaves_nothing_behind(launch):
    """Also where Grid Engine would: it looks for groups of processes, and not for all of root's."""
    launched = launch(bash(f'{KIN}echo ready; exec -a "$1" sleep 60', "marker"), grace_s=0.2)
    await launched.until_ready()
    assert len(session_of(launched.process.pid)) >= 6
    os.kill(launched.process.pid, signal.SIGUSR2)
    launched.ends()
    assert session_of(launched.process.pid) == []


async def test_what_a_command_leaves_in_its_group_ends_with_it(launch):
    launched = launch(bash("sleep 60 & exit 4"))
    assert launched.ends()[0] == 4
    await until(lambda: session_of(launched.process.pid) == [], "nothing is left")


async def test_an_end_at_the_limit_of_time_is_told_apart(launch):
    launched = launch(bash("echo ready; exec sleep 60"), limit_s=1)
    await launched.until_ready()
    launched.signal_all(signal.SIGUSR2)
    assert launched.ends()[0] == parse.RC_TIME_LIMIT
    assert launched.note.read_text() == f"{parse.RC_TIME_LIMIT}\n"


def test_an_attempt_that_was_given_up_is_not_begun(launch):
    launched = launch(bash("echo ran"), revoked=True)
    assert launched.ends() == (121, "")
    assert launched.output == ""


def test_an_attempt_that_has_begun_is_begun_again_only_where_that_was_said(launch, tmp_path):
    """And what the first start has left does not tell of the second."""
    command = bash('echo "$RESTARTED"; exit $((3 + RESTARTED))')
    for restarts, rc in ((False, 121), (True, 4)):
        folder = tmp_path / str(restarts)
        first = Launched(folder, command, restarts=restarts, env={"RESTARTED": "0"})
        assert first.ends()[0] == 3
        first.note.write_text(f"{parse.RC_DELETED}\n")
        second = subprocess.run(
            ["bash", folder / "launcher.sh"],
            env={**os.environ, "JOB_ID": "5", "SGE_TASK_ID": "undefined", "RESTARTED": "1"},
            check=False,
        )
        assert second.returncode == rc
        assert bool(first.note.read_text()) is not restarts


def test_the_profile_of_the_login_shell_is_in_nobodys_output(launch, tmp_path):
    profile = 'echo noise >&2; export PATH="$PATH:/odd"\n'
    (tmp_path / ".bash_profile").write_text(profile)
    launched = launch(bash('echo "${PATH##*:}"; exit 3'), env={"HOME": str(tmp_path)})
    assert launched.ends() == (3, "noise\n")
    assert launched.output == "/odd\n"


def test_a_host_that_cannot_see_the_folder_says_so(launch):
    launched = launch(bash("echo ran"), wait_s=0.2, hidden=True)
    rc, said = launched.ends()
    assert rc == parse.RC_UNSEEN
    assert f"cannot see {launched.job.metadir}/job.wrapped.sge" in said


async def test_a_wrapper_that_is_seen_late_is_waited_for(launch):
    launched = launch(bash("exit 3"), hidden=True)
    pause = f"/proc/{launched.process.pid}/fd/8"
    await until(lambda: os.path.exists(pause), "it is about to look")
    launched.hidden.rename(launched.job.metadir / "job.wrapped.sge")
    assert launched.ends()[0] == 3
