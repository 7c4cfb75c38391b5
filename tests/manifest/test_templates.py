"""What `{{ }}` gives, what survives as plain text, and what expressions cannot do."""

from __future__ import annotations

import shlex
import subprocess
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requiem_build.core.expressions import compile_expression
from requiem_build.core.texts import Expression, line, native, parse, shell_text, words
from requiem_build.core.values import BadTemplate, Named, Value

VARIABLES: dict[str, Any] = {
    "src": Value("src/a b.c", (".", "build")),
    "dirs": ["x", "y z"],
    "none_here": [],
    "n": 3,
    "on": True,
    "table": {"items": [1], "deep": {"x": "y"}},
    "inputs": Named([Value("q")], {"count": Value("c.txt"), "many": [Value("m")]}),
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain", ["plain"]),
        ("{% if x %} {# note #} ${X} {x}", ["{% if x %} {# note #} ${X} {x}"]),
        ("{{ src }}", ["../src/a b.c"]),
        ("{{ src.name }}|{{ src.stem }}|{{ src.suffix }}|{{ src.parent }}", ["a b.c|a b|.c|../src"]),
        ("{{ src.with_suffix('.o') }}", ["../src/a b.o"]),
        ("{{ src.relative_to('src') }}", ["a b.c"]),
        ("-I{{ dirs }}", ["-Ix", "-Iy z"]),
        ("{{ dirs }}/{{ n }}.h", ["x/3.h", "y z/3.h"]),
        ("-I{{ none_here }}", []),
        ("{{ on }}", ["true"]),
        ("{{ n + 1 }}", ["4"]),
        ("{{ n * 2.5 }}", ["7.5"]),
        ("{{ table.items }}", ["1"]),
        ("{{ table.deep.x }}", ["y"]),
        ("{{ table['deep']['x'] }}", ["y"]),
        ("{{ inputs }}", ["q"]),
        ("{{ inputs.count }}", ["c.txt"]),
        ("{{ inputs.count.stem }}", ["c"]),
        ("{{ inputs['many'] }}", ["m"]),
        ("{{ dirs | join(',') }}", ["x,y z"]),
        ("{{ dirs | map('upper') }}", ["X", "Y Z"]),
        ("{{ dirs[0] }}", ["x"]),
        ("{{ 'a' if n > 2 else 'b' }}", ["a"]),
        ("{{ range(3) }}", ["0", "1", "2"]),
        ("{{ '}}' }}{{ \"{{\" }}", ["}}{{"]),
        ("{{ {'a': {'b': 1}}['a']['b'] }}", ["1"]),
        ("{{ src.name.upper() }}", ["A B.C"]),
    ],
)
def test_an_item_of_a_list_is_filled_in(text: str, found: list[str]) -> None:
    assert words(text, VARIABLES) == found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{{ nope }}", '"nope" is undefined'),
        ("{{ srx.stem }}", '"srx" is undefined'),
        ("{{ table.nope }}", "no attribute"),
        ("{{ src.nope }}", "no attribute"),
        ("{{ dirs }}{{ dirs }}", "two lists in one item"),
        ("{{ table }}", "a table where a text is due"),
        ("{{ none }}", "is none"),
        ("{{ src", "{{ without }}"),
        ("{{ }}", "holds no expression"),
        ("{{ a b }}", "more than one expression"),
        ("{{ dirs | nope }}", "No filter"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ dirs[9] }}", "no element"),
        ("{{ src.relative_to('lib') }}", "is not below"),
        ("{{ src.with_suffix('o') }}", "with_suffix wants"),
        ("{{ ''.__class__ }}", "no attribute"),
        ("{{ ''['__class__'] }}", "no attribute"),
        ("{{ src.path }}", "no attribute"),
        ("{{ inputs.append(1) }}", ""),
        ("{{ inputs.names }}", ""),
        ("{{ dirs.__class__ }}", ""),
        ("{{ table.__class__ }}", ""),
        ("{{ 'a'.format() }}", "no attribute"),
        ("{{ '{:99999999999}'['format'](1) }}", "no attribute"),
        ("{{ '%99999999999d' % 1 }}", "operator %"),
        ("{{ 9 ** 9 ** 9 }}", "operator **"),
        ("{{ 'a' * 10000000000 }}", "repetition"),
        ("{{ dirs * 10000000000 }}", "repetition"),
        ("{{ 9223372036854775807 + 1 }}", "64 bits"),
        ("{{ range(10000000000) }}", "Range too big"),
        ("{{ lipsum() }}", "undefined"),
        ("{{ cycler('a') }}", "undefined"),
        ("{{ self }}", "undefined"),
        ("{{ '" + "a" * 1000 + "'.replace('a', 'b' * 90000) }}", "text longer"),
        ("{{ " + "(" * 50 + ")" * 50 + " }}", "nests deeper"),
        ("{{ " + "-" * 1900 + "1 }}", "no expression"),
        ("{{ " + "not " * 400 + "1 }}", "too many parts"),
        ("{{ " + "1 + " * 450 + "1 }}", "too many parts"),
        ("{{ " + "x" * 3000 + " }}", "longer than"),
    ],
)
def test_m21_what_expressions_cannot_do_is_refused_at_once(text: str, what: str) -> None:
    begun = time.process_time()
    with pytest.raises(BadTemplate) as caught:
        words(text, VARIABLES)
    assert what in caught.value.what
    assert caught.value.what.isprintable()
    assert time.process_time() - begun < 3


