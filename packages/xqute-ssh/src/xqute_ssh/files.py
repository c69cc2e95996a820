"""Files between here and a server: over a channel of their own, or else by its agent."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import paramiko

from .commands import build_call, build_puts
from .link import SFTP_ERRORS, Link, LinkError
from .parse import Event, unescape
from .staging import Transfer, write_at

if TYPE_CHECKING:
    Ask = Callable[[Callable[[int], str]], Awaitable[list[Event]]]

__all__ = ["Files", "FilesError"]

T = TypeVar("T")
_PIECE_BYTES = 1 << 20
#: How much of one file goes over the file channel before others have a turn.
_TURN_BYTES = 16 << 20
_NO_SUCH_FILE = "No such file"


class FilesError(Exception):
    """A file could not be brought or fetched.

    Attributes:
        missing: Whether that is because it is not there.
        is_folder: Whether that is because it is none, but a folder.
        is_local: Whether this side is at fault.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: bool = False,
        is_folder: bool = False,
        is_local: bool = False,
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.is_folder = is_folder
        self.is_local = is_local


class Files:
    """Brings and fetches files over one connection.

    Args:
        link: The connection.
        executor: The threads that may wait for it.
        ask: Asks the agent; given what makes the code from a question's number.
    """

    def __init__(self, link: Link, executor: Executor, ask: Ask) -> None:
        self._link = link
        self._executor = executor
        self._ask = ask
        #: Held while the file channel is used: of two threads, one would hear the other's answer.
        self._sftp_turn = asyncio.Lock()

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Have something done that may block; also when cancelled, it is over on return."""
        done = asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])  # it may be writing here
            raise

    async def bring(self, transfer: Transfer) -> None:
        """Bring a file, or a folder with all that is in it; what is there is replaced.

        Raises:
            FilesError: If that cannot be done.
            LinkError: If the connection is lost.
        """
        try:
            pairs = await self.in_thread(_walk, transfer)
        except OSError as exc:
            raise FilesError(f"{transfer.local}: {exc.strerror}", is_local=True) from exc
        for folder in dict.fromkeys(os.path.dirname(remote) for _, remote in pairs):
            await self._do("mkdir", "-p", "--", folder)
        sftp = await self.in_thread(self._link.sftp)
        for local, remote in pairs:
            part = _part_of(remote)
            try:
                if sftp is None or not await self._put(sftp, local, part, remote):
                    await self._put_by_agent(local, part, remote)
            except FilesError:
                with suppress(FilesError):
                    await self._do("rm", "-f", "--", part)
                raise

    async def _put(self, sftp: paramiko.SFTPClient, local: str, part: str, remote: str) -> bool:
        """Bring one file over the file channel; False: why that fails, only the agent can say."""
        at: int | None = 0
        while at is not None:
            async with self._sftp_turn:
                try:
                    at = await self.in_thread(_put_some, sftp, local, part, remote, at)
                except SFTP_ERRORS:
                    return False
        return True

    async def _put_by_agent(self, local: str, part: str, remote: str) -> None:
        """Write it piece by piece, under another name until it is whole."""
        try:
            data, mode = await self.in_thread(_read, local)
        except OSError as exc:
            raise FilesError(f"{local}: {exc.strerror}", is_local=True) from exc
        for code in build_puts(part, data):
            await self._ask_about(remote, code)
        await self._do("chmod", f"{mode:o}", "--", part)
        await self._do("mv", "-f", "--", part, remote)

    async def _do(self, *words: str) -> None:
        await self._ask_about(words[-1], lambda number: build_call("do", number, *words))

    async def _ask_about(self, path: str, code: Callable[[int], str]) -> list[Event]:
        events = await self._ask(code)
        if events and events[-1].kind == "failed":
            words = events[-1].rest.decode("utf-8", "replace")
            raise FilesError(
                f"{path}: {words}",
                missing=_NO_SUCH_FILE in words,
                is_folder=words.endswith("is a folder"),
            )
        return events

    async def fetch(self, transfer: Transfer) -> None:
        """Fetch a file, or a folder with all that is in it; what is here is replaced.

        Raises:
            FilesError: If that cannot be done; `missing`: it is not there.
            LinkError: If the connection is lost.
        """
        try:
            await self._fetch(transfer)
        except OSError as exc:
            raise FilesError(f"{transfer.local}: {exc.strerror or exc}") from exc

    async def _fetch(self, transfer: Transfer) -> None:
        try:
            await self._fetch_file(transfer.remote, transfer.local)
        except FilesError as exc:
            if not exc.is_folder:
                raise
        else:
            return
        names = await self._ask_about(
            transfer.remote, lambda number: build_call("list", number, transfer.remote)
        )
        await self.in_thread(partial(os.makedirs, transfer.local, exist_ok=True))
        for name in filter(None, _joined(names).split(b"\0")):
            inside = os.fsdecode(name)
            await self._fetch_file(f"{transfer.remote}/{inside}", f"{transfer.local}/{inside}")

    async def _fetch_file(self, remote: str, local: str) -> None:
        part = _part_of(local)
        await self.in_thread(partial(os.makedirs, os.path.dirname(local), exist_ok=True))
        try:
            await self.follow(remote, part, 0)
            await self.in_thread(os.replace, part, local)
        finally:
            with suppress(OSError):  # it is not there any more, or never was
                os.unlink(part)

    async def follow(self, remote: str, local: str, at: int) -> int:
        """Fetch what a file has from byte `at` on; give its size. A local file gets no shorter.

        Raises:
            FilesError: If it cannot be read.
            LinkError: If the connection is lost.
            OSError: If it cannot be written here.
        """
        sftp = await self.in_thread(self._link.sftp)
        if sftp is not None:
            size = at + 1
            while at < size:
                async with self._sftp_turn:
                    at, size = await self.in_thread(_get_some, sftp, remote, local, at)
            return size
        events = await self._ask_about(remote, lambda number: build_call("get", number, remote, at))
        data = _joined(events)
        await self.in_thread(write_at, local, at, data)
        return at + len(data)


def _joined(events: list[Event]) -> bytes:
    return b"".join(
        unescape(event.rest.split(b" ", 2)[2]) for event in events if event.kind == "data"
    )


def _part_of(path: str) -> str:
    """Where a file is until it is whole: other jobs may bring or fetch the same one just now."""
    return f"{path}.{secrets.token_hex(4)}.xqute-part"


def _walk(transfer: Transfer) -> list[tuple[str, str]]:
    """The files of a transfer, here and there."""
    if not os.path.isdir(transfer.local):
        os.stat(transfer.local)
        return [(transfer.local, transfer.remote)]
    return list(_walk_folder(transfer))


def _walk_folder(transfer: Transfer) -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk(transfer.local):
        inside = os.path.relpath(folder, transfer.local)
        there = os.path.normpath(os.path.join(transfer.remote, inside))
        for name in names:
            yield os.path.join(folder, name), os.path.join(there, name)


# --- in threads --------------------------------------------------------------------------------


def _read(path: str) -> tuple[bytes, int]:
    with open(path, "rb") as file:
        return file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def _put_some(sftp: paramiko.SFTPClient, local: str, part: str, remote: str, at: int) -> int | None:
    """Bring what fits into one turn, from byte `at` on; give where the next one begins, if any."""
    there, part_there = os.fsencode(remote), os.fsencode(part)
    until = at + _TURN_BYTES
    with open(local, "rb") as source, sftp.open(part_there, "r+b" if at else "wb") as file:
        if not at:
            file.chmod(0o600)  # until it is whole, whatever the mode of new files is there
        source.seek(at)
        file.seek(at)
        file.set_pipelined(True)
        while at < until and (piece := source.read(_PIECE_BYTES)):
            file.write(piece)
            at += len(piece)
        if at >= until:
            return at
        mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
    if sftp.stat(part_there).st_size != at:
        raise OSError(f"{remote}: not all of it arrived")
    sftp.chmod(part_there, mode)
    sftp.posix_rename(part_there, there)
    return None


def _get_some(sftp: paramiko.SFTPClient, remote: str, local: str, at: int) -> tuple[int, int]:
    """Fetch what fits into one turn, from byte `at` on; give where that ends, and the size.

    Raises:
        FilesError: If the server says that it cannot be read.
        LinkError: If the file channel is lost, whether or not anybody else has noticed yet.
    """
    try:
        there = os.fsencode(remote)
        attributes = sftp.stat(there)
        if stat.S_ISDIR(attributes.st_mode or 0):
            raise FilesError(f"{remote}: is a folder", is_folder=True)
        size = attributes.st_size or 0
        if size <= at:
            write_at(local, at, b"")
            return size, size
        until = min(size, at + _TURN_BYTES)
        with sftp.open(there, "rb", _PIECE_BYTES) as file:
            file.seek(at)
            _prefetch(file, until)
            while at < until and (piece := file.read(min(_PIECE_BYTES, until - at))):
                write_at(local, at, piece)
                at += len(piece)
    except FileNotFoundError as exc:
        raise FilesError(f"{remote}: {_NO_SUCH_FILE}", missing=True) from exc
    except SFTP_ERRORS as exc:
        channel = sftp.get_channel()
        if isinstance(exc, EOFError | paramiko.SSHException) or channel is None or channel.closed:
            with suppress(*SFTP_ERRORS):
                sftp.close()  # so that another one is opened
            raise LinkError(f"{remote}: the file channel is lost ({exc!r})") from exc
        raise FilesError(f"{remote}: {exc}") from exc
    # One that has become shorter meanwhile has ended.
    return at, size if at == until else at


def _prefetch(file: paramiko.SFTPFile, until: int) -> None:
    """Ask for all of it at once, in a thread of the library's.

    That would tell of a lost connection by a traceback on stderr. Whoever reads hears of it anyway.
    """
    ask: Callable[..., None] = getattr(file, "_prefetch_thread")  # noqa: B009

    def ask_quietly(*args: Any) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            ask(*args)

    setattr(file, "_prefetch_thread", ask_quietly)  # noqa: B010  # it is not ours
    file.prefetch(until)
