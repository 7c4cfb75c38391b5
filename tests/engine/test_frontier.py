"""The build's state machine, against laws and a naive twin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from requiem_build.core.frontier import Frontier, State, critical_path_first, plan_order
from requiem_build.core.instance import Instance, Plan


def plan(edges: dict[str, tuple[str, ...]], pools: dict[str, int] | None = None, pool: str | None = None) -> Plan:
    return Plan(
        {name: Instance(name, name, ("true",), "true", needs=needs, pool=pool) for name, needs in edges.items()},
        pools=pools or {},
    )


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    size = draw(st.integers(1, 12))
    return {
        f"s{i}": tuple(f"s{j}" for j in sorted(draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else ()))
        for i in range(size)
    }


def drain(frontier: Frontier, bad: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    order = []
    while (name := frontier.take()) is not None:
        order.append(name)
        frontier.finish(name, ok=name not in bad)
    return order


def test_repro_takes_steps_in_plan_order_when_it_is_the_fifo_order() -> None:
    frontier = Frontier(plan({"a": (), "b": (), "c": ("a",), "d": ("b",), "e": ("c", "d")}), plan_order)
    assert drain(frontier) == ["a", "b", "c", "d", "e"]


@given(graphs())
def test_every_step_runs_once_and_after_what_it_needs(edges: dict[str, tuple[str, ...]]) -> None:
    made = plan(edges)
    order = drain(Frontier(made, critical_path_first(made, {})))
    assert sorted(order) == sorted(edges)
    place = {name: i for i, name in enumerate(order)}
    assert all(place[need] < place[name] for name, needs in edges.items() for need in needs)


@given(graphs(), st.data())
def test_failure_skips_only_dependents(edges: dict[str, tuple[str, ...]], data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.sampled_from(sorted(edges))))
    frontier = Frontier(plan(edges), plan_order)
    ran = set(drain(frontier, bad))
    doomed: set[str] = set()
    for name, needs in edges.items():  # Declared in topological order, so one pass is enough.
        if any(need in doomed or need in bad for need in needs):
            doomed.add(name)
    assert ran == set(edges) - doomed
    assert {n for n, s in frontier.states.items() if s is State.SKIPPED} == doomed
    assert frontier.unfinished == 0


def test_a_pool_is_never_more_full_than_its_capacity_and_loses_nobody() -> None:
    frontier = Frontier(plan({f"s{i}": () for i in range(6)}, pools={"link": 2}, pool="link"), plan_order)
    running = [frontier.take(), frontier.take()]
    assert frontier.take() is None
    finished = 0
    while running:
        name = running.pop(0)
        assert name is not None
        frontier.finish(name, ok=True)
        finished += 1
        following = frontier.take()
        if following is not None:
            running.append(following)
    assert finished == 6


def test_stopping_skips_what_had_not_started() -> None:
    frontier = Frontier(plan({"a": (), "b": (), "c": ("a",)}), plan_order)
    assert frontier.take() == "a"
    assert frontier.stop() == ["b", "c"]
    assert frontier.finish("a", ok=True) == []
    assert frontier.unfinished == 0


def test_a_chain_of_20000_steps_needs_no_recursion() -> None:
    edges = {f"s{i}": ((f"s{i - 1}",) if i else ()) for i in range(20_000)}
    frontier = Frontier(plan(edges), critical_path_first(plan(edges), {}))
    name = frontier.take()
    assert name == "s0"
    assert len(frontier.finish(name, ok=False)) == 19_999


def test_turbo_starts_the_longest_path_first() -> None:
    made = plan({"short": (), "long": (), "end": ("long",)})
    frontier = Frontier(made, critical_path_first(made, {"short": 50, "long": 10, "end": 100}))
    assert frontier.take() == "long"
