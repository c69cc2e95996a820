"""The Batch job as a message in REST spelling: what the user said, completed. Pure.

The user's own settings are completed and never overwritten. The first task group is what runs; in
it the first volume is the workdir, and one of the runnables is the job.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from xqute.defaults import JOBCMD_WRAPPER_LANG
from xqute.errors import ConfigError, ConfigTypeError

from .options import Mount, check_labels, sanitize_label

if TYPE_CHECKING:
    from xqute.resources import Resources

__all__ = ["build_job", "build_runnable", "complete_config", "fill_in"]

#: What a runnable may say beside what it runs.
_RUNS: Final = ("container", "script", "barrier")
_CONTAINER_KEYS: Final = ("image_uri", "imageUri", "entrypoint", "commands")
#: What runs the job, in one word of whatever takes a line for a shell.
_SHELL_LINE: Final = "{lang} {script}"


def complete_config(
    config: Mapping[str, Any],
    *,
    volumes: Sequence[Mount],
    runnable: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]] | None,
    allocation: Mapping[str, Any],
    user: str,
) -> tuple[dict[str, Any], int]:
    """Give the message that all jobs have in common, and which of its runnables is the job.

    Args:
        config: What the user says in REST spelling.
        volumes: The workdir, and the other mounts.
        runnable: The job, as `build_runnable` gives it.
        others: What runs beside it, as the user says it.
        allocation: What else the user says of VMs, in REST spelling; None: nothing.
        user: Whose jobs they are, for a label.

    Raises:
        ConfigError: If something in it cannot be; `ConfigTypeError` if for its type.
    """
    message: dict[str, Any] = copy.deepcopy(dict(config))
    group = _first_group(message)
    spec = _mapping(group, "taskSpec", "taskGroups[0].taskSpec")
    _check_counts(group, spec)
    _add_volumes(spec, volumes)
    index = _add_runnables(spec, runnable, _extra_runnables(others))
    names = {mount.name: mount.path for mount in volumes if mount.name}
    _complete(spec, {"environment": {"variables": names}}, "taskSpec.")
    _complete(message, {"allocationPolicy": allocation})
    message.setdefault("logsPolicy", {"destination": "CLOUD_LOGGING"})
    labels = {"xqute": "true", "user": user}
    account = message.get("allocationPolicy", {}).get("serviceAccount", {}).get("email")
    if account:
        labels["sacct"] = str(account).partition("@")[0]
    given = check_labels(message.get("labels") or {})
    message["labels"] = {**{key: sanitize_label(text) for key, text in labels.items()}, **given}
    return message, index


def build_runnable(
    image_uri: str | None, entrypoint: str | None, commands: str | Sequence[str] | None
) -> dict[str, Any]:
    """Give the runnable of the job: a script, or what is said of its container.

    Raises:
        ConfigError: If there is no container to enter.
    """
    words = [commands] if isinstance(commands, str) else list(commands or ())
    if image_uri is None:
        if entrypoint is not None:
            raise ConfigError("entrypoint needs an image_uri: without one there is no container")
        if not words:
            words = ["{lang}", "-p", "{script}"]
        elif not _has_place(words):
            words = [*map(shlex.quote, words), f"'{_SHELL_LINE}'"]
        return {"script": {"text": " ".join(words)}}
    return {"container": {"image_uri": image_uri, "entrypoint": entrypoint, "commands": words}}


def build_job(
    config: Mapping[str, Any],
    runnable_index: int,
    *,
    script: str,
    labels: Mapping[str, str],
    resources: Resources | None,
    environment: Mapping[str, str],
    n_tasks: int = 1,
) -> dict[str, Any]:
    """Give the message of one Batch job.

    Args:
        config: The common one, as the user may have changed it.
        runnable_index: Which runnable is the job.
        script: The job's wrapper, as the job sees it.
        labels: The job's own.
        resources: What the job asks for; None: nothing was said.
        environment: The job's own variables.
        n_tasks: How many tasks run the script.

    Raises:
        ConfigError: If there is no place for the job in it.
    """
    message: dict[str, Any] = copy.deepcopy(dict(config))
    try:
        group = message["taskGroups"][0]
        spec = group["taskSpec"]
        runnable = spec["runnables"][runnable_index]
    except (KeyError, IndexError, TypeError) as exc:
        raise ConfigError(
            f"config['taskGroups'][0]['taskSpec']['runnables'][{runnable_index}] is the job: it"
            " must be there"
        ) from exc
    _check_counts(group, spec)
    if n_tasks > 1:
        group["taskCount"] = str(n_tasks)
    fill_in(runnable, script)
    there = _mapping(spec, "environment", "taskSpec.environment")
    _mapping(there, "variables", "taskSpec.environment.variables").update(environment)
    message["labels"] = {**check_labels(message.get("labels") or {}), **labels}
    if resources is not None:
        _add_resources(message, spec, resources)
    return message


def fill_in(runnable: dict[str, Any], script: str) -> None:
    """Put the shell and the script where ``{lang}`` and ``{script}`` are.

    Where a container's commands have no place for the script, both come last, as one word: what
    ``sh -c`` wants.

    Raises:
        ConfigError: If a script has no ``{script}``.
    """
    if "container" in runnable:
        container = runnable["container"]
        words = container.get("commands") or ()
        if not _has_place(words):
            words = [*words, _SHELL_LINE]
        container["commands"] = [_replace(word, script) for word in words]
        return
    text = runnable.get("script", {}).get("text", "")
    if not _has_place([text]):
        raise ConfigError(
            "The runnable of the job has no place for its script: say {script} somewhere in it"
        )
    runnable["script"]["text"] = _replace(text, script)


def _has_place(words: Iterable[str]) -> bool:
    return any("{script}" in word for word in words)


def _replace(text: str, script: str) -> str:
    return text.replace("{lang}", JOBCMD_WRAPPER_LANG).replace("{script}", script)


# --- parts ---------------------------------------------------------------------------------------


def _mapping(parent: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = parent.setdefault(key, {})
    if not isinstance(value, dict):
        raise ConfigTypeError(f"{where} must be a mapping: {value!r}")
    return value


def _list(parent: dict[str, Any], key: str, where: str) -> list[Any]:
    value = parent.setdefault(key, [])
    if not isinstance(value, list):
        raise ConfigTypeError(f"{where} must be a list: {value!r}")
    return value


def _first(parent: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    items = _list(parent, key, where)
    if not items:
        items.append({})
    if not isinstance(items[0], dict):
        raise ConfigTypeError(f"{where}[0] must be a mapping: {items[0]!r}")
    return items[0]


def _complete(target: dict[str, Any], defaults: Mapping[str, Any], where: str = "") -> None:
    """Add what is not there yet, however deep; of a list that is there, to its first item.

    None, and what holds nothing else, says nothing.
    """
    for key, value in defaults.items():
        if not _says_something(value):
            continue
        if isinstance(value, Mapping):
            _complete(_mapping(target, key, f"{where}{key}"), value, f"{where}{key}.")
        elif isinstance(value, list) and isinstance(value[0], Mapping):
            _complete(_first(target, key, f"{where}{key}"), value[0], f"{where}{key}[0].")
        else:
            target.setdefault(key, value)


def _says_something(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_says_something, value.values()))
    if isinstance(value, list):
        return any(map(_says_something, value))
    return value is not None


def _first_group(message: dict[str, Any]) -> dict[str, Any]:
    return _first(message, "taskGroups", "taskGroups")


def _check_counts(group: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """See that Batch runs each job once: how often it is tried is the run's business."""
    for where, settings, key, most in (
        ("taskGroups[0]", group, "taskCount", 1),
        ("taskGroups[0].taskSpec", spec, "maxRetryCount", 0),
    ):
        value = settings.get(key)
        if value is not None and int(value) > most:
            hint = "each job is one task" if most else "use num_retries and error_strategy"
            raise ConfigError(f"{where}.{key} must not be over {most}: {value!r}; {hint}")


