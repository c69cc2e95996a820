"""`xqute run`: its options, and the run that they ask for."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
from click.core import ParameterSource

from .display import Display, make_display
from .driver import Driver
from .inputs import ArgumentInput, Input, LineInput
from .profile import FILE_NAME, load_profile
from .settings import Settings, make_settings
from .template import Template, TemplateError, check_syntax, parse_template

__all__ = ["run"]

_GROUP_MARK = ":::"
_STDIN = 0


class _RunCommand(click.Command):
    """Takes what follows `:::` as it is, and options also after a template that is a shell line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments of the command line."""
        if _GROUP_MARK in args:
            mark = args.index(_GROUP_MARK)
            args, rest = args[:mark], args[mark + 1 :]
            groups: list[list[str]] = [[]]
            for arg in rest:
                if arg == _GROUP_MARK:
                    groups.append([])
                else:
                    groups[-1].append(arg)
            ctx.obj = groups
        words = self._words(ctx, args)
        if len(words) > 1 and re.search(r"\s", words[0]):
            # A line for the shell is a template alone: what follows it are options.
            before, after = args[: -len(words)], words[1:]
            stray = self._words(ctx, after)
            if stray:
                raise click.UsageError(
                    f"{stray[0]!r} after the template {words[0]!r}: a template is one line for the "
                    "shell, or the words of a command; arguments come after :::",
                    ctx,
                )
            args = [*(arg for arg in before if arg != "--"), *after, "--", words[0]]
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as exc:
            name = exc.param.name if exc.param is not None else None
            if name and ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
                message = f"{exc.message} (in {FILE_NAME})"
                raise click.BadParameter(message, ctx, exc.param) from exc
            raise

    def _words(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give what is left of the arguments when the options are taken out."""
        found = self.make_parser(ctx).parse_args(args=list(args))[0].get("template")
        return list(found) if isinstance(found, tuple) else []


def _use_profile(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
    options = {
        option.name
        for option in ctx.command.params
        if isinstance(option, click.Option) and option.name and option is not param
    }
    profile = dict(load_profile(name, options))
    for table in ("env", "opt"):
        if isinstance(profile.get(table), dict):
            profile[table] = list(_as_pairs(profile[table]))
    ctx.default_map = profile


def _as_pairs(table: dict[str, Any]) -> Iterator[str]:
    """Give a table as it would stand on the command line."""
    for name, value in table.items():
        for item in value if isinstance(value, list) else [value]:
            yield f"{name}={str(item).lower() if isinstance(item, bool) else item}"


def _split_pairs(
    ctx: click.Context, param: click.Parameter, pairs: Sequence[str]
) -> list[tuple[str, str]]:
    split = []
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not name or not mark:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", ctx, param)
        split.append((name, value))
    return split


@click.command(
    cls=_RunCommand,
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
    epilog="Exit codes: 0 all succeeded, 1 some failed, 2 usage, 3 backend, 130 and 143 stopped.",
)
@click.argument("template", nargs=-1, type=click.UNPROCESSED, metavar="[TEMPLATE] [::: ARG...]...")
@click.option(
    "-p",
    "--profile",
    is_eager=True,
    expose_value=False,
    callback=_use_profile,
    metavar="NAME",
    help="Options from [profile.NAME] of the nearest xqute.toml.",
)
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    help="Read the lines from FILE; -: standard input, the default.",
)
@click.option("-0", "--null", is_flag=True, help="Lines end with NUL instead of a newline.")
@click.option(
    "-I", "--replace", metavar="TEXT", help="What stands for the argument, instead of {}."
)
@click.option("-s", "--scheduler", default="local", show_default=True, metavar="NAME")
@click.option(
    "-j",
    "--forks",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many jobs at once.  [default: the number of CPUs]",
)
@click.option(
    "--workdir",
    metavar="DIR",
    help="Where the jobs' files go.  [default: .xqute/runs/<time>, also .xqute/runs/latest]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Take up a run that was given the same commands: the latest, or that of --workdir.",
)
@click.option(
    "--on-change",
    type=click.Choice(["error", "rerun"]),
    default="error",
    show_default=True,
    help="What to do about a job of an earlier run that still runs and is another command now.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    help="How often to try a failed job again.",
)
@click.option("--halt", is_flag=True, help="Stop everything at the first failure.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=0,
    metavar="S",
    help="Seconds after which a job is ended.",
)
@click.option("--cwd", metavar="DIR", help="Where the commands run.")
@click.option(
    "--env",
    multiple=True,
    callback=_split_pairs,
    metavar="NAME=VALUE",
    help="A variable for the commands.",
)
@click.option(
    "--opt",
    multiple=True,
    callback=_split_pairs,
    metavar="KEY=VALUE",
    help="An option of the scheduler; given twice, a list of values.",
)
@click.option("--plugin", multiple=True, metavar="NAME", help="A plugin to use; -NAME: not to use.")
@click.option(
    "--prescript", default="", metavar="CODE", help="Bash code to run before each command."
)
@click.option(
    "--postscript", default="", metavar="CODE", help="Bash code to run after each command."
)
@click.option("--name", metavar="NAME", help="What the names of the jobs begin with.")
@click.option("-k", "--keep-order", is_flag=True, help="Output in the order of the input.")
@click.option(
    "--output",
    type=click.Choice(["stdout", "both", "none"]),
    default="stdout",
    show_default=True,
    help="What of the jobs' output to pass on, each job's in one piece when it has ended.",
)
@click.option("--no-output", is_flag=True, help="The same as --output none.")
@click.option("--json", is_flag=True, help="A JSON object for each job, and a summary, on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of the jobs; the exit code tells.")
@click.option("--no-progress", is_flag=True, help="Say nothing before the end.")
@click.pass_context
def run(ctx: click.Context, /, template: tuple[str, ...], **options: Any) -> int:
    r"""Run a command for each argument, or each command of a list.

    \b
      find . -name '*.gz' | xqute run 'zcat {} | wc -l'
      xqute run 'convert {} -resize {2} {1}.{2}.png' ::: *.jpg ::: 50% 25%
      xqute run -f commands.txt

    TEMPLATE is a line for the shell, in which each {} becomes the argument as one word, whatever it
    holds; without a {} it comes last. Several words are a command that needs no shell. The
    arguments follow :::, or are the lines of standard input. Without TEMPLATE each line is a
    command; empty lines and those that begin with # are skipped.
    """
    settings = make_settings(options)
    commands = _make_input(template, ctx.obj, settings, options)
    title = " ".join(template) or "commands"
    display = make_display(title, quiet=settings.quiet, progress=not options["no_progress"])
    return asyncio.run(_drive(settings, commands, display))


