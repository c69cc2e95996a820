"""SpecPath and MountedPath of the three clouds, without a network: that is test_path_stores."""

from __future__ import annotations

import copy
import functools
import gc
import os
import pickle
from pathlib import Path, PurePosixPath

import pytest

pytest.importorskip("google.cloud.storage")
pytest.importorskip("boto3")
pytest.importorskip("azure.storage.filedatalake")

import cloudpathlib
from cloudpathlib import AzureBlobClient, GSClient, S3Client
from cloudpathlib.client import register_client_class
from cloudpathlib.cloudpath import register_path_class
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from xqute.path import (
    AnyPath,
    AzureBlobPath,
    CloudPath,
    GSPath,
    LocalPath,
    MountedAzureBlobPath,
    MountedCloudPath,
    MountedGSPath,
    MountedLocalPath,
    MountedPath,
    MountedS3Path,
    PathType,
    S3Path,
    SpecAzureBlobPath,
    SpecCloudPath,
    SpecGSPath,
    SpecLocalPath,
    SpecPath,
    SpecS3Path,
)

AZURE_ACCOUNT = (
    "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;BlobEndpoint=http://127.0.0.1:1/a"
)


@functools.cache
def make_client(scheme, _number=0):
    """A client that is good for anything but talking; another one for another number."""
    # With a folder of its own it warns at its death that nobody closed that.
    cache = {"local_cache_dir": "/nonexistent"}
    if scheme == "gs":
        plain = storage.Client("t", credentials=AnonymousCredentials())
        return GSClient(storage_client=plain, **cache)
    if scheme == "s3":
        return S3Client(aws_access_key_id="x", aws_secret_access_key="x", **cache)
    return AzureBlobClient(connection_string=AZURE_ACCOUNT, **cache)


CLOUDS = {
    "gs": (SpecGSPath, MountedGSPath, GSPath, GSClient),
    "s3": (SpecS3Path, MountedS3Path, S3Path, S3Client),
    "az": (SpecAzureBlobPath, MountedAzureBlobPath, AzureBlobPath, AzureBlobClient),
}
ROUTERS = [SpecPath, MountedPath]


@pytest.fixture(params=CLOUDS)
def scheme(request):
    return request.param


@pytest.fixture(params=ROUTERS)
def router(request):
    return request.param


@pytest.fixture
def cls(scheme, router):
    return CLOUDS[scheme][ROUTERS.index(router)]


@pytest.fixture
def plain_class(scheme):
    return CLOUDS[scheme][2]


@pytest.fixture(autouse=True)
def _no_default_client(monkeypatch):
    """No promise of this file may need credentials."""

    def refuse(cls):
        raise AssertionError(f"a default {cls.__name__} was made")

    for *_, client_class in CLOUDS.values():
        monkeypatch.setattr(client_class, "get_default_client", classmethod(refuse))


def other_of(path):
    return path.mounted if isinstance(path, SpecPath) else path.spec


def sides(path):
    """The texts of both sides of a path, its own first."""
    return str(path), str(other_of(path))


# Classes


def test_the_routers_give_the_class_of_the_cloud(scheme, router, cls, plain_class):
    path = router(f"{scheme}://b/c")
    assert type(path) is cls
    assert isinstance(path, (plain_class, CloudPath))
    assert isinstance(path, (SpecCloudPath, MountedCloudPath)[ROUTERS.index(router)])
    assert isinstance(path, router)
    assert isinstance(path, AnyPath)
    assert isinstance(path, PathType)
    assert not isinstance(path, ROUTERS[1 - ROUTERS.index(router)])
    assert not isinstance(path, Path)


def test_the_classes_are_subclasses_of_what_they_are(scheme, router, cls, plain_class):
    base = (SpecCloudPath, MountedCloudPath)[ROUTERS.index(router)]
    assert issubclass(cls, base)
    assert issubclass(base, router)
    assert issubclass(base, CloudPath)
    assert issubclass(cls, plain_class)
    assert not issubclass(plain_class, router)
    assert not issubclass(cls, Path)
    for other, (_, _, other_plain, _) in CLOUDS.items():
        assert issubclass(cls, other_plain) is (other == scheme)


def test_the_plain_classes_are_those_of_cloudpathlib():
    for name in ("AnyPath", "CloudPath", "GSPath", "S3Path", "AzureBlobPath"):
        assert globals()[name] is getattr(cloudpathlib, name)


