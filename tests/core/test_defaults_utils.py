"""`xqute.defaults`, `xqute.utils`, what the package exports, and what importing it does not do."""

from __future__ import annotations

import enum
import importlib
import logging

import pytest

import xqute
from xqute import defaults, utils

# --- defaults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEFAULT_WORKDIR", "./.xqute"),
        ("DEFAULT_ERROR_STRATEGY", "ignore"),
        ("DEFAULT_NUM_RETRIES", 3),
        ("DEFAULT_SCHEDULER_FORKS", 1),
        ("DEFAULT_SUBMISSION_BATCH", 8),
        ("JOBCMD_WRAPPER_LANG", "/bin/bash"),
        ("DEFAULT_JOB_CMD_WRAPPER_SHELL", "/bin/bash"),
        ("LOGGER_NAME", "XQUTE"),
    ],
)
def test_a_constant_has_its_documented_value(name, value):
    assert getattr(defaults, name) == value


def test_the_statuses_are_the_documented_integers():
    assert {status.name: int(status) for status in xqute.JobStatus} == {
        "INIT": 0,
        "RETRYING": 1,
        "QUEUED": 2,
        "SUBMITTED": 3,
        "RUNNING": 4,
        "KILLING": 5,
        "FINISHED": 6,
        "FAILED": 7,
    }
    assert issubclass(xqute.JobStatus, enum.IntEnum)
    assert xqute.JobStatus(6) is xqute.JobStatus.FINISHED
    assert xqute.JobStatus.RUNNING == 4


def test_get_name_gives_a_name_or_a_tuple():
    status = xqute.JobStatus
    assert status.get_name(status.INIT) == "INIT"
    assert status.get_name(7) == "FAILED"
    assert status.get_name(status.INIT, status.RUNNING, 6) == ("INIT", "RUNNING", "FINISHED")


def test_the_error_strategies_are_strings():
    strategy = xqute.JobErrorStrategy
    assert issubclass(strategy, enum.StrEnum)
    assert (strategy.IGNORE, strategy.RETRY, strategy.HALT) == ("ignore", "retry", "halt")
    assert strategy("retry") is strategy.RETRY


def test_the_outcomes_are_those_documented():
    assert {outcome.name for outcome in xqute.JobOutcome} == {
        "SUCCEEDED",
        "FAILED",
        "TIMEOUT",
        "KILLED",
        "CANCELLED",
        "SUBMIT_FAILED",
        "LOST",
    }


def test_defaults_has_the_enums():
    assert defaults.JobStatus is xqute.JobStatus
    assert defaults.JobErrorStrategy is xqute.JobErrorStrategy


# --- what is exported ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "Xqute",
        "Job",
        "Scheduler",
        "JobStatus",
        "JobErrorStrategy",
        "JobOutcome",
        "plugin",
        "logger",
        "SpecPath",
        "MountedPath",
        "__version__",
        "XquteError",
        "run",
    ],
)
def test_the_package_has_the_documented_name(name):
    assert hasattr(xqute, name)
    assert name in xqute.__all__


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("xqute.xqute", "Xqute"),
        ("xqute.scheduler", "Scheduler"),
        ("xqute.job", "Job"),
        ("xqute.plugin", "plugin"),
        ("xqute.defaults", "JobStatus"),
        ("xqute.path", "SpecPath"),
        ("xqute.utils", "logger"),
        ("xqute.schedulers", "get_scheduler"),
        ("xqute.schedulers.local_scheduler", "LocalScheduler"),
    ],
)
def test_the_module_is_there_with_what_it_is_for(module, name):
    assert hasattr(importlib.import_module(module), name)


def test_the_module_xqute_xqute_is_reached_as_an_attribute_too():
    assert xqute.xqute.Xqute is xqute.Xqute


def test_the_version_is_that_of_the_distribution():
    assert xqute.__version__ == importlib.metadata.version("xqute-core")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nosuch"):
        _ = xqute.nosuch


def test_the_errors_have_one_root_and_the_standard_class_a_caller_expects():
    errors = [
        value
        for value in vars(xqute).values()
        if isinstance(value, type) and issubclass(value, Exception) and value is not UserWarning
    ]
    assert len(errors) > 4
    assert all(issubclass(error, xqute.XquteError | Warning) for error in errors)
    assert issubclass(xqute.InvalidJobError, ValueError)
    assert issubclass(xqute.ConfigError, ValueError)
    assert issubclass(xqute.WorkdirError, OSError)


# --- utils --------------------------------------------------------------------------------------


