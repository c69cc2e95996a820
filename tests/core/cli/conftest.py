"""What the suites of the command line share: the real command, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import textwrap
import time

import pytest

DEADLINE_S = 60


class Cli:
    """Runs `xqute` in a folder; warnings are errors there, too."""

    def __init__(self, cwd):
        self.cwd = cwd
        self.env = {**os.environ, "PYTHONWARNINGS": "error"}
        self._started = []

    def __call__(self, *args, stdin=b"", rc=0, env=None, **popen):
        """Run it to its end; give what it printed, as bytes. `rc` None: any."""
        done = subprocess.run(
            ["xqute", *args],
            input=stdin,
            capture_output=True,
            cwd=popen.pop("cwd", self.cwd),
            env={**self.env, **(env or {})},
            timeout=DEADLINE_S,
            check=False,
            **popen,
        )
        assert rc is None or done.returncode == rc, (
            f"rc {done.returncode}: {done.stdout!r} {done.stderr!r}"
        )
        assert b"Traceback" not in done.stderr
        return done

    def start(self, *args, env=None, **popen):
        """Start it, with pipes."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            ["xqute", *args],
            cwd=self.cwd,
            env={**self.env, **(env or {})},
            **{**pipes, **popen},
        )
        self._started.append(process)
        return process

    def end_all(self):
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    @staticmethod
    def wait_for(condition, deadline_s=30):
        """Wait for a fact; give the first true value."""
        end_s = time.monotonic() + deadline_s
        while not (value := condition()):
            assert time.monotonic() < end_s, "what was waited for did not come true"
            time.sleep(0.005)
        return value

    @property
    def latest(self):
        return self.cwd / ".xqute" / "runs" / "latest"


@pytest.fixture
def cli(tmp_path):
    command = Cli(tmp_path)
    yield command
    command.end_all()


@pytest.fixture
def backends(tmp_path, cli):
    """Schedulers installed for the command alone: one refuses every job, one loses them, ..."""
    site = tmp_path / "site"
    info = site / "xqute_badly-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xqute-badly\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[xqute.schedulers]\n"
        "refusing = xqute_badly:RefusingScheduler\n"
        "losing = xqute_badly:LosingScheduler\n"
        "closed = xqute_badly:ClosedScheduler\n"
        "picky = xqute_badly:PickyScheduler\n"
        "broken = xqute_badly_not_there:Scheduler\n"
    )
    (site / "xqute_badly.py").write_text(
        textwrap.dedent(
            """
            from xqute import Scheduler, SchedulerError, SubmitError


            class _Bad(Scheduler):
                async def submit_job(self, job):
                    return f"bad-{job.index}"

                async def kill_job(self, job):
                    pass

                async def job_is_running(self, job):
                    return False


            class RefusingScheduler(_Bad):
                name = "refusing"

                async def submit_job(self, job):
                    raise SubmitError("the queue is closed")


            class LosingScheduler(_Bad):
                name = "losing"

                def __init__(self, *args, **kwargs):
                    super().__init__(*args, **kwargs)
                    self.first_recheck_s = self.lost_grace_s = 0.01


            class ClosedScheduler(_Bad):
                name = "closed"

                async def start(self):
                    raise SchedulerError("the controller does not answer")


            class PickyScheduler(_Bad):
                name = "picky"

                def __init__(self, *args, queue, **kwargs):
                    super().__init__(*args, **kwargs)
                    if isinstance(queue, str):
                        raise ValueError(f"no queue {queue!r}")
            """
        )
    )
    cli.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return cli
