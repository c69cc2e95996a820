"""Talks to Batch: the SDK's asynchronous client, with deadlines of our own and errors of ours."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from xqute.defaults import JobCause
from xqute.errors import ConfigError, SchedulerError, SubmitError

from .parse import ACTIVE_STATES, KEY_LABEL, build_filter

if TYPE_CHECKING:
    from google.cloud import batch_v1

__all__ = ["BatchClient", "BatchJob", "BatchTask", "check_message"]

T = TypeVar("T")

#: Seconds that one request may take, and all repetitions of it together.
_REQUEST_S: Final = 15.0
_DEADLINE_S: Final = 45.0
_PAGE: Final = 1000
#: Changes under way at once, where many jobs are concerned.
_AT_ONCE: Final = 16


class BatchJob(NamedTuple):
    """What Batch says of a job.

    Attributes:
        job_id: Its id.
        key: The submission key it was made under.
        state: The name of its state.
        events: What Batch says has happened to it, in order.
    """

    job_id: str
    key: str
    state: str
    events: tuple[str, ...]

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ACTIVE_STATES


class BatchTask(NamedTuple):
    """What Batch says of a task of a group.

    Attributes:
        place: Its index, from 0.
        state: The name of its state.
        events: What Batch says has happened to it, in order.
    """

    place: int
    state: str
    events: tuple[str, ...]


def check_message(message: Mapping[str, Any]) -> batch_v1.Job:
    """Give a job message as the SDK's type.

    Raises:
        ConfigError: If the type has no such field, or another type for it; it is named.
    """
    from google.cloud import batch_v1
    from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]

    try:
        job: batch_v1.Job = batch_v1.Job.from_json(json.dumps(message))
    except ParseError as exc:
        raise ConfigError(f"This is no job that Google Cloud Batch takes: {exc}") from exc
    except TypeError as exc:
        raise ConfigError(f"This job is not made of JSON: {exc}") from exc
    return job


class BatchClient:
    """A connection to Batch in one project and location; made on the event loop that uses it.

    Args:
        project: The project.
        location: The location, like ``europe-west1``.
        options: The SDK's `client_options`, as a mapping.

    Raises:
        SchedulerError: If there are no credentials.
    """

    def __init__(self, project: str, location: str, options: Mapping[str, Any] | None) -> None:
        import google.auth.exceptions
        from google.api_core.client_options import from_dict
        from google.cloud import batch_v1

        self.loop = asyncio.get_running_loop()
        self._parent = f"projects/{project}/locations/{location}"
        try:
            self._api = batch_v1.BatchServiceAsyncClient(
                client_options=from_dict(dict(options)) if options else None
            )
        except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as exc:
            raise SchedulerError(
                f"No connection to Google Cloud Batch can be made: {exc}. Credentials come from"
                " `gcloud auth application-default login` or GOOGLE_APPLICATION_CREDENTIALS"
            ) from exc

    async def close(self) -> None:
        """Close the connection."""
        await self._api.transport.close()  # type: ignore[no-untyped-call]

    def _name(self, job_id: str) -> str:
        return f"{self._parent}/jobs/{job_id}"

    async def check(self) -> None:
        """Ask Batch for one job, to see whether it may be asked.

        Raises:
            SubmitError: If it may not (`transient`: perhaps later).
        """
        request = {"parent": self._parent, "page_size": 1}
        await self._call("list_jobs", lambda **how: self._api.list_jobs(request=request, **how))

    async def create(self, job_id: str, key: str, message: batch_v1.Job) -> None:
        """Create a job. Repeating it with the same id and key changes nothing.

        Raises:
            SubmitError: If it is not there afterwards, or that is not known (`maybe_submitted`).
        """
        from google.api_core import exceptions as errors
        from google.cloud import batch_v1

        request = batch_v1.CreateJobRequest(
            parent=self._parent,
            job_id=job_id,
            job=message,
            request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._name(job_id)}#{key}")),
        )
        try:
            await self._call(
                "create_job",
                lambda **how: self._api.create_job(request=request, **how),
                passes=(errors.AlreadyExists,),
            )
        except errors.AlreadyExists as exc:
            # An answer of ours was lost, or somebody else has this id.
            if not await self._has(job_id, key):
                raise SubmitError(f"There is a Batch job {job_id} that is not ours") from exc
        except SubmitError as exc:
            if not (exc.maybe_submitted and await self._may_have(job_id, key)):
                raise

    async def _has(self, job_id: str, key: str) -> bool:
        """Whether there is a job of this id and key."""
        there = await self.get(job_id)
        return there is not None and there.key == key

    async def _may_have(self, job_id: str, key: str) -> bool:
        """Whether there is such a job as far as Batch says now."""
        try:
            return await self._has(job_id, key)
        except SchedulerError:
            return False

    async def get(self, job_id: str) -> BatchJob | None:
        """Give a job; None: Batch has none of that id.

        Raises:
            SchedulerError: If Batch does not say.
        """
        from google.api_core import exceptions as errors

        name = self._name(job_id)
        try:
            job = await self._call(
                "get_job",
                lambda **how: self._api.get_job(name=name, **how),
                passes=(errors.NotFound,),
            )
        except errors.NotFound:
            return None
        return _read(job)

    async def list_jobs(self, runs: Iterable[str], *, active: bool) -> list[BatchJob]:
        """Give the jobs of these runs, a thousand with one request.

        Raises:
            SchedulerError: If Batch does not say.
        """
        request = {
            "parent": self._parent,
            "filter": build_filter(runs, active=active),
            "page_size": _PAGE,
        }

        async def fetch(**how: Any) -> list[BatchJob]:
            pager = await self._api.list_jobs(request=request, **how)
            return [_read(job) async for job in pager]

        return await self._call("list_jobs", fetch)

    async def list_tasks(self, job_id: str) -> list[BatchTask]:
        """Give the tasks of a job, a thousand with one request; none if there is no such job.

        Raises:
            SchedulerError: If Batch does not say.
        """
        from google.api_core import exceptions as errors

        request = {"parent": f"{self._name(job_id)}/taskGroups/group0", "page_size": _PAGE}

        async def fetch(**how: Any) -> list[BatchTask]:
            pager = await self._api.list_tasks(request=request, **how)
            return [_read_task(task) async for task in pager]

        try:
            return await self._call("list_tasks", fetch, passes=(errors.NotFound,))
        except errors.NotFound:
            return []

    async def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs; those that have ended, or are not there, are no error.

        Raises:
            ExceptionGroup: If some could not be cancelled; the others were.
        """
        await self._for_each(job_ids, "cancel_job", self._api.cancel_job)

    async def delete(self, job_ids: Iterable[str]) -> None:
        """Delete jobs; those that are not there are no error.

        Raises:
            ExceptionGroup: If some could not be deleted; the others were.
        """
        await self._for_each(job_ids, "delete_job", self._api.delete_job)

    async def _for_each(
        self, job_ids: Iterable[str], what: str, rpc: Callable[..., Awaitable[Any]]
    ) -> None:
        from google.api_core import exceptions as errors

        room = asyncio.Semaphore(_AT_ONCE)

        async def do(job_id: str) -> None:
            request = {"name": self._name(job_id)}
            async with room:
                try:
                    await self._call(
                        what,
                        lambda **how: rpc(request=request, **how),
                        # It has ended, somebody else is at it, or it is gone.
                        passes=(errors.FailedPrecondition, errors.Aborted, errors.NotFound),
                    )
                except (errors.FailedPrecondition, errors.Aborted, errors.NotFound):
                    return

        results = await asyncio.gather(*map(do, job_ids), return_exceptions=True)
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            raise ExceptionGroup(f"{what}: {len(failed)} of {len(results)} went wrong", failed)

    async def _call(
        self,
        what: str,
        rpc: Callable[..., Awaitable[T]],
        *,
        passes: tuple[type[Exception], ...] = (),
    ) -> T:
        """Make one request, repeated while Batch cannot be reached, within our own deadline.

        Args:
            what: What it is called, for errors.
            rpc: Makes it; takes the SDK's `retry` and `timeout`.
            passes: Errors of the SDK that the caller knows what to do with.

        Raises:
            SubmitError: For every other one.
        """
        import google.auth.exceptions
        from google.api_core import exceptions as errors
        from google.api_core.retry_async import AsyncRetry

        tries: list[Exception] = []
        retry = AsyncRetry(
            predicate=_is_worth_repeating,
            on_error=tries.append,
            initial=0.2,
            maximum=5.0,
            multiplier=2.0,
            timeout=_DEADLINE_S - _REQUEST_S,
        )
        try:
            # The SDK's own timeouts do not bound everything, connecting for one.
            async with asyncio.timeout(_DEADLINE_S):
                return await rpc(retry=retry, timeout=_REQUEST_S)
        except passes:
            raise
        except TimeoutError as exc:
            raise _unanswered(what, f"no answer within {_DEADLINE_S:g} s") from exc
        except errors.RetryError as exc:
            raise _translate(what, exc.cause or exc) from exc
        except (errors.GoogleAPIError, google.auth.exceptions.GoogleAuthError) as exc:
            error = _translate(what, exc)
            # What is refused now, an earlier try may have done all the same.
            error.maybe_submitted |= bool(tries)
            raise error from exc


