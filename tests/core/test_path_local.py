"""Local SpecPath and MountedPath: what the interface promises, and what `pathlib` does."""

from __future__ import annotations

import copy
import os
import pathlib
import pickle
import sys
from pathlib import Path, PurePosixPath

import pytest

from xqute.path import LocalPath, MountedLocalPath, MountedPath, SpecLocalPath, SpecPath

CLASSES = {SpecPath: SpecLocalPath, MountedPath: MountedLocalPath}
OPPOSITE = {SpecPath: MountedPath, MountedPath: SpecPath}

since_3_12 = pytest.mark.skipif(sys.version_info < (3, 12), reason="pathlib has it since 3.12")


def sides(path):
    """The texts of both sides of a path, its own first."""
    other = path.mounted if isinstance(path, SpecPath) else path.spec
    return str(path), str(other)


@pytest.fixture(params=[SpecPath, MountedPath])
def router(request):
    return request.param


@pytest.fixture
def tree(tmp_path, router):
    """A path to real files, with another side that is not there."""
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "sub" / "deep" / "c.txt").write_text("c")
    return router(tmp_path, "/mnt/disks/data")


# Classes


def test_the_routers_give_local_classes_that_are_pathlib_paths(router):
    path = router("/a/b")
    assert type(path) is CLASSES[router]
    assert isinstance(path, Path)
    assert isinstance(path, LocalPath)
    assert isinstance(path, router)
    assert not isinstance(path, OPPOSITE[router])


def test_the_classes_are_subclasses_of_their_router_and_of_path_alone(router):
    assert issubclass(CLASSES[router], router)
    assert issubclass(CLASSES[router], Path)
    assert not issubclass(CLASSES[router], OPPOSITE[router])
    assert not issubclass(Path, router)
    assert not issubclass(router, Path)
    assert not isinstance(Path("/a"), router)


@pytest.mark.parametrize("make", [str, Path, PurePosixPath, SpecPath, MountedPath, os.fspath])
def test_a_path_is_made_of_anything_that_is_one(router, make):
    assert str(router(make("/a/b"))) == "/a/b"


def test_a_path_like_object_is_taken_by_its_text(router):
    class Like:
        def __fspath__(self):
            return "/a/b"

    assert sides(router(Like(), Like())) == ("/a/b", "/a/b")


def test_the_other_side_is_the_second_argument_or_a_keyword():
    assert sides(SpecPath("/a", "/m")) == sides(SpecPath("/a", mounted="/m")) == ("/a", "/m")
    assert sides(MountedPath("/m", "/a")) == sides(MountedPath("/m", spec="/a")) == ("/m", "/a")


def test_a_path_of_the_same_kind_brings_its_other_side_along(router):
    assert sides(router(router("/a", "/m"))) == ("/a", "/m")
    assert sides(router(router("/a", "/m"), "/other")) == ("/a", "/other")


def test_a_path_of_the_other_kind_is_taken_by_its_text(router):
    other = OPPOSITE[router]
    assert sides(router(other("/m", "/a"))) == ("/m", "/m")
    path = router("/x", other("/m", "/secret"))
    assert sides(path) == ("/x", "/m")
    assert b"/secret" not in pickle.dumps(path), "chains of sides would grow for ever"


@pytest.mark.parametrize("uri", ["http://host/a", "file:///a", "hdfs://a", "C+.-1://x"])
def test_a_uri_of_an_unknown_scheme_is_refused_by_name(router, uri):
    with pytest.raises(ValueError, match="unknown scheme: known are gs://, s3://, az://") as caught:
        router(uri)
    assert uri in str(caught.value)


@pytest.mark.parametrize("uri", ["gs://b/c", "s3://b/c", "az://b/c", "GS://b/c"])
def test_a_local_class_refuses_the_uri_of_a_cloud(router, uri):
    with pytest.raises(ValueError, match=f"'{uri}' is not local"):
        CLASSES[router](uri)


@pytest.mark.parametrize("nothing", [1, None, b"/a", object()])
def test_what_is_no_path_is_a_type_error(router, nothing):
    with pytest.raises(TypeError):
        router(nothing)


def test_a_client_for_a_local_path_is_a_type_error(router):
    with pytest.raises(TypeError, match="local path: it takes no client"):
        router("/a", client=object())
    assert sides(router("/a", client=None)) == ("/a", "/a")


