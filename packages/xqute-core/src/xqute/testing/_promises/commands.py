"""Promises about what a command is given, and what is kept of what it gives."""

from __future__ import annotations

import os
import stat

from .._needs import Needs, needs
from .._rig import Rig, bash

#: What has been seen to arrive changed: each was once taken for syntax, or for text, by somebody.
HARD_WORDS = (
    *("plain", 'say "hi"', "it's", "$HOME", "${HOME}", "`id`", "$(id)", "a\nb", "a\n", "\n", "\t"),
    *("", " ", "  two  blanks  ", "*", "?", "[a-z]", "{a,b}", "~", "-n", "-e", "--", "--help", "%"),
    *(
        "%s",
        "\\",
        "\\n",
        "\\0",
        "!",
        "!!",
        "#",
        ";",
        "&",
        "&&",
        "|",
        "<",
        ">",
        "(",
        ")",
        "=",
        "a=b",
    ),
    *("é", "\u2028", "\U0001f600", "\udcff", "\udcc3(", "\x01", "\x1b[0m", "\x7f", "\r\n"),
)
#: The longest argument that a system takes: 32 pages without the NUL at its end.
LONGEST_ARGUMENT_BYTES = 131_071


def _nul_joined(words: tuple[str, ...]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _octal(data: bytes) -> str:
    """Give a format for `printf` that prints exactly these bytes."""
    return "".join(f"\\{byte:03o}" for byte in data)


class CommandPromises:
    """What reaches the command, and what is kept of its output."""

    @needs(Needs.COMMANDS)
    async def test_arguments_arrive_byte_for_byte(self, rig: Rig) -> None:
        """Every argument is the command's as it was fed, whatever it means to a shell on the way.

        Surrogates stand for bytes that are no text, as `os.fsdecode` makes them.
        """
        program, builtin = await rig.run(
            bash('printf "%s\\0" "$@"', *HARD_WORDS), ["printf", "%s\\0", *HARD_WORDS]
        )
        assert rig.output(program) == _nul_joined(HARD_WORDS)
        assert rig.output(builtin) == _nul_joined(HARD_WORDS)

    @needs(Needs.COMMANDS)
    async def test_the_longest_argument_arrives(self, rig: Rig) -> None:
        """An argument of 131,071 bytes, the most that a system takes, arrives whole.

        Backends that pass the command on a command line of their own lose it.
        """
        [job] = await rig.run(bash("printf '%s' ${#1}", "x" * LONGEST_ARGUMENT_BYTES))
        assert (job.rc, rig.output(job)) == (0, b"%d" % LONGEST_ARGUMENT_BYTES)

    @needs(Needs.COMMANDS)
    async def test_environment_values_arrive_byte_for_byte(self, rig: Rig) -> None:
        """Variables of a job are the command's as they are, newlines and arbitrary bytes too."""
        envs = {f"KIT_{number}": word for number, word in enumerate(HARD_WORDS)}
        async with rig.running() as xq:
            job = await xq.feed(
                bash('for name; do printf "%s\\0" "${!name}"; done', *envs), envs=envs
            )
        assert rig.output(job) == _nul_joined(HARD_WORDS)

    @needs(Needs.COMMANDS)
    async def test_environments_of_jobs_are_their_own(self, rig: Rig) -> None:
        """A variable of one job is not another's; a value that is no text goes through `str`."""
        async with rig.running() as xq:
            first = await xq.feed(bash('echo "${KIT-none}"'), envs={"KIT": 5})
            second = await xq.feed(bash('echo "${KIT-none}"'))
        assert (rig.output(first), rig.output(second)) == (b"5\n", b"none\n")

    @needs(Needs.COMMANDS)
    async def test_the_command_runs_in_cwd(self, rig: Rig) -> None:
        """`cwd` is where commands run, as jobs see it; a job's goes before the scheduler's."""
        async with rig.running(opts={"cwd": "/usr"}) as xq:
            scheduler_s = await xq.feed(["pwd"])
            job_s = await xq.feed(["pwd"], cwd="/")
        assert (rig.output(scheduler_s), rig.output(job_s)) == (b"/usr\n", b"/\n")

    @needs(Needs.COMMANDS)
    async def test_a_cwd_that_is_not_there_fails_the_job(self, rig: Rig) -> None:
        """A command never runs where it was not meant to: the job fails, and says why."""
        async with rig.running(opts={"cwd": "/xqute-kit-no-such-folder"}) as xq:
            job = await xq.feed(bash("echo ran"))
        assert job.rc > 0
        assert rig.output(job) == b""
        assert b"/xqute-kit-no-such-folder" in rig.errors(job)

    @needs(Needs.COMMANDS)
    async def test_standard_input_is_empty(self, rig: Rig) -> None:
        """Stdin is /dev/null: a command that reads ends, instead of waiting for a terminal."""
        [job] = await rig.run(bash("[[ /dev/stdin -ef /dev/null ]] || exit 3; cat"))
        assert (job.rc, rig.output(job)) == (0, b"")

    @needs(Needs.COMMANDS)
    async def test_outputs_are_kept_apart_and_exact(self, rig: Rig) -> None:
        """Standard output and standard error are two files, with every byte that was written."""
        out, err = bytes(range(256)), bytes(range(255, -1, -1))
        [job] = await rig.run(bash('printf "$1"; printf "$2" >&2', _octal(out), _octal(err)))
        assert rig.output(job) == out
        assert rig.errors(job) == err

    @needs(Needs.COMMANDS)
    async def test_much_output_is_kept_whole(self, rig: Rig) -> None:
        """A mebibyte of output is all there when the job has ended."""
        [job] = await rig.run(
            bash('for ((n = 0; n < 16384; n++)); do printf "%063d\\n" "$n"; done')
        )
        assert rig.output(job) == b"".join(b"%063d\n" % n for n in range(16384))

    @needs(Needs.COMMANDS)
    async def test_a_job_is_told_who_it_is(self, rig: Rig) -> None:
        """XQUTE_JOB_INDEX, XQUTE_METADIR, XQUTE_JOB_METADIR and XQUTE_JOB_TRIAL are set.

        The folders are named as the job sees them: what it puts into its folder is found there.
        """
        script = (
            'printf "%s\\n" "$XQUTE_JOB_INDEX" "$XQUTE_METADIR" '
            '"$XQUTE_JOB_METADIR" "$XQUTE_JOB_TRIAL"\n'
            'printf found >"$XQUTE_JOB_METADIR/note"'
        )
        async with rig.running() as xq:
            await xq.feed(bash("exit 0"))
            job = await xq.feed(bash(script))
        workdir, metadir = xq.scheduler.workdir.mounted, job.metadir.mounted
        assert rig.output(job).decode().splitlines() == ["1", str(workdir), str(metadir), "0"]
        assert rig.read(job, "note") == b"found"

    @needs(Needs.COMMANDS)
    async def test_only_the_user_can_read_what_may_be_secret(self, rig: Rig) -> None:
        """The folder of a job and its wrapper, with the environment in it, are the user's alone."""
        async with rig.running() as xq:
            job = await xq.feed(bash("exit 0"), envs={"KIT_TOKEN": "secret"})
        [script] = job.metadir.glob("job.wrapped.*")
        for path in (job.metadir, script):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert not mode & 0o077, f"{path} has mode {mode:o}"