def test_a_scheme_may_be_written_in_capitals(scheme, router, cls):
    assert type(router(f"{scheme.upper()}://b/c")) is cls


def test_a_path_of_cloudpathlib_can_be_given(scheme, router, cls, plain_class):
    path = router(plain_class(f"{scheme}://b/c"), plain_class(f"{scheme}://m/c"))
    assert type(path) is cls
    assert sides(path) == (f"{scheme}://b/c", f"{scheme}://m/c")


def test_a_class_refuses_what_is_not_of_its_cloud(scheme, router, cls):
    for uri in ("/a/b", "x", *(f"{other}://b" for other in CLOUDS if other != scheme)):
        with pytest.raises(ValueError, match=f"does not start with '{scheme}://'"):
            cls(uri)


def test_a_path_over_http_is_refused(router):
    with pytest.raises(ValueError, match="unknown scheme"):
        router(cloudpathlib.HttpsPath("https://host/a"))


def test_a_local_class_refuses_a_cloud_path_without_downloading_it(router, scheme):
    local = (SpecLocalPath, MountedLocalPath)[ROUTERS.index(router)]
    with pytest.raises(ValueError, match="not local"):
        local(router(f"{scheme}://b/c"))


# Two sides


def test_the_other_side_may_be_local(scheme):
    path = SpecPath(f"{scheme}://b/c", mounted="/mnt/disks/x")
    assert type(path.mounted) is MountedLocalPath
    assert path.is_mounted()
    assert path.mounted.is_mounted()
    assert path.mounted.spec == path
    assert sides(path / "y" / "z.txt") == (f"{scheme}://b/c/y/z.txt", "/mnt/disks/x/y/z.txt")
    assert sides((path / "y").mounted / "z") == ("/mnt/disks/x/y/z", f"{scheme}://b/c/y/z")


def test_a_local_path_may_have_another_side_in_a_cloud(scheme, cls, router):
    path = router("/a/b.txt", f"{scheme}://b/c.gz")
    assert isinstance(path, LocalPath)
    assert type(other_of(path)) is CLOUDS[scheme][1 - ROUTERS.index(router)]
    assert sides(path / "x") == ("/a/b.txt/x", f"{scheme}://b/c.gz/x")
    assert sides(path.parent) == ("/a", f"{scheme}://b")
    assert sides(path.with_suffix(".z")) == ("/a/b.z", f"{scheme}://b/c.z")
    assert sides(path.with_stem("s")) == ("/a/s.txt", f"{scheme}://b/s.gz")
    assert sides(path.with_name("n")) == ("/a/n", f"{scheme}://b/n")
    assert sides(path.with_segments("d", "e")) == ("d/e", f"{scheme}://d/e")
    assert [sides(parent) for parent in path.parents] == [
        ("/a", f"{scheme}://b"),
        ("/", f"{scheme}://"),
    ]
    assert other_of(other_of(path)) == path
    assert type(path.resolve()) is LocalPath


def test_both_sides_may_be_in_clouds():
    path = SpecPath("gs://b/c", mounted="s3://d/e") / "x"
    assert sides(path) == ("gs://b/c/x", "s3://d/e/x")
    assert (type(path), type(path.mounted)) == (SpecGSPath, MountedS3Path)
    assert sides(path.mounted.parent) == ("s3://d/e", "gs://b/c")


def test_without_another_side_both_are_the_same(scheme, router):
    path = router(f"{scheme}://b/c")
    assert sides(path) == (f"{scheme}://b/c",) * 2
    assert not path.is_mounted()
    assert not router(f"{scheme}://b/c", f"{scheme}://b/c").is_mounted()
    assert other_of(path) == path
    assert other_of(other_of(path)) == path


def test_a_path_of_the_same_kind_brings_its_other_side_along(scheme, router):
    uri = f"{scheme}://b/c"
    assert sides(router(router(uri, "/m"))) == (uri, "/m")
    assert sides(router(router(uri, "/m"), "/n")) == (uri, "/n")


# Derivations


