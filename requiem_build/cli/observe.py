"""`requiem observe STEP`: what a step really touches, against what it declares."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import click

from ..core.errors import RequiemError
from ..core.fields import replace
from .console import plain, write_err, write_out
from .globals import Globals
from .places import users_own
from .running import heeding_signals, make_options, parse_sets, run_build

if TYPE_CHECKING:
    from ..core.observation import Observation
    from ..engine.observing import Told
    from ..engine.options import Options
    from ..engine.rehearsal import Scene

SHOWN_MAX = 20


class NeededFailed(RequiemError):
    """A step that must come first did not succeed; the build has told of it."""

    exit_code = 1


@click.command()
@click.argument("step")
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.option("--declared", "declared", is_flag=True, help="Show it what it declares and no more, as a build does.")
@click.pass_context
def command(context: click.Context, step: str, profile: str | None, set_: tuple[str, ...], declared: bool) -> int:
    """Run a step traced, and say what it used beyond its declaration, and what it declared and never read."""
    from ..core.observation import SCHEMA

    shared: Globals = context.obj
    scene, found = observed_parts(shared, observing_options(shared, profile, set_), step, as_declared=declared)
    if shared.json:
        answer = {"schema": SCHEMA, "steps": [seen.as_json() for seen, _ in found]}
        write_out(json.dumps(answer, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    else:
        for seen, told in found:
            _show(seen, told, shared, scene.site.root)
    return 1 if any(seen.failure for seen, _ in found) else 0


def observing_options(shared: Globals, profile: str | None, set_: tuple[str, ...]) -> Options:
    """Observing needs the walls of strict, whatever the step's own level is."""
    return make_options(shared, mode="turbo", jobs=None, profile=profile, sets=parse_sets(set_), sandbox="strict")


def observed_parts(
    shared: Globals, options: Options, step: str, *, as_declared: bool = False
) -> tuple[Scene, list[tuple[Observation, Told]]]:
    """Every instance of a step, observed in plan order."""
    from ..engine.observing import Observer
    from ..engine.rehearsal import Stage, set_scene
    from ..sandbox.strace import find_strace

    find_strace()  # Before anything is built for its sake.
    scene = set_scene(options, step, lambda wanted: build_needed(wanted, shared))
    found = []
    with heeding_signals() as heed, Stage(scene.site, options.environment) as stage:
        heed(stage.interrupt)
        observer = Observer(stage, scene.plan)
        for part in scene.parts:
            if len(scene.parts) > 1 and not shared.quiet and not shared.json:
                write_err(f"observing {plain(part.instance.name)}\n")
            found.append(observer.observe(part, as_declared=as_declared))
    return scene, found


def build_needed(options: Options, shared: Globals) -> None:
    """What must be there before a step can be tried. Raises NeededFailed."""
    report = run_build(options, replace(shared, quiet=True, json=False))
    if report.exit_code:
        error = NeededFailed("a step that is needed first did not succeed")
        error.exit_code = report.exit_code
        raise error


def _show(seen: Observation, told: Told, shared: Globals, root: str) -> None:
    from ..core.observation import readable

    def name(path: str) -> str:
        return plain(readable(path).replace("\n", "\\n"))

    ending = f"failed: {users_own(seen.failure, root)}" if seen.failure else "succeeded"
    times = f", in {seen.runs} runs" if seen.runs > 1 else ""
    write_err(f"{plain(seen.step)} {plain(ending)}{times}; nothing of it is remembered\n")
    if seen.failure and told.stderr:
        tail = users_own(told.stderr.decode("utf-8", "replace"), root).rstrip().splitlines()[-5:]
        write_err("".join(f"    {plain(line)}\n" for line in tail))
    most = None if shared.verbose else SHOWN_MAX
    _list(
        "used and not declared:",
        [
            f"{name(each.path)}  ({', '.join(sorted(each.how))}"
            + (f"; made by {plain(each.made_by)}" if each.made_by else "")
            + f")  {plain(each.line)}"
            for each in seen.undeclared
        ],
        most,
    )
    _list(
        "on this host, and not to be seen by the step:",
        [f"{name(each.path)}  {plain(each.line)}" for each in seen.outside],
        most,
    )
    _list(
        "looked for, and on this host in a package that the step does not see:",
        [f"{name(each.path)}  {plain(each.line)}" for each in seen.packages],
        most,
    )
    _list("changed, though it is no output of the step:", [name(path) for path in seen.changed], most)
    _list("made and not declared (dropped after each run):", [name(path) for path in seen.made], most)
    _list("refused:", [f"{name(path)}  ({error})" for path, error in seen.refused], most)
    _list(
        "declared and never read:",
        [f"{name(path)}  (requiem tighten {plain(shlex.quote(seen.step))})" for path in seen.unused],
        most,
    )
    _list("looked for in vain:", [name(path) for path in seen.absent], most)
    if shared.verbose:
        _list("directories listed:", [name(path) for path in seen.listed], most)
    if seen.clean:
        write_out("its declaration is what it uses\n")


def _list(heading: str, lines: list[str], most: int | None) -> None:
    if not lines:
        return
    write_out(f"{heading}\n")
    for line in lines[:most]:
        write_out(f"  {line}\n")
    if most is not None and len(lines) > most:
        write_out(f"  ... {len(lines) - most} more: -v has all\n")
