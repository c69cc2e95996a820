"""The hooks that plugins implement, and how a run calls them.

A plugin is a module, an object or a class with functions marked ``@plugin.impl``, named like the
hooks below. It is given to `Xqute(plugins=[...])`, registered with ``plugin.register``, or found by
the entry-point group ``xqute``.

No plugin can damage a run: what an implementation raises is logged with the plugin's name, and the
next implementation is called all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache, wraps
from importlib.metadata import entry_points
from types import MethodType
from typing import TYPE_CHECKING, Any

from simplug import Simplug, SimplugImpl

from .errors import ConfigError
from .utils import logger

if TYPE_CHECKING:
    import signal

    from .job import Job
    from .scheduler import Scheduler
    from .xqute import Xqute

__all__ = ["HookTable", "plugin", "snapshot"]

_GROUP = "xqute"


class _XquteSimplug(Simplug):
    """simplug, but for `on_job_polling` with two parameters, as older plugins have it."""

    def impl(self, hook: Callable[..., Any]) -> SimplugImpl:
        """Mark a function as the implementation of the hook of its name.

        Raises:
            NoSuchHookSpec: If there is no such hook.
        """
        if hook.__name__ == "on_job_polling":
            hook = _with_counter(hook)
        return super().impl(hook)


def _with_counter(hook: Callable[..., Any]) -> Callable[..., Any]:
    names = list(inspect.signature(hook).parameters)
    if "counter" in names:
        return hook
    if names[:1] == ["self"]:

        @wraps(hook)
        async def polling(self: Any, scheduler: Scheduler, job: Job, counter: int) -> Any:
            return await _resolve(hook(self, scheduler, job))
    else:

        @wraps(hook)
        async def polling(scheduler: Scheduler, job: Job, counter: int) -> Any:
            return await _resolve(hook(scheduler, job))

    del polling.__wrapped__  # the signature that counts is the new one
    return polling


async def _resolve(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


plugin = _XquteSimplug(_GROUP)


@plugin.spec
def on_init(xqute: Xqute) -> None:
    """Called when an `Xqute` was made, before anything is fed."""


@plugin.spec
def on_shutdown(xqute: Xqute, sig: signal.Signals | None) -> bool | None:
    """Called once a run, when it ends or is stopped.

    Args:
        sig: The signal that stops the run; None at its natural end and at HALT.

    Returns:
        False: the plugin stops the jobs itself, the run kills none.
    """


@plugin.spec
async def on_job_init(scheduler: Scheduler, job: Job) -> None:
    """Called when a job is fed."""


@plugin.spec
async def on_job_queued(scheduler: Scheduler, job: Job) -> None:
    """Called when a job begins to wait for its submission, at a retry again."""


@plugin.spec
async def on_job_submitting(scheduler: Scheduler, job: Job) -> bool | None:
    """Called before a job is submitted.

    Returns:
        False: it is not submitted. If the plugin has set its status to SUBMITTED (and its `jid`),
        it is watched; a terminal status ends it; otherwise it is cancelled.
    """


@plugin.spec
async def on_job_submitted(scheduler: Scheduler, job: Job) -> None:
    """Called when the backend has accepted a job."""


@plugin.spec
async def on_job_started(scheduler: Scheduler, job: Job) -> None:
    """Called when a job runs; always before the hook that tells its end."""


@plugin.spec
async def on_job_polling(scheduler: Scheduler, job: Job, counter: int) -> None:
    """Called about once a second for each running job, if any plugin implements it."""


@plugin.spec
async def on_job_killing(scheduler: Scheduler, job: Job) -> bool | None:
    """Called before a job is killed.

    Returns:
        False: it is not killed. If the plugin has set a terminal status, it is done; otherwise it
        is watched on.
    """


@plugin.spec
async def on_job_killed(scheduler: Scheduler, job: Job) -> None:
    """Called when a job was killed."""


@plugin.spec
async def on_job_failed(scheduler: Scheduler, job: Job) -> None:
    """Called when an attempt failed; with status RETRYING if another follows."""


@plugin.spec
async def on_job_succeeded(scheduler: Scheduler, job: Job) -> None:
    """Called when a job succeeded. Setting its status to FAILED here makes it a failure."""


@plugin.spec
def on_jobcmd_init(scheduler: Scheduler, job: Job) -> str | None:
    """Give bash code for the wrapper, run before the prescript."""


@plugin.spec
def on_jobcmd_prep(scheduler: Scheduler, job: Job) -> str | None:
    """Give bash code for the wrapper, run before the command; it may replace ``$cmd``."""


@plugin.spec
def on_jobcmd_end(scheduler: Scheduler, job: Job) -> str | None:
    """Give bash code for the wrapper, run after the command; it sees ``$rc``."""


#: Hooks whose answer is yes or no, and those that give code.
_DECIDING = frozenset({"on_shutdown", "on_job_submitting", "on_job_killing"})
_RENDERING = frozenset({"on_jobcmd_init", "on_jobcmd_prep", "on_jobcmd_end"})


class HookTable:
    """The implementations of the plugins that were enabled at one moment, in order of priority."""

    __slots__ = ("_table",)

    def __init__(self, wrappers: Iterable[Any] = ()) -> None:
        self._table: dict[str, tuple[tuple[str, Callable[..., Any]], ...]] = {}
        ordered = sorted(wrappers, key=lambda wrapper: wrapper.priority)
        instances = {wrapper.name: _instance(wrapper.plugin) for wrapper in ordered}
        for hook in plugin.hooks._specs:
            found = []
            for wrapper in ordered:
                impl = wrapper.hook(hook)
                if impl is None:
                    continue
                call = (
                    MethodType(impl.impl, instances[wrapper.name]) if impl.has_self else impl.impl
                )
                found.append((wrapper.name, call))
            if found:
                self._table[hook] = tuple(found)

    def __contains__(self, hook: str) -> bool:
        """Whether any plugin implements `hook`."""
        return hook in self._table

    def call(self, hook: str, *args: Any) -> list[Any]:
        """Call a synchronous hook; give the results that are not None, in order of priority."""
        results = []
        for name, implementation in self._table.get(hook, ()):
            try:
                result = implementation(*args)
            except Exception as exc:  # noqa: BLE001  # no plugin can damage a run
                _log_raised(name, hook, args, exc)
                continue
            if _is_sensible(name, hook, result):
                results.append(result)
        return results

    async def acall(self, hook: str, *args: Any) -> list[Any]:
        """Call an asynchronous hook; give the results that are not None, in order of priority."""
        results = []
        for name, implementation in self._table.get(hook, ()):
            try:
                result = await _resolve(implementation(*args))
            except Exception as exc:  # noqa: BLE001  # no plugin can damage a run
                _log_raised(name, hook, args, exc)
                continue
            if _is_sensible(name, hook, result):
                results.append(result)
        return results


def _instance(raw: Any) -> Any:
    """Make the one instance of a plugin that is a class, if it needs no arguments."""
    if not inspect.isclass(raw):
        return raw
    try:
        return raw()
    except TypeError:
        return raw


def _log_raised(name: str, hook: str, args: tuple[Any, ...], exc: Exception) -> None:
    about = repr(args[1]) if len(args) > 1 else ""
    logger.error("Plugin %s raised in %s %s: %r", name, hook, about, exc, exc_info=exc)


def _is_sensible(name: str, hook: str, result: Any) -> bool:
    """Whether a result is one the hook may give; what is not is logged and ignored."""
    if result is None:
        return False
    if hook in _RENDERING:
        expected = "a string"
        sensible = isinstance(result, str)
    elif hook in _DECIDING:
        expected = "True, False or None"
        sensible = isinstance(result, bool)
    else:
        return True
    if not sensible:
        logger.error("Plugin %s: %s gives %s, not %r: ignored", name, hook, expected, result)
    return sensible


@cache
def _load_entry_points() -> None:
    """Register the plugins that are installed, once; one that cannot be imported is logged."""
    for entry_point in entry_points(group=_GROUP):
        try:
            plugin.register((entry_point.load(), entry_point.name))
        except Exception as exc:  # noqa: BLE001  # one that is broken must not keep the others out
            logger.error("Plugin %s cannot be loaded: %r", entry_point.name, exc)


def snapshot(plugins: Iterable[Any] | None = None) -> HookTable:
    """Give the hooks of the plugins that are enabled now, with `plugins` switched on or off.

    simplug's context is one for the whole process; it is entered only to look, so that two runs
    with different plugins do not disturb each other.

    Raises:
        ConfigError: If it is a string, which would be taken for a list of letters.
        NoSuchPlugin: simplug's, if a name is unknown.
        SimplugException: simplug's, if some names carry ``+``/``-`` and some do not.
    """
    if isinstance(plugins, str):
        raise ConfigError(f"plugins is a list of names or objects, not one: {plugins!r}")
    _load_entry_points()
    if plugins is None:
        return HookTable(plugin.get_enabled_plugins().values())
    with plugin.plugins_context(list(plugins)):
        return HookTable(plugin.get_enabled_plugins().values())
