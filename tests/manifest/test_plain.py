"""The quick reader of many steps gives what tomllib gives, or leaves the text to it."""

from __future__ import annotations

import random
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requiem_build.core import plain
from requiem_build.core.documents import read_document
from requiem_build.core.errors import ManifestError

HEAD = '[project]\nname = "x"\n[vars]\na = [1, {b = 2}]\n'
STEP = '[steps.s{0}]\ncommand = ["cc", "-o", "out/{0}.o"]  \ninputs = []\n# said\n\ncache = true\nretries = 3\n'
MANY = HEAD + "".join(STEP.format(number) for number in range(400))


def read(text: str) -> object:
    return plain.read(text, lambda _: True)


def test_many_plain_steps_are_read_as_tomllib_does() -> None:
    tail = '[pools]\ngpu = 1\n[roots.r]\npath = "x"\n'
    for text in (MANY, MANY + tail, MANY[len(HEAD) :], MANY + '[steps.s399.env]\nA = "b\\n\\"c\\""\nB = "ä"\n' + tail):
        found = read(text)
        assert found == tomllib.loads(text)
        assert list(found["steps"]) == [f"s{number}" for number in range(400)]  # type: ignore[index]


ODD = [
    '[steps.s7]\ncommand = ["twice"]\n',
    '[steps.s399]\ncommand = ["twice"]\n',
    '[steps.s1.env]\nA = "far from its step"\n',
    "[steps.new]\ncommand = 'literal'\n",
    '[steps.new]\ncommand = """\n[steps.inner]\n"""\n',
    '[steps.new]\ncommand = ["a",\n "b"]\n',
    '[steps.new]\ncommand = "\\u00e4"\n',
    "[steps.new]\nretries = 0x10\n",
    "[steps.new]\nretries = 007\n",
    "[steps.new]\nretries = 1_000\n",
    "[steps.new]\ntimeout = 2020-01-01\n",
    '[steps."quoted"]\ncommand = ["x"]\n',
    "[steps]\nnew = {command = 'x'}\n",
    "[[steps.new]]\n",
    'steps.new = "x"\n',
    '[steps.new]\ncommand = ["a", "b",]\n',
    '[steps.new]\ncommand = "a" # said\n',
    '[steps.new]\ncommand = "a"\ncommand = "b"\n',
    '[steps.new]\ncommand = "tab\there"\n',
    '[steps.new]\ncommand = "bad \\q"\n',
    "[steps.new]\ncommand = [,]\n",
    "[steps.new]\ncommand\n",
    '[steps.new]\r\ncommand = "x"\r\n',
    "[vars]\nb = 1\n",
    "[project.more]\nb = 1\n",
    '[steps.new]\nfoo.bar = "dotted"\n',
    '[steps.new]\ncommand = "no newline"',
    '  [steps.new]\ncommand = "x"\n',
]


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_means_what_it_means_to_tomllib(odd: str) -> None:
    for text in (MANY + odd, HEAD + odd + MANY[len(HEAD) :]):
        try:
            wanted: object = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            wanted = None
        found = read(text)
        assert found is None or found == wanted
        if wanted is None:
            with pytest.raises(ManifestError):
                read_document("requiem.toml", text.encode())
        else:
            assert read_document("requiem.toml", text.encode()).tables == wanted


PIECES = st.sampled_from(
    [*"[]{}\"'\\#=,.\n\r\t sx19é\x7f\x00", "steps", '"a"', "true", "\n[steps.q]\n", '"""', "\\u0041"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=8), st.integers(0, 2**32))
def test_damage_anywhere_is_left_to_tomllib_or_read_as_it_does(pieces: list[str], seed: int) -> None:
    at = random.Random(seed).randrange(len(MANY))
    text = MANY[:at] + "".join(pieces) + MANY[at + seed % 3 :]
    found = read(text)
    if found is not None:
        assert found == tomllib.loads(text)


def test_brackets_before_and_after_the_steps_are_counted() -> None:
    deep = "x = " + "[" * 70 + "]" * 70 + "\n"
    for text in (deep + MANY, MANY + "[pools]\n" + deep):
        with pytest.raises(ManifestError, match="nesting deeper"):
            read_document("requiem.toml", text.encode())
