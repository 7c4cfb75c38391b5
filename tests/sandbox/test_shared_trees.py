"""Many inputs are a layer that steps share: each step sees exactly its own, and can change nothing for the next one."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.policy import INPUT_MTIME_S
from requiem_build.sandbox.base import Job, Staged
from requiem_build.sandbox.linux import StrictSandbox
from requiem_build.sandbox.shelf import TWO_FROM
from requiem_build.sandbox.trees import INPUTS_MIN, TREES_MAX, Trees

COUNT = 200
SURVEY = (
    "find . -mindepth 1 '!' -type d -printf '%p %y %m %s %T@ %l %U:%G\\n' -o -printf '%p %y %m %T@ %U:%G\\n' | sort; cat $(find . -type f | sort) | cksum; "
    "pwd; stat -c '%a %Y' .; ls -A /dev/shm /tmp /run; touch new src/new && rm new src/new && mkdir -p out/deep"
)


def many(count: int = COUNT, text: str = "") -> list[Staged]:
    files = [
        Staged(f"src/{n % 7}/{n}.c", data=b"%d %s" % (n, text.encode()), executable=n % 5 == 0) for n in range(count)
    ]
    empty = [Staged("src/empty"), Staged("nest/a"), Staged("nest/a/b")]
    return [*files, Staged("src/link", symlink="0/0.c"), *empty]


@pytest.fixture(scope="module")
def boxes():
    with StrictSandbox() as shares, StrictSandbox(reuse=False) as alone:
        if not shares._layers_work():
            pytest.skip("this kernel has no overlay that a step could write to")
        yield shares, alone


def numbers(sandbox: StrictSandbox) -> list[int]:
    return list(sandbox._trees._known)


@pytest.mark.userns
@pytest.mark.parametrize("count", [COUNT, 2 * TWO_FROM + 1])
def test_a_shared_tree_looks_like_any_other_inputs(count, boxes, run_in):
    shares, alone = boxes
    staged = many(count)
    seen = [run_in(box, "bash", "-c", SURVEY, staged=staged, directories=["out"]) for box in (shares, shares, alone)]
    assert len(numbers(shares)) >= 1
    assert {step.finished.changed for step in seen} == {()}
    assert len({step.out for step in seen}) == 1, seen[0].err
    assert f"755 {INPUT_MTIME_S}\n" in seen[0].out


@pytest.mark.userns
def test_a_file_beside_a_tree_is_seen_and_dated(boxes, run_in):
    shares, alone = boxes
    for text in ("one", "two", "three"):
        staged = [*many(), Staged("src/3/own.c", data=text.encode()), Staged("new/own.c", data=b"x")]
        before = numbers(shares)
        seen = [run_in(box, "bash", "-c", SURVEY, staged=staged, directories=["out"]).out for box in (shares, alone)]
        assert seen[0] == seen[1]
    assert numbers(shares) == before, "two steps have shown what they share; the third makes no tree"


TAMPERING = {
    "append": ("chmod u+w src/3/3.c; echo more >> src/3/3.c", ["src/3/3.c"]),
    "mode": ("chmod 777 src/3/3.c", ["src/3/3.c"]),
    "date": ("touch src/3/3.c", ["src/3/3.c"]),
    "remove": ("rm -f src/3/3.c", ["src/3/3.c"]),
    "replace": ("cp src/3/3.c x; mv -f x src/3/3.c", ["src/3/3.c"]),
    "by a directory": ("rm -f src/3/3.c; mkdir src/3/3.c", ["src/3/3.c"]),
    "by a link": ("rm -f src/3/3.c; ln -s 10.c src/3/3.c", ["src/3/3.c"]),
    "link": ("ln src/3/3.c out", ["src/3/3.c"]),
    "directory removed": ("rm -rf src/3", None),
    "directory made anew": ("cp -a src/3 x; rm -rf src/3; mkdir src/3; cp -a x/. src/3", None),
    "directory made anew and empty": ("rm -rf src/3; mkdir src/3", None),
    "directory moved": ("mv src/3 elsewhere", None),
    "empty directory made anew": ("rmdir src/empty; mkdir src/empty", ["src/empty"]),
    "empty directory removed": ("rmdir src/empty", ["src/empty"]),
    "empty directory replaced": ("rmdir src/empty; touch src/empty", ["src/empty"]),
    "empty directories inside one that was made anew": ("rm -r nest; mkdir -p nest/a/b", ["nest/a", "nest/a/b"]),
    "empty directories inside one that was removed": ("rm -r nest", ["nest/a", "nest/a/b"]),
    "directory replaced by a file": ("rm -rf src/3; touch src/3", None),
}


@pytest.mark.userns
@pytest.mark.parametrize("name", TAMPERING)
def test_what_a_step_changes_is_found_and_the_next_one_sees_nothing_of_it(name, boxes, run_in):
    shares, alone = boxes
    script, changed = TAMPERING[name]
    staged = many()
    expected = changed or [item.path for item in staged if item.path.startswith("src/3/")]
    before = run_in(shares, "bash", "-c", SURVEY, staged=staged).out
    for box in (shares, alone):
        assert set(run_in(box, "bash", "-c", script, staged=staged).finished.changed) == set(expected)
    assert run_in(shares, "bash", "-c", SURVEY, staged=staged).out == before


@pytest.mark.userns
def test_what_is_new_beside_the_inputs_is_no_change(boxes, run_in):
    shares, _ = boxes
    step = run_in(shares, "bash", "-c", "touch src/3/new src/new; mkdir src/3/d; rm src/new", staged=many())
    assert step.finished.changed == ()
    assert set(step.files) >= {"src/3/new", "src/3/3.c"}


@pytest.mark.userns
def test_no_step_can_reach_the_trees_or_tell_them_apart(boxes, run_in):
    shares, _ = boxes
    script = "sed 's/^[0-9]* [0-9]* [0-9:]*//' /proc/self/mountinfo | grep -v devpts; df --output=target; ls -A /run /dev/shm"
    seen = {run_in(shares, "bash", "-c", script, staged=many(text=text)).out for text in "abc"}
    assert len(seen) == 1
    # A step without a tree does not see where they lie either.
    few = run_in(shares, "bash", "-c", "grep -c /dev/shm /proc/self/mountinfo; ls -A /dev/shm", fresh=True)
    assert few.out == "1\n"


@pytest.mark.userns
def test_a_tree_that_cannot_be_made_is_a_fault_and_no_half_tree(boxes, run_in, monkeypatch):
    shares, _ = boxes
    run_in(shares, "true", staged=many(text="before"))
    worker = shares._fresh
    broken = [*many(text="broken"), Staged("src/0", data=b"a file in the place of a directory")]
    with pytest.raises(Exception):  # noqa: B017 - whichever part of the sandbox sees it first
        run_in(shares, "true", staged=broken)
    step = run_in(shares, "bash", "-c", "cat src/3/3.c", staged=many(text="after"))
    assert step.out == "3 after"
    assert shares._fresh is not worker


@pytest.mark.userns
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one process writes it all")
def test_what_the_process_beside_cannot_write_is_a_fault(boxes, run_in):
    shares, _ = boxes
    too_long = Staged("zz/" + "x" * 300, data=b"x")
    with pytest.raises(EnvironmentFault) as told:
        run_in(shares, "true", staged=[*many(2 * TWO_FROM), too_long])
    assert "ENAMETOOLONG" in str(told.value.facts)
    assert run_in(shares, "bash", "-c", "cat src/3/3.c", staged=many(text="after")).out == "3 after"


# The choice


def job(*numbers: int, text: bytes = b"") -> Job:
    return Job((), {}, staged=[Staged(f"d/{number}", data=b"%d" % number + text) for number in numbers])


ITEMS = st.sets(st.integers(0, 90), max_size=90)


@given(st.lists(ITEMS, min_size=1, max_size=12))
def test_tree_and_rest_are_always_exactly_the_inputs(sets):
    trees = Trees()
    made: dict[int, set[Staged]] = {}
    for numbers_ in sets:
        wanted = job(*sorted(numbers_))
        choice = trees.choose(wanted)
        assert (choice is None) == (len(numbers_) < INPUTS_MIN)
        if choice is None:
            continue
        for number in choice.dropped:
            del made[number]
        if choice.made_of is not None:
            made[choice.number] = set(choice.made_of)
        assert made[choice.number].isdisjoint(choice.rest)
        assert made[choice.number] | set(choice.rest) == set(wanted.staged)
        assert len(made) <= TREES_MAX


def test_other_bytes_or_another_mode_are_another_tree():
    trees = Trees()
    first = trees.choose(job(*range(100)))
    assert first is not None and first.made_of is not None
    again = trees.choose(job(*range(100)))
    assert again is not None and (again.number, again.made_of) == (first.number, None)
    other = trees.choose(job(*range(100), text=b"!"))
    assert other is not None and other.made_of is not None
    executable = Job((), {}, staged=[Staged(f"d/{n}", data=b"%d" % n, executable=True) for n in range(100)])
    third = trees.choose(executable)
    assert third is not None and third.made_of is not None


def test_steps_that_differ_in_their_own_source_share_the_rest():
    trees = Trees()
    choices = [trees.choose(job(*range(100), 1000 + own)) for own in range(4)]
    assert [choice is not None and choice.made_of is not None for choice in choices] == [True, True, False, False]
    last = choices[-1]
    assert last is not None and [item.path for item in last.rest] == ["d/1003"]


@pytest.mark.userns
def test_more_trees_than_fit_are_forgotten_one_by_one(boxes, run_in):
    shares, _ = boxes
    for number in (*range(TREES_MAX + 2), 0):
        step = run_in(shares, "bash", "-c", "cat src/3/3.c", staged=many(text=f"tree {number}"))
        assert step.out == f"3 tree {number}"
    assert len(numbers(shares)) == TREES_MAX