def test_the_logger_is_named_xqute_and_has_one_handler():
    assert utils.logger is xqute.logger is logging.getLogger("XQUTE")
    assert len(utils.logger.handlers) == 1


def _record(message, level=logging.INFO):
    return logging.LogRecord("XQUTE", level, __file__, 1, message, (), None)


def test_duplicate_filter_drops_a_record_equal_to_the_one_before():
    log_filter = utils.DuplicateFilter()
    assert isinstance(log_filter, logging.Filter)
    messages = ["a", "a", "b", "b", "b", "a"]
    assert [bool(log_filter.filter(_record(m))) for m in messages] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert log_filter.filter(_record("a", logging.ERROR))


def test_command_type_is_exported():
    assert hasattr(utils, "CommandType")


def test_the_handler_of_rich_can_be_imported_from_here():
    from rich.logging import RichHandler

    assert utils.RichHandler is RichHandler
    with pytest.raises(AttributeError, match="PoorHandler"):
        _ = utils.PoorHandler


def test_what_is_logged_is_shown_by_rich_on_stderr(start_driver):
    driver = start_driver(
        """
        import sys
        import xqute
        early = "rich" in sys.modules
        xqute.logger.warning("look at [bold]this[/bold]")
        assert not early and "rich" in sys.modules
        print("null")
        """
    )
    driver.finish()
    assert "WARNING" in driver.stderr
    assert "look at" in driver.stderr


@pytest.mark.parametrize(
    ("level", "shown"),
    [(None, ["info", "warning"]), ("DEBUG", ["debug", "info", "warning"]), ("error", [])],
)
def test_the_environment_sets_the_log_level(start_driver, monkeypatch, level, shown):
    if level is not None:
        monkeypatch.setenv("XQUTE_LOG_LEVEL", level)
    driver = start_driver(
        """
        from xqute import logger
        logger.debug("said-debug")
        logger.info("said-info")
        logger.warning("said-warning")
        print("null")
        """
    )
    driver.finish()
    said = [name for name in ("debug", "info", "warning") if f"said-{name}" in driver.stderr]
    assert said == shown


def test_a_log_level_that_is_none_is_told_by_name(start_driver, monkeypatch):
    monkeypatch.setenv("XQUTE_LOG_LEVEL", "lowd")
    driver = start_driver("import xqute")
    _, stderr = driver.process.communicate(timeout=30)
    told = stderr.splitlines()[-1]
    assert "XQUTE_LOG_LEVEL" in told
    assert "lowd" in told.lower()


# --- importing ----------------------------------------------------------------------------------


def test_importing_has_no_side_effects_and_loads_no_sdk(start_driver):
    driver = start_driver(
        """
        import asyncio, json, logging, os, signal, sys, threading, warnings

        def look():
            return [
                repr(logging.getLogger().handlers),
                logging.getLogger().level,
                repr(logging.getLogger().filters),
                repr(asyncio.events._event_loop_policy),
                [repr(signal.getsignal(s)) for s in signal.valid_signals()],
                threading.active_count(),
                sorted(os.listdir()),
                dict(os.environ),
                repr(warnings.filters),
                os.umask(0o22) or os.umask(0o22),
            ]

        before = look()
        import xqute, xqute.xqute, xqute.scheduler, xqute.job, xqute.plugin, xqute.defaults
        import xqute.path, xqute.utils, xqute.schedulers, xqute.schedulers.local_scheduler
        after = look()
        sdks = {"google", "boto3", "botocore", "azure", "docker", "paramiko"}
        late = {"cloudpathlib", "rich", "uvloop", "click"}
        print(json.dumps([before == after, sorted((sdks | late) & set(sys.modules))]))
        """
    )
    assert driver.finish() == [True, []]


def test_a_run_loads_no_sdk_either(start_driver):
    driver = start_driver(
        """
        import json, sys
        import xqute
        jobs = xqute.run(["true"], workdir="w")
        sdks = {"google", "boto3", "botocore", "azure", "docker", "paramiko"}
        late = {"cloudpathlib", "rich", "uvloop", "click"}
        print(json.dumps([jobs[0].rc, sorted((sdks | late) & set(sys.modules))]))
        """
    )
    assert driver.finish() == [0, []]


def test_pathlib_equality_needs_no_cloudpathlib(tmp_path, start_driver):
    driver = start_driver(
        """
        import json, sys, pathlib
        from xqute import SpecPath
        same = SpecPath("/a/b") == pathlib.Path("/a/b")
        print(json.dumps([same, "cloudpathlib" in sys.modules]))
        """
    )
    assert driver.finish() == [True, False]
