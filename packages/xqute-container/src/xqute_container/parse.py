"""What engines say, in one form for all of them: states, ends, refusals. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from xqute.errors import SchedulerError

from .spec import LABEL_KEEP, LABEL_KEY, LABEL_METADIR, LABEL_TAG, Spec

__all__ = [
    "Container",
    "Ended",
    "Stage",
    "explain_refusal",
    "is_name_clash",
    "parse_ended",
    "parse_inspected",
    "parse_listed",
    "parse_loaded",
    "parse_setup_code",
]


class Stage(Enum):
    """Where a container is in its life."""

    CREATED = auto()
    RUNNING = auto()
    ENDED = auto()


#: Docker's words and Podman's.
_STAGES: Final[Mapping[str, Stage]] = {
    "created": Stage.CREATED,
    "configured": Stage.CREATED,
    "initialized": Stage.CREATED,
    "running": Stage.RUNNING,
    "paused": Stage.RUNNING,
    "restarting": Stage.RUNNING,
    "stopping": Stage.RUNNING,
    "stopped": Stage.ENDED,
    "exited": Stage.ENDED,
    "dead": Stage.ENDED,
    "removing": Stage.ENDED,
}


class Container(NamedTuple):
    """What an engine says of one container.

    Attributes:
        id: The engine's id of it.
        key: The submission key that it carries.
        stage: Where it is.
        metadir: The folder of its job on the host.
        tag: What the claims of its attempt are named after.
        keep: Whether it is to stay when it has ended.
        exit_code: None: it runs, or the engine was not asked.
        out_of_memory: Whether the engine says so.
        words: What the engine has to say besides.
    """

    id: str
    key: str
    stage: Stage
    metadir: str = ""
    tag: str = ""
    keep: bool = False
    exit_code: int | None = None
    out_of_memory: bool = False
    words: str = ""


class Ended(NamedTuple):
    """News that a container has ended.

    Attributes:
        key: Its name.
        id: Its id.
        exit_code: None: it was not said.
    """

    key: str
    id: str
    exit_code: int | None


def parse_stage(word: str) -> Stage:
    """Give the stage that an engine's word stands for.

    Raises:
        SchedulerError: If nobody knows it; it is named.
    """
    try:
        return _STAGES[word.lower()]
    except KeyError:
        raise SchedulerError(f"A container in the unknown state {word!r}") from None


def parse_listed(said: Mapping[str, Any]) -> Container:
    """Give a container as a list of them tells of it (`GET /containers/json`)."""
    return _from_labels(said["Id"], said.get("Labels") or {}, parse_stage(said["State"]))


def parse_inspected(said: Mapping[str, Any]) -> Container:
    """Give a container as it is told of when asked for by name (`inspect`)."""
    state = said["State"]
    stage = parse_stage(state["Status"])
    labels = (said.get("Config") or {}).get("Labels") or {}
    container = _from_labels(said["Id"], labels, stage)
    if stage is not Stage.ENDED:
        return container
    return container._replace(
        exit_code=int(state.get("ExitCode", 0)),
        out_of_memory=bool(state.get("OOMKilled")),
        words=str(state.get("Error") or ""),
    )


def _from_labels(native_id: str, labels: Mapping[str, str], stage: Stage) -> Container:
    return Container(
        native_id,
        labels.get(LABEL_KEY, ""),
        stage,
        labels.get(LABEL_METADIR, ""),
        labels.get(LABEL_TAG, ""),
        LABEL_KEEP in labels,
    )


def parse_ended(said: Mapping[str, Any]) -> Ended | None:
    """Give the end that an event tells of; None: it tells of something else.

    Docker says "die" and "exitCode", Podman "died" and "containerExitCode", and on its command line
    nothing for an exit code of 0.
    """
    status = said.get("status") or said.get("Status")
    if status not in ("die", "died"):
        return None
    actor = said.get("Actor") or {}
    attributes = actor.get("Attributes") or said.get("Attributes") or {}
    key = attributes.get("name") or said.get("Name") or ""
    native_id = actor.get("ID") or said.get("id") or said.get("ID") or ""
    code = attributes.get("exitCode", attributes.get("containerExitCode"))
    if code is None:
        code = said.get("ContainerExitCode")
    return Ended(key, native_id, None if code is None else int(code))


def is_name_clash(words: str) -> bool:
    """Whether a refusal is for want of a free name."""
    return "already in use" in words


_NOT_EXECUTABLE: Final = r"permission denied|not executable"
_NOT_FOUND: Final = (
    r"executable file not found|no such file or directory|command that was not found"
    r"|not found in \$PATH"
)
#: What engines say, and what is to be said instead; the first that fits counts.
_REFUSALS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"select device driver|unresolvable CDI|nvidia",
        (
            "{gpus} GPUs were asked for, and {engine} has none to give: install the container "
            "toolkit of the GPU's vendor, or ask for none"
        ),
    ),
    (
        r"no such image|image not known|unable to find image|not known locally|image .* not found",
        "there is no image {image}: pull it, or check its name",
    ),
    (
        r"container-init binary|docker-init\W+executable|init binary",
        "{engine} has no init to run jobs under: install tini (Docker) or catatonit (Podman)",
    ),
    (
        r"unable to find (user|group)|no matching entries|unable to find .* in passwd",
        "the image {image} has no user {user!r}: give user= as numbers, uid:gid",
    ),
    (
        (
            r"bind source path does not exist|statfs|error mounting|bind mount|mounts denied"
            r"|invalid mount|mount source"
        ),
        "a volume cannot be mounted (among {volumes}): check that {engine} may read it",
    ),
    (
        _NOT_EXECUTABLE,
        (
            "{entrypoint} of the image {image} cannot be executed: give entrypoint=, a bash in the "
            "image"
        ),
    ),
    (
        _NOT_FOUND,
        "the image {image} has no {entrypoint}: give entrypoint=, a bash in the image",
    ),
)


def explain_refusal(words: str, spec: Spec, engine: str) -> str:
    """Say what is wrong with a container that did not run, and what to do about it."""
    words = " ".join(words.split()) or "nothing"
    for pattern, meaning in _REFUSALS:
        if re.search(pattern, words, re.IGNORECASE):
            told = meaning.format(
                image=spec.image,
                entrypoint=spec.entrypoint[0],
                user=spec.user,
                gpus=spec.gpus,
                engine=engine,
                volumes=", ".join(volume.source for volume in spec.volumes),
            )
            return f"{told} ({engine} says: {words})"
    return f"the container did not run; {engine} says: {words}"


def parse_setup_code(words: str, code: int | None) -> int | None:
    """Give the exit code of a container whose entrypoint did not run, as shells have it.

    Docker's init says so, too, but Podman's exits with 1, and Podman itself knows of 0.
    """
    if code in (0, 1):
        for pattern, meant in ((_NOT_EXECUTABLE, 126), (_NOT_FOUND, 127)):
            if re.search(pattern, words, re.IGNORECASE):
                return meant
    return code


def parse_loaded(said: str, path: str) -> str:
    """Give the name of the image that was loaded from an archive.

    Raises:
        SchedulerError: If the engine does not tell.
    """
    for word in ("Loaded image ID:", "Loaded image(s):", "Loaded image:"):
        _, found, rest = said.partition(word)
        if found:
            return rest.replace("\\n", " ").split()[0].strip("'\",}")
    raise SchedulerError(f"No image came from {path}; the engine says: {said}")
