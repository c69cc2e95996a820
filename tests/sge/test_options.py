"""Native options and portable resources as the lines that qsub reads."""

from __future__ import annotations

import pytest

from xqute import ConfigError
from xqute.resources import Resources
from xqute_sge import options


def lines(resources=None, opts=None, **keywords):
    keywords = {"memory_resource": "h_vmem", "gpu_resource": None, **keywords}
    found = options.build_resource_options(resources or Resources(), opts or {}, **keywords)
    return [line.removeprefix("#$ -") for line in options.build_option_lines(found)]


# --- native ------------------------------------------------------------------------------------


def test_a_value_is_written_as_it_is():
    assert lines(opts={"q": "all.q,short.q@@fast", "hold_jid": 17}) == [
        "q all.q,short.q@@fast",
        "hold_jid 17",
    ]


def test_a_list_repeats_the_option():
    assert lines(opts={"l": ["h_vmem=2G", "os=linux"]}) == ["l h_vmem=2G", "l os=linux"]


def test_true_is_the_option_alone_and_false_leaves_it_out():
    assert lines(opts={"V": True, "notify": False, "ac": None}) == ["V"]


def test_where_the_option_says_y_or_n_so_do_true_and_false():
    assert lines(opts={"r": False, "j": True}) == ["r n", "j y"]


@pytest.mark.parametrize("name", ["N", "t", "tc", "S", "b", "terse", "sync"])
def test_what_is_ours_to_set_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=f"option '{name}' is set by xqute: "):
        options.check_option_name(name)


@pytest.mark.parametrize("name", ["-q", "", "a b", "q\n", "hold-jid", "1"])
def test_what_is_no_option_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="is no option of qsub"):
        options.check_option_name(name)


@pytest.mark.parametrize("value", ["a\nb", "", "  ", "x\r", "\0"])
def test_a_value_that_would_end_the_line_is_refused(value):
    with pytest.raises(ConfigError, match="'q' has a value of no or of several lines"):
        lines(opts={"q": value})


# --- portable ----------------------------------------------------------------------------------


def test_nothing_asked_is_nothing_said():
    assert lines() == []


def test_memory_of_the_job_is_divided_by_its_slots_and_never_less():
    assert lines(Resources(memory_mib=1000)) == ["l h_vmem=1000M"]
    assert lines(Resources(memory_mib=1000, cpus=3), {"pe": "smp"}) == ["pe smp 3", "l h_vmem=334M"]


def test_memory_has_the_name_that_the_site_gives_it():
    assert lines(Resources(memory_mib=5), memory_resource="mem_free") == ["l mem_free=5M"]


def test_the_number_of_slots_may_be_said_natively():
    assert lines(Resources(memory_mib=1000), {"pe": "mpi 4"}) == ["pe mpi 4", "l h_vmem=250M"]
    assert lines(Resources(memory_mib=1000), {"pe": "mpi 2-8"}) == ["pe mpi 2-8", "l h_vmem=500M"]


def test_several_cpus_need_a_parallel_environment_by_name():
    with pytest.raises(ConfigError, match=r"4 cpus need a parallel environment.*pe='<name>'"):
        lines(Resources(cpus=4))


def test_cpus_that_contradict_the_native_number_are_refused():
    with pytest.raises(ConfigError, match="pe='smp 2' and 4 cpus contradict"):
        lines(Resources(cpus=4), {"pe": "smp 2"})


def test_walltime_is_rounded_up_and_the_warning_comes_before_it():
    assert lines(Resources(walltime_s=59.2)) == ["l h_rt=60"]
    assert lines(Resources(walltime_s=600), warn_before_s=60) == ["l h_rt=600,s_rt=540"]


def test_a_warning_before_no_end_is_refused():
    with pytest.raises(ConfigError, match="signal_before_end_s needs a walltime_s"):
        lines(Resources(), warn_before_s=60)


def test_queue_and_account_have_their_options():
    assert lines(Resources(queue="long.q", account="lab")) == ["q long.q", "P lab"]


def test_gpus_need_the_sites_name_for_them():
    with pytest.raises(ConfigError, match="say gpu_resource="):
        lines(Resources(gpus=1))
    assert lines(Resources(gpus=2), gpu_resource="gpu") == ["l gpu=2"]


@pytest.mark.parametrize(
    ("resources", "word"),
    [
        ({"disk_mib": 5}, "disk_mib"),
        ({"nodes": 2}, "nodes"),
        ({"constraint": "fast"}, "constraint"),
        ({"gpus": 1, "gpu_type": "a100"}, "gpu_type"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(resources, word):
    with pytest.raises(ConfigError, match=f"{word} cannot be expressed"):
        lines(Resources(**resources), gpu_resource="gpu")


@pytest.mark.parametrize(
    ("resources", "opts", "word"),
    [
        ({"queue": "a.q"}, {"q": "b.q"}, "q='b.q'"),
        ({"account": "a"}, {"P": "b"}, "P='b'"),
        ({"walltime_s": 5}, {"l": ["os=linux", "h_vmem=1G,h_rt=60"]}, "h_rt"),
        ({"memory_mib": 5}, {"l": "h_vmem=1G"}, "h_vmem"),
    ],
)
def test_what_is_said_twice_is_refused(resources, opts, word):
    with pytest.raises(ConfigError, match=f"{word}"):
        lines(Resources(**resources), opts)


def test_both_sorts_of_requests_are_kept():
    assert lines(Resources(walltime_s=5), {"l": "os=linux"}) == ["l os=linux", "l h_rt=5"]


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("h_rt=90", 90),
        ("h_vmem=1G,h_rt=1:30", 90),
        ("h_rt=2:00:01", 7201),
        ("h_rt=::30", 30),
        ("s_rt=5", None),
    ],
)
def test_the_limit_of_time_is_known_however_it_is_written(text, limit):
    assert options.limit_s(["#$ -q all.q", f"#$ -l {text}"]) == limit