async def _drive(settings: Settings, commands: Input, display: Display) -> int:
    return await Driver(settings, commands, display).run()


def _make_input(
    words: tuple[str, ...],
    groups: list[list[str]] | None,
    settings: Settings,
    options: dict[str, Any],
) -> Input:
    """Decide where the commands come from.

    Raises:
        click.UsageError: If that makes no sense.
    """
    file, separator = options["file"], b"\0" if options["null"] else b"\n"
    # Code around a command, and variables that bash heeds, may mean more than the command's words.
    code = settings.prescript or settings.postscript or settings.plugin
    variables = any(name.startswith("BASH") for name in settings.env)
    direct = settings.scheduler == "local" and not code and not variables
    template = None
    if words:
        n_groups = 1 if groups is None else len(groups)
        template = _make_template(words, n_groups, options["replace"] or "", direct=direct)
    if groups is not None:
        if template is None:
            raise click.UsageError("::: is for the arguments of a TEMPLATE, and there is none")
        if file is not None or options["null"]:
            raise click.UsageError("--file and --null are for lines, but arguments follow :::")
        return ArgumentInput(groups, template)
    if file in (None, "-"):
        fd, name = _STDIN, "standard input"
        if sys.stdin is None:
            raise click.UsageError("There is nothing to run: standard input is closed")
        if os.isatty(_STDIN):
            if template is None:
                raise click.UsageError("There is nothing to run: no TEMPLATE, no list of commands")
            click.echo("Arguments from the terminal, one a line; Ctrl-D ends them.", err=True)
    else:
        name = file
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise click.UsageError(f"--file {file}: {exc.strerror}") from exc
    return LineInput(fd, template, separator=separator, direct=direct, name=name)


def _make_template(
    words: tuple[str, ...], n_groups: int, replaced: str, *, direct: bool
) -> Template:
    if not words[0].strip():
        raise click.UsageError("TEMPLATE is empty")
    try:
        template = parse_template(words, n_groups, replaced=replaced, direct=direct)
        check_syntax(template.build(["x"] * n_groups))
    except TemplateError as exc:
        raise click.UsageError(f"TEMPLATE: {exc}") from exc
    return template