def _add_volumes(spec: dict[str, Any], mounts: Iterable[Mount]) -> None:
    volumes = _list(spec, "volumes", "taskSpec.volumes")
    mine = [
        {
            "gcs": {"remotePath": mount.remote_path},
            "mountPath": mount.path,
            "mountOptions": ["--implicit-dirs"],
        }
        for mount in mounts
    ]
    volumes[:] = [*mine, *volumes]


def _extra_runnables(
    runnables: Sequence[Mapping[str, Any]] | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give those that come before the job, and those that come after it, in order."""
    listed: Any = runnables or ()
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise ConfigTypeError(f"runnables must be a list of mappings: {runnables!r}")
    ordered = []
    for position, given in enumerate(listed):
        if not isinstance(given, Mapping):
            raise ConfigTypeError(f"runnables[{position}] must be a mapping: {given!r}")
        runnable = copy.deepcopy(dict(given))
        order = runnable.pop("order", 0)
        if not isinstance(order, int):
            raise ConfigError(f"runnables[{position}]: order must be a whole number: {order!r}")
        ordered.append((order, position, _shape(runnable)))
    ordered.sort(key=lambda entry: entry[:2])
    return (
        [runnable for order, _, runnable in ordered if order < 0],
        [runnable for order, _, runnable in ordered if order >= 0],
    )


def _shape(runnable: dict[str, Any]) -> dict[str, Any]:
    """Give a runnable whose container or script may have been said without its braces."""
    if isinstance(runnable.get("script"), str):
        runnable["script"] = {"text": runnable["script"]}
    if not any(key in runnable for key in _RUNS):
        inner = {key: runnable.pop(key) for key in _CONTAINER_KEYS if key in runnable}
        if inner:
            runnable["container"] = inner
    return runnable


def _add_runnables(
    spec: dict[str, Any],
    mine: Mapping[str, Any],
    extra: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> int:
    runnables = _list(spec, "runnables", "taskSpec.runnables")
    before, after = extra
    if not runnables:
        runnables.append({})
    job = runnables[0]
    if not isinstance(job, dict):
        raise ConfigTypeError(f"taskSpec.runnables[0] must be a mapping: {job!r}")
    kind = next(iter(mine))
    if kind in job or not any(key in job for key in _RUNS):
        _complete(job, mine, "taskSpec.runnables[0].")
    if "container" in job:
        _complete_container(_mapping(job, "container", "taskSpec.runnables[0].container"))
    runnables[:] = [*before, *runnables, *after]
    return len(before)


def _complete_container(container: dict[str, Any]) -> None:
    """Have the container of the job run its script; by bash, but for an entrypoint of a user's."""
    if not _says_something(container.get("commands")):
        container["commands"] = ["-p", "{script}"]
    if "entrypoint" not in container:
        container["entrypoint"] = JOBCMD_WRAPPER_LANG
        if not _has_place(container["commands"]):
            container["commands"] = [*container["commands"], "{script}"]


def _add_resources(message: dict[str, Any], spec: dict[str, Any], resources: Resources) -> None:
    compute = {
        "cpuMilli": str(resources.cpus * 1000),
        "memoryMib": None if resources.memory_mib is None else str(resources.memory_mib),
        "bootDiskMib": None if resources.disk_mib is None else str(resources.disk_mib),
    }
    _complete(spec, {"computeResource": compute}, "taskSpec.")
    if resources.walltime_s is not None:
        # Not 1.2e+06: a duration has no exponent.
        spec.setdefault("maxRunDuration", f"{resources.walltime_s:.15g}s")
    if resources.gpus:
        gpu = {"count": str(resources.gpus)}
        if resources.gpu_type is not None:
            gpu["type"] = resources.gpu_type
        allocation = _mapping(message, "allocationPolicy", "allocationPolicy")
        instance = _first(allocation, "instances", "allocationPolicy.instances")
        policy = _mapping(instance, "policy", "allocationPolicy.instances[0].policy")
        policy.setdefault("accelerators", [gpu])
        instance.setdefault("installGpuDrivers", True)
