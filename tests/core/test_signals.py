"""SIGINT and SIGTERM: the first stops gracefully, the second at once; handlers are restored."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import warnings

import pytest

import xqute
from xqute import JobOutcome, JobStatus, Xqute

pytestmark = pytest.mark.usefixtures("job_processes")

both = pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])

#: Runs three jobs, one at a time, and prints how they ended. Its arguments: command words.
DRIVER = """
    import asyncio, json, sys
    from xqute import Xqute, plugin

    class Shutdown:
        name = "shutdown"
        sigs = []
        @plugin.impl
        def on_shutdown(self, xqute, sig):
            self.sigs.append(sig and sig.name)
            open("shutdown", "w").close()

    async def main():
        xq = Xqute(workdir="w", plugins=[Shutdown()])
        xq.scheduler.kill_grace_s = GRACE
        for _ in range(3):
            await xq.put(sys.argv[1:])
        await xq.run_until_complete()
        outcomes = [job.outcome for job in xq.jobs]
        print(json.dumps([outcomes, [job.rc for job in xq.jobs], Shutdown.sigs]))

    asyncio.run(main())
"""
SLEEP = ["bash", "-c", "echo ready; sleep 60"]
STUBBORN = ["bash", "-c", 'trap "" TERM INT; echo ready; while :; do sleep 0.05; done']


async def _first_job_ready(tmp_path, until, driver):
    stdout = tmp_path / "w" / "0" / "job.stdout"
    await until(
        lambda: driver.process.poll() is not None or (stdout.exists() and stdout.read_text())
    )
    assert driver.process.poll() is None, driver.process.stderr.read()


@both
async def test_the_first_signal_stops_gracefully(tmp_path, start_driver, until, sig, job_processes):
    driver = start_driver(DRIVER.replace("GRACE", "10"), *SLEEP)
    await _first_job_ready(tmp_path, until, driver)
    driver.send(sig)
    outcomes, rcs, shutdowns = driver.finish(timeout_s=15)
    assert outcomes == ["killed", "cancelled", "cancelled"]
    assert rcs[0] == 128 + signal.SIGTERM
    assert shutdowns == [sig.name]
    assert job_processes() == []


@both
async def test_the_second_signal_stops_at_once(tmp_path, start_driver, until, sig, job_processes):
    driver = start_driver(DRIVER.replace("GRACE", "1000"), *STUBBORN)
    await _first_job_ready(tmp_path, until, driver)
    driver.send(sig)
    # Two that come before the first was heard are one for the system.
    await until((tmp_path / "shutdown").exists)
    driver.send(sig)
    outcomes, rcs, shutdowns = driver.finish(timeout_s=15)
    assert outcomes == ["killed", "cancelled", "cancelled"]
    assert rcs[0] == 128 + signal.SIGKILL
    assert shutdowns == [sig.name]
    assert job_processes() == []


async def test_sigint_and_sigterm_mixed_count_together(tmp_path, start_driver, until):
    driver = start_driver(DRIVER.replace("GRACE", "1000"), *STUBBORN)
    await _first_job_ready(tmp_path, until, driver)
    driver.send(signal.SIGINT)
    driver.send(signal.SIGTERM)
    outcomes, rcs, shutdowns = driver.finish(timeout_s=15)
    assert (outcomes[0], rcs[0]) == ("killed", 128 + signal.SIGKILL)
    assert len(shutdowns) == 1


# --- handlers -----------------------------------------------------------------------------------


async def test_handlers_are_installed_only_while_running_and_restored(tmp_path, until):
    before = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)]
    xq = Xqute(workdir=tmp_path)
    assert [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)] == before
    job = await xq.put("sleep 0.2")
    during = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)]
    assert all(now != then for now, then in zip(during, before, strict=True))
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_that_was_abandoned_with_its_loop_gives_way_to_the_next(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    async def abandon():
        await Xqute(workdir=tmp_path / "a").put("true")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    loop.close()
    assert signal.getsignal(signal.SIGTERM) is not before  # nobody has given it back

    async def run_another():
        async with Xqute(workdir=tmp_path / "b") as xq:
            await xq.put("true")

    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        asyncio.run(run_another())
        gc.collect()
    assert signal.getsignal(signal.SIGTERM) is before


async def test_a_handler_of_the_programs_own_is_restored(tmp_path, until):
    def mine(number, frame):
        raise AssertionError("not during the run")

    before = signal.signal(signal.SIGTERM, mine)
    try:
        xq = Xqute(workdir=tmp_path)
        job = await xq.put("sleep 60")
        await until(lambda: job.status == JobStatus.RUNNING)
        signal.raise_signal(signal.SIGTERM)
        await xq.run_until_complete()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert job.outcome is JobOutcome.KILLED


@pytest.mark.parametrize("end", ["cancelled", "halted", "raising"])
async def test_handlers_are_restored_however_the_run_ends(tmp_path, until, end):
    before = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)]
    xq = Xqute(workdir=tmp_path, error_strategy="halt", forks=2)
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    if end == "halted":
        await xq.put("false")
        await xq.run_until_complete()
    elif end == "cancelled":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(xq.run_until_complete(), 0.05)
    else:
        with pytest.raises(ZeroDivisionError):
            async with xq:
                raise ZeroDivisionError
    assert [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)] == before


async def test_two_runs_at_once_restore_the_handlers_in_any_order(tmp_path, gate):
    before = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)]
    first, second = (Xqute(workdir=tmp_path / name) for name in "ab")
    await first.put("true")
    await second.put(gate.command())
    await first.run_until_complete()
    gate.open()
    await second.run_until_complete()
    assert [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)] == before


async def test_one_signal_stops_all_runs_of_the_process(tmp_path, until, job_processes):
    runs = [Xqute(workdir=tmp_path / name) for name in "ab"]
    jobs = [await xq.put("sleep 60") for xq in runs]
    await until(lambda: [job.status for job in jobs] == [JobStatus.RUNNING] * 2)
    signal.raise_signal(signal.SIGTERM)
    waiting = asyncio.gather(*(xq.run_until_complete() for xq in runs))
    await asyncio.wait_for(waiting, 10)
    assert {job.outcome for job in jobs} == {JobOutcome.KILLED}
    assert {xq.stop_signal for xq in runs} == {signal.SIGTERM}
    assert job_processes() == []


@pytest.mark.concurrency
@both
def test_a_process_that_is_forked_off_a_run_ends_by_a_signal_as_ever(start_driver, sig):
    """As one of a pool does, which is sent TERM and waited for; the run is not told of it."""
    driver = start_driver(
        """
        import asyncio, json, multiprocessing, os, signal, sys, time, warnings
        from xqute import Xqute

        warnings.simplefilter("ignore", DeprecationWarning)  # it has threads, too
        signal.signal(signal.SIGINT, signal.SIG_DFL)

        async def main():
            xq = Xqute(workdir="w")
            job = await xq.put(["bash", "-c", "until [[ -e $0 ]]; do sleep 0.01; done", "gate"])
            while job.status < 4:
                await asyncio.sleep(0.01)
            codes = set()
            for _ in range(20):
                child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
                child.start()
                os.kill(child.pid, int(sys.argv[1]))
                child.join(10)
                codes.add(child.exitcode)
                child.kill()
                if None in codes:
                    break
            mask = [sig.name for sig in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
            open("gate", "w").close()
            await xq.run_until_complete()
            print(json.dumps([list(codes), mask, job.outcome, xq.stop_signal]))

        asyncio.new_event_loop().run_until_complete(main())
        """,
        int(sig),
    )
    assert driver.finish() == [[-sig], [], "succeeded", None]


def test_the_sigint_handling_of_asyncio_run_is_restored(start_driver):
    driver = start_driver(
        """
        import asyncio, json, signal
        from xqute import Xqute

        async def main():
            xq = Xqute(workdir="w")
            job = await xq.put("true")
            await xq.run_until_complete()
            try:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                print(json.dumps([job.rc, "cancelled by asyncio.run's own handler"]), flush=True)
                raise

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print(json.dumps("KeyboardInterrupt"))
        """
    )
    assert driver.finish() == "KeyboardInterrupt"


def test_sigint_during_a_run_does_not_make_asyncio_run_raise(start_driver):
    driver = start_driver(
        """
        import asyncio, json, signal
        from xqute import Xqute

        async def main():
            xq = Xqute(workdir="w")
            job = await xq.put("sleep 60")
            await xq.put("sleep 60")
            while job.status < 4:
                await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
            await xq.run_until_complete()
            return [job.outcome, xq.stop_signal.name]

        print(json.dumps(asyncio.run(main())))
        """
    )
    assert driver.finish() == ["killed", "SIGINT"]


# --- xqute.run ----------------------------------------------------------------------------------

SCRIPT = """
    import json, xqute
    try:
        jobs = xqute.run([["bash", "-c", "echo ready; sleep 60"], "true"], workdir="w")
        print(json.dumps([job.outcome for job in jobs]))
    except KeyboardInterrupt:
        print(json.dumps("KeyboardInterrupt"))
"""


@pytest.mark.parametrize(
    ("sig", "seen"),
    [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, ["killed", "cancelled"])],
)
async def test_a_signal_stops_a_synchronous_script(
    tmp_path, start_driver, until, sig, seen, job_processes
):
    driver = start_driver(SCRIPT)
    await _first_job_ready(tmp_path, until, driver)
    driver.send(sig)
    assert driver.finish(timeout_s=15) == seen
    assert job_processes() == []


def test_a_run_in_a_thread_touches_no_handler(tmp_path):
    before = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)]
    jobs = []
    thread = threading.Thread(target=lambda: jobs.extend(xqute.run(["true"], workdir=tmp_path)))
    thread.start()
    thread.join(30)
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED]
    assert [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)] == before


async def test_a_driver_that_is_left_by_its_loop_kills_its_jobs(
    tmp_path, start_driver, until, job_processes
):
    """`asyncio.run` cancels all tasks when its main returns: so ends a run that nobody awaited."""
    driver = start_driver(
        """
        import asyncio, json
        from xqute import Xqute

        async def main():
            xq = Xqute(workdir="w")
            await xq.put(["bash", "-c", "echo ready; sleep 60"])
            while not (xq.jobs[0].stdout_file.exists() and xq.jobs[0].stdout_file.read_text()):
                await asyncio.sleep(0.01)
            return xq

        xq = asyncio.run(main())
        print(json.dumps([job.outcome for job in xq.jobs]))
        """
    )
    assert driver.finish(timeout_s=15) == ["killed"]
    assert job_processes() == []