@pytest.mark.parametrize(
    ("derive", "here", "there"),
    [
        pytest.param(lambda p: p / "x", "b/w/a.tar.gz/x", "/m/b.txt/x", id="truediv"),
        pytest.param(
            lambda p: p / PurePosixPath("x/y"), "b/w/a.tar.gz/x/y", "/m/b.txt/x/y", id="path"
        ),
        pytest.param(lambda p: p.joinpath("x", "y"), "b/w/a.tar.gz/x/y", "/m/b.txt/x/y", id="join"),
        pytest.param(lambda p: p.joinpath(), "b/w/a.tar.gz", "/m/b.txt", id="join-nothing"),
        pytest.param(lambda p: p.with_name("n.z"), "b/w/n.z", "/m/n.z", id="name"),
        pytest.param(lambda p: p.with_suffix(".z"), "b/w/a.tar.z", "/m/b.z", id="suffix"),
        pytest.param(lambda p: p.with_stem("s"), "b/w/s.gz", "/m/s.txt", id="stem"),
        pytest.param(lambda p: p.with_segments("d", "e"), "d/e", "d/e", id="segments"),
        pytest.param(lambda p: p.parent, "b/w", "/m", id="parent"),
        pytest.param(lambda p: p.parent.parent.parent.parent, "", "/", id="root"),
        pytest.param(lambda p: p.parents[1], "b", "/", id="parents"),
    ],
)
def test_a_derivation_keeps_the_class_and_is_done_to_both_sides(
    scheme, router, cls, derive, here, there
):
    path = router(f"{scheme}://b/w/a.tar.gz", "/m/b.txt")
    derived = derive(path)
    assert type(derived) is cls
    assert sides(derived) == (f"{scheme}://{here}", there)
    assert sides(path) == (f"{scheme}://b/w/a.tar.gz", "/m/b.txt")


def test_a_path_like_object_can_be_joined(scheme, router):
    class Like:
        def __fspath__(self):
            return "x/y"

    path = router(f"{scheme}://b", "/m").joinpath(Like(), PurePosixPath("z"))
    assert sides(path) == (f"{scheme}://b/x/y/z", "/m/x/y/z")


def test_a_local_segment_of_the_same_kind_brings_its_other_side_along(scheme, router):
    segment = router("x", "y")
    assert sides(router(f"{scheme}://b", "/m") / segment) == (f"{scheme}://b/x", "/m/y")
    assert sides(router(f"{scheme}://b") / segment) == (f"{scheme}://b/x", f"{scheme}://b/y")


def test_what_is_no_segment_is_a_type_error(scheme, router):
    for path in (router(f"{scheme}://b"), router(f"{scheme}://b", "/m")):
        for segment in (1, None, router(f"{scheme}://c")):
            with pytest.raises(TypeError):
                path / segment
            with pytest.raises(TypeError):
                path.joinpath("x", segment)


def test_the_root_cannot_be_changed_from_the_left(scheme, router):
    for path in (router(f"{scheme}://b"), router("b", f"{scheme}://b")):
        with pytest.raises(ValueError, match="Cannot change a cloud path's root"):
            "/x" / path


def test_what_has_no_counterpart_on_the_other_side_is_a_plain_path(scheme, router, plain_class):
    client = make_client(scheme)
    path = router(f"{scheme}://b/c/d", "/m", client=client)
    for plain in (path.absolute(), path.resolve(), path.resolve(strict=True)):
        assert type(plain) is plain_class
        assert str(plain) == str(path)
        assert plain.client is client
    assert path.relative_to(plain_class(f"{scheme}://b")) == PurePosixPath("c/d")
    assert path.relative_to(router(f"{scheme}://b/c", "/z")) == PurePosixPath("d")


def test_questions_about_the_text_do_not_depend_on_the_other_side(scheme, router, plain_class):
    path = router(f"{scheme}://b/c/d.txt", "/m")
    assert path.samefile(f"{scheme}://b/c/d.txt")
    assert path.samefile(router(path, "/n"))
    assert not path.samefile(path.parent)
    assert path.is_relative_to(router(f"{scheme}://b/c", "/n"))
    assert path.match("*.txt")
    assert (path.name, path.stem, path.suffix, path.drive) == ("d.txt", "d", ".txt", "b")
    assert path.parts == plain_class(str(path)).parts
    assert path.as_uri() == f"{scheme}://b/c/d.txt"


# Clients


def test_a_client_is_kept_by_whatever_is_made_of_the_path(scheme, router, plain_class):
    client = make_client(scheme)
    given = plain_class(f"{scheme}://b/c.x")
    given._client = client  # as `client.CloudPath(uri)` makes it
    for path in (router(f"{scheme}://b/c.x", client=client), router(given)):
        for derived in (
            path / "y",
            path.joinpath("y"),
            path.parent,
            path.parents[0],
            path.with_name("n"),
            path.with_suffix(".z"),
            path.with_stem("s"),
            path.with_segments("d", "e"),
            copy.copy(path),
            copy.deepcopy([path])[0],
            router(path),
            router(path, "/m"),
            other_of(path),
            other_of(other_of(path)),
        ):
            assert derived.client is client


