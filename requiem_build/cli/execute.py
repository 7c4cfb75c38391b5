"""`requiem exec`: the engine's own door."""

from __future__ import annotations

import click

from ..core.request import parse_request
from ..engine.execute import execute
from ..engine.options import Options
from ..engine.site import find_site, open_store, prepare_dot
from .console import plain, write_bytes, write_err
from .globals import Globals
from .inspect import read_file
from .running import heeding_signals


@click.command()
@click.argument("file")
@click.pass_context
def command(context: click.Context, file: str) -> int:
    """Run one request (JSON) whose objects are in the store, and print its result (JSON)."""
    shared: Globals = context.obj
    request = parse_request(read_file(shared, file))
    site = find_site(Options(shared.start, shared.environment, manifest=shared.file))
    prepare_dot(site.dot)
    store = open_store(site)
    with heeding_signals() as heed, store.lease():
        ran = execute(request, site, store, shared.environment, heed)
    write_bytes(ran.result.encoded + b"\n")
    if ran.failure:
        write_err(f"error: the step failed: {plain(ran.failure)}\n")
    return 1 if ran.failure else 0
