"""`requiem cas ...`: the store from the outside."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from ..core.digest import Digest, parse_digest
from ..core.errors import EnvironmentFault, UnknownName, UsageError
from ..engine import site as places
from ..engine.options import Options
from ..store.layout import Store
from .cas_migrate import migrate
from .console import write_bytes, write_err, write_out
from .globals import Globals


@click.group("cas", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Look into the store and check it."""
    if context.invoked_subcommand is None:
        write_out(context.get_help() + "\n")


def open_store(shared: Globals, *, read_only: bool) -> Store:
    """The store of the workspace around us, or the one that the user's configuration names."""
    from ..engine.settings import load_settings

    try:
        site = places.find_site(Options(shared.start, shared.environment, manifest=shared.file))
    except UsageError:
        configured = load_settings(shared.environment).store_path
        if configured is None:
            raise
        return Store(Path(configured).expanduser(), read_only=read_only)
    return places.open_store(site, read_only=read_only)


def resolve(store: Store, text: str) -> Digest:
    digest = parse_digest(text)
    if not store.objects.has(digest):
        raise UnknownName(f"no object {digest} in the store", facts=[("store", str(store.root))])
    return digest


@command.command("put")
@click.argument("file")
@click.pass_context
def put(context: click.Context, file: str) -> None:
    """Put a file (or - for stdin) into the store and print its digest."""
    store = open_store(context.obj, read_only=False)
    if file == "-":
        digest = store.objects.put(sys.stdin.buffer.read())
    else:
        path = os.path.join(context.obj.start, file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnknownName(f'no file "{file}"') from None
        try:
            if not os.path.isfile(path):
                raise UsageError(f'"{file}" is not a file')
            digest, _ = store.objects.put_file(descriptor)
        finally:
            os.close(descriptor)
    _answer(context.obj, {"digest": digest}, f"{digest}\n")


@command.command("get")
@click.argument("digest")
@click.option("-o", "--output", "output")
@click.pass_context
def get(context: click.Context, digest: str, output: str | None) -> None:
    """Write exactly an object's bytes, verified, to stdout or to a file."""
    store = open_store(context.obj, read_only=True)
    name = resolve(store, digest)
    if output is None:
        with open(store.objects.file(name), "rb") as file:
            while piece := file.read(1 << 20):
                write_bytes(piece)
        return
    path = os.path.join(context.obj.start, output)
    temporary = f"{path}.{os.getpid()}.part"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            store.objects.copy_to(name, descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f'cannot write "{output}"', facts=[("cause", error.strerror or str(error))]) from error


@command.command("path")
@click.argument("digest")
@click.pass_context
def path(context: click.Context, digest: str) -> None:
    """Print the path of an object's plain bytes in the store."""
    store = open_store(context.obj, read_only=False)
    found = store.objects.file(resolve(store, digest))
    _answer(context.obj, {"digest": digest, "path": found}, f"{found}\n")


@command.command("ls")
@click.pass_context
def ls(context: click.Context) -> None:
    """List every object: digest, size in bytes, encoding."""
    store = open_store(context.obj, read_only=True)
    rows = [(digest, meta.original_size, meta.encoding) for digest, meta in store.objects.ls()]
    if context.obj.json:
        objects = [{"digest": d, "encoding": e, "original_size": s} for d, s, e in rows]
        write_out(json.dumps({"objects": objects, "schema": "requiem.cas-ls/1"}, indent=2) + "\n")
    else:
        write_out("".join(f"{digest} {size:>12} {encoding}\n" for digest, size, encoding in rows))


@command.command("stats")
@click.pass_context
def stats(context: click.Context) -> None:
    """Count what the store holds."""
    store = open_store(context.obj, read_only=True)
    contents = asdict(store.stats())
    found = {**contents.pop("objects"), **contents}
    shown = "".join(f"{name.replace('_', ' '):<16} {value}\n" for name, value in found.items())
    _answer(context.obj, {"schema": "requiem.cas-stats/1", "store": str(store.root), **found}, shown)


@command.command("verify")
@click.pass_context
def verify(context: click.Context) -> int:
    """Check every object against its name. Exit 3 if any is damaged."""
    store = open_store(context.obj, read_only=True)
    problems = [
        {"digest": problem.digest, "path": problem.path, "reason": problem.reason} for problem in store.objects.verify()
    ]
    if context.obj.json:
        answer = {"damaged": problems, "ok": not problems, "schema": "requiem.cas-verify/1"}
        write_out(json.dumps(answer, indent=2, sort_keys=True) + "\n")
    else:
        for problem in problems:
            write_out(f"{problem['digest'] or problem['path']}  {problem['reason']}\n")
        write_err(f"{len(problems)} damaged\n" if problems else "every object is what its name says\n")
    return 3 if problems else 0


def _later(name: str) -> None:
    from ..core.errors import NotBuiltYet

    raise NotBuiltYet(f'the command "cas {name}"')


@command.command("gc", hidden=True)
def gc() -> None:
    _later("gc")


command.add_command(migrate)


def _answer(shared: Globals, document: dict[str, object], text: str) -> None:
    write_out(json.dumps(document, sort_keys=True) + "\n" if shared.json else text)