def _read(job: batch_v1.Job) -> BatchJob:
    return BatchJob(
        job.name.rpartition("/")[2],
        job.labels.get(KEY_LABEL, ""),
        type(job.status.state)(job.status.state).name,
        tuple(event.description for event in job.status.status_events),
    )


def _read_task(task: batch_v1.Task) -> BatchTask:
    return BatchTask(
        int(task.name.rpartition("/")[2]),
        type(task.status.state)(task.status.state).name,
        tuple(event.description for event in task.status.status_events),
    )


def _is_worth_repeating(exc: BaseException) -> bool:
    """Whether Batch was only just not there; quota is waited for elsewhere, by all submissions."""
    from google.api_core import exceptions as errors

    return isinstance(exc, errors.ServiceUnavailable | errors.InternalServerError)


def _unanswered(what: str, why: str) -> SubmitError:
    return SubmitError(f"Google Cloud Batch: {what}: {why}", transient=True, maybe_submitted=True)


def _translate(what: str, exc: Exception) -> SubmitError:
    """Give our error for one of the SDK's."""
    import google.auth.exceptions
    from google.api_core import exceptions as errors

    words = f"Google Cloud Batch: {what}: {getattr(exc, 'message', None) or exc}"
    if isinstance(exc, errors.ResourceExhausted | errors.TooManyRequests):
        return SubmitError(words, transient=True, cause=JobCause.QUOTA)
    if isinstance(exc, errors.PermissionDenied | errors.Unauthenticated | errors.Forbidden):
        hint = "is the Batch API enabled in the project, and may this account use it there?"
        return SubmitError(f"{words} ({hint})")
    if isinstance(exc, errors.ClientError) and not isinstance(exc, errors.Cancelled):
        return SubmitError(words)
    if isinstance(exc, google.auth.exceptions.GoogleAuthError):
        return SubmitError(f"Google Cloud Batch: {what}: no valid credentials: {exc}")
    return _unanswered(what, str(getattr(exc, "message", None) or exc))