def test_the_other_side_in_the_same_cloud_gets_the_client_unless_it_has_one(scheme, router):
    mine, its = make_client(scheme), make_client(scheme, 1)
    path = router(f"{scheme}://b/c", f"{scheme}://m/c", client=mine)
    assert other_of(path / "x").client is mine
    path = router(f"{scheme}://b/c", router(f"{scheme}://b/c", client=its), client=mine)
    assert not path.is_mounted()
    assert ((path / "x").client, other_of(path / "x").client) == (mine, its)
    assert other_of(other_of(path)).client is mine


def test_the_other_side_in_another_cloud_does_not_get_the_client():
    path = SpecPath("gs://b/c", mounted="s3://m/c", client=make_client("gs"))
    assert path.mounted._client is None


def test_a_search_does_not_end_the_client_that_it_shares(scheme, router, monkeypatch):
    ended = []
    client = make_client(scheme, 3)
    client_class = CLOUDS[scheme][3]
    mortal = type("Mortal", (client_class,), {"__del__": lambda _: ended.append(1)})
    monkeypatch.setattr(client, "__class__", mortal)
    monkeypatch.setattr(mortal, "_list_dir", lambda self, path, recursive: [(path / "x", False)])
    path = router(f"{scheme}://b/c", client=client)
    assert [str(child) for child in path.iterdir()] == [f"{scheme}://b/c/x"]
    gc.collect()
    assert not ended


def test_a_client_of_another_cloud_is_refused(scheme, router):
    wrong = make_client("s3" if scheme == "gs" else "gs")
    with pytest.raises(cloudpathlib.exceptions.ClientMismatchError):
        router(f"{scheme}://b/c", client=wrong)


# Values


def test_a_path_equals_a_plain_one_with_its_text_and_has_its_hash(scheme, router, plain_class):
    plain = plain_class(f"{scheme}://b/c")
    for path in (router(f"{scheme}://b/c"), router(f"{scheme}://b/c", "/m")):
        assert path == plain
        assert plain == path
        assert hash(path) == hash(plain)
        assert {plain: 1}[path] == 1
        assert path != plain_class(f"{scheme}://b/d")
        assert path not in (f"{scheme}://b/c", 1, Path("/m"))


def test_two_of_a_kind_are_equal_when_both_sides_are(scheme, router):
    uri = f"{scheme}://b/c"
    assert router(uri, "/m") == router(uri, "/m")
    assert router(uri) == router(uri, uri)
    assert router(uri, "/m") != router(uri, "/n")
    assert router(uri, "/m") != router(uri)
    assert router(uri) != router(uri, "/m")
    assert len({router(uri, "/m"), router(uri, "/n"), router(uri), router(uri, uri)}) == 3


def test_one_of_the_other_kind_counts_as_a_plain_path(scheme):
    uri = f"{scheme}://b/c"
    assert SpecPath(uri, "/m") == MountedPath(uri)
    assert MountedPath(uri) == SpecPath(uri, "/m")
    assert SpecPath(uri, f"{scheme}://m").mounted != SpecPath(uri)


def test_paths_sort_like_those_of_cloudpathlib(scheme, router, plain_class):
    texts = [f"{scheme}://{text}" for text in ("b", "a/b", "a", "a.b", "a/a")]
    paths = [router(text, f"/m/{number}") for number, text in enumerate(texts)]
    assert list(map(str, sorted(paths))) == list(map(str, sorted(map(plain_class, texts))))
    assert paths[2] < plain_class(texts[4]) < paths[0]
    assert plain_class(texts[0]) > SpecPath(texts[2]) <= MountedPath(texts[2]) >= paths[2]
    with pytest.raises(TypeError):
        _ = paths[0] < Path("/a")


@pytest.mark.parametrize("other", [None, "/m", "s3://m/x", "gs://m"])
def test_a_pickle_keeps_both_sides_and_not_the_client(scheme, router, cls, other):
    path = router(f"{scheme}://b/c", other, client=make_client(scheme))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(path, protocol)
        again = pickle.loads(data)
        assert type(again) is cls
        assert sides(again) == sides(path)
        assert again == path
        assert again._client is None
        assert b"_cloud" not in data, "a pickle must not know the names of private modules"