# Two sides


def test_without_another_side_both_are_the_same(router):
    path = router("/a/b")
    assert sides(path) == ("/a/b", "/a/b")
    assert not path.is_mounted()


def test_is_mounted_tells_whether_the_two_sides_differ(router):
    assert router("/a", "/m").is_mounted()
    assert not router("/a", "/a/").is_mounted()
    assert not router("/a/x", "/m/x").parent.parent.is_mounted()


def test_a_path_goes_to_the_other_side_and_back_without_loss():
    spec = SpecPath("/a/b", mounted="/mnt/b")
    assert type(spec.mounted) is MountedLocalPath
    assert type(spec.mounted.spec) is SpecLocalPath
    assert spec.mounted.is_mounted()
    assert spec.mounted.spec == spec
    assert spec.mounted.spec.mounted == spec.mounted == MountedPath("/mnt/b", spec="/a/b")


# Derivations


@pytest.mark.parametrize(
    ("derive", "here", "there"),
    [
        pytest.param(lambda p: p / "x", "/w/1/a.tar.gz/x", "/m/b.txt/x", id="truediv"),
        pytest.param(lambda p: p / Path("x/y"), "/w/1/a.tar.gz/x/y", "/m/b.txt/x/y", id="path"),
        pytest.param(lambda p: p / "/etc", "/etc", "/etc", id="absolute"),
        pytest.param(lambda p: p.joinpath(), "/w/1/a.tar.gz", "/m/b.txt", id="join-nothing"),
        pytest.param(
            lambda p: p.joinpath("x", "../y"), "/w/1/a.tar.gz/x/../y", "/m/b.txt/x/../y", id="join"
        ),
        pytest.param(lambda p: p.with_name("n.z"), "/w/1/n.z", "/m/n.z", id="name"),
        pytest.param(lambda p: p.with_suffix(".z"), "/w/1/a.tar.z", "/m/b.z", id="suffix"),
        pytest.param(lambda p: p.with_stem("s"), "/w/1/s.gz", "/m/s.txt", id="stem"),
        pytest.param(lambda p: p.with_segments("d", "e"), "d/e", "d/e", id="segments"),
        pytest.param(
            lambda p: p.with_segments(p, "e"), "/w/1/a.tar.gz/e", "/m/b.txt/e", id="segments-self"
        ),
        pytest.param(lambda p: p.parent, "/w/1", "/m", id="parent"),
        pytest.param(lambda p: p.parent.parent.parent, "/", "/", id="root"),
        pytest.param(lambda p: p.parent / "x" / "y", "/w/1/x/y", "/m/x/y", id="chain"),
    ],
)
def test_a_derivation_keeps_the_class_and_is_done_to_both_sides(router, derive, here, there):
    path = router("/w/1/a.tar.gz", "/m/b.txt")
    derived = derive(path)
    assert type(derived) is type(path)
    assert sides(derived) == (here, there)
    assert sides(path) == ("/w/1/a.tar.gz", "/m/b.txt")


def test_a_derivation_without_another_side_is_that_of_pathlib(router):
    for derive in (lambda p: p / "x", lambda p: p.parent, lambda p: p.with_suffix(".z")):
        derived = derive(router("/w/a.b"))
        assert type(derived) is CLASSES[router]
        assert sides(derived) == (str(derive(Path("/w/a.b"))),) * 2


def test_a_relative_path_joined_from_the_left_gives_both_sides(router):
    assert sides("/w" / router("a", "m")) == ("/w/a", "/w/m")
    assert type("/w" / router("a", "m")) is CLASSES[router]
    assert sides("/w" / router("a")) == ("/w/a", "/w/a")


def test_a_plain_path_joined_with_one_stays_plain(router):
    for plain in (Path("/w"), PurePosixPath("/w")):
        joined = plain / router("a", "m")
        assert type(joined) is type(plain)
        assert str(joined) == "/w/a"


def test_a_segment_of_the_same_kind_brings_its_other_side_along(router):
    assert sides(router("/w", "/m") / router("a", "b")) == ("/w/a", "/m/b")
    assert sides(router("/w") / router("a", "b")) == ("/w/a", "/w/b")
    assert sides(router("/w", "/m") / router("/x", "/y")) == ("/x", "/y")
    assert sides(router("/w").with_segments(router("a", "b"), "c")) == ("a/c", "b/c")


