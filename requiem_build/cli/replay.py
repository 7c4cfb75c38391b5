"""`requiem replay`: is a run what it says it was?"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import click

from ..core.errors import RequiemError, UsageError
from ..core.instance import Root
from ..engine.options import Options
from ..engine.proofs import Event, Problem, Proven
from ..engine.replay import Replayed, find_run, replay
from ..engine.site import Site, find_site, question_of
from ..engine.trust import keys_of
from ..store.keys import Verifier, available
from ..store.layout import Store
from .cas_store import open_view
from .console import plain, write_err, write_out
from .globals import Globals
from .running import heeding_signals
from .unpack import is_bundle, replay_file


@click.command()
@click.argument("run", default="latest", metavar="[RUN|latest|FILE]")
@click.option("--execute", "execute", is_flag=True, help="Also run each step again and demand its recorded result.")
@click.option("--timeline", "timeline", help="Write the run as a timeline (Perfetto, chrome://tracing) to FILE.")
@click.pass_context
def command(context: click.Context, run: str, execute: bool, timeline: str | None) -> int:
    """Check a run, or a packed one, offline: digests, objects, records, order. Exit 3 if anything is wrong."""
    shared: Globals = context.obj
    if run != "latest" and is_bundle(shared, run):
        if execute or timeline is not None:
            raise UsageError(
                f'"{run}" is a packed run: it is only checked',
                hint=f"requiem unpack {shlex.quote(run)}, then replay the run",
            )
        return replay_file(shared, run)
    store = open_view(shared)
    site = _site(shared)
    run_id = find_run(store, run, None if site is None else site.workspace_id, _last_run(site) if site else None)
    if execute:
        if site is None:
            raise UsageError("--execute needs a workspace", hint="start it below a requiem.toml")
        replayed = _execute(shared, site, store, run_id)
    else:
        replayed = replay(store, run_id, verifier=_verifier(shared))
    if timeline is not None:
        from .timeline import write_timeline

        write_timeline(shared, store, run_id, timeline)
    return answer(shared, replayed)


def _site(shared: Globals) -> Site | None:
    try:
        return find_site(Options(shared.start, shared.environment, manifest=shared.file))
    except UsageError:
        return None


def _verifier(shared: Globals) -> Verifier | None:
    """The keys that are known here, if signatures can be checked at all."""
    return Verifier(keys_of(shared.environment).all()) if available() else None


def _last_run(site: Site) -> str | None:
    from ..engine import memory

    return memory.load(site.dot, site.seal).last_run


def _execute(shared: Globals, site: Site, store: Store, run_id: str) -> Replayed:
    from ..engine.rerun import CannotRerun, Rerunner, explain_difference

    with heeding_signals() as heed, Rerunner(site, store, present_roots(shared, site)) as rerunner:
        heed(rerunner.interrupt)
        executed = 0

        def again(event: Event, proven: Proven) -> Iterator[Problem]:
            nonlocal executed
            name = event["name"]
            try:
                rerunner.check(proven.request)
                ran = rerunner.run(proven.request)
            except CannotRerun as cannot:
                yield Problem(f"not run again: {cannot}", "", name)
                return
            executed += 1
            if ran.result.digest != proven.result.digest:
                for what in explain_difference(proven.result, ran.result):
                    yield Problem(f"run again, {what}", "", name)
            if not shared.quiet and not shared.json:
                same = ran.result.digest == proven.result.digest
                write_err(f"{'same   ' if same else 'differs'}  {plain(name)}\n")

        replayed = replay(store, run_id, again, _verifier(shared))
    replayed.executed = executed
    return replayed


def present_roots(shared: Globals, site: Site) -> dict[str, Root]:
    """The roots of the present manifest, as far as it can be planned."""
    from ..engine import plans

    try:
        options = Options(shared.start, shared.environment, manifest=shared.file)
        planned = plans.obtain(site.root, question_of(site, options), site.seal, site.settings.roots)
    except RequiemError:
        return {}
    return dict(planned.plan.roots)


def answer(shared: Globals, replayed: Replayed) -> int:
    """Says what was found. The exit code."""
    if shared.json:
        write_out(json.dumps(replayed.as_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    else:
        for problem in replayed.problems:
            step = f'step "{plain(problem.step)}": ' if problem.step else ""
            where = f"  ({problem.where})" if problem.where else ""
            write_out(f"{step}{plain(problem.what)}{where}\n")
        if not shared.quiet:
            write_err(_summary(replayed))
    return 0 if replayed.ok else 3


def _summary(replayed: Replayed) -> str:
    count = f"{replayed.steps} step{'s' if replayed.steps != 1 else ''}, {replayed.objects} objects"
    again = f", {replayed.executed} run again" if replayed.executed else ""
    if replayed.ok:
        return f"run {replayed.run} holds: {count}{again}\n"
    number = len(replayed.problems)
    return f"run {replayed.run}: {number} problem{'s' if number != 1 else ''} ({count}{again})\n"
