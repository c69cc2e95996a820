"""The script's text: what is quoted how, what is left out, and what no script can be made of."""

from __future__ import annotations

import os
import shlex
import subprocess
from importlib import resources

import pytest

from xqute import wrapper
from xqute.errors import InvalidJobError, XquteError

PARAMETERS = wrapper.build_parameters(index=0, attempt=0, directory="/jobs/0")
LONGEST = wrapper.MAX_ARGUMENT_BYTES


def render(**sections):
    return wrapper.render({"parameters": PARAMETERS, "cmd": "'true'", **sections})


# --- quoting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "''"),
        ("plain", "'plain'"),
        ('$HOME `id` "x" \\ * ~ !', "'$HOME `id` \"x\" \\ * ~ !'"),
        ("it's", r"$'it\047s'"),
        ("a\nb\\", r"$'a\012b\134'"),
        ("é", r"$'\303\251'"),
        ("\udcff1", r"$'\3771'"),
    ],
)
def test_a_word_is_quoted_in_printable_ascii(text, word):
    assert wrapper.quote(text) == word


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "a\udc7f"])
def test_what_is_no_byte_string_cannot_be_quoted(text):
    with pytest.raises(ValueError, match=r"NUL|surrogate"):
        wrapper.quote(text)


def test_plain_commands_are_quoted_so_that_others_can_read_them_too():
    assert shlex.split(wrapper.quote_command(["echo", "a b", "$c"])) == ["echo", "a b", "$c"]


# --- rendering ------------------------------------------------------------------------------------


def test_a_script_begins_with_its_shebang_lines():
    assert render().startswith("#!/bin/bash -p\nxq_dir=")
    slurm = "#!/bin/bash -p\n#SBATCH --time=1"
    assert render(shebang=slurm).startswith(f"{slurm}\nxq_dir=")


def test_what_is_not_needed_is_left_out():
    text = render()
    assert len(text) < 1500
    for word in (
        "xq_hear",
        "xq_tell",
        "xq_signal",
        "xq_end",
        "eval",
        "xq_guard",
        "cd ",
        "#@",
        "#?",
    ):
        assert word not in text


def test_a_section_of_another_name_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="prscript"):
        render(prscript="exit 1")


@pytest.mark.parametrize("missing", ["parameters", "cmd"])
def test_a_script_needs_parameters_and_a_command(missing):
    with pytest.raises(ValueError, match=missing):
        render(**{missing: ""})


def test_code_of_hooks_is_ascii_whatever_it_says():
    assert render(prescript="echo é\n\techo '\udcff'").isascii()


def test_hooks_can_be_read_in_the_script():
    assert "\nmodule load samtools\nexport A=1\n" in render(
        prescript=":\nmodule load samtools\nexport A=1"
    )


SECTIONS = [
    {},
    {"cwd": "/tmp", "environment": wrapper.build_environment({"A": "1", "RANDOM": "é"})},
    {"prescript": "echo 'a'", "postscript": "b", "jobcmd_init": "c", "jobcmd_end": "é"},
    {"jobcmd_prep": "cmd=x"},
]
ALL_PARAMETERS = [
    PARAMETERS,
    wrapper.build_parameters(
        index=1, attempt=2, directory="/a b", tag="é", spool="/c", timeout_s=1
    ),
    wrapper.build_parameters(
        index=1, attempt=2, directory="/a b", tag="0-2", spool="/c", timeout_s=1, upload_s=1
    ),
]


@pytest.mark.needs("shellcheck")
@pytest.mark.parametrize("parameters", ALL_PARAMETERS)
@pytest.mark.parametrize("sections", SECTIONS)
def test_shellcheck_finds_nothing_wrong_with_a_script(sections, parameters, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text(render(parameters=parameters, **sections))
    # The template explains variables for hooks (SC2034), code that traps reach (SC2317, SC2329) and
    # fields of numbers (SC2206); hooks in quotes expand later (SC2016, SC2028).
    excluded = "SC2034,SC2317,SC2329,SC2206,SC2016,SC2028"
    argv = ["shellcheck", "--exclude", excluded, script]
    checked = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert checked.stdout == ""


@pytest.mark.needs("shellcheck")
def test_shellcheck_finds_nothing_wrong_with_the_template():
    with resources.as_file(resources.files("xqute") / "wrapper.sh") as template:
        subprocess.run(["shellcheck", template], check=True)


def test_the_wrapper_runs_no_program_of_its_own(make_attempt):
    for sections in SECTIONS[:1] + SECTIONS[2:]:
        attempt = make_attempt(["exit", "3"], timeout_s=60, spool=True, **sections)
        attempt.run(environ={"PATH": "/nowhere"})
        assert attempt.exit_code in {3, 127 if "jobcmd_prep" in sections else 3}


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "The command is empty"),
        ([""], "name is an empty string"),
        (["a", "b\0"], "Argument 1 of the command holds a NUL"),
        (["a", "b", "\ud800"], r"Argument 2 .*'\\ud800', which is no byte"),
        (["a", "x" * (LONGEST + 1)], f"Argument 1 .* {LONGEST + 1} bytes .* {LONGEST}"),
        (["a", "é" * (LONGEST // 2 + 1)], f"Argument 1 .* {LONGEST + 1} bytes"),
    ],
)
def test_a_command_that_nothing_can_be_started_with_is_refused(argv, message):
    with pytest.raises(InvalidJobError, match=message) as error:
        wrapper.check_command(argv)
    assert isinstance(error.value, XquteError)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("argv", [["a"], ["a", ""], ["a", "\udcff\n'"], ["a", "x" * LONGEST]])
def test_other_commands_are_not(argv):
    wrapper.check_command(argv)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("", "1", "''"),
        ("a-b", "1", "'a-b'"),
        ("1a", "1", "'1a'"),
        ("é", "1", "'é'"),
        ("a\n", "1", r"'a\\n'"),
        ("a=b", "1", "'a=b'"),
        ("UID", "1", "UID: readonly"),
        ("SHELLOPTS", "1", "SHELLOPTS: readonly"),
        ("_", "1", "_: bash keeps it"),
        ("PIPESTATUS", "1", "PIPESTATUS: bash keeps it"),
        ("xq_dir", "1", "xq_dir: .*wrapper's own"),
        ("A", "\0", "A holds a NUL"),
        ("A", "\ud800", "A holds .* no byte"),
        ("A", "x" * (LONGEST - 1), f"A is {LONGEST + 1} bytes"),
    ],
)
def test_a_variable_that_bash_cannot_hand_over_is_refused(name, value, message):
    with pytest.raises(InvalidJobError, match=f"Environment variable {message}"):
        wrapper.check_env(name, value)


def test_what_is_refused_would_indeed_not_arrive(make_attempt, probe):
    for name in wrapper._READONLY | wrapper._LOST:
        attempt = make_attempt([*probe, "show"], env={name: "1"}, prescript=":").run()
        assert attempt.end != (0, 6, "") or attempt.found.env.get(os.fsencode(name)) != b"1"


def test_parameters_are_refused_before_they_could_be_no_numbers():
    with pytest.raises((ValueError, TypeError)):
        wrapper.build_parameters(index=0, attempt=0, directory="/", timeout_s="; id")
