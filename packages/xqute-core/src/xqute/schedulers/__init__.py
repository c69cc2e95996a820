"""Finding schedulers by name, and ``xqute.schedulers.<name>_scheduler`` for every one installed.

Ours are found like anybody's: by the entry-point group ``xqute.schedulers``. Nothing is imported
before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from ..errors import SchedulerNotFoundError
from ..scheduler import Scheduler

__all__ = ["ALL_SCHEDULERS_GROUP", "get_scheduler", "installed_schedulers"]

ALL_SCHEDULERS_GROUP = "xqute.schedulers"
#: The versions of the `Scheduler` interface that this core speaks.
_CORE_API_VERSIONS = frozenset({1})
#: What is ours to offer: the name, and the distribution that brings it.
_OFFICIAL = {name: f"xqute-{name}" for name in ("slurm", "sge", "ssh", "container", "gbatch")}
_SUFFIX = "_scheduler"


def installed_schedulers() -> dict[str, EntryPoint]:
    """Give the entry points of all installed schedulers by name; imports none of them."""
    return {
        entry_point.name: entry_point for entry_point in entry_points(group=ALL_SCHEDULERS_GROUP)
    }


def get_scheduler(scheduler: str | type[Scheduler]) -> type[Scheduler]:
    """Give the scheduler class of that name, or the class itself, after checking it.

    Raises:
        SchedulerNotFoundError: If there is none of that name, it cannot be imported, or what was
            found is no scheduler for this version of the core.
    """
    if not isinstance(scheduler, str):
        return _checked(scheduler, "the given class")
    installed = installed_schedulers()
    entry_point = installed.get(scheduler)
    if entry_point is None:
        raise SchedulerNotFoundError(_not_found(scheduler, sorted(installed)))
    try:
        found = entry_point.load()
    except Exception as exc:  # a foreign module may raise anything when it is imported
        where = f"{scheduler!r} ({entry_point.value})"
        raise SchedulerNotFoundError(f"Scheduler {where} cannot be imported: {exc}") from exc
    return _checked(found, f"entry point {entry_point.value}")


def _not_found(name: str, installed: list[str]) -> str:
    import difflib

    words = [f"No scheduler named {name!r}; installed: {', '.join(installed) or 'none'}."]
    if name in _OFFICIAL:
        words.append(f"To install it: pip install {_OFFICIAL[name]}")
    elif close := difflib.get_close_matches(name, [*installed, *_OFFICIAL], n=1):
        words.append(f"Did you mean {close[0]!r}?")
    return " ".join(words)


def _checked(found: object, origin: str) -> type[Scheduler]:
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise SchedulerNotFoundError(f"{found!r} ({origin}) is not a subclass of xqute.Scheduler")
    if not found.name:
        raise SchedulerNotFoundError(f"{found.__qualname__} ({origin}) has no name")
    version = getattr(found, "core_api_version", 1)
    if version not in _CORE_API_VERSIONS:
        known = ", ".join(map(str, sorted(_CORE_API_VERSIONS)))
        raise SchedulerNotFoundError(
            f"{found.__qualname__} ({origin}) was made for version {version} of the scheduler "
            f"interface; this xqute-core speaks {known}"
        )
    return found


class _BackendModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes ``xqute.schedulers.<name>_scheduler`` for backends of other distributions."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        parent, _, module = fullname.rpartition(".")
        if parent != __name__ or not module.endswith(_SUFFIX):
            return None
        if module.removesuffix(_SUFFIX) not in installed_schedulers():
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Give the module all public names of the package that registers the scheduler."""
        name = module.__name__.rpartition(".")[2].removesuffix(_SUFFIX)
        backend = importlib.import_module(installed_schedulers()[name].module)
        public = getattr(backend, "__all__", None) or [n for n in vars(backend) if n[0] != "_"]
        module.__doc__ = backend.__doc__
        module.__dict__.update(
            {public_name: getattr(backend, public_name) for public_name in public}
        )
        module.__dict__["__all__"] = list(public)


# Asked last: a real module of that name (the local scheduler's) comes first.
sys.meta_path.append(_BackendModules())
