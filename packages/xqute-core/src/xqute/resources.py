"""What a job asks of the machine it runs on, in words that every backend understands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from .errors import ConfigError

__all__ = ["Resources", "ResourcesType", "check_resources", "resolve_resources"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Portable resources of one job; a backend that cannot express one of them says so.

    Attributes:
        cpus: Processor cores, whole ones.
        memory_mib: Memory of the whole job in MiB; None: the site's default.
        gpus: Graphics processors.
        gpu_type: Their kind, in the site's words; None: any.
        walltime_s: Seconds after which the backend ends the job; None: the site's default.
        disk_mib: Local scratch space in MiB; None: the site's default.
        nodes: Machines.
        queue: The queue or partition; None: the site's default.
        account: Who pays; None: the user's default.
        constraint: Features that the machine must have, in the site's words.

    Raises:
        ConfigError: If one of them makes no sense.
    """

    cpus: int = 1
    memory_mib: int | None = None
    gpus: int = 0
    gpu_type: str | None = None
    walltime_s: float | None = None
    disk_mib: int | None = None
    nodes: int = 1
    queue: str | None = None
    account: str | None = None
    constraint: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("cpus", 1), ("gpus", 0), ("nodes", 1)):
            _check_whole(name, getattr(self, name), least)
        for name in ("memory_mib", "disk_mib"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 1)
        seconds = self.walltime_s
        if seconds is not None and not (_is_number(seconds) and 0 < seconds < float("inf")):
            raise ConfigError(f"resources: walltime_s must be a number over 0: {seconds!r}")
        for name in ("gpu_type", "queue", "account", "constraint"):
            word = getattr(self, name)
            if word is not None and not (isinstance(word, str) and word and word.isprintable()):
                raise ConfigError(f"resources: {name} must be one line of text: {word!r}")
        if self.gpu_type is not None and not self.gpus:
            raise ConfigError(f"resources: gpu_type {self.gpu_type!r} without gpus")


#: What may be given: resources, a dict of some of them, or what makes one of these for an attempt
#: (from 0) from the cause of the one before it (a `JobCause`; None: there was none).
ResourcesType: TypeAlias = (
    Resources
    | Mapping[str, Any]
    | Callable[[int, str | None], Resources | Mapping[str, Any] | None]
    | None
)

_NAMES = tuple(field.name for field in dataclasses.fields(Resources))


def check_resources(resources: Any) -> None:
    """Raise ConfigError for what can be no resources; a callable is judged when it is called."""
    if resources is not None and not callable(resources):
        _lay_over(Resources(), resources)


def resolve_resources(
    of_scheduler: ResourcesType, of_job: ResourcesType, attempt: int, last_cause: str | None
) -> Resources:
    """Give what one attempt of a job asks for.

    A dict changes what the scheduler says in these points; `Resources` stand for themselves.

    Args:
        of_scheduler: For all jobs.
        of_job: For this one.
        attempt: Its number, from 0; of those that were made.
        last_cause: Why the attempt before it ended; None: there was none, or nobody knows.

    Raises:
        ConfigError: If one of them makes no sense.
    """
    resources = Resources()
    for layer in (of_scheduler, of_job):
        value = layer(attempt, last_cause) if callable(layer) else layer
        resources = _lay_over(resources, value)
    return resources


def _lay_over(beneath: Resources, value: Any) -> Resources:
    if value is None:
        return beneath
    if isinstance(value, Resources):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"resources must be Resources, a dict of them or a callable: {value!r}")
    for name in value:
        if name not in _NAMES:
            import difflib

            close = difflib.get_close_matches(str(name), _NAMES, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else f": {', '.join(_NAMES)}"
            raise ConfigError(f"resources: there is no {name!r}{hint}")
    return dataclasses.replace(beneath, **value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            f"resources: {name} must be a whole number of at least {least}: {value!r}"
        )
