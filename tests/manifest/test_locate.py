"""Where a key stands, for messages."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requiem_build.core.locate import line_column, locate, positions, spelled_path

TEXT = '''a = 1
[steps.link]
"b c" = [1, 2, # x ]
  """q] """, { x.y = 3, z = [4,] }]
[[arr]]
k=1979-05-27 07:32:00
[[arr]]
[arr.sub]
k = 'x' # c
'''


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("a",), (1, 5)),
        (("steps", "link"), (2, 1)),
        (("steps", "link", "b c"), (3, 9)),
        (("steps", "link", "b c", 1), (3, 13)),
        (("steps", "link", "b c", 2), (4, 3)),
        (("steps", "link", "b c", 3, "x", "y"), (4, 22)),
        (("steps", "link", "b c", 3, "z", 0), (4, 30)),
        (("arr", 1), (7, 1)),
        (("arr", 0, "k"), (6, 3)),
        (("arr", 1, "sub", "k"), (9, 5)),
        (("steps", "link", "missing"), (2, 1)),
        (("steps",), (2, 1)),
        (("nothing",), (1, 1)),
    ],
)
def test_a_key_path_has_a_line_and_a_column(path: tuple[str | int, ...], place: tuple[int, int]) -> None:
    assert locate(TEXT, path) == place


def test_the_key_itself_has_another_column_than_its_value() -> None:
    assert locate(TEXT, ("steps", "link", "b c"), value=False) == (3, 1)


def test_key_paths_are_spelled_as_toml_would() -> None:
    assert spelled_path(("steps", "a b", "inputs", 0, "x")) == 'steps."a b".inputs[0].x'


@pytest.mark.parametrize(
    "text", ["", "[", "[a", "a", "a =", "a = [", "a = {b", "a = {b = ", '"', "[[", "a = [1,", "= 1", "a.b. = 1"]
)
def test_text_that_is_not_toml_ends_the_walk_and_nothing_more(text: str) -> None:
    list(positions(text))
    locate(text, ("a", "b", 0))


KEYS = st.text("ab c\"'.\\é", min_size=1, max_size=4)
VALUES = st.recursive(
    st.integers(0, 9) | st.booleans() | st.text("ab#\"[]{},=\n'\\", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        case list():
            return "[" + ", ".join(written(item) for item in value) + "]"
        case dict():
            return "{ " + ", ".join(f"{written(key)} = {written(item)}" for key, item in value.items()) + " }"
        case _:
            return str(value)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_every_value_is_found_where_it_is_written(table: dict[str, Any]) -> None:
    text = "".join(f"{written(key)} = {written(value)}\n" for key, value in table.items())
    assert tomllib.loads(text) == table
    lines = text.split("\n")
    pending: list[tuple[tuple[str | int, ...], Any]] = [((key,), value) for key, value in table.items()]
    for path, value in pending:
        line, column = locate(text, path)
        assert lines[line - 1][column - 1 :].startswith(written(value))
        if isinstance(value, dict):
            pending.extend(((*path, key), item) for key, item in value.items())
        elif isinstance(value, list):
            pending.extend(((*path, index), item) for index, item in enumerate(value))


def test_the_walk_is_linear_and_does_not_recurse() -> None:
    text = "a = " + "[" * 5000 + "1" + "]" * 5000 + "\n" + "".join(f"[s.x{i}]\ny = [1, 2]\n" for i in range(20_000))
    assert locate(text, ("s", "x19999", "y", 1)) == (40_001, 9)
    assert line_column("a\nb", 2) == (2, 1)
