"""`requiem doctor`: what this host can enforce, proven by booting it."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress

import click

from .. import __version__
from ..core.errors import RequiemError, UsageError
from ..engine.divergences import Divergence, divergences_in
from ..engine.settings import load_settings
from ..engine.signing import look
from ..engine.workspace import find_workspace
from ..sandbox.probe import Capability, probe, probe_limits
from .cas_store import open_view
from .console import plain, wants_color, write_out
from .globals import Globals

OPTIONAL = frozenset(
    {"constant pid", "frozen clock", "hidden host paths", "landlock", "limits by cgroup", "seeded randomness"}
    | {"not promised"}
)
"""What strict does without where the kernel lacks it; the record says so, or a step that asks for it is refused."""

NAMES_MAX = 10


def is_required(item: Capability) -> bool:
    return item.name not in OPTIONAL


def _root(shared: Globals) -> str | None:
    with suppress(UsageError):
        return find_workspace(shared.start, shared.file)[0]
    return None


def _diverged(shared: Globals) -> list[Divergence] | None:
    """What the records tell; None where there is no store, or none that can be read: that is for `cas verify`."""
    with suppress(RequiemError):
        return divergences_in(open_view(shared))
    return None


def _told(diverged: list[Divergence]) -> str:
    if not diverged:
        return "none in the store: no request gave two results"
    others = sum(len(each.results) for each in diverged)
    steps = list(dict.fromkeys(step for each in diverged for step in each.steps))
    more = f" and {len(steps) - NAMES_MAX} more" if len(steps) > NAMES_MAX else ""
    of = f", of {', '.join(steps[:NAMES_MAX])}{more} (requiem why {shlex.quote(steps[0])})" if steps else ""
    requests = "1 request" if len(diverged) == 1 else f"{len(diverged)} requests"
    return f"{others} in the store: {requests} gave another result later{of}"


@click.command()
@click.argument("step", required=False)
@click.pass_context
def command(context: click.Context, step: str | None) -> int:
    """Boot the sandbox and say, item by item, what is in force, and how to get what is not.

    With a STEP: which packages of the system it sees, by what digest, and how they are shown to it.
    """
    shared: Globals = context.obj
    if step is not None:
        from .doctor_step import answer as of_step

        return of_step(shared, step)
    found = [*probe(), probe_limits(load_settings(shared.environment).cgroup)]
    strict = all(item.in_force for item in found if is_required(item))
    signing = look(shared.environment, _root(shared))
    diverged = _diverged(shared)
    if shared.json:
        answer = {
            "capabilities": [
                {
                    "detail": item.detail,
                    "how_to_get": item.how_to_get,
                    "in_force": item.in_force,
                    "name": item.name,
                    "required": is_required(item),
                }
                for item in found
            ],
            "divergences": None if diverged is None else [each.as_json() for each in diverged],
            "engine": __version__,
            "ok": strict,
            "schema": "requiem.doctor/1",
            "signing": signing.as_json(),
        }
        write_out(json.dumps(answer, indent=2, sort_keys=True) + "\n")
        return 0 if strict else 4
    color = wants_color(shared.color, sys.stdout, shared.environment)
    width = max(len(item.name) for item in found)
    for item in found:
        mark = "yes" if item.in_force else "NO " if is_required(item) else "no "
        if color:
            mark = f"\x1b[{'32' if item.in_force else '31;1' if is_required(item) else '33'}m{mark}\x1b[0m"
        write_out(f"{mark}  {item.name.ljust(width)}  {plain(item.detail)}\n")
        if not item.in_force and item.how_to_get:
            write_out(f"     {' ' * width}  hint: {plain(item.how_to_get)}\n")
    write_out("\n")
    for name, told in (*signing.lines(), *([] if diverged is None else [("divergences", _told(diverged))])):
        write_out(f"     {name.ljust(width)}  {plain(told)}\n")
    verdict = "the level strict holds here" if strict else "the level strict cannot be had here: --sandbox process"
    write_out(f"\nrequiem {__version__}: {verdict}\n")
    return 0 if strict else 4
