"""Docker, and Podman where it is spoken to like Docker, through a socket and Docker's SDK."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any, TypeVar

import docker  # type: ignore[import-untyped]
from docker.errors import (  # type: ignore[import-untyped]
    APIError,
    DockerException,
    ImageNotFound,
    NotFound,
)

from xqute import logger
from xqute.errors import SchedulerError, SubmitError

from .client import WORDS_LENGTH, EngineAwayError, Traits, Wanted, as_wanted, signal_container
from .options import Pull
from .parse import (
    Container,
    Ended,
    Stage,
    explain_refusal,
    is_name_clash,
    parse_ended,
    parse_inspected,
    parse_listed,
    parse_loaded,
)
from .spec import Spec, build_body

__all__ = ["SocketClient"]

T = TypeVar("T")

#: How long an engine may take to answer.
_ANSWER_TIMEOUT_S = 120
#: The versions of the interface (Docker Engine API) that are spoken.
_OLDEST_API, _NEWEST_API = "1.40", "1.45"
#: Threads that ask at the same time, each with a connection of its own.
_CONNECTIONS = 32
_PROGRESS_INTERVAL_S = 5.0


class SocketClient:
    """Speaks to an engine at an address.

    Args:
        url: The address: ``unix:///path`` or what else Docker's SDK takes.
        labels: What all containers of this run's folder have.

    Raises:
        SchedulerError: If nobody answers there.
    """

    def __init__(self, url: str, labels: dict[str, str]) -> None:
        self._url = url
        self._labels = [f"{name}={value}" for name, value in labels.items()]
        self._events: Any = None
        self._is_closed = False
        _knock(url)
        # Credentials for an address in the network are where Docker's own program looks for them.
        tls = docker.utils.kwargs_from_env().get("tls", False) if "unix:" not in url else False
        self._make = partial(
            docker.APIClient,
            base_url=url,
            timeout=_ANSWER_TIMEOUT_S,
            tls=tls,
            max_pool_size=_CONNECTIONS,
        )
        # Podman takes seconds to tell its version; that of the interface comes with every answer.
        api = self._make(version=_OLDEST_API)
        answer = self._ask(api.get, f"{api.base_url}/_ping")
        spoken = answer.headers.get("Api-Version") or _OLDEST_API
        self._is_podman = "Libpod-Api-Version" in answer.headers
        self._api = self._make(version=min(spoken, _NEWEST_API, key=_as_numbers))

    @cached_property
    def traits(self) -> Traits:
        """What there is to know of the engine."""
        is_local = self._url.startswith("unix:")
        if self._is_podman and is_local:
            # It takes seconds to tell this, too; but whose the socket is, it is.
            owner = os.stat(self._url.removeprefix("unix://")).st_uid
            return Traits("Podman", True, is_rootless=owner != 0, is_prompt=False)
        security = self._ask(self._api.info).get("SecurityOptions") or ()
        return Traits(
            "Podman" if self._is_podman else "Docker",
            self._is_podman,
            is_rootless=any(option.startswith("name=rootless") for option in security),
            remaps_users=any(option.startswith("name=userns") for option in security),
            is_prompt=not self._is_podman,
            is_local=is_local,
        )

    def _ask(self, call: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Ask the engine something; what it refuses is raised as it is."""
        try:
            return call(*args, **keywords)
        except APIError as exc:
            if exc.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
                raise EngineAwayError(f"{self._url}: {exc.explanation}") from exc
            raise
        except (DockerException, OSError) as exc:
            raise EngineAwayError(f"No container engine answers at {self._url}: {exc}") from exc

    # --- images --------------------------------------------------------------------------------

    def ensure_image(self, image: str, pull: Pull) -> str:
        """See that an image is there; an archive of one is loaded."""
        if os.path.isfile(image):
            return self._load(image)
        if pull is not Pull.ALWAYS:
            try:
                self._ask(self._api.inspect_image, image)
            except ImageNotFound as exc:
                if pull is Pull.NEVER:
                    raise SchedulerError(
                        f"{self.traits.name} has no image {image}, and is not to pull it "
                        "(pull='never'): pull or load it first"
                    ) from exc
            except APIError as exc:
                words = str(exc.explanation or exc)
                raise SchedulerError(
                    f"{self.traits.name} cannot look for the image {image}: {words}"
                ) from exc
            else:
                return image
        self._pull(image)
        return image

    def _pull(self, image: str) -> None:
        logger.info("%s pulls the image %s", self.traits.name, image)
        progress = _Progress(image)
        try:
            for news in self._ask(self._api.pull, image, stream=True, decode=True):
                if "error" in news:
                    raise SchedulerError(_not_pulled(image, self.traits.name, news["error"]))
                progress.hear(news)
        except APIError as exc:
            words = str(exc.explanation or exc)
            raise SchedulerError(_not_pulled(image, self.traits.name, words)) from exc
        except OSError as exc:
            raise EngineAwayError(f"The image {image} is not pulled: {exc}") from exc

    def _load(self, path: str) -> str:
        logger.info("%s loads the image %s", self.traits.name, path)
        try:
            with open(path, "rb") as archive:
                said = [str(news) for news in self._ask(self._api.load_image, archive)]
        except (APIError, OSError) as exc:
            raise SchedulerError(f"The image {path} cannot be loaded: {exc}") from exc
        return parse_loaded("\n".join(said), path)

    # --- containers ----------------------------------------------------------------------------

    def start(self, spec: Spec) -> str:
        """Make and start a container."""
        if spec.gpus and self.traits.is_podman:
            # It would ignore what is asked for in Docker's words.
            raise SubmitError("Podman gives GPUs on its command line alone: set socket=False")
        if self.traits.is_podman and any("," in volume.source for volume in spec.volumes):
            # It takes the path apart there.
            raise SubmitError("Podman's socket mounts no path with a comma: set socket=False")
        try:
            made = self._ask(
                self._api.create_container_from_config, build_body(spec), name=spec.key
            )
        except APIError as exc:
            words = str(exc.explanation or exc)
            found = self._inspect(spec.key) if is_name_clash(words) else None
            if found is None or found.key != spec.key:
                raise SubmitError(explain_refusal(words, spec, self.traits.name)) from exc
            self._wake(found, spec)
            return found.id
        self._wake(Container(made["Id"], spec.key, Stage.CREATED), spec)
        return str(made["Id"])

    def wake(self, container: Container) -> None:
        """Start a container that never was."""
        self._wake(container, None)

    def _wake(self, container: Container, spec: Spec | None) -> None:
        if container.stage is not Stage.CREATED:
            return
        try:
            self._ask(self._api.start, container.id)
        except APIError as exc:
            words = str(exc.explanation or exc)
            self.remove(as_wanted(container))
            told = explain_refusal(words, spec, self.traits.name) if spec else words
            raise SubmitError(told) from exc

    def look(self, wanted: Collection[Wanted] = ()) -> list[Container]:
        """Give all containers of the workdir."""
        keys = {one.key for one in wanted}
        listed = self._list()
        found = []
        for container in map(parse_listed, listed):
            told: Container | None = container
            if container.stage is Stage.ENDED and container.key in keys:
                told = self._inspect(container.id)
            if told is not None:
                found.append(told)
        return found

    def _list(self) -> list[dict[str, Any]]:
        for is_last in (False, True):
            try:
                filters = {"label": self._labels}
                listed: list[dict[str, Any]] = self._ask(
                    self._api.containers, all=True, filters=filters
                )
            except APIError as exc:
                # Podman stumbles over one that is removed while it makes the list.
                if is_last or not _is_gone(exc):
                    raise SchedulerError(f"{self._url}: {exc}") from exc
            else:
                return listed
        return []

    def find(self, wanted: Wanted) -> Container | None:
        """Give one container, with its exit code."""
        found = self._inspect(wanted.key)
        return found if found is not None and found.key == wanted.key else None

    def _inspect(self, name: str) -> Container | None:
        try:
            return parse_inspected(self._ask(self._api.inspect_container, name))
        except APIError as exc:
            if _is_gone(exc):
                return None
            raise SchedulerError(f"{self._url}: {exc}") from exc

    def signal(self, wanted: Wanted, *, force: bool) -> None:
        """Send TERM, or KILL, to the first process of a container."""

        def send() -> str:
            try:
                self._ask(self._api.kill, wanted.key, "SIGKILL" if force else "SIGTERM")
            except APIError as exc:
                return str(exc)
            return ""

        signal_container(self, wanted, send)

    def remove(self, *wanted: Wanted) -> None:
        """Remove containers and the anonymous volumes of their images."""
        for one in wanted:
            try:
                self._ask(self._api.remove_container, one.key, v=True, force=True)
            except NotFound:
                pass
            except APIError as exc:
                if "already in progress" not in str(exc) and self.find(one) is not None:
                    raise SchedulerError(f"{one.key} cannot be removed: {exc}") from exc

    def read_words(self, wanted: Wanted) -> str:
        """Give the last that the engine has kept of a container's output."""
        try:
            # Asked for the last lines alone, Podman may miss words that were just written.
            said = self._ask(self._api.logs, wanted.key, stdout=True, stderr=True)
        except (APIError, SchedulerError):
            return ""  # a log driver that keeps nothing
        return bytes(said).decode("utf-8", "replace").strip()[-WORDS_LENGTH:]

    # --- news ----------------------------------------------------------------------------------

    def listen(self, since_s: float) -> Iterator[Ended | None]:
        """Tell of each end."""
        filters = {"label": self._labels, "event": ["die", "died"]}
        try:
            events = self._ask(self._api.events, since=int(since_s), filters=filters, decode=True)
        except APIError as exc:
            raise SchedulerError(f"{self._url}: {exc}") from exc
        self._events = events
        if self._is_closed:
            events.close()
        yield None
        try:
            for said in events:
                ended = parse_ended(said)
                if ended is not None:
                    yield ended
        except (OSError, ValueError) as exc:
            if not self._is_closed:
                logger.debug("%s: the events end: %r", self._url, exc)

    def close(self) -> None:
        """End `listen` and close the connections."""
        self._is_closed = True
        if self._events is not None:
            self._events.close()
        self._api.close()


