"""A driver in a process of its own, that submits one job and is killed.

As a program it gets a JSON object: where the contract's class is, the workdir, and the command.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..utils import CommandType
    from ._contract import SchedulerContract

__all__ = ["start_and_die"]

#: Until the new process has submitted; starting Python takes a while on a busy machine.
_START_TIMEOUT_S = 60.0


def start_and_die(
    contract: SchedulerContract, workdir: str | os.PathLike[str], command: CommandType
) -> None:
    """Have a new process make the contract's scheduler, submit job 0, and be killed with its group.

    Returns when it is dead; blocks meanwhile.

    Raises:
        AssertionError: If it could not do so; with what it said.
    """
    cls = type(contract)
    task = {
        "module": cls.__module__,
        "file": inspect.getfile(cls),
        "class": cls.__qualname__,
        "workdir": os.fspath(workdir),
        "command": command,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(task)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    deadline = threading.Timer(_START_TIMEOUT_S, _kill_group, [process.pid])
    deadline.start()
    said = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line == b"submitted\n":
                break
        deadline.cancel()
        _kill_group(process.pid)  # it is not reaped yet: the group is still its own
    told = b"".join(said)
    assert told.endswith(b"submitted\n"), f"the other driver did not submit:\n{told.decode()}"


def _kill_group(pgid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pgid, signal.SIGKILL)


def _load(task: dict[str, Any]) -> Any:
    """Import the class by its module's name or, where that is not to be found, from its file."""
    try:
        found: Any = importlib.import_module(task["module"])
    except ImportError:
        spec = importlib.util.spec_from_file_location(task["module"], task["file"])
        assert spec is not None
        assert spec.loader is not None
        found = sys.modules[task["module"]] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for name in task["class"].split("."):
        found = getattr(found, name)
    return found


async def _submit(task: dict[str, Any]) -> None:
    contract: SchedulerContract = _load(task)()
    scheduler = contract.make_scheduler(task["workdir"])
    contract.tune(scheduler)
    await scheduler.start()
    job = scheduler.create_job(0, task["command"])
    job.clean()
    job.jid = await scheduler.submit_job(job)
    sys.stdout.write("submitted\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_submit(json.loads(sys.argv[1])))
