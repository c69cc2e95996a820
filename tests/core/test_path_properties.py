"""Promises about all paths and all ways to derive them: round trips, both sides in step, values."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("google.cloud.storage")
pytest.importorskip("boto3")

from cloudpathlib import GSClient, GSPath, S3Path
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from xqute.path import MountedPath, SpecPath

# Names of any characters, and of bytes that are no text.
NAMES = st.one_of(
    st.sampled_from(["a", "b.txt", "c.tar.gz", ".hidden", "..", ".", "~", "gs:", " ", "-n", "x."]),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
    ),
    st.binary(min_size=1, max_size=4).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
).filter(lambda name: "/" not in name and "\0" not in name and "://" not in name)
LOCAL = st.builds(
    lambda root, names: root + "/".join(names),
    st.sampled_from(["", "/", "//"]),
    st.lists(NAMES, max_size=5),
).filter(lambda text: "://" not in text)
#: Buckets have tame names; and nobody can step above one.
BUCKET = st.from_regex(r"[a-z][a-z0-9-]{2,8}", fullmatch=True)
KEYS = st.lists(
    st.sampled_from(["a", "b.txt", "c.tar.gz", ".hidden", "~", " x", "#1", "?", "%20", "ü"]),
    max_size=4,
)
CLOUD = st.builds(
    lambda scheme, bucket, keys: "/".join([f"{scheme}:/", bucket, *keys]),
    st.sampled_from(["gs", "s3"]),
    BUCKET,
    KEYS,
)
TEXTS = LOCAL | CLOUD
ROUTERS = st.sampled_from([SpecPath, MountedPath])


@st.composite
def paths(draw, texts=TEXTS):
    other = draw(st.none() | texts)
    return draw(ROUTERS)(draw(texts), other)


SUFFIXES = st.sampled_from(["", ".z", ".tar.gz"])
GOOD_NAMES = st.sampled_from(["n", "n.txt", ".n", "n.tar.gz"])
#: A way to derive a path, and how it is said.
STEPS = st.one_of(
    st.just(("parent",)),
    st.tuples(st.just("__truediv__"), GOOD_NAMES | NAMES),
    st.tuples(st.just("__truediv__"), LOCAL),
    st.lists(LOCAL, max_size=3).map(lambda segments: ("joinpath", *segments)),
    st.tuples(st.just("with_name"), GOOD_NAMES),
    st.tuples(st.just("with_suffix"), SUFFIXES),
    st.tuples(st.just("with_stem"), GOOD_NAMES),
)


def take(path, step):
    """The path derived by one step, or the error's class."""
    name, *arguments = step
    value = getattr(path, name)
    try:
        return value if name == "parent" else value(*arguments)
    except ValueError:
        return ValueError


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The plain path of a text, of pathlib or cloudpathlib."""
    sdk = storage.Client("t", credentials=AnonymousCredentials())
    gs_client = GSClient(storage_client=sdk, local_cache_dir="/nonexistent")
    with pytest.MonkeyPatch.context() as patch:
        # A plain cloud path has to have a client to derive a path; it sends nothing for that.
        patch.setattr(GSClient, "_default_client", gs_client)
        patch.setattr(S3Path, "client", gs_client)
        patch.setattr(GSPath, "_new_cloudpath", _new_plain)
        patch.setattr(S3Path, "_new_cloudpath", _new_plain)
        yield _plain


def _plain(text):
    for plain_class in (GSPath, S3Path):
        if text.startswith(plain_class.cloud_prefix):
            return plain_class(text)
    return Path(text)


def _new_plain(self, path):
    return type(self)(f"{self.cloud_prefix}{path.removeprefix('/')}")


def other_of(path):
    return path.mounted if isinstance(path, SpecPath) else path.spec


def sides(path):
    return str(path), str(other_of(path))


@given(paths())
def test_a_path_goes_to_the_other_side_and_back_without_loss(path):
    there = other_of(path)
    back = other_of(there)
    assert type(back) is type(path)
    assert back == path
    assert hash(back) == hash(path)
    assert repr(back) == repr(path)
    assert sides(back) == sides(path) == sides(there)[::-1]
    assert there.is_mounted() == path.is_mounted() == (str(path) != str(there))


@given(ROUTERS, TEXTS, TEXTS)
def test_the_texts_of_both_sides_are_those_of_plain_paths(router, here, there):
    path = router(here, there)
    assert sides(path) == (str(_plain(here)), str(_plain(there)))
    assert path == _plain(here)
    assert hash(path) == hash(_plain(here))
    assert other_of(path) == _plain(there)


@settings(max_examples=400)
@given(router=ROUTERS, here=TEXTS, there=st.none() | TEXTS, steps=st.lists(STEPS, max_size=6))
def test_any_derivation_does_to_each_side_what_it_does_to_a_plain_path(
    plain, router, here, there, steps
):
    path = router(here, there)
    own, other = plain(here), plain(here if there is None else there)
    for step in steps:
        before = sides(path)
        derived, own, other = (take(side, step) for side in (path, own, other))
        assert sides(path) == before, "a path does not change"
        if ValueError in (own, other):
            assert derived is ValueError
            return
        assert type(derived) is type(path)
        assert sides(derived) == (str(own), str(other))
        assert derived.is_mounted() == (str(own) != str(other))
        path = derived


@given(paths())
def test_parents_are_the_parent_again_and_again_on_both_sides(path):
    step = path
    for parent in path.parents:
        step = step.parent
        assert type(parent) is type(path)
        assert sides(parent) == sides(step)
    if isinstance(path, Path):
        assert list(map(str, path.parents)) == list(map(str, Path(path).parents))
    else:
        assert not path.parents or str(path.parents[-1]).count("/") == 2, (
            "the last one is the bucket"
        )


@given(paths(), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_a_pickle_and_a_copy_are_the_same_path(path, protocol):
    for again in (pickle.loads(pickle.dumps(path, protocol)), copy.copy(path), copy.deepcopy(path)):
        assert type(again) is type(path)
        assert again == path
        assert sides(again) == sides(path)
        assert repr(again) == repr(path)


@given(paths(), paths())
def test_equal_paths_have_one_hash_and_equal_sides(one, two):
    if one == two:
        assert hash(one) == hash(two)
        assert str(one) == str(two)
        if isinstance(one, SpecPath) == isinstance(two, SpecPath):
            assert sides(one) == sides(two)
    elif isinstance(one, SpecPath) == isinstance(two, SpecPath):
        assert sides(one) != sides(two)
    assert (one == two) is (two == one)


@given(paths(LOCAL), paths(LOCAL))
def test_local_paths_sort_like_those_of_pathlib(one, two):
    assert (one < two) is (Path(one) < Path(two))
    assert (one >= two) is (Path(one) >= Path(two))
