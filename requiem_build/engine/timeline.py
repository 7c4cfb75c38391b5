"""A run's journal as a timeline for Perfetto and chrome://tracing: a lane a worker. It knows journals, not builds.

Format: the JSON of the Trace Event Format (complete events `X`, instants `i`, async pairs `b` and `e`, metadata
`M`); times in microseconds since the run began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_PROCESS = 1
_ANSWERS = 0
"""The lane of what needed no worker: fresh, hits, skipped."""

_COLORS = {"ran": "good", "failed": "terrible", "hit": "vsync_highlight_color", "fresh": "grey", "skipped": "bad"}

Event = Mapping[str, Any]


def make_timeline(events: Iterable[Event]) -> dict[str, object]:
    """The whole document, from a journal's events in their order."""
    shown = list(_shown(events))
    lanes = sorted({event["tid"] for event in shown if event["ph"] in "Xi"} | {_ANSWERS})
    names = {_ANSWERS: "from memory", **{lane: f"worker {lane}" for lane in lanes if lane != _ANSWERS}}
    heads: list[dict[str, object]] = [_meta("process_name", 0, name="requiem build")]
    for lane in lanes:
        heads += [_meta("thread_name", lane, name=names[lane]), _meta("thread_sort_index", lane, sort_index=lane)]
    return {"displayTimeUnit": "ms", "traceEvents": [*heads, *shown]}


def _shown(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    started: dict[str, tuple[int, int]] = {}
    finished_us: dict[int, int] = {}
    for event in events:
        now_us = event["at_ms"] * 1000
        match event["event"]:
            case "step_started":
                started[event["name"]] = (now_us, event["worker"] + 1)
            case "step_finished":
                ready_us = max((finished_us.get(need, 0) for need in event["needs"]), default=0)
                began_us, lane = started.pop(event["name"], (now_us, _ANSWERS))
                finished_us[event["place"]] = now_us
                yield from _step(event, ready_us, began_us, now_us, lane)
            case "warned":
                yield _event("i", "warning", _ANSWERS, now_us, cat="warning", s="p", args={"text": event["text"]})
            case "run_finished":
                args = {"counts": event["counts"], "exit_code": event["exit_code"]}
                yield _event("i", "run finished", _ANSWERS, now_us, cat="run", s="g", args=args)


def _step(event: Event, ready_us: int, began_us: int, now_us: int, lane: int) -> Iterator[dict[str, Any]]:
    name, place = event["name"], event["place"]
    args = {name: event[name] for name in ("state", "reason", "request_digest", "result_digest", "exit_code")}
    color = _COLORS.get(event["state"], "grey")
    if lane == _ANSWERS:
        yield _event("i", name, lane, now_us, cat=event["state"], s="t", args=args)
        return
    if began_us > ready_us:  # All it needs was there, and no worker was free.
        wait = {"cat": "wait", "id": place}
        yield _event("b", f"{name} waits", lane, ready_us, **wait)
        yield _event("e", f"{name} waits", lane, began_us, **wait)
    args["command_ms"] = event["duration_ms"]
    yield _event("X", name, lane, began_us, cat=event["state"], dur=now_us - began_us, cname=color, args=args)


def _event(phase: str, name: str, lane: int, at_us: int, **rest: object) -> dict[str, Any]:
    return {"name": name, "ph": phase, "pid": _PROCESS, "tid": lane, "ts": at_us, **rest}


def _meta(what: str, lane: int, **args: object) -> dict[str, Any]:
    return {"args": args, "name": what, "ph": "M", "pid": _PROCESS, "tid": lane, "ts": 0}
