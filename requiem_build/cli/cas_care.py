"""`requiem cas gc|verify`: keeps the store small, and finds out whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..core.errors import UsageError
from ..core.kinds import duration_ms, size_bytes
from ..engine.site import processors
from ..store import gc as collector
from ..store.audit import Audit, Progress, audit
from ..store.inventory import about_how_many
from ..store.layout import Store
from .cas_store import answer, open_store, readable, size_max
from .console import is_live, plain, progress_bar, write_err, write_out
from .globals import Globals


@click.command("gc")
@click.option("--max-size", "max_size", help="Keep at most this much, such as 5GiB (default: [store] max_size).")
@click.option("--max-age", "max_age", help="Drop what was not used for so long, such as 720h.")
@click.option("--dry-run", "-n", "dry_run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--no-wait", "no_wait", is_flag=True, help="Exit with 5 if another process collects in this store.")
@click.pass_context
def gc(context: click.Context, max_size: str | None, max_age: str | None, dry_run: bool, no_wait: bool) -> None:
    """Drop what was used least recently, until the store is within its size. What running builds need stays."""
    shared: Globals = context.obj
    bounds = collector.Bounds(
        size_max(shared) if max_size is None else _size(max_size), None if max_age is None else _age_s(max_age)
    )
    store = open_store(shared, read_only=dry_run)
    if dry_run:
        done = collector.collect(store, bounds, dry_run=True)
    else:
        with collector.alone(store, wait=not no_wait, notice=lambda text: write_err(f"{text}\n")):
            done = collector.collect(store, bounds)
    items = {"divergences": done.items["divergence"], "paths": done.items["paths"]}
    items |= {"records": done.items["record"], "runs": done.items["run"], "packs": done.packs, "objects": done.objects}
    document = {
        "dry_run": dry_run,
        "freed_bytes": done.freed,
        "kept_bytes": done.kept,
        "pinned_bytes": done.pinned,
        "removed": {**items, "quarantine": done.quarantined},
        "repacked": done.repacked,
        "schema": "requiem.cas-gc/1",
        "size_max": bounds.size_max,
    }
    verb = "would free" if dry_run else "freed"
    counted = ", ".join(f"{count} {name}" for name, count in items.items() if count) or "nothing"
    text = f"{verb} {readable(done.freed)} ({counted}); {readable(done.kept)} stay\n"
    if done.repacked:
        text += f"{done.repacked} packs {'would be' if dry_run else 'were'} written anew without what nobody needs\n"
    if done.pinned:
        text += f"{readable(done.pinned)} stay only because a running build may need them\n"
    answer(shared, document, text)


def _size(text: str) -> int:
    found = int(text) if text.isdigit() and len(text) < 16 else size_bytes(text)
    if found is None:
        raise UsageError(f"--max-size is {text!r}, not a size", hint="write 512MiB, 10GiB or a number of bytes")
    return found


def _age_s(text: str) -> float:
    found = 0 if text == "0" else duration_ms(text)
    if found is None:
        raise UsageError(f"--max-age is {text!r}, not a duration", hint="write 720h, 90m or 0")
    return found / 1000


@click.command("verify")
@click.option(
    "--repair", "repair", is_flag=True, help="Set aside what is damaged, so that the next build makes it anew."
)
@click.option("-j", "--jobs", "jobs", type=click.IntRange(1, 256), help="Processes (default: the CPUs).")
@click.pass_context
def verify(context: click.Context, repair: bool, jobs: int | None) -> int:
    """Read everything in the store and name exactly what is damaged. Exit 3 if anything is."""
    shared: Globals = context.obj
    store = open_store(shared, read_only=not repair)
    workers = jobs or processors()
    with _progress(shared, store) as progress:
        found = audit(store, workers=workers, progress=progress, repair=repair)
    if shared.json:
        write_out(json.dumps(_document(found), indent=2, sort_keys=True) + "\n")
    else:
        _say(found)
    return 0 if found.ok else 3


def _document(found: Audit) -> dict[str, object]:
    return {
        "bytes": found.bytes,
        "damaged": [{"digest": one.digest, "path": one.path, "reason": one.reason} for one in found.damaged],
        "objects": found.objects,
        "ok": found.ok,
        "repaired": found.repaired,
        "schema": "requiem.cas-verify/1",
        "unanswerable": found.unanswerable,
    }


def _say(found: Audit) -> None:
    for one in found.damaged:
        write_out(f"{one.digest or plain(one.path)}  {plain(one.reason)}\n")
    if found.damaged:
        write_err(f"{len(found.damaged)} damaged" + (", now in quarantine\n" if found.repaired else "\n"))
        if not found.repaired:
            write_err("hint: requiem cas verify --repair sets them aside; the next build makes them again\n")
    else:
        write_err(f"{found.objects} objects, {readable(found.bytes)}: everything is what its name says\n")
    if found.unanswerable:
        done = "removed" if found.repaired else "they cost a run, no more"
        write_err(f"{len(found.unanswerable)} records lack objects: {done}\n")


@contextmanager
def _progress(shared: Globals, store: Store) -> Iterator[Progress]:
    """A live line, where somebody looks at one."""
    if shared.quiet or not is_live(shared.environment):
        yield lambda *_: None
        return
    with progress_bar("verifying", about_how_many(store)) as show:
        yield lambda objects, size: show(objects, f"{objects} objects, {readable(size)}")
