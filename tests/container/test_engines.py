"""What differs between engines, and what must not: rc, outcome, reason, files, and what is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import xqute
from xqute import JobCause, JobOutcome, SchedulerError, Xqute
from xqute.testing import until
from xqute_container import ContainerScheduler
from xqute_container.apptainer_client import _kill_session

pytestmark = [pytest.mark.needs("dockerd", "podman", "busybox", "apptainer", root=True)]

DEADLINE_S = 60.0
ENGINES = ("docker", "podman", "apptainer")
#: Those that have containers in a list.
LISTING = ("docker", "podman", "podman_socket")


@pytest.fixture(params=ENGINES)
def engine(request):
    engine = request.getfixturevalue(request.param)
    yield engine
    engine.remove_all()


@pytest.fixture(params=LISTING)
def listing(request):
    engine = request.getfixturevalue(request.param)
    yield engine
    engine.remove_all()


@pytest.fixture
def outside(engine, images):
    """An image without a bash, for this engine."""
    return f"{images}/busybox" if engine.name == "apptainer" else "localhost/busybox:1"


def bash(script):
    return ["bash", "-c", script]


async def run(engine, workdir, *commands, scheduler=(), **keywords):
    opts = {**engine.options, **dict(scheduler)}
    async with asyncio.timeout(DEADLINE_S):
        async with Xqute("container", workdir=workdir, scheduler_opts=opts, **keywords) as xq:
            for command in commands:
                await xq.feed(command)
    return xq.jobs


def told(job):
    return job.rc, job.outcome, job.cause


# --- the same from all ---------------------------------------------------------------------------


async def test_ends_are_told_alike(engine, tmp_path):
    jobs = await run(
        engine,
        tmp_path,
        ["true"],
        bash("exit 125"),
        ["no-such-command"],
        ["/etc/passwd"],
        bash("kill -KILL $$"),
        forks=2,
    )
    assert [told(job) for job in jobs] == [
        (0, JobOutcome.SUCCEEDED, None),
        (125, JobOutcome.FAILED, JobCause.EXIT_CODE),
        (127, JobOutcome.FAILED, JobCause.EXIT_CODE),
        (126, JobOutcome.FAILED, JobCause.EXIT_CODE),
        (137, JobOutcome.FAILED, JobCause.SIGNAL),
    ]
    assert engine.containers() == []


async def test_an_entrypoint_that_is_not_in_the_image_is_named(engine, outside, tmp_path):
    [job] = await run(engine, tmp_path, ["true"], scheduler={"image": outside})
    assert job.outcome in (JobOutcome.FAILED, JobOutcome.SUBMIT_FAILED)
    assert job.rc != 0
    assert job.cause in (JobCause.SETUP, JobCause.SUBMISSION)
    assert "/bin/bash" in job.reason
    assert "entrypoint=" in job.reason
    assert engine.containers() == []


async def test_an_entrypoint_that_is_not_executable_is_named(engine, tmp_path):
    [job] = await run(engine, tmp_path, ["true"], scheduler={"entrypoint": "/etc/passwd"})
    assert job.outcome in (JobOutcome.FAILED, JobOutcome.SUBMIT_FAILED)
    assert "/etc/passwd" in job.reason
    assert "entrypoint=" in job.reason
    assert engine.containers() == []


async def test_a_missing_image_is_told_before_any_job_is_submitted(engine, tmp_path):
    with pytest.raises(SchedulerError, match="no-such-image"):
        await run(
            engine, tmp_path, ["true"], scheduler={"image": "no-such-image:1", "pull": "never"}
        )
    assert not list(tmp_path.glob("*/job.jid"))


async def test_an_image_that_cannot_be_pulled_is_told(listing, tmp_path):
    image = "localhost:1/no-such-image:1"
    with pytest.raises(SchedulerError, match=r"cannot pull the image localhost:1/no-such-image"):
        await run(listing, tmp_path, ["true"], scheduler={"image": image})


async def test_a_name_that_no_image_can_have_is_told(listing, tmp_path):
    with pytest.raises(SchedulerError, match=r"Lab/Tool:1.*must be lowercase"):
        await run(listing, tmp_path, ["true"], scheduler={"image": "Lab/Tool:1"})


async def test_an_archive_of_an_image_is_loaded(listing, tmp_path):
    archive = tmp_path / "saved image.tar"
    listing("save", "--output", archive, "localhost/bash:1")
    opts = {"image": str(archive), "pull": "never"}
    [job] = await run(listing, tmp_path / "work", ["true"], scheduler=opts)
    assert job.rc == 0


async def test_an_archive_is_converted_once_for_apptainer(docker, apptainer, tmp_path, monkeypatch):
    archive = tmp_path / "saved.tar"
    docker("save", "--output", archive, "localhost/bash:1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opts = {"image": f"docker-archive:{archive}"}
    [job] = await run(apptainer, tmp_path / "work", ["true"], scheduler=opts)
    archive.unlink()
    [again] = await run(apptainer, tmp_path / "again", ["true"], scheduler=opts)
    assert (job.rc, again.rc) == (0, 0)


async def test_a_resource_that_containers_have_not_is_refused(engine, tmp_path):
    [job] = await run(engine, tmp_path, ["true"], scheduler={"resources": {"account": "lab"}})
    assert job.outcome == JobOutcome.SUBMIT_FAILED
    assert "account" in job.reason


# --- users, folders, environment -----------------------------------------------------------------


async def test_files_of_jobs_are_ours(engine, tmp_path):
    [job] = await run(engine, tmp_path, bash("echo made >made; id -u"))
    assert job.stdout_file.read_text() == f"{os.getuid()}\n"
    assert (tmp_path / "made").stat().st_uid == os.getuid()


async def test_another_user_gets_into_the_folder_of_the_job_alone(listing, tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "secret").write_text("not for others")
    script = 'id -u; ls "$XQUTE_METADIR"; echo made >"$XQUTE_JOB_METADIR/made"; umask 077; : >mine'
    opts = {"user": "1234:1234"}
    job, other = await run(
        listing,
        tmp_path,
        bash(script.replace("mine", '"$XQUTE_JOB_METADIR/mine"')),
        ["true"],
        scheduler=opts,
    )
    assert (job.rc, job.stderr_file.read_text()) == (0, "")
    assert job.stdout_file.read_text() == "1234\n0\n"
    assert (tmp_path / "0" / "made").stat().st_uid == 1234
    assert other.rc == 0
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    for folder in (tmp_path / "0", tmp_path / "1"):
        assert folder.stat().st_mode & 0o007 == 0


async def test_nothing_of_the_hosts_environment_is_seen(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("HOST_SECRET", "1")
    monkeypatch.setenv("APPTAINERENV_INJECTED", "1")
    monkeypatch.setenv("SINGULARITYENV_INJECTED", "1")
    monkeypatch.setenv("BASH_ENV", "/etc/profile")
    [job] = await run(engine, tmp_path, ["env"], scheduler={"envs": {"MINE": "it's\n2 lines"}})
    text = job.stdout_file.read_text()
    assert not any(word in text for word in ("HOST_SECRET", "INJECTED", "BASH_ENV"))
    assert "MINE=it's\n2 lines\n" in text


async def test_variables_of_all_jobs_are_in_no_place_that_others_can_read(docker, tmp_path):
    opts = {"envs": {"TOKEN": "hidden"}, "remove": False}
    [job] = await run(docker, tmp_path, ["true"], scheduler=opts)
    assert "hidden" not in docker("inspect", job.jid)
    assert "hidden" in (tmp_path / "0" / "job.wrapped.docker").read_text()
    docker.remove_all()


async def test_volumes_are_seen(engine, tmp_path):
    data = tmp_path / "da:ta, and more"
    data.mkdir()
    (data / "in.txt").write_text("content")
    volumes = [f"DATA={data}", f"FILE={data}/in.txt:ro", f"{data}:/plain:ro", f"{data}:/plain:ro"]
    script = 'cat "$DATA/in.txt" "$FILE" /plain/in.txt; echo "$DATA"; : >"$DATA/out"; : >/plain/no'
    [job] = await run(engine, tmp_path / "work", bash(script), scheduler={"volumes": volumes})
    assert job.stdout_file.read_text() == "contentcontentcontent/mnt/disks/DATA\n"
    assert "/plain/no" in job.stderr_file.read_text()
    assert sorted(os.listdir(data)) == ["in.txt", "out"]


async def test_a_volume_may_be_where_jobs_run(engine, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    opts = {"volume_as_cwd": str(folder)}
    [job] = await run(engine, tmp_path / "work", bash(": >here"), scheduler=opts)
    assert job.rc == 0
    assert os.listdir(folder) == ["here"]


async def test_a_volume_that_is_not_there_is_told_and_not_made(engine, tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(ValueError, match=f"there is no {gone}"):
        await run(engine, tmp_path / "work", ["true"], scheduler={"volumes": f"{gone}:/x"})
    assert not gone.exists()


# --- what is left --------------------------------------------------------------------------------


async def test_a_workdir_may_have_any_name(engine, tmp_path):
    """The bulk query finds its containers, and theirs alone."""
    jobs = await run(
        engine, tmp_path / 'a,b "c" d:e=f', ["pwd"], bash("sleep 1.5; exit 7"), forks=2
    )
    assert [told(job) for job in jobs] == [
        (0, JobOutcome.SUCCEEDED, None),
        (7, JobOutcome.FAILED, JobCause.EXIT_CODE),
    ]
    assert engine.containers() == []


async def test_containers_stay_where_that_is_wanted(listing, tmp_path):
    [job] = await run(listing, tmp_path, bash("exit 3"), scheduler={"remove": False})
    await run(listing, tmp_path, ["true"])
    [left] = listing.containers()
    assert "Exited (3)" in left
    assert job.rc == 3


DRIVER = """
    import asyncio, json, os, sys
    from xqute import Xqute

    async def main():
        async with Xqute("container", workdir=sys.argv[1], scheduler_opts=json.loads(sys.argv[2]),
                         forks=2) as xq:
            await xq.feed(["bash", "-c", "echo ready; sleep 600"])
            await xq.feed(["bash", "-c", "echo ready; sleep 0.3; exit 7"])

    asyncio.run(main())
