"""`requiem keys ...`: whose word counts. The user's own keys, and others' that he trusts."""

from __future__ import annotations

import json
import os

import click

from ..core.errors import EnvironmentFault
from ..engine.trust import keys_of
from ..store.keys import LOCAL, Key, Keys, available, public_pem
from .console import plain, write_bytes, write_err, write_out
from .globals import Globals
from .inspect import read_file

INSTALL = "signatures need the package cryptography: pip install 'requiem-build[sign]'"


@click.group("keys", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List, make, export, trust and revoke keys."""
    if context.invoked_subcommand is None:
        context.invoke(listing)


def _keys(context: click.Context) -> Keys:
    shared: Globals = context.obj
    return keys_of(shared.environment)


def _row(key: Key) -> dict[str, object]:
    return {"id": key.key_id, "kind": "own" if key.own else "trusted", "name": key.name, "revoked": key.revoked}


def _answer(shared: Globals, key: Key, text: str) -> None:
    if shared.json:
        write_out(json.dumps({"key": _row(key), "schema": "requiem.key/1"}, sort_keys=True) + "\n")
    else:
        write_out(text)


@command.command("list")
@click.pass_context
def listing(context: click.Context) -> None:
    """List every key: name, kind and id (the SHA-256 of its public half)."""
    shared: Globals = context.obj
    keys = _keys(context)
    if not available():
        raise EnvironmentFault("signing is off here", facts=[("why", INSTALL)], hint=INSTALL.partition(": ")[2])
    found = keys.all()
    if shared.json:
        document = {"directory": keys.directory, "keys": [_row(key) for key in found], "schema": "requiem.keys/1"}
        write_out(json.dumps(document, sort_keys=True, indent=2) + "\n")
        return
    for key in found:
        kind = "revoked" if key.revoked else "own" if key.own else "trusted"
        write_out(f"{key.name:<16} {kind:<8} {key.key_id}\n")
    if not found:
        write_err("no keys yet: requiem keys new\n")


@command.command("new")
@click.argument("name", default=LOCAL)
@click.pass_context
def new(context: click.Context, name: str) -> None:
    """Make a key of your own; the private half never leaves its file."""
    keys = _keys(context)
    key = keys.new(name)
    _answer(context.obj, key, f"{key.key_id}\n")
    write_err(f'key "{plain(name)}" is in {keys.directory}/own/{plain(name)}.pem\n')


@command.command("export")
@click.argument("name", default=LOCAL)
@click.option("-o", "--output", "output", help="A file instead of stdout.")
@click.pass_context
def export(context: click.Context, name: str, output: str | None) -> None:
    """Write a key's public half (PEM), for others to trust."""
    keys = _keys(context)
    pem = public_pem(keys.signer() if name == LOCAL else keys.named(name))
    if output is None:
        write_bytes(pem)
        return
    try:
        with open(os.path.join(context.obj.start, output), "wb") as file:
            file.write(pem)
    except OSError as error:
        raise EnvironmentFault(f'cannot write "{output}"', facts=[("cause", error.strerror or str(error))]) from error


@command.command("trust")
@click.argument("name")
@click.argument("file")
@click.pass_context
def trust(context: click.Context, name: str, file: str) -> None:
    """Take a public key in under a name (a PEM file, or - for stdin)."""
    key = _keys(context).trust(name, read_file(context.obj, file))
    _answer(context.obj, key, f"{key.key_id}\n")
    write_err(f'records count once your configuration says [trust] accept = ["{plain(name)}"]\n')


@command.command("revoke")
@click.argument("name")
@click.pass_context
def revoke(context: click.Context, name: str) -> None:
    """End a key, by name or id: nothing that it ever signed counts any more."""
    keys = _keys(context)
    key_id = keys.revoke(name)
    shared: Globals = context.obj
    document = {"revoked": key_id, "schema": "requiem.key-revoked/1"}
    write_out(json.dumps(document, sort_keys=True) + "\n" if shared.json else f"{key_id}\n")
