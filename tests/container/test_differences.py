"""What Docker and Podman say and do differently, by each way to reach them: jobs are told alike."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import xqute_container.client
from xqute import JobCause, JobOutcome, SchedulerError, SubmitError, Xqute
from xqute.testing import until
from xqute_container import ContainerScheduler
from xqute_container.client import Wanted, signal_container
from xqute_container.parse import Container, Stage

pytestmark = pytest.mark.needs("dockerd", "podman", "catatonit", "busybox", root=True)

DEADLINE_S = 60.0
WAYS = ("docker", "docker_program", "podman", "podman_socket")
REFUSED = (-2, JobOutcome.SUBMIT_FAILED, JobCause.SUBMISSION)


@pytest.fixture(params=WAYS)
def engine(request):
    engine = request.getfixturevalue(request.param)
    yield engine
    left = engine.containers()
    engine.remove_all()
    assert left == []


@asynccontextmanager
async def running(engine, workdir, **scheduler):
    opts = {**engine.options, **scheduler}
    async with (
        asyncio.timeout(DEADLINE_S),
        Xqute("container", workdir=workdir, scheduler_opts=opts) as xq,
    ):
        yield xq


async def run(engine, workdir, *command, **scheduler):
    async with running(engine, workdir, **scheduler) as xq:
        return await xq.feed(command)


def told(job):
    """How a job has ended, without the engine's own words, which follow ours."""
    reason = re.sub(r" \((Docker|Podman) says: .*\)$", "", job.reason, flags=re.DOTALL)
    reason = re.sub(r"\b(Docker|Podman)\b", "ENGINE", reason)
    return job.rc, job.outcome, job.cause, reason


async def test_an_entrypoint_that_is_not_there(engine, tmp_path):
    """Docker refuses it with 127, and Podman's socket with an exit code of 0."""
    job = await run(engine, tmp_path, "true", image="localhost/busybox:1")
    said = "the image localhost/busybox:1 has no /bin/bash: give entrypoint=, a bash in the image"
    assert told(job) == (127, JobOutcome.FAILED, JobCause.SETUP, said)


async def test_an_entrypoint_that_cannot_be_executed(engine, tmp_path):
    job = await run(engine, tmp_path, "true", entrypoint="/etc/passwd")
    said = (
        "/etc/passwd of the image localhost/bash:1 cannot be executed: give entrypoint=, a bash "
        "in the image"
    )
    assert told(job) == (126, JobOutcome.FAILED, JobCause.SETUP, said)


async def test_a_user_who_is_not_there(engine, tmp_path):
    """Docker's program says 125, Podman's 126."""
    job = await run(engine, tmp_path, "true", user="nosuchuser")
    said = "the image localhost/bash:1 has no user 'nosuchuser': give user= as numbers, uid:gid"
    assert told(job) == (*REFUSED, f"SubmitError: {said}")


async def test_a_gpu_that_is_not_there(engine, tmp_path):
    """Podman's socket ignores what is asked for."""
    job = await run(engine, tmp_path, "true", resources={"gpus": 1})
    assert told(job)[:3] == REFUSED
    assert "GPUs" in job.reason


async def test_an_image_that_is_removed_in_mid_run(engine, tmp_path):
    """Podman's program would look for it for three seconds."""
    engine("tag", "localhost/bash:1", "localhost/goes:1")
    async with running(engine, tmp_path, image="localhost/goes:1") as xq:
        first = await xq.feed(["true"])
        await first.wait()
        assert first.rc == 0
        engine("rmi", "localhost/goes:1")
        job = await xq.feed(["true"])
    said = "there is no image localhost/goes:1: pull it, or check its name"
    assert told(job) == (*REFUSED, f"SubmitError: {said}")


async def test_a_volume_that_is_removed_in_mid_run(engine, tmp_path):
    """Docker's program refuses it; both sockets may make it, as root."""
    volume = tmp_path / "volume"
    volume.mkdir()
    async with running(engine, tmp_path / "work", volumes=f"{volume}:/volume") as xq:
        first = await xq.feed(["true"])
        await first.wait()
        assert first.rc == 0
        shutil.rmtree(volume)
        job = await xq.feed(["true"])
    assert told(job) == (*REFUSED, told(job)[3])
    assert f"there is no {volume}" in job.reason
    assert not volume.exists()


