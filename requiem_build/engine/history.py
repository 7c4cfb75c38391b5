"""What happened to a step before: the journals of past runs, newest first. What is gone is passed by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..core.digest import Digest
from ..core.errors import RequiemError, UnknownName
from ..core.fields import dataclass
from ..store.layout import Store
from ..store.runs import Run

LOOKED_AT_MAX = 2000
"""Runs that are looked through, newest first, before a question ends without an answer."""


@dataclass(frozen=True, slots=True)
class Happened:
    """One finished step of one run, as its journal tells it."""

    run: Run
    event: Mapping[str, Any]

    @property
    def request_digest(self) -> str | None:
        digest = self.event.get("request_digest")
        return None if digest is None else str(digest)


def runs_of(store: Store, workspace: str | None) -> Iterator[Run]:
    """Newest first; of every workspace of the store if `workspace` is None."""
    found = [run for run in store.runs if workspace in (None, run.workspace)]
    yield from reversed(found[-LOOKED_AT_MAX:])


def finished(store: Store, workspace: str | None, step: str) -> Iterator[Happened]:
    """Where a step finished, newest first. Runs in which it was skipped do not count."""
    for run in runs_of(store, workspace):
        happened = in_run(store, run, step)
        if happened is not None:
            yield happened


def last_successes(store: Store, workspace: str, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Steps -> the request and result digests with which each last succeeded in a workspace, by the store's journals.

    What a workspace has no memory of of its own: it was deleted, or is another user's.
    """
    wanted = set(names)
    found: dict[str, tuple[str, str]] = {}
    for run in runs_of(store, workspace):
        if not wanted:
            break
        with suppress(RequiemError, ValueError, KeyError):
            for line in store.objects.get(run.journal).splitlines():
                event = json.loads(line)
                succeeded = event.get("event") == "step_finished" and event["state"] in ("fresh", "hit", "ran")
                if succeeded and event["name"] in wanted:
                    found[event["name"]] = (event["request_digest"], event["result_digest"])
        wanted -= found.keys()
    return found


def in_run(store: Store, run: Run, step: str) -> Happened | None:
    """How a step ended in a run; None if it had no part in it, or if the journal is gone."""
    needle = json.dumps(step, ensure_ascii=False).encode("utf-8", "surrogateescape")
    with suppress(RequiemError):
        for line in reversed(store.objects.get(run.journal).splitlines()):
            if needle in line:
                event = json.loads(line)
                if event.get("event") == "step_finished" and event["name"] == step and event["state"] != "skipped":
                    return Happened(run, event)
    return None


def find_run(store: Store, text: str, workspace: str) -> Run:
    """A run by its id, the beginning of one, or `latest`. Raises UnknownName."""
    if text == "latest":
        latest = store.runs.latest(workspace)
        if latest is None:
            raise UnknownName("this workspace has no run yet", hint="requiem build")
        return latest
    found = [run for run in store.runs if run.run.startswith(text)]
    if len(found) == 1:
        return found[0]
    if not found:
        newest = next(runs_of(store, workspace), None)
        raise UnknownName(f'no run "{text}" in the store', hint=f"the newest is {newest.run}" if newest else None)
    raise UnknownName(f'"{text}" begins the ids of {len(found)} runs', hint=f"such as {found[-1].run}")


def request_of(store: Store, digest: str | None) -> dict[str, Any] | None:
    """A kept request's JSON value; None if the store does not have it."""
    kept = store.records.find(Digest(digest)) if digest else None
    return None if kept is None else dict(json.loads(kept.request))
