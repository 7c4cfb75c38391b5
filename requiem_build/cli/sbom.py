"""`requiem sbom`: what a target is made of, for those who keep lists."""

from __future__ import annotations

import json

import click

from ..engine.lineage import trace_back
from ..engine.options import Options
from ..engine.sbom import bill
from .console import write_bytes
from .globals import Globals
from .output import write_file
from .running import parse_sets


@click.command("sbom")
@click.argument("targets", nargs=-1)
@click.option("-o", "--output", "output", help="A file instead of stdout.")
@click.option("--profile", "profile", help="As it was built: [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="As it was built: NAME=VALUE.")
@click.pass_context
def command(
    context: click.Context, targets: tuple[str, ...], output: str | None, profile: str | None, set_: tuple[str, ...]
) -> None:
    """Write a bill of materials (CycloneDX JSON) of what was built: inputs, tools, roots and products."""
    shared: Globals = context.obj
    options = Options(
        shared.start,
        shared.environment,
        manifest=shared.file,
        targets=targets,
        profile=profile,
        sets=parse_sets(set_),
    )
    content = (json.dumps(bill(trace_back(options)), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    if output is None:
        write_bytes(content)
    else:
        write_file(shared, output, content)