"""


def start_driver(engine, workdir):
    """A process that runs two jobs, which both say that they are ready."""
    code = textwrap.dedent(DRIVER)
    argv = [sys.executable, "-c", code, str(workdir), json.dumps(engine.options)]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)


def is_ready(workdir, index):
    try:
        return (workdir / str(index) / "job.stdout").read_text() == "ready\n"
    except FileNotFoundError:
        return False


async def test_nothing_is_left_after_an_interrupt(engine, tmp_path):
    driver = start_driver(engine, tmp_path)
    await until(lambda: is_ready(tmp_path, 0), "the job is ready", DEADLINE_S)
    driver.send_signal(signal.SIGINT)
    await asyncio.to_thread(driver.wait, DEADLINE_S)
    assert engine.containers() == []


async def test_what_a_killed_driver_left_is_taken_over_and_removed(engine, tmp_path):
    driver = start_driver(engine, tmp_path)
    ready = [tmp_path / str(index) for index in (0, 1)]

    def run_and_are_known():
        known = all((folder / "job.jid").exists() for folder in ready)
        return known and is_ready(tmp_path, 0) and is_ready(tmp_path, 1)

    await until(run_and_are_known, "both run, and their ids are written", DEADLINE_S)
    driver.kill()
    driver.wait()
    scheduler = ContainerScheduler(**engine.options, workdir=tmp_path)
    [tag] = [path.name.removeprefix("job.start.") for path in ready[0].glob("job.start.*")]
    scheduler.run_id, _, attempt = tag.rpartition("-")
    assert attempt == "0"
    jobs = [scheduler.create_job(index, ["true"]) for index in (0, 1)]
    heard = {}
    async with asyncio.timeout(DEADLINE_S), scheduler:
        scheduler.watch(lambda job, state: heard.setdefault(job.index, []).append(state))
        for job in jobs:
            job.jid = (job.metadir / "job.jid").read_text()
        await scheduler.reattach(jobs)
        assert await scheduler.job_is_running(jobs[0])
        keys = [scheduler.submission_key(job) for job in jobs]
        found = await scheduler.find_submitted(keys)
        assert str(found[keys[0]]) == jobs[0].jid

        async def has_ended():
            return (await scheduler.poll_jobs(jobs))[jobs[1]].phase.name in ("ENDED", "GONE")

        await until(has_ended, "it has ended", DEADLINE_S)
        assert jobs[1].rc == 7
        await scheduler.kill_jobs([jobs[0]])

        async def is_dead():
            return not await scheduler.job_is_running(jobs[0])

        await until(is_dead, "it is killed", DEADLINE_S)
    assert engine.containers() == []
    assert jobs[0].rc == 143


DYING = """
    import asyncio, json, os, sys
    from pathlib import Path
    from xqute import Xqute, _faults

    workdir, opts = Path(sys.argv[1]), json.loads(sys.argv[2])

    def die(edge):
        while edge == "after-sending":
            if (workdir / "0" / "job.stdout").exists():
                os._exit(9)

    async def main():
        async with Xqute("container", workdir=workdir, scheduler_opts=opts) as xq:
            await xq.feed(["sleep", "600"])

    _faults.on_reach = die
    asyncio.run(main())
