"""`requiem why STEP`: what the next build would do with it, and why."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from ..core.errors import UnknownName
from ..core.fields import replace
from .console import plain, write_err, write_out
from .globals import Globals
from .inspect import read_file
from .running import make_options, parse_sets

if TYPE_CHECKING:
    from ..engine.why import Comparison, Difference, Explainer, Why

VALUE_MAX = 60
SHOWN_MAX = 12


@click.command("why")
@click.argument("step")
@click.option("--vs", "versus", help="Compare with a run (its id, or latest), or with a report of another machine.")
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.option("--sandbox", "sandbox", help="strict, process or none, as the build in question.")
@click.pass_context
def command(
    context: click.Context,
    step: str,
    versus: str | None,
    profile: str | None,
    set_: tuple[str, ...],
    sandbox: str | None,
) -> None:
    """Say what the next build would do with a step, and why."""
    from ..engine import why as engine

    shared: Globals = context.obj
    options = make_options(
        shared, mode="repro", jobs=None, targets=(step,), profile=profile, sets=parse_sets(set_), sandbox=sandbox
    )
    prediction = engine.predict(replace(options, explain=True))
    explainer = engine.Explainer(prediction)
    found = [explainer.explain(name) for name in explainer.members(step, shared.start)]
    if versus is not None:
        found = _compared(explainer, found, versus, shared)
    if shared.json:
        answer = {"schema": engine.SCHEMA, "steps": [why.as_json() for why in found]}
        write_out(json.dumps(answer, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return
    for warning in prediction.warnings:
        write_err(f"warning: {plain(warning)}\n")
    _show(found, versus is not None)


def _compared(explainer: Explainer, found: list[Why], versus: str, shared: Globals) -> list[Why]:
    """The same answers, compared with a run or a report instead."""
    from ..engine import elsewhere, history

    path = os.path.join(shared.start, versus)
    if versus == "-" or versus.endswith(".json") or os.path.isfile(path):
        steps = elsewhere.parse_report(read_file(shared, versus), versus)
        for why in found:
            why.compared, why.last_run = elsewhere.compare(explainer, why, steps), None
        return found
    run = history.find_run(explainer.store, versus, explainer.prediction.site.workspace_id)
    for why in found:
        why.compared, why.last_run = _with_run(explainer, why, run), None
    return found


def _with_run(explainer: Explainer, why: Why, run: object) -> Comparison:
    from ..engine import history
    from ..engine.why import Comparison
    from ..store.runs import Run

    assert isinstance(run, Run)
    happened = history.in_run(explainer.store, run, why.name)
    if happened is None:
        raise UnknownName(f'run {run.run} has no step "{why.name}"')
    digest = happened.request_digest
    old = history.request_of(explainer.store, digest)
    new = explainer.now(why.name, old) or history.request_of(explainer.store, why.request_digest)
    notes: tuple[str, ...] = (f"its state then: {happened.event['state']}, {happened.event['reason']}",)
    if digest == why.request_digest:
        notes += ("the request is the same",)
    elif old is None or new is None:
        whose = "that run's" if old is None else "our own"
        notes += (f"{whose} request is not in the store: only success is remembered",)
    found = explainer.differences(old, new) if old is not None and new is not None else ()
    return Comparison("the run", digest, found, run.run, run.when, reason=str(happened.event["reason"]), notes=notes)


# For a person

STATES = {
    "fresh": "is up to date",
    "hit": "would be restored from the store",
    "miss": "would run",
    "unknown": "may run",
}


def _show(found: list[Why], compared: bool) -> None:
    quiet = (
        [why for why in found if why.state == "fresh" and not why.divergences]
        if len(found) > 1 and not compared
        else []
    )
    for why in found:
        if why not in quiet:
            _show_one(why)
    if quiet:
        write_out(f"{len(quiet)} of {len(found)} are up to date\n")


def _show_one(why: Why) -> None:
    reason = f": {why.reason}" if why.state == "miss" else ""
    write_out(f"{plain(why.name)} {STATES[why.state]}{plain(reason)}\n")
    if why.waits_for:
        steps = "a step" if len(why.waits_for) == 1 else f"{len(why.waits_for)} steps"
        write_out(f"  it waits for {steps} that would run:\n")
        for name, blocker in why.waits_for[:SHOWN_MAX]:
            write_out(f"  {plain(name)}: {plain(blocker)}\n")
        _more(len(why.waits_for))
    if why.compared is not None:
        _comparison(why.compared, "since" if why.compared.source.startswith("its") else "against")
    if why.last_run is not None:
        write_out(f"  it last ran in {why.last_run.run}, {why.last_run.when}: {plain(why.last_run.reason)}\n")
        _differences(why.last_run.differences)
    for other in why.divergences:
        differs = ", ".join(other.differs) or "its request's first result, which is gone"
        write_out(
            f"  the same request also gave {other.result_digest[:16]} ({other.when}, {plain(other.host)}),"
            f" which differs in {plain(differs)}\n"
        )


def _comparison(compared: Comparison, word: str) -> None:
    where = f" in {compared.run}, {compared.when}" if compared.run else ""
    write_out(f"  {word} {compared.source}{where}\n")
    if compared.reason and not compared.differences:
        write_out(f"  {plain(compared.reason)}\n")
    _differences(compared.differences)
    for note in compared.notes:
        write_out(f"  {plain(note)}\n")


def _differences(differences: tuple[Difference, ...]) -> None:
    for difference in differences[:SHOWN_MAX]:
        write_out(f"  {plain(difference.change.text)}{plain(_values(difference))}\n")
        for line in difference.details:
            write_out(f"    {plain(line)}\n")
    _more(len(differences))


def _more(count: int) -> None:
    if count > SHOWN_MAX:
        write_out(f"  ... {count - SHOWN_MAX} more: --json has all\n")


def _values(difference: Difference) -> str:
    """Old and new, where they are short enough to help."""
    change, told = difference.change, difference.as_json()
    if difference.details or change.kind in ("policy", "package", "command", "discover"):
        return ""
    old, new = (_value(told[side]) for side in ("old", "new"))
    match change.what:
        case "new":
            return f": {new}" if change.kind == "variable" else ""
        case "gone":
            return f": was {old}" if change.kind == "variable" else ""
    return f": {old} -> {new}"


def _value(value: object) -> str:
    if isinstance(value, str) and len(value) == 64 and value.isalnum():
        return value[:12]
    if isinstance(value, dict) and isinstance(value.get("digest"), str):
        return str(value["digest"])[:12]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_MAX else text[:VALUE_MAX] + "..."
