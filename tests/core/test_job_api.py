"""`Job`: its constructor, attributes, files and status, with and without a run around it."""

from __future__ import annotations

import pickle

import pytest

from xqute import Job, JobStatus, SpecPath, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


# --- construction -------------------------------------------------------------------------------


def test_the_constructor_takes_its_arguments_by_position(tmp_path):
    job = Job(3, ["echo", 1], tmp_path, True, 5, {"A": 1})
    assert (job.index, job.cmd) == (3, ("echo", "1"))
    assert (job.error_retry, job.num_retries, job.envs) == (True, 5, {"A": "1"})


def test_the_constructor_takes_its_arguments_by_name(tmp_path):
    job = Job(
        index=3, cmd="echo 1", workdir=tmp_path, error_retry=False, num_retries=0, envs={"A": "b"}
    )
    assert (job.index, job.cmd) == (3, ("echo", "1"))
    assert (job.error_retry, job.num_retries, job.envs) == (False, 0, {"A": "b"})


def test_a_new_job_has_the_documented_state(tmp_path):
    job = Job(0, "true", tmp_path)
    assert (job.status, job.prev_status) == (JobStatus.INIT, JobStatus.INIT)
    assert (job.rc, job.trial_count, job.jid) == (-1, 0, None)
    assert (job.outcome, job.cause, job.reason, job.adopted) == (None, None, "", False)
    assert (job.name, job.submitted_at, job.started_at, job.ended_at) == (None, None, None, None)
    assert job.envs == {}


def test_the_repr_is_a_sentence_that_programs_parse(tmp_path):
    job = Job(3, ["echo", "1"], tmp_path)
    assert repr(job) == "<Job-3(None): (('echo', '1'))>"
    job.jid = 12345
    assert repr(job) == "<Job-3(12345): (('echo', '1'))>"


def test_cmd_is_a_tuple_of_str(tmp_path):
    assert Job(0, "echo 'a b' c", tmp_path).cmd == ("echo", "a b", "c")
    assert Job(1, ("echo", 1, 2.5, tmp_path), tmp_path).cmd == ("echo", "1", "2.5", str(tmp_path))
    assert Job(2, [b"echo", b"\xff"], tmp_path).cmd == ("echo", "\udcff")


def test_cmd_may_be_empty_and_assigned_later(tmp_path):
    for nothing in ("", [], ()):
        job = Job(0, nothing, tmp_path)
        assert job.cmd == ()
        job.cmd = "echo 1"
        assert job.cmd == ("echo", "1")
        job.cmd = ["echo", 2]
        assert job.cmd == ("echo", "2")


def test_envs_go_through_str_and_may_be_changed_and_assigned(tmp_path):
    job = Job(0, "true", tmp_path, envs={"A": 1, "B": tmp_path})
    assert job.envs == {"A": "1", "B": str(tmp_path)}
    job.envs["C"] = "c"
    assert job.envs["C"] == "c"
    job.envs = {"D": 4}
    assert job.envs == {"D": "4"}


def test_the_envs_of_a_job_are_its_own(tmp_path):
    given = {"A": "1"}
    jobs = [Job(n, "true", tmp_path, envs=given) for n in range(2)]
    jobs[0].envs["A"] = "changed"
    assert (jobs[1].envs, given) == ({"A": "1"}, {"A": "1"})


async def test_values_that_an_engine_puts_into_envs_go_through_str(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = xq.scheduler.create_job(0, ["bash", "-c", "echo $N"])
    job.envs["N"] = 7
    await xq.put(job)
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "7\n"


# --- folder and files ---------------------------------------------------------------------------


def test_metadir_is_workdir_slash_index_and_exists(tmp_path):
    job = Job(12, "true", tmp_path / "deep" / "er")
    assert job.metadir == tmp_path / "deep" / "er" / "12"
    assert job.metadir.is_dir()
    assert isinstance(job.metadir, SpecPath)


def test_the_files_have_their_documented_names(tmp_path):
    job = Job(0, "true", str(tmp_path))
    assert job.stdout_file == tmp_path / "0" / "job.stdout"
    assert job.stderr_file == tmp_path / "0" / "job.stderr"
    assert job.status_file == tmp_path / "0" / "job.status"
    assert job.rc_file == tmp_path / "0" / "job.rc"
    assert job.jid_file == tmp_path / "0" / "job.jid"
    assert job.retry_dir == tmp_path / "0" / "job.retry"
    assert all(
        isinstance(path, SpecPath)
        for path in (job.stdout_file, job.stderr_file, job.status_file, job.rc_file, job.jid_file)
    )


async def test_after_a_run_the_folder_holds_the_documented_files(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(["bash", "-c", "echo out; echo err >&2; exit 3"])
    await xq.run_until_complete()
    texts = {path.name: path.read_text() for path in job.metadir.iterdir() if path.is_file()}
    assert texts["job.stdout"] == "out\n"
    assert texts["job.stderr"] == "err\n"
    assert texts["job.rc"].strip() == "3"
    assert texts["job.status"].strip() == str(int(JobStatus.FAILED))
    assert texts["job.jid"].strip() == str(job.jid)
    assert "job.wrapped.local" in texts


async def test_the_paths_of_a_job_know_their_mounted_side(tmp_path):
    job = Job(0, "true", SpecPath(tmp_path, mounted="/mnt/w"))
    assert str(job.metadir.mounted) == "/mnt/w/0"
    assert str(job.stdout_file.mounted) == "/mnt/w/0/job.stdout"
    assert job.stdout_file.mounted.spec == job.stdout_file


# --- as programs use it -------------------------------------------------------------------------


def test_slots_are_a_tuple_that_subclasses_extend(tmp_path):
    class MyJob(Job):
        __slots__ = (*Job.__slots__, "proc", "_outdir")

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.proc = "p"

    assert isinstance(Job.__slots__, tuple)
    job = MyJob(0, "true", tmp_path)
    job._outdir = "o"
    assert (job.proc, job._outdir) == ("p", "o")
    assert repr(job) == "<MyJob-0(None): (('true',))>"


def test_jobs_are_slots_only_and_hashable_by_identity(tmp_path):
    job = Job(0, "true", tmp_path)
    with pytest.raises(AttributeError):
        job.anything = 1
    assert len({job, Job(0, "true", tmp_path)}) == 2


async def test_a_job_subclass_with_skipped_indices_runs(tmp_path):
    class MyJob(Job):
        __slots__ = (*Job.__slots__, "proc")

        async def prepare(self):
            self.cmd = ["echo", self.proc, self.index]

    class Mine(LocalScheduler):
        job_class = MyJob

    xq = Xqute(Mine, workdir=tmp_path, forks=2)
    xq.proc = "proc"
    for index in (5, 1, 8):
        job = xq.scheduler.create_job(index, ())
        assert type(job) is MyJob
        job.proc = xq.proc
        await job.prepare()
        await xq.put(job)
    await xq.run_until_complete()
    assert [job.stdout_file.read_text() for job in xq.jobs] == ["proc 5\n", "proc 1\n", "proc 8\n"]


async def test_the_times_of_a_job_are_in_order_and_its_own(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.submitted_at <= job.started_at <= job.ended_at


async def test_prev_status_tells_the_way_of_a_run(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    assert (job.prev_status, job.status) == (JobStatus.RUNNING, JobStatus.FINISHED)


def test_the_paths_of_a_job_can_be_pickled(tmp_path):
    job = Job(0, "true", tmp_path)
    assert pickle.loads(pickle.dumps(job.stdout_file)) == job.stdout_file
