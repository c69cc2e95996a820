"""What `xqute.path` loads, and when: programs in processes of their own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap

import pytest

import xqute.path
from xqute.path import SpecPath

PREAMBLE = """
import sys

def loaded():
    sdks = ("cloudpathlib", "google.cloud", "boto3", "botocore", "azure.storage")
    return [name for name in sdks if name in sys.modules]
"""


def run(program, *args):
    """Run a program; give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(program), *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if "CREDENTIALS" not in name},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_and_using_local_paths_loads_neither_cloudpathlib_nor_an_sdk():
    assert (
        run("""
        import copy, pickle, xqute.path
        from xqute.path import LocalPath, MountedPath, SpecLocalPath, SpecPath
        path = SpecPath("/a/b", mounted="/mnt/b")
        for p in (path / "c", path.parent, path.mounted.spec, copy.copy(path), MountedPath("x")):
            assert p == pickle.loads(pickle.dumps(p)) and p != "gs://b" and not hasattr(p, "client")
        assert "SpecGSPath" in dir(xqute.path)
        try:
            SpecPath("http://host")
        except ValueError:
            print(loaded())
        """)
        == "[]"
    )


def test_the_first_uri_of_a_cloud_loads_cloudpathlib():
    pytest.importorskip("boto3")
    assert (
        run("""
        from xqute.path import SpecPath
        assert not loaded()
        path = SpecPath("/a", mounted="s3://b/c")
        assert "cloudpathlib" in loaded()
        print(repr(path / "x"))
        """)
        == "SpecLocalPath('/a/x', mounted='s3://b/c/x')"
    )


@pytest.mark.parametrize("name", ["GSPath", "SpecCloudPath", "PathType"])
def test_the_first_access_to_a_name_of_the_cloud_loads_cloudpathlib(name):
    assert (
        run(
            """
        import xqute.path
        assert not loaded()
        value = getattr(xqute.path, sys.argv[1])
        print(loaded()[0], value is getattr(xqute.path, sys.argv[1]))
        """,
            name,
        )
        == "cloudpathlib True"
    )


def test_every_name_is_there():
    assert [name for name in xqute.path.__all__ if not hasattr(xqute.path, name)] == []
    assert set(xqute.path.__all__) <= set(dir(xqute.path))


def test_a_pickle_of_a_cloud_path_can_be_read_where_nothing_is_loaded_yet():
    pytest.importorskip("google.cloud.storage")
    data = pickle.dumps(SpecPath("gs://b/c", mounted="/mnt/c"))
    program = "import pickle; print(repr(pickle.loads(bytes.fromhex(sys.argv[1]))))"
    assert run(program, data.hex()) == repr(SpecPath("gs://b/c", mounted="/mnt/c"))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match=r"module 'xqute\.path' has no attribute 'SpecFTPPath'"
    ):
        _ = xqute.path.SpecFTPPath


@pytest.mark.parametrize(
    ("uri", "extra", "module"),
    [
        ("gs://b/c", "gs", "google.auth"),
        ("s3://b/c", "s3", "boto3"),
        ("az://b/c", "azure", "azure.storage.blob"),
        ("az://b/c", "azure", "azure.storage.filedatalake"),
    ],
)
def test_a_missing_sdk_gives_an_error_with_the_line_that_installs_it(uri, extra, module):
    assert (
        run(
            """
        sys.modules[sys.argv[2]] = None  # as if it were not installed
        from xqute.errors import XquteError
        from xqute.path import MissingSDKError, MountedPath, SpecPath
        for make in (SpecPath, MountedPath, lambda uri: SpecPath("/a", mounted=uri)):
            try:
                make(sys.argv[1])
            except MissingSDKError as error:
                assert isinstance(error, (XquteError, ModuleNotFoundError))
                message = str(error)
        print(message)
        """,
            uri,
            module,
        )
        == f'{uri[:5]} needs an SDK that is not installed: pip install "xqute-core[{extra}]"'
    )
