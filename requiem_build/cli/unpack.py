"""`requiem unpack FILE` and `requiem replay FILE`: what another machine packed, filed into a store or only checked."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from ..core.errors import EnvironmentFault, IntegrityError, UsageError
from ..engine.scratch import Scratch
from ..engine.sealed import cache_home
from ..engine.settings import load_settings
from ..engine.site import BESIDE
from ..engine.trust import Trust, keys_of, load_trust
from ..engine.unpacking import replay_bundle, unpack
from ..store.keys import Verifier, available
from ..store.layout import Store
from .cas_store import open_store
from .console import plain, stdin_pieces, write_err, write_out
from .globals import Globals


@contextmanager
def opened(shared: Globals, name: str) -> Iterator[BinaryIO]:
    """A bundle named on the command line, `-` for stdin."""
    if name == "-":
        with tempfile.TemporaryFile() as file:
            file.writelines(stdin_pieces())
            file.seek(0)
            yield file
        return
    path = os.path.join(shared.start, name)
    if not os.path.isfile(path):
        raise UsageError(f'no file "{name}"' if not os.path.exists(path) else f'"{name}" is not a file')
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise EnvironmentFault(f'cannot read "{name}"', facts=[("cause", error.strerror or str(error))]) from error


def known_keys(shared: Globals) -> Verifier:
    """All keys of this user; where signatures cannot be checked, none: then nothing counts as signed."""
    return Verifier(keys_of(shared.environment).all() if available() else [])


@click.command("unpack")
@click.argument("file")
@click.pass_context
def command(context: click.Context, file: str) -> None:
    """File a bundle's objects and records into the store (exit 3 if a byte of it is damaged)."""
    shared: Globals = context.obj
    with opened(shared, file) as bundle:
        done = unpack(bundle, open_store(shared, read_only=False), known_keys(shared))
    if shared.json:
        answer = {
            "objects": done.objects,
            "records": done.records,
            "run": done.contents.run,
            "schema": "requiem.unpack/1",
            "signed_by": list(done.signers),
            "untrusted_records": done.untrusted,
        }
        write_out(json.dumps(answer, sort_keys=True) + "\n")
        return
    by = f", packed by {', '.join(map(plain, done.signers))}" if done.signers else ""
    unsigned = f" ({done.untrusted} signed by nobody you know)" if done.untrusted else ""
    write_err(f"unpacked run {done.contents.run}: {done.objects} objects, {done.records} records{unsigned}{by}\n")


def is_bundle(shared: Globals, name: str) -> bool:
    """Whether a word on the command line is a file, and so not the id of a run."""
    return name == "-" or os.path.isfile(os.path.join(shared.start, name))


def replay_file(shared: Globals, name: str) -> int:
    """Checks a bundle in a store of its own, which is removed again, and says what was found."""
    trust = _trust(shared)
    scratch = Scratch(os.path.join(cache_home(shared.environment), BESIDE))
    try:
        with opened(shared, name) as bundle:
            policy = trust.policy if trust is not None else None
            found = replay_bundle(bundle, Store(Path(scratch.path)), known_keys(shared), policy)
    finally:
        scratch.close()
    done = found.unpacked
    if shared.json:
        answer = {
            "objects": done.objects,
            "ok": not found.problems,
            "problems": [{"what": what, "where": where} for where, what in found.problems],
            "records": done.records,
            "run": done.contents.run,
            "schema": "requiem.replay-bundle/1",
            "signed_by": list(done.signers),
            "steps": found.steps,
        }
        write_out(json.dumps(answer, sort_keys=True, indent=2) + "\n")
        return IntegrityError.exit_code if found.problems else 0
    if found.problems:
        raise IntegrityError(
            f"the bundle does not hold: {plain(found.problems[0][1])}",
            facts=[(plain(where), plain(what)) for where, what in found.problems],
        )
    nobody = "signed by nobody you know" if done.envelope.signatures else "not signed"
    by = f"packed by {', '.join(map(plain, done.signers))}" if done.signers else nobody
    write_err(f"run {done.contents.run} holds: {found.steps} steps, {done.objects} objects; {by}\n")
    return 0


def _trust(shared: Globals) -> Trust | None:
    """The user's policy; a bundle is checked wherever he is, so no workspace tightens it."""
    return load_trust(load_settings(shared.environment).trust, None, shared.environment)
