"""`requiem version`: what this program is and which formats it speaks."""

from __future__ import annotations

import json
import platform

import click

from .. import __version__
from ..core.digest import HASH
from ..plugins import ABI_VERSION
from ..store.layout import FORMAT
from .console import write_out


@click.command()
@click.pass_context
def command(context: click.Context) -> None:
    """Print the version, the hash primitive, the store's format and the plug-ins' ABI."""
    facts = {"abi": ABI_VERSION, "cas": FORMAT, "hash": HASH, "python": platform.python_version()}
    if context.obj.json:
        document = {**facts, "requiem": __version__, "schema": "requiem.version/1"}
        write_out(json.dumps(document, indent=2, sort_keys=True) + "\n")
        return
    write_out(f"requiem {__version__}\n" + "".join(f"{name:<8} {value}\n" for name, value in facts.items()))
