"""Edits of a manifest's text: what is meant changes, all else stays as its author wrote it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requiem_build.core.blocks import Block, grouped, literal, strings, whole_directories
from requiem_build.core.edits import CannotEdit, add_items, add_key, add_named, patch, remove_item

TEXT = """\
# head
[steps.a] # here
command = "x"  # what
inputs = [
    "one",  # the first
    # about two
    "two",
    'three', "four"
]

[steps.b]
inputs = ["one", "two"] # tail
"""


def comments(text: str) -> list[str]:
    return re.findall(r"#[^\n]*", text)


def test_an_item_goes_with_its_own_line_and_comment() -> None:
    new = remove_item(TEXT, ("steps", "a", "inputs", 0))
    assert new == TEXT.replace('    "one",  # the first\n', "")


@pytest.mark.parametrize("index", range(4))
def test_any_item_of_a_list_can_go(index: int) -> None:
    new = remove_item(TEXT, ("steps", "a", "inputs", index))
    kept = ["one", "two", "three", "four"]
    del kept[index]
    assert tomllib.loads(new)["steps"]["a"]["inputs"] == kept
    assert set(comments(TEXT)) - set(comments(new)) <= {"# the first"}


ITEMS = st.lists(st.sampled_from(["a", "b, c", "d]", "#"]), min_size=1, max_size=5)
COMMENTS = st.sampled_from(["", " # x,", " # , ]", ' # "q", '])
BREAKS = st.sampled_from([" ", "\n    "])


@given(ITEMS, st.lists(st.tuples(COMMENTS, BREAKS, st.booleans()), min_size=6, max_size=6), st.integers(0, 4))
def test_what_stands_in_comments_is_never_taken_for_a_comma(items: list[str], gaps: list[Any], which: int) -> None:
    which %= len(items)
    text = "[steps.a]\ninputs = ["
    for number, item in enumerate(items):
        comment, break_, late = gaps[number]
        gap = f"{comment}\n    " if comment else break_
        comma = "," if number < len(items) - 1 else ""
        text += f"'{item}'{gap}{comma}" if late else f"'{item}'{comma}{gap}"
    text += "]\n"
    kept = [*items[:which], *items[which + 1 :]]
    new = remove_item(text, ("steps", "a", "inputs", which))
    assert tomllib.loads(new)["steps"]["a"]["inputs"] == kept
    assert len(re.findall("#(?!')", text)) - len(re.findall("#(?!')", new)) <= 1, new


def test_a_comma_in_a_comment_stays_there() -> None:
    text = 'x = [\n  "a", # one, or\n  "b" ]\n'
    assert remove_item(text, ("x", 1)) == 'x = [\n  "a" # one, or\n   ]\n'
    table = 'x = { a = "1", b = ["2", "3"], c = "4" }\n'
    assert remove_item(table, ("x", "c")) == 'x = { a = "1", b = ["2", "3"] }\n'


def test_items_are_added_as_the_list_is_written() -> None:
    new = add_items(TEXT, ("steps", "b", "inputs"), ["z"])
    assert 'inputs = ["one", "two", "z"] # tail' in new
    longer = add_items(TEXT, ("steps", "a", "inputs"), ["z", "y"])
    assert tomllib.loads(longer)["steps"]["a"]["inputs"] == ["one", "two", "three", "four", "z", "y"]
    assert '    "z",\n    "y",\n]' in longer and comments(longer) == comments(TEXT)


def test_a_key_is_put_behind_the_command() -> None:
    new = add_key(TEXT, ("steps", "a"), "discover", ["x"])
    assert 'command = "x"  # what\ndiscover = ["x"]\n' in new
    with pytest.raises(CannotEdit):
        add_key('steps.a = { command = "x" }\n', ("steps", "a"), "inputs", ["x"])


def test_named_inputs_get_a_name_more() -> None:
    text = '[steps.a]\ninputs = { x = "a", y = ["b"] }\n'
    assert add_named(text, ("steps", "a", "inputs"), "also", ["c"]).endswith('y = ["b"], also = ["c"] }\n')
    text = '[steps.a]\ncommand = "x"\n[steps.a.inputs]\nx = "a" # it\n'
    assert tomllib.loads(add_named(text, ("steps", "a", "inputs"), "also", ["c"]))["steps"]["a"]["inputs"] == {
        "x": "a",
        "also": ["c"],
    }
    assert tomllib.loads(remove_item(text, ("steps", "a", "inputs", "x")))["steps"]["a"]["inputs"] == {}


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)
GAPS = st.sampled_from(["", " ", "\n", " # c\n", "\n  ", "\n\t# ] , x\n"])


@st.composite
def lists(draw: Any) -> tuple[str, list[str]]:
    """A list of strings as somebody might have written it."""
    items = draw(st.lists(WORDS, min_size=1, max_size=5))
    text = "["
    for index, item in enumerate(items):
        last = index == len(items) - 1
        comma = draw(st.booleans()) if last else True
        text += draw(GAPS) + strings([item])[1:-1].strip().rstrip(",") + (draw(GAPS) + "," if comma else "")
    return f"# top\n[steps.a]\ninputs = {text}{draw(GAPS)}] # end\nz = 1\n", items


@given(lists(), st.integers(0, 4))
def test_removing_removes_one_item_and_nothing_else(written: tuple[str, list[str]], index: int) -> None:
    text, items = written
    index %= len(items)
    before = tomllib.loads(text)
    before["steps"]["a"]["inputs"].pop(index)
    assert tomllib.loads(remove_item(text, ("steps", "a", "inputs", index))) == before


@given(lists(), st.lists(WORDS, min_size=1, max_size=3))
def test_adding_adds_at_the_end_and_keeps_every_comment(written: tuple[str, list[str]], more: list[str]) -> None:
    text, items = written
    new = add_items(text, ("steps", "a", "inputs"), more)
    before = tomllib.loads(text)
    before["steps"]["a"]["inputs"] = [*items, *more]
    assert tomllib.loads(new) == before


LINES = st.lists(st.sampled_from(["a", "b", "c # x", "\x0b", "", "\u2028y"]), max_size=12)


@pytest.mark.parametrize(("ending", "last"), [("\n", "\n"), ("\n", ""), ("\r\n", "\r\n")])
def test_patch_and_git_take_our_patches(tmp_path: Path, ending: str, last: str) -> None:
    old = ending.join(["[project]", "x = 1", "y\x0bz = 2", "q\u2028 = 3", "end"]) + last
    new = old.replace("x = 1", "x = 2").replace("end", "the end")
    for judge in (["patch", "-p1", "--binary"], ["git", "apply"]):
        file = tmp_path / "requiem.toml"
        file.write_bytes(old.encode())
        made = patch("requiem.toml", old, new).encode()
        done = subprocess.run(judge, cwd=tmp_path, input=made, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert file.read_bytes() == new.encode()


# Blocks


@given(WORDS, st.lists(WORDS, max_size=4), st.lists(WORDS.filter(bool), max_size=30))
def test_a_block_says_what_it_was_made_of(name: str, command: list[str], inputs: list[str]) -> None:
    read = tomllib.loads(Block(name, command, inputs=inputs).text())["steps"][name]
    assert read["command"] == command and read.get("inputs", []) == inputs


def test_a_kind_of_file_is_said_once_where_all_of_it_is_meant() -> None:
    headers = [f"include/h{number}.h" for number in range(9)]
    assert grouped(headers, headers) == ["include/*.h"]
    assert grouped(headers, [*headers, "include/other.h"]) == headers
    assert grouped(["a[1].c"], []) == ["a[[]1].c"]


def test_a_directory_that_holds_only_what_was_made_is_one_output() -> None:
    made = [f"dist/x/{number}.js" for number in range(4)]
    assert whole_directories([*made, "log"], [*made, "src/a"]) == ["dist/", "log"]
    assert whole_directories(made, [*made, "dist/x/mine"]) == made


def test_templates_in_a_command_are_text() -> None:
    assert literal("a {{ b") == 'a {{ "{{" }} b'
