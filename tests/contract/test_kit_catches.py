"""Each promise of the contract fails for a scheduler that is broken on purpose, just there."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from xqute import Job, JobErrorStrategy, JobOutcome
from xqute.errors import JobChangedError, SchedulerError, SubmitError
from xqute.scheduler import BackendState, Phase
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import (
    Behaviour,
    Fault,
    MemoryJob,
    MemoryScheduler,
    Rig,
    SchedulerContract,
    Tells,
    TooLateError,
    bash,
)

# --- ways to break a scheduler -----------------------------------------------------------------


def writes(old, new):
    """Write another line into the wrapper."""

    class Broken(LocalScheduler):
        def wrap_job_script(self, job):
            text = super().wrap_job_script(job)
            type(self).is_broken |= old in text
            return text.replace(old, new)

        is_broken = False

    return Broken


def wraps(change):
    """Change something at the moment when the wrapper is rendered."""

    class Broken(LocalScheduler):
        def wrap_job_script(self, job):
            change(self, job)
            return super().wrap_job_script(job)

    return Broken


def runs_by(script):
    """Run every command by a bash script, which finds it in its arguments."""

    def change(scheduler, job):
        job.cmd = bash(script, *job.cmd)

    return wraps(change)


def behaves(change):
    """Let jobs of the in-memory scheduler behave otherwise: `change(behaviour, job, scheduler)`."""

    class Broken(MemoryScheduler):
        def _accept(self, job, *args, **keywords):
            behave = self.behave
            self.behave = lambda job: change(behave(job), job, self)
            try:
                return super()._accept(job, *args, **keywords)
            finally:
                self.behave = behave

    return Broken


def tells(change, base=MemoryScheduler):
    """Let a scheduler tell other news: `change(scheduler, state)`, None: none at all."""

    class Broken(base):
        def watch(self, report):
            def tell(job, state):
                state = change(self, state)
                if state is not None:
                    report(job, state)

            super().watch(tell)

    return Broken


def begins(**settings):
    """Set attributes of the in-memory scheduler when the run begins."""

    class Broken(MemoryScheduler):
        async def start(self):
            for name, value in settings.items():
                setattr(self, name, value)

    return Broken


def memory(**methods):
    return type("Broken", (MemoryScheduler,), methods)


def local(**methods):
    return type("Broken", (LocalScheduler,), methods)


# --- broken in ways that take more than a line -------------------------------------------------


def forgets_cwd(scheduler, job):
    scheduler.cwd = job.cwd = None


def leaks_envs(scheduler, job):
    known = scheduler.__dict__.setdefault("known_envs", {})
    known.update(job.envs)
    job.envs.update(known)


def puts_the_prescript_into_a_subshell(scheduler, job):
    if scheduler.prescript:
        scheduler.prescript = f"({scheduler.prescript})"


def puts_the_postscript_into_the_command(scheduler, job):
    job.cmd = bash(f'"$@"; {scheduler.postscript}', *job.cmd)
    scheduler.postscript = ""


async def lets_all_read(scheduler, job):
    jid = await LocalScheduler.submit_job(scheduler, job)
    os.chmod(job.metadir, 0o755)
    return jid


def mixes_up(scheduler, state):
    if state.phase is not Phase.ENDED:
        return state
    scheduler.__dict__["n"] = n = scheduler.__dict__.get("n", 0) + 1
    return state._replace(rc=0) if n == 30 else state


async def kills_only_by_force(scheduler, jobs, force=False):
    await LocalScheduler.kill_jobs(scheduler, jobs, force=True)


async def never_kills_by_force(scheduler, jobs, force=False):
    await LocalScheduler.kill_jobs(scheduler, jobs, force=False)


def kills(some):
    """Kill only some of the jobs: `some(scheduler, jobs, force)`."""

    async def kill_jobs(scheduler, jobs, force=False):
        await MemoryScheduler.kill_jobs(scheduler, some(scheduler, jobs, force), force)

    return memory(kill_jobs=kill_jobs)


async def forgets_kills_in_a_crowd(scheduler, jobs, force=False):
    if len(scheduler.calls.kill) < 10:
        await MemoryScheduler.kill_jobs(scheduler, jobs, force)


async def kills_without_asking(scheduler, job):
    await scheduler.kill_job(job)


async def fails_for_ended(scheduler, job):
    if job not in scheduler._runs:
        raise SchedulerError(f"no job {job.jid}")
    await MemoryScheduler.kill_job(scheduler, job)


def until_the_first_ended(scheduler, jobs, force):
    first_ended = next((n for n, job in enumerate(jobs) if job not in scheduler._runs), len(jobs))
    return jobs[:first_ended]


def plans_backwards(scheduler, jobs):
    scheduler.forks = 8
    return MemoryScheduler.plan_submissions(scheduler, jobs[::-1])


class TakesARefusalForGood(MemoryScheduler):
    def plan_submissions(self, jobs):
        known = self.__dict__.setdefault("known", {})
        for job in jobs:
            known[job] = known.get(job, 0) + 1
        return super().plan_submissions(jobs)

    async def submit(self, submission):
        if any(self.known[job] > 1 for job in submission.jobs):
            raise SubmitError("I have said no")
        return await super().submit(submission)


async def refuses_job_1(scheduler, submission):
    if submission.jobs[0].index == 1:
        raise SchedulerError("once bitten, twice shy")
    return await MemoryScheduler.submit(scheduler, submission)


def counts_from_its_construction(scheduler, job):
    loop = asyncio.get_running_loop()
    began_s = scheduler.__dict__.setdefault("began_s", loop.time())
    return max(scheduler.timeout - (loop.time() - began_s), 0.01)


class NeedsALoop(MemoryScheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loop = asyncio.get_running_loop()


class KeepsItsWorkdir(LocalScheduler):
    def __init__(self, workdir, **kwargs):
        super().__init__(workdir, **kwargs)
        self.first_workdir = self.workdir

    def create_job(self, index, cmd, envs=None):
        return Job(index, cmd, self.first_workdir, envs=envs)


class KeepsItsSettings(LocalScheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.first = self.prescript, self.cwd

    def wrap_job_script(self, job):
        self.prescript, self.cwd = self.first
        return super().wrap_job_script(job)


class WritesNothing(MemoryJob):
    def write_file(self, name, text):
        pass


class IgnoresPlugins(MemoryJob):
    @property
    def status(self):
        return super().status

    @status.setter
    def status(self, status):
        pass


class CallsCancelledFailed(MemoryJob):
    __slots__ = ("_told",)

    @property
    def outcome(self):
        return self._told

    @outcome.setter
    def outcome(self, outcome):
        self._told = JobOutcome.FAILED if outcome == JobOutcome.CANCELLED else outcome


class StaysInTheGroup(LocalScheduler):
    async def submit_job(self, job):
        script = str(self.wrapped_job_script(job))
        return os.posix_spawn("/bin/bash", ["bash", "-p", script], os.environ)  # noqa: ASYNC221


async def trusts_the_number(scheduler, job):
    try:
        os.kill(int(job.jid), 0)
    except (ProcessLookupError, TypeError):
        return False
    return True


async def answers_in_another_order(scheduler, jobs):
    states = list((await MemoryScheduler.poll_jobs(scheduler, jobs)).values())
    return dict(zip(jobs, states[1:] + states[:1], strict=True))


async def cannot_ask_about_none(scheduler, jobs):
    if not jobs:
        raise SchedulerError("squeue: error: no job ids")
    return await MemoryScheduler.poll_jobs(scheduler, jobs)


def calls(hook, n_jobs=10**6):
    """Call a hook that the engine calls already."""

    async def submit(scheduler, submission):
        answers = await MemoryScheduler.submit(scheduler, submission)
        for job in answers:
            if job.index % n_jobs == 0:
                await scheduler.hooks.acall(hook, scheduler, job)
        return answers

    return memory(submit=submit)


async def tells_of_its_kills(scheduler, jobs, force=False):
    await MemoryScheduler.kill_jobs(scheduler, jobs, force)
    for job in jobs:
        await scheduler.hooks.acall("on_job_killed", scheduler, job)


class TellsOfItsPlans(MemoryScheduler):
    def plan_submissions(self, jobs):
        self.tellers = [
            asyncio.ensure_future(self.hooks.acall("on_job_submitted", self, job)) for job in jobs
        ]
        return super().plan_submissions(jobs)


async def forgets_the_trial(scheduler, submission):
    for job in submission.jobs:
        job.trial_count = 0
    return await MemoryScheduler.submit(scheduler, submission)


async def only_gives_an_id(scheduler, job):
    return 99


async def calls_plugins_unprotected(scheduler, submission):
    for _, implementation in scheduler.hooks._table.get("on_job_submitted", ()):
        await implementation(scheduler, submission.jobs[0])
    return await MemoryScheduler.submit(scheduler, submission)


async def shuts_down_again(scheduler):
    scheduler.hooks.call("on_shutdown", None, None)
    await MemoryScheduler.close(scheduler)


async def is_never_running(scheduler, job):
    return False


async def is_running_if_unknown(scheduler, job):
    return job not in scheduler._runs or await MemoryScheduler.job_is_running(scheduler, job)


def in_its_own_session(scheduler, job):
    job.cmd = ("setsid", "--wait", *job.cmd)


async def cannot_find_what_is_not_there(scheduler, keys):
    raise SchedulerError(f"no such job: {keys}")


async def takes_strangers_for_ended(scheduler, jobs):
    states = await LocalScheduler.poll_jobs(scheduler, jobs)
    return {
        job: BackendState(Phase.ENDED, 0) if job.run_id else state for job, state in states.items()
    }


async def takes_nothing_over(scheduler, jobs):
    pass


async def kills_only_its_own(scheduler, jobs, force=False):
    base = MemoryScheduler if isinstance(scheduler, MemoryScheduler) else LocalScheduler
    await base.kill_jobs(scheduler, [job for job in jobs if job.run_id is None], force)


async def ends_all_when_it_closes(scheduler):
    await scheduler.kill_jobs(list(scheduler._runs))
    await MemoryScheduler.close(scheduler)


class HasAFolderOfItsOwn(LocalScheduler):
    def __init__(self, workdir, **kwargs):
        super().__init__(f"{workdir}/{os.getpid()}", **kwargs)


def is_never_the_same(base):
    class Broken(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.prescript = f": {os.urandom(8).hex()}"

    return Broken


class GivesUpAtOnce(LocalScheduler):
    lost_grace_s = property(lambda self: 0.0, lambda self, seconds: None)


# --- what breaks what --------------------------------------------------------------------------

NO_START_CLAIM = writes('if ! xq_claim "$xq_dir/job.start', 'if ! : "$xq_dir/job.start')


class ClaimsNothingAndAnswersLate(NO_START_CLAIM):
    async def submit(self, submission):
        answers = await super().submit(submission)
        await asyncio.sleep(0)
        return answers


BROKEN = {
    # what a command is given
    "test_arguments_arrive_byte_for_byte": writes(r"\377", "?"),
    "test_the_longest_argument_arrives": writes("x" * 65536, "x" * 65535),
    "test_environment_values_arrive_byte_for_byte": writes(r"\012", " "),
    "test_environments_of_jobs_are_their_own": wraps(leaks_envs),
    "test_the_command_runs_in_cwd": wraps(forgets_cwd),
    "test_a_cwd_that_is_not_there_fails_the_job": wraps(forgets_cwd),
    "test_standard_input_is_empty": writes("</dev/null >", "</dev/zero >"),
    "test_outputs_are_kept_apart_and_exact": writes(
        '3>"$xq_dir/job.stderr"', '3>>"$xq_dir/job.stdout"'
    ),
    "test_much_output_is_kept_whole": writes(
        '>"$xq_dir/job.stdout"', '> >(head -c 65536 >"$xq_dir/job.stdout")'
    ),
    "test_a_job_is_told_who_it_is": writes("XQUTE_JOB_INDEX=", "XQUTE_JOB_NUMBER="),
    "test_only_the_user_can_read_what_may_be_secret": local(submit_job=lets_all_read),
    # the code around it
    "test_prescript_and_postscript_run_around_the_command": wraps(
        lambda scheduler, job: setattr(scheduler, "postscript", "")
    ),
    "test_what_the_prescript_exports_reaches_the_command": wraps(
        puts_the_prescript_into_a_subshell
    ),
    "test_code_of_plugins_is_inserted_in_order": local(
        jobcmd_init=lambda self, job: "\n".join(self.hooks.call("on_jobcmd_init", self, job)[::-1])
    ),
    "test_a_plugin_may_replace_the_command": local(jobcmd_prep=lambda self, job: ""),
    "test_the_end_hook_sees_the_exit_code": local(
        jobcmd_end=lambda self, job: "rc=0\n" + LocalScheduler.jobcmd_end(self, job)
    ),
    "test_an_exit_in_the_prescript_fails_the_job_with_its_code": wraps(
        puts_the_prescript_into_a_subshell
    ),
    "test_the_exit_code_is_the_commands_whatever_follows": wraps(
        puts_the_postscript_into_the_command
    ),
    "test_the_end_is_told_after_the_postscript": local(
        jobcmd_prep=lambda self, job: 'printf 6 >"$XQUTE_JOB_METADIR/job.status"'
    ),
    # how it ended
    "test_the_exit_code_is_the_commands": behaves(lambda b, *_: b._replace(rc=min(b.rc, 125))),
    "test_a_success_is_told": behaves(lambda b, *_: b._replace(cause="QUOTA")),
    "test_a_failure_is_told": behaves(lambda b, *_: b._replace(rc=0)),
    "test_a_death_by_signal_is_told": runs_by('"$@"; exit $(($? % 128))'),
    "test_a_command_that_is_not_found_fails_with_127": runs_by('command -v "$1" && exec "$@"'),
    "test_a_file_that_is_not_executable_fails_with_126": runs_by('command -v "$1" && exec "$@"'),
    "test_exit_codes_are_true_when_many_jobs_end_at_once": tells(mixes_up),
    "test_times_are_told_in_order": tells(
        lambda scheduler, state: None if state.phase is Phase.RUNNING else state
    ),
    "test_ids_of_running_jobs_differ": memory(
        __init__=lambda self, *args, **keywords: MemoryScheduler.__init__(
            self, *args, faults={"submit": [Fault.SAME_ID] * 100}, **keywords
        )
    ),
    "test_the_truth_is_in_the_files": writes('"$xq_rc" >"$xq_dir/job.rc"', '"$xq_rc" >/dev/null'),
    # what follows a failure
    "test_each_attempt_keeps_its_files": writes("job.stdout", "job.out"),
    "test_a_retry_that_succeeds_is_a_success": behaves(
        lambda b, job, _: b._replace(rc=4) if job.trial_count else b
    ),
    "test_retries_are_as_many_as_allowed": begins(num_retries=4),
    "test_ignore_lets_the_others_run": begins(error_strategy=JobErrorStrategy.RETRY),
    "test_halt_stops_the_run": begins(error_strategy=JobErrorStrategy.IGNORE),
    # timeouts
    "test_a_timeout_is_told": memory(enforces_timeout=False),
    "test_a_timeout_counts_from_the_start": memory(timeout_of=counts_from_its_construction),
    "test_a_job_may_have_its_own_timeout": memory(timeout_of=lambda self, job: self.timeout),
    "test_a_command_may_end_itself_at_its_timeout": local(kill_jobs=kills_only_by_force),
    "test_a_command_that_ignores_term_is_killed_at_its_timeout": local(
        kill_jobs=never_kills_by_force
    ),
    "test_a_timeout_leaves_nothing_behind": wraps(in_its_own_session),
    "test_a_job_that_ends_in_time_is_not_touched": behaves(
        lambda b, _, scheduler: b._replace(runs_s=float(scheduler.timeout))
    ),
    # kills
    "test_a_kill_is_told": tells(
        lambda scheduler, state: state._replace(rc=0) if state.rc == 143 else state
    ),
    "test_a_killed_command_may_clean_up": local(kill_jobs=kills_only_by_force),
    "test_a_command_that_ignores_term_is_killed": local(kill_jobs=never_kills_by_force),
    "test_a_kill_leaves_nothing_behind": wraps(in_its_own_session),
    "test_a_kill_of_a_waiting_job_cancels_it": memory(
        kill_job_and_update_status=kills_without_asking
    ),
    "test_cancel_stops_everything": kills(lambda scheduler, jobs, force: jobs[1:]),
    "test_a_cancelled_caller_stops_everything": kills(lambda scheduler, jobs, force: []),
    "test_many_are_killed_at_once": memory(kill_jobs=forgets_kills_in_a_crowd),
    "test_a_kill_touches_no_other_job": kills(lambda scheduler, jobs, force: list(scheduler._runs)),
    "test_a_kill_that_goes_wrong_is_tried_again": kills(
        lambda scheduler, jobs, force: [] if force else jobs
    ),
    "test_killing_what_has_ended_is_no_error": memory(kill_job=fails_for_ended),
    "test_killing_many_is_killing_each": kills(until_the_first_ended),
    # submissions
    "test_forks_are_never_exceeded": begins(forks=10),
    "test_as_many_run_as_forks_allow": begins(forks=1),
    "test_submission_batch_is_never_exceeded": begins(submission_batch=10),
    "test_jobs_are_submitted_in_the_order_of_feeding": memory(plan_submissions=plans_backwards),
    "test_a_failed_submission_is_told": memory(job_class=WritesNothing),
    "test_an_unexpected_error_fails_one_submission_only": memory(submit=refuses_job_1),
    "test_a_refusal_for_now_costs_no_retry": TakesARefusalForGood,
    "test_a_lost_answer_runs_no_command_twice": writes("job.start.", "job.begin."),
    "test_a_scheduler_can_be_made_anywhere": NeedsALoop,
    "test_the_workdir_may_be_assigned_later": KeepsItsWorkdir,
    "test_settings_are_read_at_submission": KeepsItsSettings,
    # claims
    "test_a_revoked_attempt_never_runs": NO_START_CLAIM,
    "test_two_starts_of_one_attempt_run_the_command_once": NO_START_CLAIM,
    "test_a_late_end_changes_nothing": writes(
        'if xq_claim "$xq_dir/job.end', 'if rm -f "$xq_dir"/job.end.*; xq_claim "$xq_dir/job.end'
    ),
    "test_an_end_that_is_seen_late_is_believed": tells(
        lambda scheduler, state: (
            BackendState(Phase.ENDED, 1) if state.phase is Phase.ENDED else state
        ),
        base=LocalScheduler,
    ),
    "test_a_wrapper_that_was_killed_is_no_success": local(
        jobcmd_init=lambda self, job: f"echo '0 6 ' >{job.local_dir}/job.end.{self.claim_tag(job)}"
    ),
    "test_a_job_outlives_the_driver_that_started_it": StaysInTheGroup,
    # polls
    "test_a_job_is_running_until_it_has_ended": memory(job_is_running=is_never_running),
    "test_a_job_that_was_never_submitted_is_not_running": memory(
        job_is_running=is_running_if_unknown
    ),
    "test_an_id_of_another_makes_no_job_run": local(job_is_running=trusts_the_number),
    "test_asking_about_many_is_asking_about_each": memory(poll_jobs=answers_in_another_order),
    "test_asking_about_none_is_no_error": memory(poll_jobs=cannot_ask_about_none),
    "test_a_backend_that_does_not_answer_loses_no_job": behaves(
        lambda b, *_: b._replace(tells=Tells.NOTHING, vanishes=b.runs_s > 0)
    ),
    # hooks
    "test_hooks_of_a_success_are_called_in_order": calls("on_job_submitted"),
    "test_hooks_are_called_again_at_a_retry": memory(submit=forgets_the_trial),
    "test_hooks_of_a_kill_are_called_in_order": memory(kill_jobs=tells_of_its_kills),
    "test_a_failed_submission_calls_only_the_failed_hook": TellsOfItsPlans,
    "test_hooks_of_many_jobs_are_called_once_each": calls("on_job_started", n_jobs=30),
    "test_a_plugin_may_object_to_a_submission": memory(job_class=CallsCancelledFailed),
    "test_a_plugin_may_submit_by_itself": memory(submit_job=only_gives_an_id),
    "test_a_plugin_may_object_to_a_kill": memory(kill_job_and_update_status=kills_without_asking),
    "test_a_plugin_may_judge_a_success_a_failure": memory(job_class=IgnoresPlugins),
    "test_a_status_set_by_a_plugin_ends_the_watching": memory(job_class=IgnoresPlugins),
    "test_a_plugin_that_raises_harms_nobody": memory(submit=calls_plugins_unprotected),
    "test_a_run_is_begun_and_shut_down_once": memory(close=shuts_down_again),
    # recovery
    "test_a_driver_killed_before_a_submission_loses_no_job": local(
        find_submitted=cannot_find_what_is_not_there
    ),
    "test_a_driver_killed_during_a_submission_runs_nothing_twice": ClaimsNothingAndAnswersLate,
    "test_an_answer_lost_with_its_driver_runs_nothing_twice": NO_START_CLAIM,
    "test_a_driver_killed_after_a_submission_leaves_the_job_to_the_next": (
        is_never_the_same(LocalScheduler)
    ),
    "test_a_re_attached_job_tells_its_true_end": local(poll_jobs=takes_strangers_for_ended),
    "test_what_ended_while_no_driver_lived_has_its_true_end": writes(
        'job.end.$xq_tag$xq_first" "$xq_rc $status', 'job.end.$xq_tag$xq_first" "0 6'
    ),
    "test_a_revoked_attempt_that_starts_late_does_nothing": NO_START_CLAIM,
    "test_a_late_end_of_a_lost_job_changes_nothing": writes(
        'if xq_claim "$xq_dir/job.end', 'if rm -f "$xq_dir"/job.end.*; xq_claim "$xq_dir/job.end'
    ),
    "test_a_job_that_the_backend_forgets_tells_its_end": GivesUpAtOnce,
    "test_two_drivers_cannot_own_one_workdir": HasAFolderOfItsOwn,
    "test_a_kill_of_a_re_attached_job_leaves_nothing_behind": wraps(in_its_own_session),
    "test_a_re_attached_job_that_ignores_term_is_killed": local(kill_jobs=never_kills_by_force),
    "test_a_kill_intent_is_finished_by_the_next_run": local(kill_jobs=kills_only_its_own),
    "test_resume_adopts_successes_and_runs_failures_again": is_never_the_same(MemoryScheduler),
    "test_without_resume_only_what_is_alive_is_adopted": memory(reattach=takes_nothing_over),
    "test_a_changed_command_of_a_live_job_is_refused": memory(reattach=takes_nothing_over),
    "test_on_change_rerun_ends_the_old_and_runs_the_new": memory(kill_jobs=kills_only_its_own),
    "test_a_run_may_be_left_and_come_back_to": memory(close=ends_all_when_it_closes),
}

#: Where what is broken shows otherwise than by an assertion of the promise.
SHOWS_BY = {
    "test_a_changed_command_of_a_live_job_is_refused": pytest.fail.Exception,
    "test_a_driver_killed_after_a_submission_leaves_the_job_to_the_next": JobChangedError,
    "test_a_driver_killed_before_a_submission_loses_no_job": TooLateError,
    "test_a_kill_intent_is_finished_by_the_next_run": TooLateError,
    "test_a_kill_of_a_re_attached_job_leaves_nothing_behind": TooLateError,
    "test_a_re_attached_job_tells_its_true_end": TooLateError,
    "test_two_drivers_cannot_own_one_workdir": pytest.fail.Exception,
    "test_without_resume_only_what_is_alive_is_adopted": TooLateError,
    "test_a_job_outlives_the_driver_that_started_it": TooLateError,
    "test_a_job_that_ends_in_time_is_not_touched": TooLateError,
    "test_a_kill_leaves_nothing_behind": TooLateError,
    "test_a_scheduler_can_be_made_anywhere": RuntimeError,
    "test_a_timeout_is_told": TooLateError,
    "test_a_timeout_leaves_nothing_behind": TooLateError,
    "test_as_many_run_as_forks_allow": TooLateError,
    "test_asking_about_none_is_no_error": SchedulerError,
    "test_halt_stops_the_run": TooLateError,
    "test_killing_many_is_killing_each": TooLateError,
    "test_killing_what_has_ended_is_no_error": SchedulerError,
}


def _behave(job):
    runs_s, *rcs = job.cmd
    return Behaviour(rc=int(rcs[min(job.trial_count, len(rcs) - 1)]), runs_s=float(runs_s))


class Broken(SchedulerContract):
    """The contract for the scheduler that breaks one promise."""

    many = 60
    promise = ""

    @property
    def scheduler_class(self):
        return BROKEN[self.promise]

    def make_scheduler(self, workdir, **keywords):
        if not issubclass(self.scheduler_class, MemoryScheduler):
            return self.scheduler_class(workdir, **keywords)
        schedulers = self.__dict__.setdefault("schedulers", {})
        keywords |= {"behave": _behave, "predecessor": schedulers.get(str(workdir))}
        scheduler = schedulers[str(workdir)] = self.scheduler_class(workdir, **keywords)
        return scheduler

    def tune(self, scheduler):
        super().tune(scheduler)
        scheduler.kill_grace_s = 0.1
        scheduler.kill_timeout_s = 0.2

    def command(self, *rcs, runs_s=0.0):
        if issubclass(self.scheduler_class, MemoryScheduler):
            return [runs_s, *rcs]
        return super().command(*rcs, runs_s=runs_s)

    def read(self, job, name):
        if not isinstance(job, MemoryJob):
            return super().read(job, name)
        text = job.read_file(name)
        return None if text is None else text.encode()


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path):
    """End what broken schedulers leave behind: processes with this test's folder for a workdir."""
    yield
    mark = os.fsencode(f"XQUTE_METADIR={tmp_path}/")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read():
                    os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


@pytest.mark.parametrize("promise", sorted(SchedulerContract.promises()))
async def test_a_broken_scheduler_breaks_the_promise(promise, tmp_path):
    contract = Broken()
    contract.promise = promise
    shows_by = SHOWS_BY.get(promise, AssertionError)
    contract.deadline_s = 2.0 if shows_by is TooLateError else 10.0
    with pytest.raises(shows_by) as broken:
        await getattr(contract, promise)(Rig(contract, tmp_path))
    assert broken.type is shows_by
    if not getattr(contract.scheduler_class, "is_broken", True):
        scheduler = contract.make_scheduler(tmp_path)  # jobs were another process's business
        scheduler.wrap_job_script(scheduler.create_job(0, "true"))
        assert scheduler.is_broken, "the wrapper has other lines now"


@pytest.mark.parametrize("promise", sorted(set(BROKEN) - {"test_a_success_is_told"}))
async def test_a_broken_scheduler_is_broken_in_one_place(promise, tmp_path):
    contract = Broken()
    contract.promise = promise
    await contract.test_a_success_is_told(Rig(contract, tmp_path))


def test_each_promise_is_broken_once():
    assert len(BROKEN) >= 40
    assert set(BROKEN) == set(SchedulerContract.promises())
