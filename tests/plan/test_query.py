"""Expressions over a plan, against a plain twin; positions and nearest names; linear time."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifest.fakes import plan

from requiem_build.core.errors import RequiemError
from requiem_build.core.instance import Input, Instance, Plan
from requiem_build.core.query import ask

PROJECT = """
    [steps.gen]
    command = "x"
    outputs = ["build/gen.h"]
    tags = ["slow"]
    [steps.compile]
    foreach.src = "src/*.c"
    command = "x"
    inputs = ["{{ src }}", "build/gen.h"]
    outputs = ["build/{{ src.stem }}.o"]
    [steps.app]
    command = "x"
    inputs = ["@compile", "assets/"]
    outputs = ["build/app", "dist/"]
    [steps.test]
    command = "x"
    inputs = ["build/app"]
    tags = ["slow", "check"]
    [steps."a-b"]
    command = "x"
    [steps.matrix]
    foreach.mode = ["fast"]
    foreach.py = ["3.12"]
    command = "x"
    needs = ["a-b"]
"""
PATHS = ["src/a.c", "src/b.c", "assets/logo.png"]


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(PROJECT, PATHS)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("app", "app"),
        ("compile", "compile:src/a.c compile:src/b.c"),
        ("build/a.o", "compile:src/a.c"),
        ("dist/deep/x.txt", "app"),
        ("compile:*", "compile:src/a.c compile:src/b.c"),
        ("deps(compile:src/a.c)", "gen compile:src/a.c"),
        ("deps(test)", "gen compile:src/a.c compile:src/b.c app test"),
        ("rdeps(src/a.c)", "compile:src/a.c app test"),
        ("rdeps(assets/logo.png)", "app test"),
        ("rdeps(gen)", "gen compile:src/a.c compile:src/b.c app test"),
        ("rdeps(build/gen.h) - compile", "gen app test"),
        ("path(test, gen)", "gen compile:src/a.c app test"),
        ("path(gen,test)", "gen compile:src/a.c app test"),
        ("path(gen, a-b)", ""),
        ('path(a-b, "matrix:mode=fast,py=3.12")', "a-b matrix:mode=fast,py=3.12"),
        ("path(matrix:mode=fast,py=3.12, a-b)", "a-b matrix:mode=fast,py=3.12"),
        ("matrix:mode=fast,py=3.12", "matrix:mode=fast,py=3.12"),
        ("inputs(app)", "assets/ build/a.o build/b.o"),
        ("outputs(compile + gen)", "build/a.o build/b.o build/gen.h"),
        ("inputs(app) & outputs(compile)", "build/a.o build/b.o"),
        ("rdeps(inputs(app) & outputs(compile:src/b.c))", "compile:src/b.c app test"),
        ("tag(slow)", "gen test"),
        ("tag(slow) & tag(check)", "test"),
        ("app + gen & tag(check)", "app"),
        ("(app + gen) & tag(slow)", "gen"),
        ("deps(test) - deps(app)", "test"),
        ("app gen", "gen app"),
        ("a-b", "a-b"),
        ("app-gen", None),
    ],
)
def test_an_expression_means(made: Plan, expression: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(RequiemError):
            ask(made, expression)
        return
    found = set(ask(made, expression).names)
    assert found == set(expected.split())


def test_steps_come_in_plan_order_and_files_by_their_bytes(made: Plan) -> None:
    assert ask(made, "test + gen + app").names == tuple(n for n in made.instances if n in ("gen", "app", "test"))
    assert ask(made, "inputs(app) + outputs(app)").names == ("assets/", "build/a.o", "build/app", "build/b.o", "dist/")


@pytest.mark.parametrize(
    ("expression", "what", "column", "hint"),
    [
        ("app + tst", 'no step, output, source or pattern "tst"', 7, "test"),
        ("dep(app)", 'no function "dep"', 1, "deps"),
        ("tag(slw)", 'no step has the tag "slw"', 5, "slow"),
        ("deps(app", "this bracket is never closed", 5, None),
        ("app )", '")" closes nothing', 5, None),
        ("app &", "the expression ends where a name is expected", 6, None),
        ("app & & gen", '"&" where a name is expected', 7, None),
        ("inputs(app) + gen", "files and steps do not mix", 13, "inputs(x) and outputs(x)"),
        ("path(app)", "path takes two arguments", 1, None),
        ("deps(app, gen)", "deps takes one argument", 1, None),
        ("deps()", "deps takes one argument", 1, None),
        ("", "an empty expression", 1, None),
        ("(" * 80 + "app" + ")" * 80, "nest deeper", 65, None),
    ],
)
def test_an_error_names_the_place(made: Plan, expression: str, what: str, column: int, hint: str | None) -> None:
    with pytest.raises(RequiemError) as caught:
        ask(made, expression)
    error = caught.value
    assert error.exit_code == 2 and what in error.what
    at = dict(error.facts)["at"].split("\n")
    assert at[0] == f"column {column}"
    assert len(at[2]) - 1 == min(column - 1, 60)
    assert hint is None or hint in (error.hint or "")


edges = st.lists(st.sets(st.integers(0, 8), max_size=3), min_size=1, max_size=9)


@given(edges, st.integers(0, 8), st.integers(0, 8))
def test_closures_and_paths_are_those_of_a_plain_twin(graph: list[set[int]], a: int, b: int) -> None:
    needs = {i: {n for n in wanted if n < i} for i, wanted in enumerate(graph)}
    first, second = a % len(graph), b % len(graph)
    made = plan_of({f"s{i}": [f"s{n}" for n in sorted(wanted)] for i, wanted in needs.items()})

    def reach(start: int) -> set[int]:
        found = {start}
        while more := {n for f in found for n in needs[f]} - found:
            found |= more
        return found

    assert set(ask(made, f"deps(s{first})").names) == {f"s{n}" for n in reach(first)}
    assert set(ask(made, f"rdeps(s{first})").names) == {f"s{n}" for n in needs if first in reach(n)}
    chain = ask(made, f"path(s{first}, s{second})").names
    if second in reach(first) or first in reach(second):
        assert {f"s{first}", f"s{second}"} <= set(chain)
        ordered = [int(name[1:]) for name in chain]
        assert all(x in needs[y] for x, y in itertools.pairwise(ordered))
    else:
        assert chain == ()


def plan_of(needs: dict[str, list[str]]) -> Plan:
    return Plan(
        {
            name: Instance(
                name, name, ("x",), "x", needs=tuple(wanted), inputs=tuple(Input(f"{n}.o", n) for n in wanted)
            )
            for name, wanted in needs.items()
        }
    )


def test_a_chain_of_100000_steps_is_walked_in_linear_time_and_without_recursion() -> None:
    made = plan_of({f"s{i}": [f"s{i - 1}"] if i else [] for i in range(100_000)})
    small = plan_of({f"s{i}": [f"s{i - 1}"] if i else [] for i in range(10_000)})

    def cost(asked: Plan, last: int) -> float:
        begun = time.process_time()
        assert len(ask(asked, f"rdeps(s0) & deps(s{last}) & path(s{last}, s0)").names) == last + 1
        return time.process_time() - begun

    assert cost(made, 99_999) < 40 * max(cost(small, 9_999), 0.005)
