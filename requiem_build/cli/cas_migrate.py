"""`requiem cas migrate`: a store of an older format becomes one of this format."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..core.errors import UsageError
from ..engine import site as places
from ..engine.options import Options
from ..engine.settings import load_settings
from ..store.migrate import migrate as migrate_store
from .console import plain, write_err, write_out
from .globals import Globals


@click.command("migrate")
@click.pass_context
def migrate(context: click.Context) -> int:
    """Bring a store of format 1 to this format. Exit 3 if anything in it was damaged; that is kept aside."""
    shared: Globals = context.obj
    root = _store_path(shared)
    done = migrate_store(root, lambda so_far: None if shared.quiet else write_err(f"{so_far.moved} objects\n"))
    damaged = [{"kept": one.kept, "path": one.path, "reason": one.reason} for one in done.aside]
    damaged += [
        {"kept": f"v2/quarantine/{name}", "path": "", "reason": "set aside by an interrupted migration"}
        for name in done.earlier
    ]
    if shared.json:
        answer = {"bytes": done.bytes, "damaged": damaged, "moved": done.moved, "ok": not damaged}
        document = {**answer, "schema": "requiem.cas-migrate/1", "store": str(root)}
        write_out(json.dumps(document, indent=2, sort_keys=True) + "\n")
    else:
        for one in damaged:
            write_out(f"{plain(one['path'] or one['kept'])}  {one['reason']}\n")
        write_err(f"{done.moved} objects, {done.bytes} bytes, are in format 2 now\n")
        if damaged:
            write_err(f"{len(damaged)} damaged, kept in {root}/v2/quarantine\n")
    return 3 if damaged else 0


def _store_path(shared: Globals) -> Path:
    try:
        site = places.find_site(Options(shared.start, shared.environment, manifest=shared.file))
    except UsageError:
        configured = load_settings(shared.environment).store_path
        if configured is None:
            raise
        return Path(configured).expanduser()
    return Path(places.store_path(site))