"""


async def die_before_the_id_is_known(engine, workdir):
    """Run a driver that starts a job, and dies when the job has begun."""
    argv = [sys.executable, "-c", textwrap.dedent(DYING), workdir, json.dumps(engine.options)]
    driver = await asyncio.create_subprocess_exec(*argv)
    assert await asyncio.wait_for(driver.wait(), DEADLINE_S) == 9


async def test_an_end_that_only_its_container_tells_is_found_without_its_id(engine, tmp_path):
    """The driver died before it knew the id, and the job while there was no driver."""
    await die_before_the_id_is_known(engine, tmp_path)
    if engine.name == "apptainer":
        [pid] = engine.containers()
        _kill_session(int(pid))
        await until(lambda: engine.containers() == [], "it has ended", DEADLINE_S)
    else:
        engine("kill", "--signal=KILL", *engine("ps", "--quiet").split())
    [job] = await run(engine, tmp_path, ["sleep", "600"])
    assert (told(job), job.adopted) == ((137, JobOutcome.FAILED, JobCause.SIGNAL), True)
    assert engine.containers() == []


async def test_a_job_whose_container_was_removed_before_its_id_was_known_is_lost(listing, tmp_path):
    await die_before_the_id_is_known(listing, tmp_path)
    listing("kill", "--signal=KILL", *listing("ps", "--quiet").split())
    listing.remove_all()
    [job] = await run(listing, tmp_path, ["sleep", "600"])
    assert told(job) == (-3, JobOutcome.LOST, JobCause.DISAPPEARED)


async def test_a_container_that_was_made_and_not_started_is_started(listing, tmp_path):
    """The driver died between the two."""
    scheduler = ContainerScheduler(**listing.options, workdir=tmp_path)
    job = scheduler.create_job(0, bash("exit 7"))
    line = scheduler.jobcmd_shebang(job).removeprefix("#!")
    script = scheduler.wrapped_job_script(job)
    inside = f"/mnt/disks/xqute_workdir/0/{script.name}"
    words = line.replace(" run --rm ", " create ", 1)
    program = " ".join(listing.program)
    words = words.replace(listing.options["bin"], program, 1)
    create = f"{words} -p {inside}"
    await asyncio.to_thread(subprocess.run, create, shell=True, check=True, capture_output=True)
    async with asyncio.timeout(DEADLINE_S), scheduler:
        found = await scheduler.find_submitted([scheduler.submission_key(job)])
        job.jid = found[scheduler.submission_key(job)]
        await scheduler.reattach([job])

        async def has_ended():
            return not await scheduler.job_is_running(job)

        await until(has_ended, "it has ended", DEADLINE_S)
    assert job.rc == 7
    assert listing.containers() == []


@pytest.mark.parametrize("hears", [True, False], ids=["events", "the-last-sweep"])
async def test_what_an_earlier_attempt_left_is_removed_though_its_claims_are_gone(
    listing, tmp_path, hears
):
    """A job that runs again has its claims tidied up, maybe before its container is over."""
    scheduler = ContainerScheduler(**listing.options, workdir=tmp_path)
    job = scheduler.create_job(0, bash("until [[ -e $XQUTE_JOB_METADIR/go ]]; do sleep 0.01; done"))
    async with asyncio.timeout(DEADLINE_S):
        if hears:
            await scheduler.start()
        try:
            job.jid = await scheduler.submit_job(job)
            tag, old = scheduler.claim_tag(job), scheduler._watching.wanted(job)
            claim = job.metadir / f"job.start.{tag}"
            await until(claim.exists, "it runs", DEADLINE_S)
            claim.unlink()
            job.trial_count = 1
            job.write_file("go", "")
            if hears:
                await until(lambda: listing.containers() == [], "it is removed", DEADLINE_S)
            else:
                client = scheduler._client
                await until(lambda: client.find(old).exit_code is not None, "it ends", DEADLINE_S)
                (job.metadir / f"job.end.{tag}").unlink()
        finally:
            await scheduler.close()
    assert listing.containers() == []


def test_a_script_may_run_jobs_without_a_loop(docker, tmp_path):
    opts = {"workdir": tmp_path, "scheduler": "container", "scheduler_opts": docker.options}
    [job] = xqute.run([["true"]], **opts)
    assert job.rc == 0


def test_the_module_of_the_scheduler_imports():
    from xqute.schedulers import container_scheduler

    assert container_scheduler.ContainerScheduler is ContainerScheduler
    assert container_scheduler.DEFAULT_MOUNTED_WORKDIR == "/mnt/disks/xqute_workdir"
    assert container_scheduler.DEFAULT_MOUNTED_ROOT == "/mnt/disks"


def test_no_sdk_is_loaded_before_it_is_used():
    code = "import sys, xqute_container; assert not {'docker', 'requests'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


# --- engines that go away ------------------------------------------------------------------------


async def test_events_that_are_lost_are_asked_for_again(listing, tmp_path):
    async with (
        asyncio.timeout(DEADLINE_S),
        Xqute("container", workdir=tmp_path, scheduler_opts=listing.options) as xq,
    ):
        xq.scheduler.recheck_interval = xq.scheduler.first_recheck_s = 3600.0  # events alone tell
        job = await xq.feed(bash("echo ready; until [[ -e go ]]; do sleep 0.01; done; exit 7"))
        await until(lambda: is_ready(tmp_path, 0), "it is ready", DEADLINE_S)
        events = xq.scheduler._client._events
        getattr(events, "stdin", events).close()
        (tmp_path / "go").touch()
    assert (job.rc, job.outcome) == (7, JobOutcome.FAILED)


@pytest.fixture(scope="module")
def own_docker(short_folder, start_docker):
    """A Docker that tests may kill."""
    return start_docker(f"{short_folder}/own")


@pytest.mark.usefixtures("unclosed_sockets")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_an_engine_that_is_restarted_in_mid_run_loses_no_job(own_docker, tmp_path, how):
    """What ran is ended with it, and said so; what comes then waits, and runs."""
    async with (
        asyncio.timeout(DEADLINE_S),
        Xqute("container", workdir=tmp_path, scheduler_opts=own_docker.options, forks=2) as xq,
    ):
        ran = await xq.feed(bash("echo ready; sleep 600"))
        await until(lambda: is_ready(tmp_path, 0), "it is ready", DEADLINE_S)
        pid = own_docker.pid()
        os.kill(pid, how)
        await until(lambda: is_dead(pid), "the engine is gone", DEADLINE_S)
        waits = await xq.feed(bash("exit 7"))
        await asyncio.to_thread(own_docker.restart)
    assert ran.outcome == JobOutcome.FAILED
    assert ran.rc in (137, 143)
    assert ran.cause == JobCause.SIGNAL
    assert (waits.rc, waits.outcome) == (7, JobOutcome.FAILED)
    assert own_docker.containers() == []


@pytest.fixture(scope="module")
def lasting_docker(short_folder, start_docker):
    """A Docker whose containers survive it."""
    folder = Path(short_folder, "lasting")
    folder.mkdir()
    (folder / "daemon.json").write_text('{"live-restore": true}')
    return start_docker(str(folder))


@pytest.mark.usefixtures("unclosed_sockets")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_jobs_survive_a_docker_that_restores_them(lasting_docker, tmp_path, when):
    """With --live-restore: also what has ended while there was no engine is told with its code."""
    async with (
        asyncio.timeout(DEADLINE_S),
        Xqute("container", workdir=tmp_path, scheduler_opts=lasting_docker.options) as xq,
    ):
        job = await xq.feed(bash("echo ready; until [[ -e go ]]; do sleep 0.01; done; exit 7"))
        await until(lambda: is_ready(tmp_path, 0), "it is ready", DEADLINE_S)
        pid = lasting_docker.pid()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: is_dead(pid), "the engine is gone", DEADLINE_S)
        if when == "before":
            (tmp_path / "go").touch()
            await until(lambda: job.read_file("job.rc") == "7", "it has ended", DEADLINE_S)
        await asyncio.to_thread(lasting_docker.restart)
        if when == "after":
            assert job.outcome is None
            (tmp_path / "go").touch()
    assert (job.rc, job.outcome) == (7, JobOutcome.FAILED)
    assert lasting_docker.containers() == []


def is_dead(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_an_engine_that_is_not_there_is_one_clear_error(tmp_path):
    opts = {"image": "x", "socket": str(tmp_path / "no.sock")}
    with pytest.raises(SchedulerError, match=r"No container engine answers at .*no\.sock"):
        async with Xqute("container", workdir=tmp_path / "work", scheduler_opts=opts) as xq:
            await xq.feed(["true"])


async def test_docker_without_socket_and_engine_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    opts = {"image": "x", "socket": False}
    with pytest.raises(SchedulerError, match="is the engine started"):
        async with Xqute("container", workdir=tmp_path / "work", scheduler_opts=opts) as xq:
            await xq.feed(["true"])


async def test_ends_are_found_where_podman_tells_of_none(podman, tmp_path):
    """Its events may be switched off: then all jobs are looked at every few seconds."""
    conf = Path(podman.folder, "containers.conf").read_text()  # noqa: ASYNC240  # small and local
    silent = tmp_path / "containers.conf"
    silent.write_text(conf.replace('events_logger = "file"', 'events_logger = "none"'))
    program = tmp_path / "podman"
    text = Path(podman.program[0]).read_text()  # noqa: ASYNC240  # likewise
    program.write_text(text.replace(f"{podman.folder}/containers.conf", str(silent)))
    program.chmod(0o755)
    opts = {**podman.options, "bin": str(program)}
    async with (
        asyncio.timeout(DEADLINE_S),
        Xqute("container", workdir=tmp_path / "work", scheduler_opts=opts) as xq,
    ):
        xq.scheduler.recheck_interval = xq.scheduler.first_recheck_s = 3600.0
        job = await xq.feed(bash("exit 7"))
    assert (job.rc, job.outcome) == (7, JobOutcome.FAILED)
    assert podman.containers() == []
