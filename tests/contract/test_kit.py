"""The contract kit itself: what an author may say, what is refused, and what is shown."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest

from xqute.testing import Needs, SchedulerContract, TooLateError, overrides_contract, until

AUTHORS_FILE = """
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import SchedulerContract, overrides_contract

class TestMine(SchedulerContract):
    does_not_apply = {"test_standard_input_is_empty": "our queue has a keyboard"}

    def make_scheduler(self, workdir, **keywords):
        return LocalScheduler(workdir, **keywords)

    @overrides_contract
    async def test_a_success_is_told(self, rig):
        await super().test_a_success_is_told(rig)
        print("and what is ours")

class TestBroken(TestMine):
    def command(self, *rcs, runs_s=0.0):
        return super().command(*(rc and 5 for rc in rcs), runs_s=runs_s)
"""


def python(*args, cwd):
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def test_there_are_promises_and_each_says_why():
    promises = SchedulerContract.promises()
    assert len(promises) >= 40
    assert [name for name, promise in promises.items() if not promise.__doc__] == []


# --- replacing a promise -----------------------------------------------------------------------


def test_a_promise_cannot_be_replaced_by_accident():
    with pytest.raises(TypeError, match=r"TestOurs\.test_a_kill_is_told replaces a promise"):

        class TestOurs(SchedulerContract):
            async def test_a_kill_is_told(self, rig):
                pass


def test_nor_by_a_mixin():
    class Mixin:
        test_a_kill_is_told = None

    with pytest.raises(TypeError, match="replaces a promise"):

        class TestOurs(Mixin, SchedulerContract):
            pass


def test_a_promise_can_be_replaced_on_purpose():
    class TestOurs(SchedulerContract):
        @overrides_contract
        async def test_a_kill_is_told(self, rig):
            pass

    class TestOursToo(TestOurs):
        """Inherits it, and need not say so again."""


def test_what_is_replaced_on_purpose_must_be_there():
    with pytest.raises(TypeError, match=r"TestOurs\.test_a_kil_is_told overrides nothing"):

        class TestOurs(SchedulerContract):
            @overrides_contract
            async def test_a_kil_is_told(self, rig):
                pass


# --- what does not apply -----------------------------------------------------------------------


def test_what_does_not_apply_must_be_known():
    with pytest.raises(TypeError, match="there is no promise 'test_of_something'"):

        class TestOurs(SchedulerContract):
            does_not_apply: ClassVar = {"test_of_something": "because"}


def test_what_does_not_apply_needs_a_reason():
    with pytest.raises(TypeError, match="gives no reason"):

        class TestOurs(SchedulerContract):
            does_not_apply: ClassVar = {Needs.PROCESSES: ""}


def test_a_need_excuses_the_promises_that_have_it_and_no_others():
    class TestOurs(SchedulerContract):
        does_not_apply: ClassVar = {Needs.PROCESSES: "they run far away"}

    excused = {name for name, promise in TestOurs.promises().items() if TestOurs.excuse(promise)}
    assert excused == {
        "test_a_kill_intent_is_finished_by_the_next_run",
        "test_a_kill_leaves_nothing_behind",
        "test_a_kill_of_a_re_attached_job_leaves_nothing_behind",
        "test_a_late_end_of_a_lost_job_changes_nothing",
        "test_a_timeout_leaves_nothing_behind",
        "test_a_wrapper_that_was_killed_is_no_success",
    }


# --- what an author sees -----------------------------------------------------------------------


def test_it_works_without_configuration_and_tells_what_was_left_out(tmp_path):
    (tmp_path / "test_mine.py").write_text(AUTHORS_FILE)
    choice = "TestMine and (success_is_told or standard_input or a_failure_is_told)"
    result = python("-m", "pytest", "-rs", "-p", "no:cacheprovider", "-k", choice, cwd=tmp_path)
    assert "2 passed, 1 skipped" in result.stdout, result.stdout + result.stderr
    assert "DoesNotApply: TestMine: our queue has a keyboard" in result.stdout


def test_a_broken_promise_shows_what_was_there_instead(tmp_path):
    (tmp_path / "test_mine.py").write_text(AUTHORS_FILE)
    choice = "TestBroken and a_failure_is_told"
    result = python("-m", "pytest", "-p", "no:cacheprovider", "-k", choice, cwd=tmp_path)
    assert "1 failed" in result.stdout, result.stdout + result.stderr
    assert "At index 2 diff: 5 != 77" in result.stdout


async def test_what_does_not_become_so_is_told_in_words():
    with pytest.raises(TooLateError, match=r"not so within 0\.01 s: pigs fly"):
        await until(lambda: False, "pigs fly", deadline_s=0.01)


def test_only_the_contract_needs_pytest(tmp_path):
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import xqute\n"
        "assert not [name for name in sys.modules if name.startswith('xqute.testing')]\n"
        "from xqute.testing import MemoryScheduler\n"
        "assert xqute.run(['x'], scheduler=MemoryScheduler)[0].outcome == 'succeeded'\n"
        "import xqute.testing\n"
        "try:\n    xqute.testing.SchedulerContract\n"
        "except ImportError:\n    print('needs pytest')\n"
    )
    result = python("-c", code, cwd=tmp_path)
    assert result.stdout == "needs pytest\n", result.stderr
