"""A step here against the same step in another machine's report, of which only digests may be known.

If the store has the other request, the difference is exact. If not, two things can still be told apart: which steps
that come first differ or agree (their results are in the report), and whether some request that this store knows,
mixed with ours, gives exactly the other digest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ..core import canonical
from ..core.digest import Domain, digest
from ..core.errors import RequestError, UnknownName, UsageError
from ..core.request import SYSTEM_ROOT
from . import history
from .report import SCHEMA as REPORT
from .why import Comparison, Difference, Explainer, Why

KNOWN_MAX = 32
VARIED_MAX = 8
TRIALS_MAX = 4096
FIELDS = (
    *("inputs", "discovered", "command", "env", "roots", "tools", "policy", "cwd", "stdin", "platform", "outputs"),
    *("discover", "depfile", "secrets", "salt", "world"),
)


def parse_report(content: bytes, name: str) -> dict[str, dict[str, Any]]:
    """The steps of a report by name. Raises UsageError."""
    try:
        value = canonical.parse(content)
    except RequestError as error:
        raise UsageError(f'"{name}" is not a report: {error.what}', facts=error.facts) from error
    steps = value.get("steps") if isinstance(value, dict) and value.get("schema") == REPORT else None
    if not isinstance(steps, list) or not all(isinstance(s, dict) and isinstance(s.get("name"), str) for s in steps):
        raise UsageError(f'"{name}" is not a {REPORT}', hint="it is what `requiem build --json` prints")
    return {step["name"]: step for step in steps}


def compare(explainer: Explainer, why: Why, steps: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """There -> here. Raises UnknownName if the report has no such step."""
    theirs = steps.get(why.name)
    if theirs is None:
        raise UnknownName(f'the other report has no step "{why.name}"')
    digest_there = theirs.get("request_digest")
    if not digest_there:
        return Comparison("the other report", None, (), notes=(f"its request is not known: it was {theirs['state']}",))
    if why.request_digest == digest_there:
        return Comparison("the other report", digest_there, (), notes=tuple(_same_request(explainer, why, theirs)))
    old = history.request_of(explainer.store, digest_there)
    new = explainer.now(why.name, old) or history.request_of(explainer.store, why.request_digest)
    notes = list(_needs(explainer, why.name, steps))
    if new is None:
        return Comparison("the other report", digest_there, (), notes=("our own request is not known yet", *notes))
    if old is not None:
        return Comparison("the other report", digest_there, explainer.differences(old, new), notes=tuple(notes))
    mine = history.request_of(explainer.store, why.request_digest) or new
    found = _mixed(explainer, why.name, mine, digest_there)
    if found is not None:
        return Comparison("the other report", digest_there, found, notes=tuple(notes))
    return Comparison("the other report", digest_there, (), notes=(*notes, _unknown(new)))


def _same_request(explainer: Explainer, why: Why, theirs: Mapping[str, Any]) -> Iterator[str]:
    yield "both ask the very same"
    result = theirs.get("result_digest")
    if result and why.result_digest and result != why.result_digest:
        yield f"and got different results: {result} there, {why.result_digest} here; the step is not deterministic"


def _needs(explainer: Explainer, name: str, steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the results of the steps that come first say about our inputs."""
    plan, finished = explainer.prediction.plan, explainer.prediction.finished
    same: list[str] = []
    different: list[str] = []
    for need in plan.instances[name].needs:
        here, there = finished.get(need), steps.get(need)
        if here is None or there is None or not here.result_digest or not there.get("result_digest"):
            continue
        (same if here.result_digest == there["result_digest"] else different).append(need)
    if different:
        yield "other inputs, since these gave another result there: " + ", ".join(different[:10])
    if same:
        yield "the same inputs from " + ", ".join(same[:10])


def _mixed(explainer: Explainer, name: str, mine: dict[str, Any], wanted: str) -> tuple[Difference, ...] | None:
    """The difference, if our request with parts of one that this store knows has exactly the other digest."""
    trials = 0
    for known in _known(explainer, name, mine):
        parts = list(_parts(mine, known))[:VARIED_MAX]
        for size in range(1, len(parts) + 1):
            for chosen in itertools.combinations(parts, size):
                trials += 1
                if trials > TRIALS_MAX:
                    return None
                mixed = _with(mine, known, chosen)
                if digest(Domain.REQUEST, canonical.encode_plain(mixed)) == wanted:
                    return explainer.differences(mixed, mine)
    return None


def _known(explainer: Explainer, name: str, mine: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Requests of the step in any run of the store, newest first, and ours on other systems that this machine knew."""
    seen: set[str] = set()
    for happened in history.finished(explainer.store, None, name):
        if len(seen) == KNOWN_MAX:
            break
        if happened.request_digest and happened.request_digest not in seen:
            seen.add(happened.request_digest)
            request = history.request_of(explainer.store, happened.request_digest)
            if request is not None and request != mine:
                yield request
    from ..sandbox.parts import known_digests

    for system in known_digests(explainer.prediction.site.cache_home):
        if mine["roots"].get(SYSTEM_ROOT) not in (None, system):
            yield {**mine, "roots": {**mine["roots"], SYSTEM_ROOT: system}}


Part = tuple[str, str | None]
"""A field of a request, and the key in it if it is a map that is varied key by key."""


def _parts(mine: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Part]:
    for field in FIELDS:
        a, b = mine[field], known[field]
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict) and field in ("inputs", "env", "roots", "tools", "discovered"):
            yield from ((field, key) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key))
        else:
            yield (field, None)


def _with(mine: Mapping[str, Any], known: Mapping[str, Any], parts: tuple[Part, ...]) -> dict[str, Any]:
    mixed = dict(mine)
    for field, key in parts:
        if key is None:
            mixed[field] = known[field]
            continue
        mixed[field] = dict(mixed[field])
        if key in known[field]:
            mixed[field][key] = known[field][key]
        else:
            mixed[field].pop(key, None)
    return mixed


def _unknown(new: Mapping[str, Any]) -> str:
    differing = "sources, command, variables, tools, roots and policy" if new["inputs"] else "command, variables, tools"
    return (
        f"the other request is not in this store, so of its {differing} nothing more can be told;"
        " share a store, or fetch it with its `requiem show request`"
    )
