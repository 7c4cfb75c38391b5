"""What happened to a step before: the journals of past runs, newest first. What is gone is passed by."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeGuard

from ..core import canonical
from ..core.digest import Digest, is_digest
from ..core.errors import RequestError, RequiemError, UnknownName
from ..core.fields import dataclass
from ..core.request import parse_request
from ..core.result import parse_record, parse_result
from ..store.layout import Store
from ..store.records import Kept
from ..store.runs import Run

LOOKED_AT_MAX = 2000
"""Runs that are looked through, newest first, before a question ends without an answer."""

_DIGESTS = ("request_digest", "result_digest", "record_digest", "stdout_digest", "stderr_digest")
_TEXTS = ("failure", "reason")


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
        for event in finished_in(store, run, wanted):
            if event["state"] in ("fresh", "hit", "ran") and event["request_digest"] and event["result_digest"]:
                found.setdefault(event["name"], (event["request_digest"], event["result_digest"]))
        wanted -= found.keys()
    return found


def in_run(store: Store, run: Run, step: str) -> Happened | None:
    """How a step ended in a run; None if it had no part in it, or if the journal is gone."""
    event = next(finished_in(store, run, (step,)), None)
    return None if event is None else Happened(run, event)


def finished_in(
    store: Store, run: Run, names: Collection[str] = (), digests: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The lines of a run's journal about steps that finished and were not skipped, the last first.

    Of these names only, or of these requests and results, if there are any. A journal that is gone has none; nor does
    a line count that is not what a journal holds: whoever can write the store can write one.
    """
    needles = [json.dumps(each, ensure_ascii=False).encode("utf-8", "surrogateescape") for each in (*names, *digests)]
    lines: list[bytes] = []
    with suppress(RequiemError):
        lines = store.objects.get(run.journal).splitlines()
    for line in reversed(lines):
        if b'"step_finished"' not in line or (needles and not any(needle in line for needle in needles)):
            continue
        event = None
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
        if not _is_finished(event) or event["state"] == "skipped":
            continue
        told: dict[str, Any] = {**dict.fromkeys((*_DIGESTS, *_TEXTS)), **event}
        of_these = not digests or told["request_digest"] in digests or told["result_digest"] in digests
        if of_these and (not names or told["name"] in names):
            yield told


def _is_finished(event: Any) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(event, dict)
        and event.get("event") == "step_finished"
        and all(isinstance(event.get(name), str) for name in ("name", "state"))
        and all(event.get(name) is None or is_digest(event[name]) for name in _DIGESTS)
        and all(event.get(name) is None or isinstance(event[name], str) for name in _TEXTS)
    )


def kept_in(event: Mapping[str, Any]) -> Kept | None:
    """What a journal's line holds of itself: of a failure, and of what is not remembered. None if it holds nothing."""
    try:
        request = parse_request(canonical.encode_plain(event["request"]))
        result = parse_result(canonical.encode_plain(event["result"]))
        record = parse_record(event["record"])
    except (KeyError, RequestError, TypeError):
        return None
    named = (event.get("request_digest"), event.get("result_digest"))
    if not named == (request.digest, result.digest) == (record.request_digest, record.result_digest):
        return None
    return Kept(record, request.encoded, result)


def find_kept(store: Store, digest: Digest) -> Kept | None:
    """By a request's or a result's digest; what no record holds, by the newest run that tells of it."""
    kept = store.records.find(digest) or store.records.find_result(digest)
    if kept is not None:
        return kept
    for run in runs_of(store, None):
        for event in finished_in(store, run, digests=(digest,)):
            kept = kept_in(event)
            if kept is not None:
                return kept
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
