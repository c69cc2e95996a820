"""Names and ids that come from outside: they stay in the workdir, and no shell reads them."""

from __future__ import annotations

import itertools
import os
import subprocess
import time

import pytest

from xqute import InvalidJobError, Job, JobOutcome, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")

#: What would leave a file if a shell or a path took it for more than a text.
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "x; touch pwned #",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "x\ntouch pwned\n",
    "../../pwned",
    "/pwned",
    "-rf",
    " ",
    "*",
    "\x1b]0;pwned\x07",
    "é\udcff",
]


@pytest.fixture(autouse=True)
def _nothing_has_happened(tmp_path, monkeypatch):
    """Nothing may come to be outside of the workdir, which is `w` or one in `w`."""
    monkeypatch.chdir(tmp_path)
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"w", "gate"}
    assert not os.path.lexists("/pwned")


@pytest.mark.parametrize("text", HOSTILE)
async def test_names_of_jobs_are_text(tmp_path, text):
    xq = Xqute(workdir="w", jobname_prefix=text)
    job = await xq.feed("echo hi", name=text)
    await xq.run_until_complete()
    assert (job.outcome, job.stdout_file.read_text()) == (JobOutcome.SUCCEEDED, "hi\n")
    assert sorted(os.listdir("w")) == [".run", "0"]


@pytest.mark.parametrize("text", [text for text in HOSTILE if not text.startswith("/")])
async def test_so_are_the_names_of_workdirs(tmp_path, text):
    workdir = os.path.join("w", "in", "here", text, "run")
    xq = Xqute(workdir=workdir)
    job = await xq.put(["bash", "-c", 'echo -n "$XQUTE_METADIR"'])
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert os.fsdecode(job.stdout_file.read_bytes()) == str(xq.scheduler.workdir)


@pytest.mark.parametrize("index", ["../x", "0", "/pwned", 1.0, -1])
def test_an_index_is_a_number(index):
    with pytest.raises(InvalidJobError, match="index"):
        Job(index, "true", "w")


@pytest.fixture
def bystander():
    """A process that is nobody's job."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "text",
    [*HOSTILE, "0", "1", "-1", "bystander", "-bystander", "bystander\n1", "²", "9" * 40, "None"],
)
async def test_what_a_jid_file_says_ends_no_process_that_is_not_the_jobs(bystander, text):
    scheduler = LocalScheduler("w")
    job = scheduler.create_job(0, "true")
    data = text.replace("bystander", str(bystander.pid)).encode("utf-8", "surrogateescape")
    job.jid_file.write_bytes(data)
    assert await scheduler.job_is_running(job) is False
    await scheduler.kill_job(job)
    await scheduler.kill_jobs([job], force=True)
    assert bystander.poll() is None


async def test_a_start_claim_that_names_another_process_ends_none(bystander):
    """The id is right, and the time at which its process was started is not."""
    scheduler = LocalScheduler("w")
    job = scheduler.create_job(0, "true")
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: ASYNC230
        boot_id = file.read().strip()
    claim = f"{os.uname().nodename} {boot_id} {bystander.pid} 1 -\n"
    (job.metadir / "job.start.x-0").write_text(claim)
    job.jid_file.write_text(str(bystander.pid))
    await scheduler.kill_job(job)
    assert bystander.poll() is None


async def test_files_of_other_names_among_the_events_are_nothing(process_scheduler, gate, until):
    """Also ones that look like an event, of jobs that there are and of those that there are not."""
    xq = Xqute(process_scheduler, workdir="w", forks=2)
    jobs = [await xq.put(gate.command(f"exit {n}")) for n in (3, 0)]
    for job in jobs:
        await until(job.status_file.exists)
    now_ms = int(time.time() * 1000)
    names = [text for text in HOSTILE if "/" not in text]
    for index, attempt, end in itertools.product((0, 7), (0, 9), ("6.0", "7.-3")):
        names.append(f"{index}.{attempt}.0.{end}.{now_ms}")
    names += ["9" * 200, f"0.0.0.6.0.{'9' * 15}", "0.0.0.5.0.1", "0.0.0.6.00.1"]
    for name in names:
        (xq.scheduler.workdir / ".run" / "events" / name).touch()
    (xq.scheduler.workdir / ".run" / "events" / "1.0.0.6.0.1").mkdir()
    gate.open()
    await xq.run_until_complete()
    assert [job.rc for job in jobs] == [3, 0]
    assert [job.outcome for job in jobs] == [JobOutcome.FAILED, JobOutcome.SUCCEEDED]
