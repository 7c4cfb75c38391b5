"""`requiem cas put|get|path`: bytes in and out of the store by their digest."""

from __future__ import annotations

import os
import tempfile

import click

from ..core.digest import Digest
from ..core.errors import EnvironmentFault, UnknownName, UsageError
from ..store.layout import Store
from .cas_store import answer, open_store, resolve
from .console import stdin_pieces, write_bytes
from .globals import Globals


@click.command("put")
@click.argument("file")
@click.pass_context
def put(context: click.Context, file: str) -> None:
    """Put a file (or - for stdin) into the store and print its digest."""
    store = open_store(context.obj, read_only=False)
    with store.lease():
        digest = _put(context.obj, store, file)
        store.sync()
    answer(context.obj, {"digest": digest}, f"{digest}\n")


def _put(shared: Globals, store: Store, file: str) -> Digest:
    if file == "-":
        content = b"".join(stdin_pieces())
        digest = store.objects.put(content)
        if not store.objects.is_good(digest):  # One of its name and size lay there, with other bytes.
            store.objects.put(content)
    else:
        path = os.path.join(shared.start, file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnknownName(f'no file "{file}"') from None
        try:
            if not os.path.isfile(path):
                raise UsageError(f'"{file}" is not a file')
            digest, _ = store.objects.put_file(descriptor)
            if not store.objects.is_good(digest):
                store.objects.put_file(descriptor)
        finally:
            os.close(descriptor)
    return digest


@click.command("get")
@click.argument("digest")
@click.option("-o", "--output", "output")
@click.pass_context
def get(context: click.Context, digest: str, output: str | None) -> None:
    """Write exactly an object's bytes, verified, to stdout or to a file."""
    store = open_store(context.obj, read_only=True)
    name = resolve(store, digest)
    if output is None:
        with tempfile.TemporaryFile() as file:  # Nothing is written out before all of it is verified.
            store.objects.copy_to(name, file.fileno())
            file.seek(0)
            while piece := file.read(1 << 20):
                write_bytes(piece)
        return
    path = os.path.join(context.obj.start, output)
    temporary = f"{path}.{os.getpid()}.part"
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            store.objects.copy_to(name, descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f'cannot write "{output}"', facts=[("cause", error.strerror or str(error))]) from error


@click.command("path")
@click.argument("digest")
@click.pass_context
def path(context: click.Context, digest: str) -> None:
    """Print the path of an object's plain bytes in the store."""
    store = open_store(context.obj, read_only=False)
    found = store.objects.file(resolve(store, digest))
    answer(context.obj, {"digest": digest, "path": found}, f"{found}\n")