def test_an_undefined_name_hints_at_the_nearest() -> None:
    with pytest.raises(BadTemplate) as caught:
        words("{{ srcs }}", VARIABLES)
    assert caught.value.hint == 'did you mean "src"?'


def test_a_text_that_is_one_expression_keeps_its_value() -> None:
    assert native("{{ table.items }}", VARIABLES) == [1]
    assert native("{{ n }}", VARIABLES) == 3
    assert native("{{ on and n == 3 }}", VARIABLES) is True
    assert native("n={{ n }}", VARIABLES) == "n=3"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat {{ dirs }} > x", "cat x 'y z' > x"),
        ("cat -I{{ dirs }} > x; $(echo {{ dirs }})", "cat -Ix -I'y z' > x; $(echo x 'y z')"),
        ("cp {{ src }} {{ n }}", "cp '../src/a b.c' 3"),
        ("x {{ none_here }} y", "x  y"),
        ("x -I{{ none_here }} y", "x  y"),
        ("eval {{ src | raw }} {{ dirs | raw }}", "eval ../src/a b.c x y z"),
        ("echo \"{{ n }}\" '{{ n }}'", "echo \"3\" '3'"),
        ("for f in a; do echo ${f#{a}}; done", "for f in a; do echo ${f#{a}}; done"),
    ],
)
def test_in_a_shell_string_each_value_is_one_quoted_word(text: str, found: str) -> None:
    assert shell_text(text, VARIABLES) == found


@pytest.mark.parametrize("text", ["echo '{{ src }}'", 'echo "{{ src }}"', "echo 'it' \"x {{ dirs }} y\""])
def test_a_value_that_needs_quotes_is_refused_inside_quotes(text: str) -> None:
    with pytest.raises(BadTemplate, match="quotes of the shell"):
        shell_text(text, VARIABLES)


def test_an_apostrophe_in_a_comment_is_no_quote() -> None:
    assert shell_text("# don't\ncat {{ src }}", VARIABLES) == "# don't\ncat '../src/a b.c'"


HOSTILE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(HOSTILE, max_size=4), HOSTILE)
def test_quoting_gives_every_value_back(values: list[str], one: str) -> None:
    text = shell_text("cmd {{ many }} -- {{ one }} end", {"many": values, "one": one})
    assert shlex.split(text) == ["cmd", *values, "--", one, "end"]


@settings(max_examples=25, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=4))
def test_a_real_shell_gives_every_value_back(values: list[str]) -> None:
    text = shell_text(r"printf '%s\0' {{ many }}", {"many": values})
    ran = subprocess.run(["bash", "-c", text], capture_output=True, check=True)
    assert ran.stdout.decode().split("\0")[:-1] == values


@given(st.lists(HOSTILE, max_size=4), HOSTILE, HOSTILE)
def test_a_list_gives_one_item_for_each_element(values: list[str], before: str, after: str) -> None:
    before, after = before.replace("{", ""), after.replace("{", "").lstrip("}")
    assert words(before + "{{ many }}" + after, {"many": values}) == [before + value + after for value in values]


@pytest.mark.parametrize(
    "text",
    [
        "src",
        "src.name",
        "src.stem",
        "src.suffix",
        "src.parent",
        "n",
        "on",
        "dirs",
        "table.deep.x",
        "table.items",
        "inputs",
        "inputs.count",
        "inputs.count.stem",
        "inputs.many",
    ],
)
def test_names_mean_the_same_to_us_and_to_jinja(text: str) -> None:
    (part,) = parse("{{ " + text + " }}")
    assert isinstance(part, Expression)
    assert part.names
    assert part.value(VARIABLES) == compile_expression(text).value(VARIABLES)


@settings(max_examples=300, deadline=None)
@given(st.text("{}()[]|.'\"ab1 +*~%-,", max_size=14))
def test_no_text_makes_anything_but_words_or_a_complaint(text: str) -> None:
    for fill in (words, line, shell_text):
        try:
            fill("{{" + text + "}}", {"a": "x", "b": ["y", "z"]})
        except BadTemplate as error:
            assert error.what.isprintable()


PATHS = st.lists(st.text("ab.", min_size=1, max_size=4).filter(lambda name: name.strip(".")), min_size=1, max_size=3)


@given(PATHS)
def test_attributes_of_a_path_are_those_of_pathlib(parts: list[str]) -> None:
    from pathlib import PurePosixPath

    path = "/".join(parts)
    real = PurePosixPath(path)
    value = Value(path)
    assert (value.name, value.stem, value.suffix, value.parent) == (real.name, real.stem, real.suffix, str(real.parent))
    assert value.with_suffix(".o") == str(real.with_suffix(".o"))
    assert value.relative_to(str(real.parent)) == str(real.relative_to(real.parent))


@pytest.mark.parametrize("text", ['{{ "\\x00" }}', "{{ nul }}", "a{{ many }}", '{{ "\\ud800" }}', "{{ half }}"])
def test_what_no_command_can_hold_is_refused_where_it_is_written(text: str) -> None:
    variables = {"nul": "a\0b", "many": ["x", "\0"], "half": "\udcff"}
    for fill in (words, shell_text, line):
        with pytest.raises(BadTemplate, match="gives a text with"):
            fill(text, variables)
    assert words("{{ x }}", {"x": "tab\there\nand an escape \x1b"}) == ["tab\there\nand an escape \x1b"]
