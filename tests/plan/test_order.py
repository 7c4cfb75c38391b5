"""The one order of a plan, cycles, targets, and graphs of any size."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest.fakes import PLATFORM, FakeListing, load, plan, refusal

from requiem_build.core.errors import ManifestError, UnknownName
from requiem_build.core.plan import make_plan, shortest_cycle


def manifest_of(needs: Mapping[str, Sequence[str]]) -> str:
    return "".join(
        f'[steps.{name}]\ncommand = "x"\nneeds = [{", ".join(repr(need) for need in wanted)}]\n'
        for name, wanted in needs.items()
    )


def kahn(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """An independent spelling of DESIGN's "Plan order": a FIFO queue, ties in manifest order."""
    missing = {name: len(set(wanted)) for name, wanted in needs.items()}
    queue = deque(name for name in needs if not missing[name])
    order = []
    while queue:
        taken = queue.popleft()
        order.append(taken)
        for name in needs:
            if taken in needs[name]:
                missing[name] -= 1
                if not missing[name]:
                    queue.append(name)
    return order


@st.composite
def graphs(draw: Any, *, acyclic: bool) -> dict[str, list[str]]:
    names = [f"s{i}" for i in range(draw(st.integers(1, 9)))]
    ranks = draw(st.permutations(names))
    graph = {}
    for name in names:
        others = ranks[: ranks.index(name)] if acyclic else names
        graph[name] = draw(st.lists(st.sampled_from(others), unique=True, max_size=3)) if others else []
    return graph


@settings(max_examples=150, deadline=None)
@given(graphs(acyclic=True))
def test_the_order_is_kahns_with_a_queue_and_ties_in_manifest_order(graph: dict[str, list[str]]) -> None:
    made = plan(manifest_of(graph))
    assert list(made.instances) == kahn(graph)
    position = {name: index for index, name in enumerate(made.instances)}
    for name, instance in made.instances.items():
        assert list(instance.needs) == sorted(graph[name], key=position.__getitem__)


def brute_shortest(graph: Mapping[str, Sequence[str]]) -> int | None:
    best = None
    for start in graph:
        distance = {start: 0}
        queue = deque([start])
        while queue:
            at = queue.popleft()
            for need in graph[at]:
                if need == start:
                    best = min(best or 99, distance[at] + 1)
                elif need not in distance:
                    distance[need] = distance[at] + 1
                    queue.append(need)
    return best


@settings(max_examples=150, deadline=None)
@given(graphs(acyclic=False))
def test_m11_a_cycle_is_refused_with_one_shortest_in_order(graph: dict[str, list[str]]) -> None:
    length = brute_shortest(graph)
    if length is None:
        plan(manifest_of(graph))
        return
    what = refusal(manifest_of(graph)).what
    cycle = what.removeprefix("steps wait for each other in a cycle: ").split(" -> ")
    assert len(cycle) == length + 1
    assert cycle[0] == cycle[-1]
    assert all(need in graph[name] for name, need in itertools.pairwise(cycle))
    assert cycle[0] == min(cycle, key=list(graph).index)


def test_m11_a_step_that_needs_itself_is_a_cycle() -> None:
    error = refusal('[steps.a]\ncommand = "x"\nneeds = ["a"]\n')
    assert isinstance(error, ManifestError)
    assert error.what.endswith("a -> a")


def test_m11_groups_can_be_a_cycle() -> None:
    assert refusal('[steps.a]\nneeds = ["b"]\n[steps.b]\nneeds = ["a"]\n').what.endswith("a -> b -> a")


def test_m11_a_cycle_through_discover_says_how_to_leave_it() -> None:
    text = """
        [steps.tool]
        command = "x"
        discover = ["include/*.h"]
        outputs = ["tool"]
        [steps.gen]
        command = ["./tool"]
        outputs = ["include/gen.h"]
    """
    error = refusal(text)
    assert error.what.endswith("tool -> gen -> tool")
    assert "take it out with !" in str(error.hint)


def test_a_cycle_that_is_not_wanted_does_not_matter() -> None:
    text = manifest_of({"a": ["b"], "b": ["a"], "c": []})
    assert list(plan(text, targets=["c"]).instances) == ["c"]


def test_a_long_cycle_is_shown_in_part() -> None:
    ring = {f"s{i}": [f"s{(i + 1) % 1500}"] for i in range(1500)}
    assert "more" in refusal(manifest_of(ring)).what
    assert len(shortest_cycle(ring)) == 1500


def test_instances_are_sorted_by_the_bytes_of_their_names() -> None:
    made = plan('[steps.x]\nforeach.s = ["é", "z", "Z", "10", "9"]\ncommand = "x"\n')
    assert list(made.instances) == ["x:10", "x:9", "x:Z", "x:z", "x:é"]


# Targets

TARGETS = """
    [steps.cc]
    foreach.s = ["a", "b"]
    command = "x"
    tags = ["fast"]
    outputs = ["build/{{ s }}.o"]
    [steps.link]
    command = "x"
    inputs = ["@cc"]
    tags = ["slow", "all"]
    outputs = ["build/app", "dist/"]
    [steps.other]
    command = "x"
    tags = ["all"]
"""


