"""Templates: each value arrives as exactly one word, whatever it holds, wherever its place is."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xqute.cli.template import TemplateError, check_syntax, parse_template, plain_words

NASTY = [
    "",
    " ",
    "a  b",
    "it's",
    'say "hi"',
    "$HOME `id` $(id) ${x}",
    "a\nb\n",
    "*",
    "~",
    "-n",
    "#no",
    "\\",
    "a\\'b",
    "!!",
    "{}",
    "{1}",
    "%s",
    "é",
    "\udcff\udc80",
    "a;b&c|d<e>f",
]


def run(command, env=None):
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False
    )


def output_of(template, *values, **keywords):
    """What the command of the template prints for these values."""
    words = [template] if isinstance(template, str) else template
    command = parse_template(words, len(values), **keywords).build(values)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    return os.fsdecode(done.stdout)


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("printf '%s|' {}", "V|"),
        ("printf '%s|'", "V|"),
        ("printf '%s|' a{}b c", "aVb|c|"),
        ("printf '%s|' \"a b{}c\"", "a bVc|"),
        ("printf '%s|' 'a b{}c'", "a bVc|"),
        ("printf '%s|' \"$(printf '%s:' {} 'x{}')\"", "V:xV:|"),
        ('x={}; printf \'%s|\' "$x" "${x#abc}"', "V|V|"),
        ("printf '%s|' \\{} {}", "{}|V|"),
        ("printf '%s|' \\{}", "{}|V|"),
        ("(printf '%s|' {}) && case {} in {}) printf yes ;; esac", "V|yes"),
        ("if [[ {} == {} ]]; then printf '%s|' {}; fi # it's {", "V|"),
        (["printf", "%s|", "{}", "a{}b"], "V|aVb|"),
        (["printf", "%s|"], "V|"),
        (["printf", "%s|", "$HOME", "{}"], "$HOME|V|"),
    ],
)
def test_a_value_is_one_word_wherever_its_place_is(template, expected, value):
    assert output_of(template, value) == expected.replace("V", value)


PIECES = st.sampled_from(
    ["{}", '"', '"{}"', "'", "'x{}'", "$(printf %s {})", '"$(printf %s "{}")"', " ", "a", "\\"]
)


@settings(max_examples=300, deadline=None)
@example('"{}a"', "")
@given(
    st.lists(PIECES, max_size=6).map("".join),
    st.one_of(
        st.sampled_from(NASTY), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    ),
)
def test_bash_reads_a_random_template_as_it_was_meant(tail, value):
    """Bash itself is the judge: with the value in a variable, the quotes are what they are."""
    try:
        template = parse_template([f"printf '%s|' {tail}"], 1)
    except TemplateError:
        return
    command = template.build([value])
    meant, n_places = _through_a_variable(f"printf '%s|' {tail}")
    if not n_places:
        meant += ' "$V"'
    environment = {**os.environ, "V": value}
    ours = run(command)
    theirs = run(["bash", "-c", meant], env=environment)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)


def _through_a_variable(line):
    """The line with a variable in each place, and their number; knows only the pieces above."""
    out, quotes, i, n_places = [], [""], 0, 0
    while i < len(line):
        inner = quotes[-1]
        if line[i] == "\\" and inner != "'":
            out.append(line[i : i + 2])
            i += 2
        elif line.startswith("{}", i):
            out.append({"": '"$V"', '"': "${V}", "'": "'\"$V\"'"}[inner])
            n_places += 1
            i += 2
        elif line.startswith("$(", i) and inner != "'":
            quotes.append("")
            out.append("$(")
            i += 2
        else:
            c = line[i]
            if (c == ")" and inner == "" and len(quotes) > 1) or (c in "\"'" and inner == c):
                quotes.pop()
            elif (c == '"' and inner != "'") or (c == "'" and inner == ""):
                quotes.append(c)
            out.append(c)
            i += 1
    return "".join(out), n_places


def test_groups_are_told_apart_by_number():
    assert output_of("printf '%s|' {2} x{1} {} \"{}\"", "a b", "c") == "c|xa b|a b|c|a b c|"
    assert output_of(["printf", "%s|", "{2}", "x{1}", "{}", "{}!"], "a b", "c") == (
        "c|xa b|a b|c|a b c!|"
    )


def test_a_shell_variable_is_no_place():
    assert output_of("set -- q; printf '%s|' ${1} {1}", "v") == "q|v|"


def test_another_text_can_stand_for_the_argument():
    assert output_of("printf '%s|' X '{}' \"$(echo X)\"", "a b", replaced="X") == "a b|{}|a b|"
    assert output_of("printf '%s|'", "a b", replaced="X") == "a b|"
    # Also one of several words, in a line that would need no shell.
    assert output_of("/bin/echo -n X Y", "a b", replaced="X Y", direct=True) == "a b"


@pytest.mark.parametrize(
    "template",
    [
        "echo `cat {}`",
        "echo ${x:-{}}",
        'echo "${x:-{}}"',
        "echo $(( {} + 1 ))",
        "(( {} + 1 ))",
        "echo $'a{}'",
        "cat <<E\n{}\nE",
        "echo a # {}",
        'echo "$(case x in a) echo {};; esac)"',
        "echo a # a comment swallows what would be appended",
    ],
)
def test_a_place_where_no_quoting_is_right_is_refused_with_advice(template):
    with pytest.raises(TemplateError, match=r"Name the value first.*x=\{\}"):
        parse_template([template], 1)


@pytest.mark.parametrize("template", ["echo it's", 'echo "a', "echo $(a", "echo $'a", "(a", "`a"])
def test_an_open_quote_is_refused(template):
    with pytest.raises(TemplateError, match=r"not closed|missing"):
        parse_template([template], 1)


def test_a_group_that_is_not_there_is_refused():
    with pytest.raises(TemplateError, match=r"\{3\}"):
        parse_template(["echo {3}"], 2)
    with pytest.raises(TemplateError, match=r"\{0\}"):
        parse_template(["echo {0}"], 2)


def test_bash_is_asked_about_the_syntax():
    with pytest.raises(TemplateError, match="syntax error"):
        check_syntax(parse_template(["for x in {}; do"], 1).build(["x"]))
    check_syntax(parse_template(["for x in {}; do echo; done"], 1).build(["x"]))
    check_syntax(parse_template(["for", "{}"], 1).build(["x"]))


@pytest.mark.parametrize(
    "line",
    [
        "if x",
        "time ls",
        "echo x",
        "cd /",
        "exit 3",
        "A=b ls",
        "A=b",
        "no-such-program-anywhere",
        "ls *",
        "ls ~",
        "ls $HOME",
        "ls 'a'",
        "ls {a,b}",
        "ls # x",
        "ls\nls",
        "! ls",
        "",
        " ",
    ],
)
def test_what_may_need_a_shell_gets_one(line):
    assert plain_words(line) is None


@pytest.mark.parametrize("name", ["BASH_ENV", "SHELLOPTS", "BASH_FUNC_/bin/ls%%"])
def test_what_meddles_with_bash_is_heeded(monkeypatch, name):
    assert plain_words("/bin/ls -l") == ("/bin/ls", "-l")
    monkeypatch.setenv(name, "() { :; }")
    plain_words.__globals__["_is_program"].cache_clear()
    assert plain_words("/bin/ls -l") is None


@pytest.mark.parametrize(
    "line",
    ["env", "/usr/bin/env A=1", "cat /etc/passwd", "ls -d / /tmp", "ls /nowhere", "expr 1 + 1"],
)
def test_plain_words_do_without_a_shell_exactly_what_they_do_with_one(line):
    words = plain_words(line)
    assert words is not None
    direct = run(["bash", "-p", "-c", 'exec -- "$@"', "x", *words])
    shell = run(["/bin/bash", "-c", line])

    def seen(done):
        lines = done.stdout.splitlines()
        return (
            done.returncode,
            done.stderr,
            [x for x in lines if not x.startswith((b"_=", b"SHLVL="))],
        )

    assert seen(direct) == seen(shell)


def test_a_template_of_plain_words_needs_no_shell():
    build = parse_template(["sha256sum  -b {}"], 1, direct=True).build
    assert build(["a 'b'"]) == ("sha256sum", "-b", "a 'b'")
    assert parse_template(["{} x"], 1, direct=True).build(["ls"])[:2] == ("/bin/bash", "-c")
    assert parse_template(["sha256sum {}|cat"], 1, direct=True).build(["a"])[0] == "/bin/bash"
