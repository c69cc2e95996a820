"""A program that leaves its event loop early: `asyncio.run` then cancels every task there is."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("job_processes")

DRIVER = """
    import asyncio, json, sys
    from xqute import Job, Xqute, plugin
    from xqute.schedulers.local_scheduler import LocalScheduler

    class Slow(LocalScheduler):
        name = "slow"
        async def submit_job(self, job):
            await asyncio.sleep(0.05)
            return await super().submit_job(job)

    class Plug:
        name = "plug"
        @plugin.impl
        async def on_job_submitting(self, scheduler, job):
            await asyncio.sleep(0.01)
        @plugin.impl
        async def on_job_started(self, scheduler, job):
            await asyncio.sleep(0.01)
        @plugin.impl
        async def on_job_killing(self, scheduler, job):
            await asyncio.sleep(0.01)

    STUBBORN = ["bash", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.05; done']
    runs = []

    async def main(state, plugged, slow):
        plugins = [Plug()] if plugged else None
        xq = Xqute(Slow if slow else "local", workdir="w", plugins=plugins, forks=2)
        runs.append(xq)
        xq.scheduler.kill_grace_s = 0.2
        for _ in range(4):
            job = await xq.put(STUBBORN)
        first = xq.jobs[0]
        if state == "a turn later":
            await asyncio.sleep(0)
        elif state == "ready":
            while not (first.stdout_file.exists() and first.stdout_file.read_text()):
                await asyncio.sleep(0.01)
        elif state == "being killed":
            while not (first.stdout_file.exists() and first.stdout_file.read_text()):
                await asyncio.sleep(0.01)
            xq.cancel()
            await asyncio.sleep(0.03)
        elif state == "some time later":
            await asyncio.sleep(0.02)
        raise ZeroDivisionError

    for plugged in (False, True):
        for slow in (False, True):
            try:
                asyncio.run(main(sys.argv[1], plugged, slow))
            except ZeroDivisionError:
                pass
    outcomes = {str(job.outcome) for xq in runs for job in xq.jobs}
    print(json.dumps(sorted(outcomes)))
"""


@pytest.mark.parametrize(
    "state", ["just fed", "a turn later", "some time later", "ready", "being killed"]
)
@pytest.mark.concurrency
def test_the_loop_ends_with_everything_killed_and_every_job_told(
    start_driver, state, job_processes
):
    driver = start_driver(DRIVER, state)
    assert set(driver.finish(timeout_s=25)) <= {"killed", "cancelled"}
    assert job_processes() == []


def test_a_wait_that_is_cancelled_with_its_loop_ends_too(start_driver, job_processes):
    driver = start_driver(
        """
        import asyncio, json
        from xqute import Xqute

        async def main():
            xq = Xqute(workdir="w")
            await xq.put("sleep 60")
            waiting = asyncio.create_task(xq.run_until_complete())
            single = asyncio.create_task(xq.jobs[0].wait())
            while not xq.jobs[0].rc_file.parent.joinpath("job.stdout").exists():
                await asyncio.sleep(0.01)
            return xq

        xq = asyncio.run(main())
        print(json.dumps([job.outcome for job in xq.jobs]))
        """
    )
    assert driver.finish(timeout_s=15) == ["killed"]
    assert job_processes() == []
