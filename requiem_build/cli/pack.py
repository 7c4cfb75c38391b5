"""`requiem pack`: a run as one file, for another machine to check and to build from."""

from __future__ import annotations

import json

import click

from ..core.errors import UnknownName, UsageError
from ..engine.options import Options
from ..engine.packing import Gatherer, write_bundle
from ..engine.site import find_site, trust_of
from ..engine.trust import keys_of
from ..engine.workspace import Files
from ..store.layout import Store
from .cas_store import open_working
from .console import plain, write_err, write_out
from .globals import Globals
from .output import new_file


@click.command("pack")
@click.argument("run", default="latest")
@click.option("-o", "--output", "output", required=True, help="The file to write.")
@click.option("--key", "key", help="The key that signs the bundle (default: that of [trust] sign, or none).")
@click.pass_context
def command(context: click.Context, run: str, output: str, key: str | None) -> None:
    """Write a run into one file: objects, records, signatures, journal and manifest."""
    shared: Globals = context.obj
    store = open_working(shared)
    run_id, signer = run, None
    gatherer = Gatherer(store)
    try:
        site = find_site(Options(shared.start, shared.environment, manifest=shared.file))
    except UsageError:
        if run == "latest":
            raise
    else:
        gatherer = Gatherer(store, Files(site.root).read)
        trust = trust_of(site, Options(shared.start, shared.environment, manifest=shared.file))
        signer = trust.key if trust is not None else None
        if run == "latest":
            run_id = _latest(store, site.workspace_id)
    if key is not None:
        signer = keys_of(shared.environment).signer(key)
    found = gatherer.gather(run_id)
    with new_file(shared, output) as file:
        contents = write_bundle(store, found, signer, file)
    for name in found.unrecorded:
        write_err(f"warning: {plain(name)} runs each time: the bundle has only its line in the journal\n")
    answer = {
        "file": output,
        "members": len(contents.members),
        "records": len(found.records),
        "run": run_id,
        "schema": "requiem.pack/1",
        "signed_by": signer.name if signer is not None else None,
    }
    if shared.json:
        write_out(json.dumps(answer, sort_keys=True) + "\n")
    else:
        by = f", signed by {plain(signer.name)}" if signer is not None else ""
        write_err(f"packed run {run_id}: {len(found.sizes)} objects, {len(found.records)} records{by}\n")


def _latest(store: Store, workspace_id: str) -> str:
    latest = store.runs.latest(workspace_id)
    if latest is None:
        raise UnknownName("no run of this workspace in the store", facts=[("store", str(store.root))])
    return latest.run