@pytest.mark.parametrize("segment", [1, None, b"x"])
def test_what_is_no_segment_is_a_type_error(router, segment):
    for path in (router("/a"), router("/a", "/m")):
        with pytest.raises(TypeError):
            path / segment
        with pytest.raises(TypeError):
            segment / path


def test_an_other_side_without_a_name_is_said_to_be_the_reason(router):
    with pytest.raises(ValueError, match="Path\\('/'\\) has an empty name"):
        router("/a/b", "/").with_name("c")


def test_parents_step_up_on_both_sides(router):
    parents = router("/w/1/2", "/m/n").parents
    assert [sides(path) for path in parents] == [("/w/1", "/m"), ("/w", "/"), ("/", "/")]
    assert [sides(path) for path in router("a/b").parents] == [("a", "a"), (".", ".")]
    assert all(type(path) is CLASSES[router] for path in parents)
    assert sides(parents[-1]) == ("/", "/")


def test_the_parent_of_a_root_steps_up_on_the_other_side_and_leaves_the_root_alone(router):
    root = router("/", "/m/n")
    assert sides(root.parent) == ("/", "/m")
    assert sides(root) == ("/", "/m/n")
    assert sides(router("/").parent) == ("/", "/")


def test_iterdir_keeps_both_sides(tree):
    found = sorted(tree.iterdir())
    assert [sides(path) for path in found] == [
        (f"{tree}/a.txt", "/mnt/disks/data/a.txt"),
        (f"{tree}/sub", "/mnt/disks/data/sub"),
    ]
    assert all(type(path) is type(tree) for path in found)
    assert found[0].read_text() == "a"


def test_glob_and_rglob_keep_both_sides(tree):
    for found, names in [
        (tree.glob("*.txt"), ["a.txt"]),
        (tree.glob("*/*.txt"), ["sub/b.txt"]),
        (tree.glob("sub/../a.txt"), ["sub/../a.txt"]),
        (tree.rglob("*.txt"), ["a.txt", "sub/b.txt", "sub/deep/c.txt"]),
        (tree.glob("sub/**/c.txt"), ["sub/deep/c.txt"]),
    ]:
        paths = sorted(found)
        assert [sides(path) for path in paths] == [
            (f"{tree}/{name}", f"/mnt/disks/data/{name}") for name in names
        ]
        assert all(type(path) is type(tree) for path in paths)
    assert (str(tree), "/mnt/disks/data") in map(sides, tree.glob("**"))


def test_a_relative_folder_is_searched_likewise(tree, router, monkeypatch):
    monkeypatch.chdir(str(tree))
    assert sorted(map(sides, router(".", "/m").rglob("b.*"))) == [("sub/b.txt", "/m/sub/b.txt")]
    assert sorted(map(sides, router(".", "/m").iterdir())) == [
        ("a.txt", "/m/a.txt"),
        ("sub", "/m/sub"),
    ]
    assert sorted(map(sides, router("sub").glob("*.txt"))) == [("sub/b.txt", "sub/b.txt")]


@since_3_12
def test_walk_keeps_both_sides_and_can_be_pruned(tree):
    walked = []
    for folder, folders, files in tree.walk():
        assert type(folder) is type(tree)
        walked.append((*sides(folder), files))
        if "deep" in folders:
            folders.remove("deep")
    assert walked == [
        (str(tree), "/mnt/disks/data", ["a.txt"]),
        (f"{tree}/sub", "/mnt/disks/data/sub", ["b.txt"]),
    ]


@pytest.mark.parametrize("other", [None, "/m/x"])
def test_what_has_no_counterpart_on_the_other_side_is_a_plain_path(
    router, tmp_path, monkeypatch, other
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "link").symlink_to("target")
    path = router("link", other)
    for plain, text in [
        (path.absolute(), f"{tmp_path}/link"),
        (path.resolve(), f"{tmp_path.resolve()}/target"),
        (path.readlink(), "target"),
        (router("~/x", other).expanduser(), "/home/me/x"),
        (router("/a/b", other).absolute(), "/a/b"),
        (router("/a/b", other).expanduser(), "/a/b"),
        (router("/a/b", other).relative_to("/a"), "b"),
        (router("/a/b", other).relative_to(router("/a", "/z")), "b"),
    ]:
        assert type(plain) is LocalPath
        assert str(plain) == text


