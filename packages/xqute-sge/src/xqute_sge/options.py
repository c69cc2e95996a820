"""Native options and portable resources as lines of ``#$``. Pure.

What qsub itself is told on its command line, and users therefore cannot, is in `RESERVED`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from xqute import ConfigError
from xqute.resources import Resources

__all__ = ["RESERVED", "build_option_lines", "build_resource_options", "limit_s"]

#: Options that are not to be had, and why.
RESERVED: Final[Mapping[str, str]] = {
    "N": "the job's name is how xqute knows it again; see jobname_prefix",
    "t": "xqute makes arrays by itself",
    "tc": "see max_running",
    "wd": "see cwd",
    "S": "the script is bash",
    "b": "the script is bash",
    "terse": "xqute reads qsub's answer",
    "sync": "xqute waits by itself",
    "now": "xqute waits by itself",
    "verify": "nothing would be submitted",
    "C": "the script's lines begin with #$",
    "inherit": "nothing would be submitted",
}
#: Options that say y or n, not by being there.
_YES_NO: Final = frozenset({"j", "r", "R", "shell", "binding"})


def build_option_lines(options: Mapping[str, Any]) -> list[str]:
    """Give ``#$ -key value`` for each option.

    A list repeats the option; True is the option alone (`y` where it says y or n), False and None
    leave it out (`n`).

    Raises:
        ConfigError: If an option is none, is reserved, or its value would end the line.
    """
    lines = []
    for name, value in options.items():
        check_option_name(name)
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool) and name in _YES_NO:
                lines.append(f"#$ -{name} {'y' if item else 'n'}")
            elif item is True:
                lines.append(f"#$ -{name}")
            elif item is not None and item is not False:
                lines.append(f"#$ -{name} {_as_value(name, item)}")
    return lines


def check_option_name(name: str) -> None:
    """Raise ConfigError for what can be no option of qsub, or is not the user's to set."""
    if name in RESERVED:
        raise ConfigError(f"sge: the option {name!r} is set by xqute: {RESERVED[name]}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z_]*", name):
        raise ConfigError(f"sge: {name!r} is no option of qsub")


def _as_value(name: str, value: object) -> str:
    text = str(value)
    if not text.strip() or "\n" in text or "\r" in text or "\0" in text:
        raise ConfigError(
            f"sge: the option {name!r} has a value of no or of several lines: {value!r}"
        )
    return text


def build_resource_options(
    resources: Resources,
    options: Mapping[str, Any],
    *,
    memory_resource: str,
    gpu_resource: str | None,
    warn_before_s: float = 0,
) -> dict[str, Any]:
    """Give the native options for portable resources, with those of `options` that they complete.

    Memory is the job's, and Grid Engine counts it per slot: it is divided by them.

    Args:
        resources: What the job asks for.
        options: The native options beside it; nothing may be said in both.
        memory_resource: The site's name for memory, such as ``h_vmem``.
        gpu_resource: The site's name for graphics processors; None: it has said none.
        warn_before_s: Seconds before the end of `walltime_s` at which the job is sent USR1.

    Raises:
        ConfigError: If something cannot be expressed, or is said twice.
    """
    refuse = _refusals(resources, gpu_resource)
    if refuse:
        raise ConfigError(f"sge: {'; '.join(refuse)}")
    slots, pe = _slots_of(resources.cpus, options.get("pe"))
    found: dict[str, Any] = {"pe": pe, "q": resources.queue, "P": resources.account}
    asked = [f"{gpu_resource}={resources.gpus}"] if resources.gpus else []
    if resources.memory_mib is not None:
        asked.append(f"{memory_resource}={math.ceil(resources.memory_mib / slots)}M")
    if resources.walltime_s is not None:
        limit = math.ceil(resources.walltime_s)
        asked.append(f"h_rt={limit}")
        if warn_before_s:
            asked.append(f"s_rt={max(1, limit - math.ceil(warn_before_s))}")
    elif warn_before_s:
        raise ConfigError("sge: signal_before_end_s needs a walltime_s in resources")
    found["l"] = ",".join(asked)
    _check_said_once(found, options, [word.partition("=")[0] for word in asked])
    merged = {name: value for name, value in options.items() if name != "pe"}
    for name, value in found.items():
        if value:
            merged[name] = [*_as_list(merged.get(name)), value]
    return merged


def _refusals(resources: Resources, gpu_resource: str | None) -> list[str]:
    no_gpus = "the site's name for gpus is not known: say gpu_resource='...'"
    no_disk = "disk_mib cannot be expressed: say l='...' with the site's own name for it"
    no_nodes = "nodes cannot be expressed: a job is one process on one host"
    no_constraint = "constraint cannot be expressed: say l='...'"
    no_type = "gpu_type cannot be expressed: say l='...' with the site's own name for it"
    found = {
        no_gpus: resources.gpus and not gpu_resource,
        no_type: resources.gpu_type,
        no_disk: resources.disk_mib,
        no_nodes: resources.nodes > 1,
        no_constraint: resources.constraint,
    }
    return [why for why, is_so in found.items() if is_so]


def _slots_of(cpus: int, pe: Any) -> tuple[int, str]:
    """Give how many slots the job has, and the whole value of ``-pe``."""
    if pe is None or pe is False:
        if cpus > 1:
            raise ConfigError(
                f"sge: {cpus} cpus need a parallel environment, and each site has its own: say "
                "pe='<name>'; `qconf -spl` lists them"
            )
        return 1, ""
    name, _, slots = str(pe).strip().partition(" ")
    if not slots:
        return cpus, f"{name} {cpus}"
    if cpus > 1 and slots.strip() != str(cpus):
        raise ConfigError(f"sge: pe={pe!r} and {cpus} cpus contradict each other")
    first = re.match(r"\d+", slots.strip())
    return int(first[0]) if first else cpus, str(pe).strip()


def _check_said_once(
    found: Mapping[str, Any], options: Mapping[str, Any], asked: Sequence[str]
) -> None:
    for name in ("q", "P"):
        if found[name] and options.get(name):
            raise ConfigError(f"sge: {name}={options[name]!r} and resources both say it")
    native = {
        word.partition("=")[0].strip()
        for value in _as_list(options.get("l"))
        for word in str(value).split(",")
    }
    for name in asked:
        if name in native:
            raise ConfigError(f"sge: l=... and resources both say {name}")


def _as_list(value: Any) -> list[Any]:
    if value is None or value is False:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def limit_s(lines: Sequence[str]) -> int | None:
    """Give the job's h_rt in seconds, as lines of options say it; None: they do not."""
    found = None
    for line in lines:
        if match := re.search(r"^#\$ -l (?:.*,)?\s*h_rt=([\d:]+)", line):
            found = 0
            for part in match[1].split(":"):
                found = found * 60 + int(part or 0)
    return found
