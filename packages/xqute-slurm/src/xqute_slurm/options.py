"""Options of sbatch, from native keywords and portable resources; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xqute import ConfigError, Resources

__all__ = ["build_head", "build_options", "map_resources", "normalise", "overriding"]

#: Long names of options that have a letter, so that either is the same option.
_LONG = {
    "A": "account",
    "a": "array",
    "b": "begin",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "i": "input",
    "J": "job-name",
    "k": "no-kill",
    "L": "licenses",
    "M": "clusters",
    "m": "distribution",
    "N": "nodes",
    "n": "ntasks",
    "O": "overcommit",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "S": "core-spec",
    "s": "oversubscribe",
    "t": "time",
    "W": "wait",
    "w": "nodelist",
    "x": "exclude",
}
_MEMORY = ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU")
#: What of the environment says the same as an option, or contradicts it, where that is not
#: `SBATCH_` and its long name: sbatch(1), "INPUT ENVIRONMENT VARIABLES".
_VARIABLES = {
    "cpus-per-task": ("CPUS_PER_GPU",),
    "gpus": ("GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET", "GPUS_PER_TASK"),
    "mem": _MEMORY,
    "mem-per-cpu": _MEMORY,
    "mem-per-gpu": _MEMORY,
    "bb": ("BURST_BUFFER",),
    "switches": ("REQ_SWITCH", "WAIT4SWITCH"),
    "time": ("TIMELIMIT",),
}
_SBATCH_LINE = re.compile(r"#SBATCH (?:-([A-Za-z])\b|--([a-z0-9-]+))")
#: Why these are not for users.
_OURS = {
    "chdir": "Slurm runs the job in /tmp where that folder is missing; see cwd",
    "array": "xqute makes the arrays; see array_size and max_running",
    "job-name": "it identifies the submission; see jobname_prefix",
    "no-requeue": "that is so already",
    "parsable": "that is so already",
    "test-only": "nothing would run",
    "wait": "xqute waits itself",
    "wrap": "xqute submits scripts",
    "clusters": "its jobs would not be found in the queue of this one",
}
_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+=\[\]*-]+")


def normalise(options: Mapping[str, Any]) -> dict[str, str | None]:
    """Give each option as one line has it, by its long name; None: it is not wanted.

    Raises:
        ConfigError: If one is no option, or not for users.
    """
    lines: dict[str, str | None] = {}
    for key, value in options.items():
        given = str(key).replace("_", "-")
        name = _LONG.get(given, given)
        if value is None or value is False:
            lines[name] = None
            continue
        if name in _OURS:
            raise ConfigError(f"slurm: the option {key!r} is not for you: {_OURS[name]}")
        if not re.fullmatch(r"[A-Za-z]|[a-z][a-z0-9-]+", given):
            raise ConfigError(f"slurm: {key!r} can be no option of sbatch")
        lines[name] = _build_line(given, value)
    return lines


def _build_line(key: str, value: Any) -> str:
    dashed = f"-{key}" if len(key) == 1 else f"--{key}"
    if value is True:
        return dashed
    if isinstance(value, bytes | Mapping | list | tuple | set):
        raise ConfigError(f"slurm: the value of {key!r} must be text or a number: {value!r}")
    text = str(value)
    if not text.isprintable():
        raise ConfigError(f"slurm: the value of {key!r} must be one line of text: {text!r}")
    return f"{dashed}{' ' if len(key) == 1 else '='}{_quote(text)}"


def _quote(text: str) -> str:
    """Quote a value as sbatch reads it from a script."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def map_resources(resources: Resources) -> dict[str, Any]:
    """Give the options that ask for these resources; what is not asked for is left to the site."""
    nodes = resources.nodes
    options: dict[str, Any] = {}
    if nodes > 1:
        options["nodes"] = nodes
        options["ntasks"] = nodes
    if resources.cpus > 1:
        options["cpus-per-task"] = math.ceil(resources.cpus / nodes)
    if resources.memory_mib is not None:
        options["mem"] = f"{math.ceil(resources.memory_mib / nodes)}M"
    if resources.gpus:
        kind = "" if resources.gpu_type is None else f"{resources.gpu_type}:"
        options["gpus"] = f"{kind}{resources.gpus}"
    if resources.walltime_s is not None:
        options["time"] = build_time(resources.walltime_s)
    if resources.disk_mib is not None:
        options["tmp"] = f"{resources.disk_mib}M"
    options["partition"] = resources.queue
    options["account"] = resources.account
    options["constraint"] = resources.constraint
    return {name: value for name, value in options.items() if value is not None}


def build_time(seconds: float) -> str:
    """Give a duration as Slurm reads it, rounded up to seconds (Slurm itself counts minutes)."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{rest:02}"


def build_options(
    *layers: Mapping[str, Any], signal_before_end_s: float | None = None
) -> tuple[str, ...]:
    """Give the lines of a submission but for its name and array; later layers go before earlier.

    What is None or False in a later one is taken back.

    Raises:
        ConfigError: If an option makes no sense.
    """
    said: dict[str, str | None] = {}
    for layer in layers:
        said.update(normalise(layer))
    lines = {"requeue": "--no-requeue", "output": "--output=/dev/null"}
    lines |= {name: line for name, line in said.items() if line is not None}
    if signal_before_end_s is not None:
        if "signal" in lines:
            raise ConfigError("slurm: there are both signal_before_end_s and the option 'signal'")
        lines["signal"] = f"--signal=B:USR1@{math.ceil(signal_before_end_s)}"
    return tuple(lines.values())


def build_head(
    shebang: str, options: Sequence[str], name: str, n_tasks: int | None, max_running: int | None
) -> str:
    """Give the first lines of a script: the shebang, and a line for each option."""
    options = [f"--job-name={name}", *options]
    if n_tasks is not None:
        most = "" if max_running is None else f"%{max_running}"
        options.append(f"--array=0-{n_tasks - 1}{most}")
    return "\n".join([shebang, *(f"#SBATCH {option}" for option in options)])


def overriding(script: str) -> set[str]:
    """Give the environment variables that would go before what the head of a script says."""
    names: set[str] = set()
    for line in script.splitlines():
        if not line.startswith("#"):
            break
        if match := _SBATCH_LINE.match(line):
            option = match[2] or _LONG.get(match[1], match[1])
            names.update(_VARIABLES.get(option) or (option.replace("-", "_").upper(),))
    return {f"SBATCH_{name}" for name in names}