async def test_a_working_directory_that_is_not_there(engine, tmp_path):
    """Docker makes it, Podman's program refuses it with 126: so the wrapper is who enters it."""
    job = await run(engine, tmp_path, "true", cwd="/no/such")
    assert told(job)[:3] == (125, JobOutcome.FAILED, JobCause.SETUP)
    assert "/no/such" in job.stderr_file.read_text()


async def test_memory_that_does_not_suffice(engine, tmp_path, monkeypatch):
    """Podman 4.3 never says so, but leaves an empty file `oom` where it was started."""
    monkeypatch.chdir(tmp_path)
    script = "x=0123456789abcdef; while :; do x=$x$x; done"
    resources = {"memory_mib": 32}
    job = await run(engine, tmp_path, "bash", "-c", script, resources=resources)
    said = "it used more memory than its container may"
    assert told(job) == (137, JobOutcome.FAILED, JobCause.OUT_OF_MEMORY, said)


async def test_a_kill_that_is_not_for_want_of_memory(engine, tmp_path):
    job = await run(engine, tmp_path, "bash", "-c", "kill -KILL $$", resources={"memory_mib": 32})
    assert told(job)[:3] == (137, JobOutcome.FAILED, JobCause.SIGNAL)


async def test_each_code_of_the_engines_may_be_a_commands_own(engine, tmp_path):
    async with running(engine, tmp_path) as xq:
        for rc in (125, 126, 127, 137, 255):
            await xq.feed(["bash", "-c", f"exit {rc}"])
    assert [(job.rc, job.outcome) for job in xq.jobs] == [
        (rc, JobOutcome.FAILED) for rc in (125, 126, 127, 137, 255)
    ]
    assert JobCause.SETUP not in {job.cause for job in xq.jobs}


async def test_a_command_that_ignores_term_as_first_process_hears_it(engine, tmp_path):
    """`sleep` as process 1 of a container ignores TERM."""
    async with running(engine, tmp_path) as xq:
        xq.scheduler.kill_grace_s = 30.0
        job = await xq.feed(["sleep", "600"])
        await until(lambda: job.started_at, "it runs", DEADLINE_S)
        await xq.scheduler.kill_jobs([job])
    assert job.rc == 143


async def test_what_is_taken_or_over_or_gone_is_no_error(engine, tmp_path):
    """Docker says 409 to a taken name and to a kill of what has ended, and Podman 500."""
    scheduler = ContainerScheduler(**engine.options, workdir=tmp_path)
    job = scheduler.create_job(0, ["bash", "-c", 'echo ran >>"$XQUTE_JOB_METADIR/runs"; exit 7'])
    async with asyncio.timeout(DEADLINE_S), scheduler:
        scheduler.wrapped_job_script(job)
        client = scheduler._client
        spec = scheduler._build_spec(job, client.traits, scheduler.image)
        wanted = Wanted(spec.key, job.local_dir, scheduler.claim_tag(job))
        assert client.find(wanted) is None
        native_id = client.start(spec)
        assert client.start(spec) == native_id
        await until(lambda: client.find(wanted).stage is Stage.ENDED, "it ends", DEADLINE_S)
        assert client.start(spec) == native_id
        found = client.find(wanted)
        assert (found.stage, found.exit_code) == (Stage.ENDED, 7)
        client.signal(wanted, force=False)
        client.signal(wanted, force=True)
        for _ in range(2):
            client.remove(wanted)
        client.signal(wanted, force=True)
        assert client.find(wanted) is None
        with pytest.raises(SubmitError, match=r"Invalid container name|names must match"):
            client.start(replace(spec, key="bad name!"))
    assert job.read_file("runs") == "ran\n"