@pytest.mark.parametrize(
    ("targets", "cwd", "found"),
    [
        (["cc:a"], ".", ["cc:a"]),
        (["cc"], ".", ["cc:a", "cc:b"]),
        (["build/b.o"], ".", ["cc:b"]),
        (["b.o"], "build", ["cc:b"]),
        (["../dist"], "build", ["cc:a", "cc:b", "link"]),
        (["dist/x/y"], ".", ["cc:a", "cc:b", "link"]),
        (["cc:*"], ".", ["cc:a", "cc:b"]),
        (["*:b", "other"], ".", ["cc:b", "other"]),
        ([], ".", ["cc:a", "cc:b", "other", "link"]),
    ],
)
def test_a_target_is_a_name_a_step_an_output_or_a_pattern(targets: list[str], cwd: str, found: list[str]) -> None:
    assert list(plan(TARGETS, targets=targets, cwd=cwd).instances) == found


def test_a_name_goes_before_an_output_of_the_same_name() -> None:
    text = '[steps.a]\ncommand = "x"\noutputs = ["b"]\n[steps.b]\ncommand = "x"\n'
    assert list(plan(text, targets=["b"]).instances) == ["b"]
    assert list(plan(text, targets=["./b"]).instances) == ["a"]


@pytest.mark.parametrize(
    ("target", "hint"), [("lnk", "link"), ("build/ap", "build/app"), ("cc:aa", "cc:a"), ("../x", None), ("z*", None)]
)
def test_an_unknown_target_names_the_nearest(target: str, hint: str | None) -> None:
    error = refusal(TARGETS, targets=[target])
    assert isinstance(error, UnknownName)
    assert hint is None or f'"{hint}"' in str(error.hint)


def test_the_projects_default_is_built_without_targets() -> None:
    head = '[project]\nname = "t"\ndefault = ["other"]\n'
    assert list(plan(TARGETS, head=head).instances) == ["other"]
    error = refusal(TARGETS, head=head.replace('"other"', '"othre"'))
    assert dict(error.facts)["key"] == "project.default[0]"
    assert error.hint == 'did you mean "other"?'


@pytest.mark.parametrize(
    ("targets", "tags", "found"),
    [
        ([], ("fast",), ["cc:a", "cc:b"]),
        ([], ("all",), ["cc:a", "cc:b", "other", "link"]),
        ([], ("slow", "fast"), ["cc:a", "cc:b", "link"]),
        (["cc:a", "other"], ("fast",), ["cc:a"]),
    ],
)
def test_tags_choose_among_what_is_asked_for(targets: list[str], tags: tuple[str, ...], found: list[str]) -> None:
    assert list(plan(TARGETS, targets=targets, tags=tags).instances) == found


def test_an_unknown_tag_names_the_nearest() -> None:
    assert refusal(TARGETS, tags=("fsat",)).hint == 'did you mean "fast"?'


# Size


def test_m20_ten_thousand_steps_a_deep_chain_and_many_edges() -> None:
    begun = time.process_time()
    chain = {f"s{i}": [f"s{i - 1}"] if i else [] for i in range(10_000)}
    made = plan(manifest_of(chain))
    assert list(made.instances) == list(chain)
    wide = {f"s{i}": [f"s{j}" for j in range(max(0, i - 100), i)] for i in range(1050)}
    made = plan(manifest_of(wide))
    assert sum(len(instance.needs) for instance in made.instances.values()) > 99_000
    groups = "".join(f'[steps.g{i}]\nneeds = ["g{i - 1}"]\n' for i in range(1, 3000)) + '[steps.g0]\ncommand = "x"\n'
    assert list(plan(groups).instances)[-1] == "g2999"
    assert time.process_time() - begun < 60


def test_the_same_text_gives_the_same_plan_twice() -> None:
    files = ["src/a.c", "src/b.c"]
    text = '[steps.x]\nforeach.s = "src/*.c"\ncommand = "x {{ s }}"\noutputs = ["{{ s }}.o"]\n'
    one, two = FakeListing(files), FakeListing(reversed(files))
    assert make_plan(load(text), [], one, platform=PLATFORM) == make_plan(load(text), [], two, platform=PLATFORM)


def test_loading_imports_neither_networkx_nor_jinja2() -> None:
    code = (
        "import sys\n"
        "from requiem_build.core.manifest import load_manifest\n"
        "import requiem_build.core.plan\n"
        "load_manifest({'requiem.toml': b'[project]\\nname = \"x\"\\n'}.get)\n"
        "print(*sorted({'networkx', 'jinja2', 'wcmatch'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@given(st.integers(0, 2**32), st.integers(1, 14))
def test_the_order_is_that_of_networkx(seed: int, size: int) -> None:
    import networkx

    from requiem_build.core.plan import kahn

    chance = random.Random(seed)
    names = [f"s{i}" for i in range(size)]
    hidden = chance.sample(names, size)  # A topological order that the manifest does not follow.
    waits = {
        name: {need: None for need in names if hidden.index(need) < hidden.index(name) and chance.random() < 0.3}
        for name in names
    }
    graph = networkx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from((need, name) for need in names for name in names if need in waits[name])
    assert kahn(waits) == list(networkx.topological_sort(graph))