def test_resolve_can_be_strict(router, tmp_path):
    with pytest.raises(FileNotFoundError):
        router(tmp_path / "none", "/m").resolve(strict=True)


def test_questions_about_the_text_do_not_depend_on_the_other_side(router):
    path = router("/a/b/c.txt", "/m/c")
    assert path.is_relative_to("/a")
    assert path.is_relative_to(Path("/a"))
    assert path.is_relative_to(router("/a", "/other"))
    assert not path.is_relative_to("/m")
    assert path.match("*.txt")
    assert path.match("b/*.txt")
    with pytest.raises(ValueError, match="subpath"):
        path.relative_to("/m")


def test_cwd_and_home_are_paths_of_the_class(router, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    here, home = CLASSES[router].cwd(), CLASSES[router].home()
    assert type(here) is type(home) is CLASSES[router]
    assert (sides(here), sides(home)) == ((os.getcwd(),) * 2, ("/home/me",) * 2)


# Files


def test_files_are_those_of_this_process(tmp_path, router):
    path = router(tmp_path / "new" / "f", "/nowhere/f")
    path.parent.mkdir(parents=True)
    path.write_text("x")
    with open(path) as file:
        assert file.read() == path.read_text() == "x"
    assert path.samefile(str(path))
    assert path.samefile(router(path, "/else"))
    assert path.stat().st_size == 1
    path.unlink()
    assert not path.exists()


@pytest.mark.parametrize("move", ["rename", "replace"])
def test_renaming_gives_the_target_with_both_its_sides(tmp_path, router, move):
    path = router(tmp_path / "a", "/m/a")
    path.write_text("x")
    target = path.with_name("b")
    moved = getattr(path, move)(target)
    assert type(moved) is type(path)
    assert sides(moved) == (f"{tmp_path}/b", "/m/b")
    assert (path.exists(), moved.read_text()) == (False, "x")


@pytest.mark.parametrize("move", ["rename", "replace"])
def test_renaming_to_a_text_gives_that_text_on_both_sides(tmp_path, router, move):
    for other in (None, "/m/a"):
        path = router(tmp_path / "a", other)
        path.write_text("x")
        moved = getattr(path, move)(str(tmp_path / "b"))
        assert type(moved) is type(path)
        assert sides(moved) == (f"{tmp_path}/b",) * 2
        assert moved.read_text() == "x"


def test_a_folder_can_be_renamed_and_links_can_be_made(tree):
    moved = (tree / "sub").rename(tree / "moved")
    assert (moved / "deep" / "c.txt").read_text() == "c"
    (tree / "soft").symlink_to(moved / "b.txt")
    (tree / "hard").hardlink_to(moved / "b.txt")
    assert (tree / "soft").read_text() == (tree / "hard").read_text() == "b"
    assert (tree / "soft").samefile(tree / "hard")


def test_rmtree_removes_a_folder_with_all_that_is_in_it(tree):
    (tree / "sub").rmtree()
    assert [path.name for path in tree.iterdir()] == ["a.txt"]
    with pytest.raises(NotADirectoryError):
        (tree / "a.txt").rmtree()
    with pytest.raises(FileNotFoundError):
        (tree / "sub").rmtree()


def test_fspath_is_the_path_itself(router):
    path = router("/a/b", "/m/b")
    assert path.fspath == os.fspath(path) == "/a/b"
    assert isinstance(path.fspath, str)


# Values


def test_a_path_equals_a_plain_one_with_its_text_and_has_its_hash(router):
    for path in (router("/a/b"), router("/a/b", "/m")):
        assert path == Path("/a/b")
        assert Path("/a/b") == path
        assert hash(path) == hash(Path("/a/b"))
        assert {Path("/a/b"): 1}[path] == 1
        assert path != Path("/m")
        assert path != "/a/b"
        assert path != 1


def test_two_of_a_kind_are_equal_when_both_sides_are(router):
    assert router("/a", "/m") == router("/a/", "/m/")
    assert router("/a") == router("/a", "/a")
    assert router("/a", "/m") != router("/a", "/n")
    assert router("/a", "/m") != router("/a")
    assert router("/a") != router("/a", "/m")
    assert router("/a", "/m") != router("/b", "/m")
    assert len({router("/a", "/m"), router("/a", "/n"), router("/a"), router("/a/")}) == 3


def test_sides_that_became_equal_by_derivation_are_as_good_as_never_apart(router):
    met = router("/w/spec", "/w/mounted").parent
    assert met == router("/w")
    assert router("/w") == met
    assert repr(met) == f"{CLASSES[router].__name__}('/w')"


def test_equality_is_not_transitive():
    assert SpecPath("/a", "/m") == Path("/a") == SpecPath("/a", "/n")
    assert SpecPath("/a", "/m") != SpecPath("/a", "/n")


def test_one_of_the_other_kind_counts_as_a_plain_path():
    assert SpecPath("/a", "/m") == MountedPath("/a")
    assert MountedPath("/a") == SpecPath("/a", "/m")
    assert SpecPath("/a", "/m") != SpecPath("/a", "/m").mounted


def test_paths_sort_like_those_of_pathlib(router):
    texts = ["/b", "/a/b", "/a", "/a.b", "/a/a"]
    paths = [router(text, f"/m/{number}") for number, text in enumerate(texts)]
    assert list(map(str, sorted(paths))) == list(map(str, sorted(map(Path, texts))))
    assert paths[2] < Path("/a/a") < paths[0]
    assert paths[2] <= paths[2] >= paths[2]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("other", [None, "/m/b"])
def test_a_pickle_keeps_both_sides(router, other, protocol):
    path = router("/a/b", other)
    data = pickle.dumps(path, protocol)
    again = pickle.loads(data)
    assert type(again) is type(path)
    assert sides(again) == sides(path)
    assert b"_local" not in data, "a pickle must not know the names of private modules"


@pytest.mark.parametrize("other", [None, "/m/b"])
def test_a_copy_keeps_both_sides(router, other):
    path = router("/a/b", other)
    for again in (copy.copy(path), copy.deepcopy(path), copy.deepcopy([path])[0]):
        assert type(again) is type(path)
        assert sides(again) == sides(path)


def test_a_path_says_what_it_is():
    assert repr(SpecPath("/a/b")) == "SpecLocalPath('/a/b')"
    assert repr(SpecPath("/a/b", mounted="/mnt/b")) == "SpecLocalPath('/a/b', mounted='/mnt/b')"
    assert repr(MountedPath("/mnt/b", spec="/a/b")) == "MountedLocalPath('/mnt/b', spec='/a/b')"
    assert repr(SpecPath("it's")) == 'SpecLocalPath("it\'s")'
    assert repr(SpecPath("/a", "/a")) == "SpecLocalPath('/a')"


def test_a_path_costs_one_slot_more_than_that_of_pathlib(router):
    path = router("/a")
    assert sys.getsizeof(path) <= sys.getsizeof(Path("/a")) + 8
    assert not hasattr(path, "__dict__")


def test_a_subclass_stays_itself():
    class Mine(SpecLocalPath):
        __slots__ = ()

    path = Mine("/a/b", "/m/b")
    for derived in (path / "x", path.parent, path.with_suffix(".z"), copy.copy(path)):
        assert type(derived) is Mine
    assert path.mounted.spec == path


def test_every_public_method_of_pathlib_that_makes_paths_is_known_here():
    """A new one in a later Python would lose the other side: it must be looked at."""
    known = """
        absolute anchor as_posix as_uri chmod cwd drive exists expanduser from_uri
        full_match glob group hardlink_to home is_absolute is_block_device is_char_device
        is_dir is_fifo is_file is_junction is_mount is_relative_to is_reserved is_socket
        is_symlink iterdir joinpath lchmod link_to lstat match mkdir name open owner parent
        parents parser parts read_bytes read_text readlink relative_to rename replace
        resolve rglob rmdir root samefile stat stem suffix suffixes symlink_to touch unlink
        walk with_name with_segments with_stem with_suffix write_bytes write_text
    """.split()  # noqa: SIM905
    assert {name for name in dir(pathlib.PosixPath) if name[0] != "_"} <= set(known)
