"""Promises about the code that runs around a command."""

from __future__ import annotations

from ...defaults import JobCause, JobOutcome, JobStatus
from ...job import Job
from ...plugin import plugin
from ...scheduler import Scheduler
from .._needs import Needs, needs
from .._rig import Rig, bash


class _Inserts:
    """A plugin that puts code into the wrapper."""

    def __init__(
        self, name: str, priority: int, init: str = "", prep: str = "", end: str = ""
    ) -> None:
        self.name = f"inserts-{name}"
        self.priority = priority
        self._init, self._prep, self._end = init, prep, end

    @plugin.impl
    def on_jobcmd_init(self, scheduler: Scheduler, job: Job) -> str:
        return self._init

    @plugin.impl
    def on_jobcmd_prep(self, scheduler: Scheduler, job: Job) -> str:
        return self._prep

    @plugin.impl
    def on_jobcmd_end(self, scheduler: Scheduler, job: Job) -> str:
        return self._end


class ScriptPromises:
    """Prescript, postscript, and the code of plugins."""

    @needs(Needs.COMMANDS)
    async def test_prescript_and_postscript_run_around_the_command(self, rig: Rig) -> None:
        """Once each, before and after, where the command runs and with its outputs."""
        scripts = {"prescript": "echo before", "postscript": "echo after"}
        [job] = await rig.run(["echo", "command"], opts=scripts)
        assert rig.output(job).split() == [b"before", b"command", b"after"]

    @needs(Needs.COMMANDS)
    async def test_what_the_prescript_exports_reaches_the_command(self, rig: Rig) -> None:
        """The prescript is there to set up: modules, variables, virtual environments."""
        [job] = await rig.run(bash('echo "$KIT"'), opts={"prescript": "export KIT='set up'"})
        assert rig.output(job) == b"set up\n"

    @needs(Needs.COMMANDS)
    async def test_code_of_plugins_is_inserted_in_order(self, rig: Rig) -> None:
        """init, prescript, prep, command, postscript, end; plugins among themselves by priority."""
        second = _Inserts("second", 2, "echo init-2", "echo prep-2", "echo end-2")
        first = _Inserts("first", 1, "echo init-1", "echo prep-1", "echo end-1")
        scripts = {"prescript": "echo pre", "postscript": "echo post"}
        [job] = await rig.run(["echo", "command"], plugins=[second, first], opts=scripts)
        assert rig.output(job).decode().split() == [
            *("init-1", "init-2", "pre", "prep-1", "prep-2"),
            *("command", "post", "end-1", "end-2"),
        ]

    @needs(Needs.COMMANDS)
    async def test_a_plugin_may_replace_the_command(self, rig: Rig) -> None:
        """`$cmd` is bash code that may be changed before it runs: to time it, to contain it."""
        wraps = _Inserts("wraps", 1, prep='cmd="echo replaced; $cmd"')
        [job] = await rig.run(["echo", "a  b"], plugins=[wraps])
        assert rig.output(job) == b"replaced\na  b\n"

    @needs(Needs.COMMANDS)
    async def test_the_end_hook_sees_the_exit_code(self, rig: Rig) -> None:
        """`$rc` is the command's exit code in `on_jobcmd_end`."""
        [job] = await rig.run(bash("exit 7"), plugins=[_Inserts("asks", 1, end='echo "rc=$rc"')])
        assert rig.output(job) == b"rc=7\n"

    @needs(Needs.COMMANDS)
    async def test_an_exit_in_the_prescript_fails_the_job_with_its_code(self, rig: Rig) -> None:
        """The command is not run, and the code is the job's; a success it can never be."""
        async with rig.running(forks=2) as xq:
            xq.scheduler.prescript = 'exit "$KIT"'
            fails = await xq.feed(bash("echo ran"), envs={"KIT": 9})
            ends = await xq.feed(bash("echo ran"), envs={"KIT": 0})
        assert (rig.output(fails), rig.output(ends)) == (b"", b"")
        assert (fails.rc, fails.outcome) == (9, JobOutcome.FAILED)
        assert fails.cause == JobCause.NOT_STARTED
        assert (ends.status, ends.outcome) == (JobStatus.FAILED, JobOutcome.FAILED)
        assert ends.rc > 0

    @needs(Needs.COMMANDS)
    async def test_the_exit_code_is_the_commands_whatever_follows(self, rig: Rig) -> None:
        """Neither postscript nor end hook can change how the command ended."""
        for script in ("exit 3", "false", "exit 0"):
            hook = _Inserts("fails", 1, end=script)
            jobs = await rig.run(
                bash("exit 5"), bash("exit 0"), plugins=[hook], opts={"postscript": script}
            )
            assert [job.rc for job in jobs] == [5, 0], script
            assert [job.outcome for job in jobs] == [JobOutcome.FAILED, JobOutcome.SUCCEEDED]

    @needs(Needs.COMMANDS)
    async def test_the_end_is_told_after_the_postscript(self, rig: Rig) -> None:
        """Who reads that a job has ended may take its outputs: nothing of it runs any more."""
        script = (
            'cat "$XQUTE_JOB_METADIR/job.status"\n'
            '[[ -e $XQUTE_JOB_METADIR/job.rc ]] && echo " rc"\n'
        )
        inserts = _Inserts("asks", 1, end=script)
        [job] = await rig.run(bash("exit 0"), plugins=[inserts], opts={"postscript": script})
        assert rig.output(job) == b"44", "job.status is 4, and there is no job.rc, in both"
        assert rig.read(job, "job.status") == b"6"