def _is_gone(exc: APIError) -> bool:
    """Whether a refusal is for want of the container; Podman also says so with 500."""
    words = str(exc.explanation or exc).lower()
    return isinstance(exc, NotFound) or "no such container" in words or "no container with" in words


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _knock(url: str) -> None:
    """See that somebody listens at a socket's address; say what to do if not."""
    if not url.startswith("unix://"):
        return
    path = url.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(_ANSWER_TIMEOUT_S)
        try:
            knocking.connect(path)
        except PermissionError as exc:
            raise SchedulerError(
                f"You may not use the container engine's socket {path}: have yourself added to its "
                "group (usually 'docker'), or use a rootless engine"
            ) from exc
        except OSError as exc:
            raise EngineAwayError(
                f"No container engine answers at {path} ({exc.strerror}): is it started?"
            ) from exc


def _not_pulled(image: str, engine: str, words: str) -> str:
    return (
        f"{engine} cannot pull the image {image}: {words} (check its name, and whether its "
        "registry wants a login)"
    )


class _Progress:
    """Logs from time to time how far a pull is."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, tuple[int, int]] = {}
        self._told_s = time.monotonic()

    def hear(self, news: dict[str, Any]) -> None:
        """Take one message of the engine's."""
        detail = news.get("progressDetail") or {}
        if news.get("status") == "Downloading" and detail.get("total"):
            self._layers[news.get("id", "")] = (detail.get("current", 0), detail["total"])
        if time.monotonic() - self._told_s > _PROGRESS_INTERVAL_S:
            self._told_s = time.monotonic()
            done = sum(current for current, _ in self._layers.values())
            total = sum(total for _, total in self._layers.values())
            logger.info(
                "Pulling %s: %.0f of %.0f MiB so far", self._image, done / 2**20, total / 2**20
            )
