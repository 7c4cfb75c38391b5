"""`requiem list`, and `requiem` alone: the steps of this project, and answers to questions about them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ..core.errors import SourceMissing, UsageError
from ..core.instance import Instance, Plan
from ..engine import plans
from ..engine.options import Options
from ..engine.site import Site, cwd_of, find_site, question_of
from .console import plain, write_err, write_out
from .globals import Globals
from .running import parse_sets

if TYPE_CHECKING:
    from ..core.query import Answer
    from ..engine.affected import Affected

SCHEMA = "requiem.list/1"


@click.command()
@click.argument("expression", nargs=-1)
@click.option("--changed", "changed", is_flag=True, help="The arguments are FILES: what would run if they changed.")
@click.option(
    "--since", "since", metavar="REV", help="What would run because of all that changed since a git revision."
)
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.option("--tag", "tag", multiple=True, help="Only steps with this tag.")
@click.pass_context
def command(
    context: click.Context,
    expression: tuple[str, ...],
    changed: bool,
    since: str | None,
    profile: str | None,
    set_: tuple[str, ...],
    tag: tuple[str, ...],
) -> int:
    """List what a plain build looks at, or the steps that an expression means.

    deps(X) rdeps(X) path(A, B) inputs(X) outputs(X) tag(T), names, paths and patterns, joined by " + ", " - ", " & "
    and brackets; quote it for the shell.
    """
    shared: Globals = context.obj
    if changed and since is not None:
        raise UsageError("--changed and --since are two questions", hint="ask one")
    if changed and not expression:
        raise UsageError("--changed needs FILES")
    asks = bool(expression) or since is not None
    options = Options(
        shared.start,
        shared.environment,
        manifest=shared.file,
        targets=plans.EVERYTHING if asks else (),
        tags=() if asks else tag,
        profile=profile,
        sets=parse_sets(set_),
    )
    site = find_site(options)
    question = question_of(site, options)
    try:
        planned = plans.obtain(site.root, question, site.seal, site.settings.roots)
    except SourceMissing:
        if changed or since is not None:
            raise
        _show_sketch(shared, site, options, expression, tag)
        return 0
    if planned.made_now and os.path.isdir(site.dot):  # The next question of this kind is answered at once.
        plans.keep(site.root, question, site.seal, planned)
    if changed or since is not None:
        if since is not None and expression:
            raise UsageError("--since takes no expression", hint='requiem list "EXPR" answers one')
        _show_affected(shared, _affected(site, options, planned, expression, since), planned.plan, tag)
    elif expression:
        _show_answer(shared, _ask(site, options, planned.plan, expression, tag), planned.plan)
    else:
        _show_steps(shared, planned.plan)
    return 0


def _show_sketch(
    shared: Globals, site: Site, options: Options, expression: tuple[str, ...], tags: tuple[str, ...]
) -> None:
    """What steps there are can be told although some of what they read is not there yet."""
    plan, missing = plans.sketch(site.root, question_of(site, options), site.settings.roots)
    for what in dict.fromkeys(each.what for each in missing):
        write_err(f"warning: {plain(what)}\n")
    if expression:
        _show_answer(shared, _ask(site, options, plan, expression, tags), plan)
    else:
        _show_steps(shared, plan)


# Questions


def _ask(site: Site, options: Options, plan: Plan, words: tuple[str, ...], tags: tuple[str, ...]) -> Answer:
    from ..core.query import Answer, ask

    found = ask(plan, " ".join(words), cwd_of(site, options.start))
    if tags and not found.files:
        return Answer(tuple(name for name in found.names if set(plan.instances[name].tags) & set(tags)))
    return found


def _affected(
    site: Site, options: Options, planned: plans.Planned, files: tuple[str, ...], since: str | None
) -> list[Affected]:
    from ..engine import memory
    from ..engine.affected import Finder, edit_of

    known = memory.load(site.dot, site.seal)
    if since is not None:
        from ..engine.revisions import edit_since

        edit = edit_since(site.root, since)
    else:
        paths = [_relative(site, options.start, file) for file in files]
        for path in paths:
            maker = planned.plan.declared.get(path)
            if maker is not None:
                write_err(f'warning: "{plain(path)}" is made by "{plain(maker)}": the next build would put it back\n')
        edit = edit_of(site.root, paths, known)
    finder = Finder(site.root, planned, question_of(site, options), known, site.settings.roots)
    return finder.affected(edit)


def _relative(site: Site, start: str, file: str) -> str:
    full = os.path.normpath(os.path.join(start, file))
    if not full.startswith(site.root + "/"):
        raise UsageError(f'"{file}" is outside of the workspace', facts=[("workspace", site.root)])
    return os.path.relpath(full, site.root)


# Answers


def _show_answer(shared: Globals, answer: Answer, plan: Plan) -> None:
    if shared.json:
        if answer.files:
            _write_json({"files": list(answer.names), "steps": []})
        else:
            _write_json({"steps": _rows(plan.instances[name] for name in answer.names)})
        return
    for name in answer.names:
        write_out(plain(name) + "\n")


def _show_affected(shared: Globals, found: list[Affected], plan: Plan, tags: tuple[str, ...]) -> None:
    if tags:
        found = [
            each for each in found if each.name in plan.instances and set(plan.instances[each.name].tags) & set(tags)
        ]
    if shared.json:
        rows = [{"because": each.because, "certain": each.certain, "name": each.name} for each in found]
        _write_json({"affected": rows, "steps": []})
        return
    for each in found:
        if shared.quiet:
            write_out(f"{plain(each.name)}\n")
        else:
            write_out(f"{'runs' if each.certain else 'may'.ljust(4)}  {plain(each.name)}  ({plain(each.because)})\n")


def _show_steps(shared: Globals, plan: Plan) -> None:
    if shared.json:
        _write_json({"steps": _rows(plan.instances.values())})
        return
    by_step: dict[str, list[str]] = {}
    for name, instance in plan.instances.items():
        by_step.setdefault(instance.step, []).append(name)
    width = max((len(plain(step)) for step in by_step), default=0)
    for step, names in by_step.items():
        descriptions = {plan.instances[name].description for name in names}
        described = descriptions.pop() if len(descriptions) == 1 else ""
        count = "" if names == [step] else f"{len(names)} instance{'s' if len(names) > 1 else ''}"
        about = "  ".join(text for text in (described, count) if text)
        write_out(f"{plain(step).ljust(width)}  {plain(about)}".rstrip() + "\n")
        if shared.verbose:
            for name in names:
                outputs = ", ".join(plan.instances[name].outputs)
                write_out(f"  {plain(name)}" + (f" -> {plain(outputs)}" if outputs else "") + "\n")


def _rows(instances: Iterable[Instance]) -> list[dict[str, object]]:
    return [
        {
            "command": list(instance.command),
            "description": instance.description,
            "inputs": [item.path for item in instance.inputs],
            "name": instance.name,
            "needs": list(instance.needs),
            "outputs": list(instance.outputs),
            "step": instance.step,
            "tags": list(instance.tags),
        }
        for instance in instances
    ]


def _write_json(answer: dict[str, object]) -> None:
    write_out(json.dumps({"schema": SCHEMA, **answer}, indent=2, ensure_ascii=False) + "\n")