@pytest.mark.parametrize("way", ["podman", "podman_socket"])
async def test_a_kill_of_what_podman_does_not_know_to_have_ended(way, request, tmp_path):
    """It says that the container runs, and refuses to signal it, until its monitor has spoken."""
    engine = request.getfixturevalue(way)
    scheduler = ContainerScheduler(**engine.options, workdir=tmp_path)
    job = scheduler.create_job(0, ["bash", "-c", "echo ready; sleep 600"])
    async with asyncio.timeout(DEADLINE_S), scheduler:
        job.jid = await scheduler.submit_job(job)
        await until(lambda: job.read_file("job.stdout") == "ready\n", "it runs", DEADLINE_S)
        key = scheduler.submission_key(job)
        said = engine("inspect", "--format", "{{.State.Pid}} {{.State.ConmonPid}}", key)
        first, monitor = map(int, said.split())
        os.kill(monitor, signal.SIGSTOP)
        try:
            os.kill(first, signal.SIGKILL)
            await until(lambda: is_over(first), "its first process is dead", DEADLINE_S)
            argv = [*engine.program, "kill", key]
            refused = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: ASYNC221
            assert "container state improper" in refused.stderr
            client = scheduler._client
            find = client.find

            def find_and_go_on(wanted):
                found = find(wanted)
                os.kill(monitor, signal.SIGCONT)
                stages.append(found.stage)
                return found

            stages = []
            client.find = find_and_go_on
            await scheduler.kill_jobs([job])
            assert stages[0] is Stage.RUNNING
        finally:
            os.kill(monitor, signal.SIGCONT)
        del client.find
        assert not await scheduler.job_is_running(job)
        await scheduler.kill_jobs([job], force=True)
    assert engine.containers() == []


def test_a_container_that_cannot_be_signalled_is_told(monkeypatch):
    """It runs, and its engine refuses for another reason than its end."""
    monkeypatch.setattr(xqute_container.client, "_ENDING_S", 0.1)

    class Refusing:
        def find(self, wanted):
            return Container("id", wanted.key, Stage.RUNNING)

    n_sent = []

    def send():
        n_sent.append(1)
        return "the weather is bad"

    with pytest.raises(SchedulerError, match=r"xq-1 cannot be signalled: the weather is bad"):
        signal_container(Refusing(), Wanted("xq-1", "", ""), send)
    assert len(n_sent) > 1


async def test_an_init_that_is_not_there_is_told(podman, tmp_path):
    """Podman has none of its own."""
    conf = await asyncio.to_thread(Path(podman.folder, "containers.conf").read_text)
    without = tmp_path / "containers.conf"
    without.write_text(conf.replace("[containers]", '[containers]\ninit_path = "/no/such/init"'))
    program = tmp_path / "podman"
    text = await asyncio.to_thread(Path(podman.program[0]).read_text)
    program.write_text(text.replace(f"{podman.folder}/containers.conf", str(without)))
    program.chmod(0o755)
    job = await run(podman, tmp_path / "work", "true", bin=str(program))
    said = "ENGINE has no init to run jobs under: install tini (ENGINE) or catatonit (ENGINE)"
    assert told(job) == (*REFUSED, f"SubmitError: {said}")
    assert podman.containers() == []


@pytest.mark.usefixtures("unclosed_sockets")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_jobs_of_podman_survive_its_service(podman_socket, tmp_path):
    """Docker's end with it, unless it runs with --live-restore: see test_engines.py."""
    engine = podman_socket
    pid = int(Path(engine.folder, "podman.pid").read_text())  # noqa: ASYNC240  # small and local
    script = "echo ready; until [[ -e go ]]; do sleep 0.01; done; exit 7"
    async with running(engine, tmp_path) as xq:
        job = await xq.feed(["bash", "-c", script])
        await until(lambda: job.stdout_file.exists() and job.started_at, "it runs", DEADLINE_S)
        os.kill(pid, 9)
        await until(lambda: is_over(pid), "the service is gone", DEADLINE_S)
        (tmp_path / "go").touch()
        await asyncio.to_thread(engine.restart)
    assert (job.rc, job.outcome) == (7, JobOutcome.FAILED)
    assert engine.containers() == []


def is_over(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True
