"""Promises about how the truth about a job is told."""

from __future__ import annotations

from ...defaults import JobCause, JobOutcome, JobStatus
from .._needs import Needs, needs
from .._rig import Rig, bash

_CODES = (0, 1, 2, 77, 126, 127, 255)
#: Those that have the same number everywhere.
_SIGNALS = {"HUP": 1, "INT": 2, "ABRT": 6, "KILL": 9, "SEGV": 11, "TERM": 15}


class OutcomePromises:
    """rc, outcome, cause, reason, times, ids and files of a job that has ended."""

    async def test_the_exit_code_is_the_commands(self, rig: Rig) -> None:
        """0, 1, 2, 77, 126, 127 and 255 alike: none has a meaning of its own on the way."""
        jobs = await rig.run(*map(rig.command, _CODES), forks=4)
        assert [job.rc for job in jobs] == list(_CODES)

    async def test_a_success_is_told(self, rig: Rig) -> None:
        """Status FINISHED, outcome SUCCEEDED, rc 0, and nothing to explain."""
        [job] = await rig.run(rig.command(0))
        assert (job.status, job.outcome, job.rc) == (JobStatus.FINISHED, JobOutcome.SUCCEEDED, 0)
        assert (job.cause, job.reason) == (None, "")

    async def test_a_failure_is_told(self, rig: Rig) -> None:
        """Status FAILED, outcome FAILED, the exit code as cause, and the code in the reason."""
        [job] = await rig.run(rig.command(77))
        assert (job.status, job.outcome, job.rc) == (JobStatus.FAILED, JobOutcome.FAILED, 77)
        assert job.cause == JobCause.EXIT_CODE
        assert "77" in job.reason

    @needs(Needs.COMMANDS)
    async def test_a_death_by_signal_is_told(self, rig: Rig) -> None:
        """Rc is 128 + the signal's number, the cause SIGNAL, and the reason names the signal."""
        scripts = [bash(f"ulimit -c 0; kill -s {name} $$; sleep 9") for name in _SIGNALS]
        jobs = await rig.run(*scripts, forks=3)
        assert [job.rc for job in jobs] == [128 + number for number in _SIGNALS.values()]
        for job, name in zip(jobs, _SIGNALS, strict=True):
            assert (job.outcome, job.cause) == (JobOutcome.FAILED, JobCause.SIGNAL)
            assert f"SIG{name}" in job.reason

    @needs(Needs.COMMANDS)
    async def test_a_command_that_is_not_found_fails_with_127(self, rig: Rig) -> None:
        """As in a shell; its stderr names the command."""
        [job] = await rig.run(["xqute-kit-no-such-command", "x"])
        assert (job.rc, job.outcome) == (127, JobOutcome.FAILED)
        assert b"xqute-kit-no-such-command" in rig.errors(job)

    @needs(Needs.COMMANDS)
    async def test_a_file_that_is_not_executable_fails_with_126(self, rig: Rig) -> None:
        """As in a shell; its stderr names the file."""
        [job] = await rig.run(["/etc/passwd"])
        assert (job.rc, job.outcome) == (126, JobOutcome.FAILED)
        assert b"/etc/passwd" in rig.errors(job)

    async def test_exit_codes_are_true_when_many_jobs_end_at_once(self, rig: Rig) -> None:
        """Each of `many` jobs has its own code: none is lost, doubled or mixed up in the crowd."""
        codes = [number % 256 for number in range(rig.contract.many)]
        jobs = await rig.run(*map(rig.command, codes), forks=len(codes))
        assert [job.rc for job in jobs] == codes

    async def test_times_are_told_in_order(self, rig: Rig) -> None:
        """`submitted_at` <= `started_at` <= `ended_at`, and the job ran as long as its command."""
        [job] = await rig.run(rig.command(0, runs_s=0.2))
        assert job.submitted_at is not None
        assert job.started_at is not None
        assert job.ended_at is not None
        # What the job says and what the driver says may be off by a clock's tick.
        assert job.submitted_at <= job.started_at + 0.02
        assert job.ended_at - job.started_at >= 0.2 - 0.02

    async def test_ids_of_running_jobs_differ(self, rig: Rig) -> None:
        """Each running job has a native id, and no two have the same."""
        async with rig.running(forks=8) as xq:
            jobs = [await xq.feed(rig.command(0, runs_s=60)) for _ in range(8)]
            await rig.until(lambda: all(job.status is JobStatus.RUNNING for job in jobs), "all run")
            ids = [str(job.jid) for job in jobs]
            xq.cancel()
        assert len(set(ids)) == len(jobs)
        assert "None" not in ids
        assert "" not in ids

    @needs(Needs.COMMANDS)
    async def test_the_truth_is_in_the_files(self, rig: Rig) -> None:
        """`job.status`, `job.rc` and `job.jid` say the same as the job, for who comes later."""
        jobs = await rig.run(bash("exit 0"), bash("exit 3"))
        assert [rig.read(job, "job.status") for job in jobs] == [b"6", b"7"]
        assert [rig.read(job, "job.rc") for job in jobs] == [b"0", b"3"]
        assert [rig.read(job, "job.jid") for job in jobs] == [str(job.jid).encode() for job in jobs]