def test_a_copy_keeps_both_sides(scheme, router, cls):
    path = router(f"{scheme}://b/c", "/m")
    for again in (copy.copy(path), copy.deepcopy(path)):
        assert type(again) is cls
        assert again is not path
        assert sides(again) == sides(path)


def test_a_path_says_what_it_is(scheme, cls, router):
    assert repr(router(f"{scheme}://b/c")) == f"{cls.__name__}('{scheme}://b/c')"
    assert repr(MountedPath("gs://b/c", spec="/x/c")) == "MountedGSPath('gs://b/c', spec='/x/c')"
    assert repr(SpecPath("/x", "az://b")) == "SpecLocalPath('/x', mounted='az://b')"


def test_a_subclass_stays_itself():
    class Mine(SpecGSPath):
        pass

    path = Mine("gs://b/c", "/m/c")
    for derived in (path / "x", path.parent, path.with_suffix(".z"), copy.copy(path)):
        assert type(derived) is Mine
    assert path.mounted.spec == path


def test_a_local_path_cannot_be_renamed_into_a_cloud(tmp_path, router, scheme):
    path = router(tmp_path / "a")
    path.write_text("x")
    for move in (path.rename, path.replace):
        with pytest.raises(TypeError, match="copy it there"):
            move(router(f"{scheme}://b/c"))
    assert path.exists()


# Another library in the same process


@pytest.fixture
def other_library(scheme, plain_class, monkeypatch):
    """What other libraries do: their own subclasses in cloudpathlib's registry."""
    client_class = CLOUDS[scheme][3]
    meta = plain_class._cloud_meta
    key = {"az": "azure"}.get(scheme, scheme)
    monkeypatch.setattr(meta, "_path_class", meta._path_class)  # so that both are put back
    monkeypatch.setattr(meta, "_client_class", meta._client_class)

    @register_client_class(key)
    class OtherClient(client_class):
        pass

    @register_path_class(key)
    class OtherPath(plain_class):
        pass

    return OtherPath, OtherClient


def test_another_library_does_not_change_our_classes(scheme, router, cls, other_library):
    other_class, _ = other_library
    assert type(CloudPath(f"{scheme}://b/c")) is other_class
    path = router(f"{scheme}://b/c.x", "/m/c")
    for derived in (path, path / "x", path.parent, path.with_name("n"), other_of(other_of(path))):
        assert type(derived) is cls
    assert type(router(CloudPath(f"{scheme}://b/c"))) is cls
    assert type(path.resolve()) is CLOUDS[scheme][2]


def test_our_classes_do_not_change_what_another_library_gets(scheme, router, other_library):
    router(f"{scheme}://b/c", f"{scheme}://m/c")
    assert type(CloudPath(f"{scheme}://b/c")) is other_library[0]
    assert type(AnyPath(f"{scheme}://b/c")) is other_library[0]


def test_no_class_of_ours_is_registered():
    registered = {meta._path_class for meta in cloudpathlib.implementation_registry.values()}
    assert not any(issubclass(path_class, (SpecPath, MountedPath)) for path_class in registered)


def test_clients_of_cloudpathlib_and_of_another_library_are_both_accepted(
    scheme, router, other_library, monkeypatch
):
    client = make_client(scheme, 2)
    for client_class in (CLOUDS[scheme][3], other_library[1]):
        monkeypatch.setattr(client, "__class__", client_class)
        path = router(f"{scheme}://b/c", client=client)
        assert (path / "x").client is client
        assert path.resolve().client is client


def test_a_path_of_another_library_equals_ours_by_its_text(
    scheme, router, other_library, plain_class
):
    path, theirs = router(f"{scheme}://b/c", "/m"), other_library[0](f"{scheme}://b/c")
    assert path == theirs
    assert hash(path) == hash(plain_class(f"{scheme}://b/c"))


def test_a_broken_construction_leaves_no_noise(scheme, cls):
    with pytest.raises(TypeError):
        cls(f"{scheme}://b/c", bogus=1)
    with pytest.raises(TypeError):
        cls()


def test_os_fspath_is_not_asked_when_paths_are_made(scheme, router, monkeypatch, plain_class):
    def refuse(self):
        raise AssertionError("that would download the file")

    monkeypatch.setattr(plain_class, "__fspath__", refuse)
    path = router(plain_class(f"{scheme}://b/c"), router(f"{scheme}://m/c"))
    assert os.path.basename(str(router(path) / "x")) == "x"
