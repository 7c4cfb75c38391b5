"""The doors to exact bytes: `show`, `digest`, `canonical`, `schema`, and `log` for a person."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import canonical as canonical_json
from ..core.digest import EMPTY, Digest, Domain, is_digest, object_digest
from ..core.digest import digest as digest_of
from ..core.errors import EnvironmentFault, UnknownName, UsageError
from ..core.request import parse_request
from ..core.result import make_trace
from ..engine.history import find_kept, finished_in, kept_in, request_of, runs_of
from ..engine.options import Options
from ..engine.site import find_site
from ..store.layout import Store
from ..store.records import Kept
from .cas_store import open_view
from .console import plain, stdin_pieces, words, write_bytes, write_err, write_out
from .globals import Globals
from .places import users_own

if TYPE_CHECKING:
    from ..store.seals import Seen

SCHEMAS = (
    *("manifest", "request", "result", "record", "meta", "event", "report", "replay", "reproduce", "version"),
    *("list", "why", "view", "system", "policy", "observe", "tighten", "add"),
    *("cas-gc", "cas-ls", "cas-migrate", "cas-stats", "cas-verify"),
    *("init", "clean", "error", "log", "doctor", "schemas", "ratchet"),
    *("envelope", "bundle", "keys", "key", "key-revoked", "signatures", "attest-verify"),
    *("pack", "unpack", "replay-bundle"),
)
KINDS = ("request", "result", "record", "trace", "signatures")


def read_file(shared: Globals, name: str) -> bytes:
    """A file named on the command line, `-` for stdin."""
    if name == "-":
        return b"".join(stdin_pieces())
    path = os.path.join(shared.start, name)
    try:
        if not os.path.isfile(path):
            raise UsageError(f'no file "{name}"' if not os.path.exists(path) else f'"{name}" is not a file')
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise EnvironmentFault(f'cannot read "{name}"', facts=[("cause", error.strerror or str(error))]) from error


@click.command("canonical")
@click.argument("file")
@click.pass_context
def canonical(context: click.Context, file: str) -> None:
    """Write a JSON file's one canonical spelling (RFC 8785), exactly."""
    write_bytes(canonical_json.encode(canonical_json.parse(read_file(context.obj, file))))


@click.command("digest")
@click.argument("kind")
@click.argument("file")
@click.pass_context
def digest(context: click.Context, kind: str, file: str) -> None:
    """Print the digest of a request's or a result's JSON, or of a file's bytes (object)."""
    content = read_file(context.obj, file)
    if kind == "object":
        found = object_digest(content)
    elif kind == "request":
        found = parse_request(content).digest
    elif kind == "result":
        found = digest_of(Domain.RESULT, canonical_json.encode(canonical_json.parse(content)))
    else:
        raise UsageError(f'"{kind}" is none of request, result and object')
    shared: Globals = context.obj
    write_out(json.dumps({"digest": found, "kind": kind}) + "\n" if shared.json else f"{found}\n")


@click.command("schema")
@click.argument("name", required=False)
@click.pass_context
def schema(context: click.Context, name: str | None) -> None:
    """Print one of the JSON Schemas of Requiem's formats; without a name, list them."""
    if name is None:
        shown = json.dumps({"schema": "requiem.schemas/1", "schemas": SCHEMAS}) + "\n"
        write_out(shown if context.obj.json else "".join(f"{each}\n" for each in SCHEMAS))
        return
    if name not in SCHEMAS:
        raise UnknownName(f'no schema "{name}"', hint="known: " + ", ".join(SCHEMAS))
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "schemas", package.parent / "schemas"):
        path = folder / f"{name}.schema.json"
        if path.is_file():
            write_bytes(path.read_bytes())
            return
    raise EnvironmentFault(f'the schema "{name}" is not installed', hint="reinstall requiem-build")


@click.command("show")
@click.argument("kind")
@click.argument("what")
@click.pass_context
def show(context: click.Context, kind: str, what: str) -> None:
    """Write the exact canonical bytes of a request, result, record or trace, or what its signatures are worth."""
    if kind not in KINDS:
        raise UsageError(f'"{kind}" is none of {", ".join(KINDS)}')
    store = open_view(context.obj)
    kept = _find(context.obj, store, what)
    match kind:
        case "request":
            write_bytes(kept.request)
        case "result":
            write_bytes(kept.result.encoded)
        case "record":
            write_bytes(kept.record.encoded)
            _tell_signatures(context.obj, kept)
        case "signatures":
            seen = _signatures(context.obj, kept)
            rows = [{"key": each.key_id, "name": each.name, "state": each.state} for each in seen]
            document = {"request_digest": kept.record.request_digest, "schema": "requiem.signatures/1"}
            write_out(json.dumps({**document, "signatures": rows}, sort_keys=True, indent=2) + "\n")
        case _:
            request = parse_request(kept.request)
            result = kept.result
            write_bytes(make_trace(request, result.exit_code, result.termination, result.outputs))


def _signatures(shared: Globals, kept: Kept) -> list[Seen]:
    from ..engine.trust import keys_of
    from ..store.keys import Verifier
    from ..store.seals import describe

    return describe(kept.record, Verifier(keys_of(shared.environment).all())) if kept.record.signatures else []


def _tell_signatures(shared: Globals, kept: Kept) -> None:
    """On stderr, beside the exact bytes on stdout. A host that cannot check says so and shows them all the same."""
    if not kept.record.signatures:
        return
    try:
        for each in _signatures(shared, kept):
            whose = f"{plain(each.name)} ({each.key_id[:16]})" if each.name else plain(each.key_id[:16]) or "nobody"
            write_err(f"\nsigned by {whose}: {each.state}")
        write_err("\n")
    except EnvironmentFault as fault:
        write_err(f"\nsignatures not checked: {fault.what}\n")


def _find(shared: Globals, store: Store, what: str) -> Kept:
    if is_digest(what):
        kept = find_kept(store, Digest(what))
        if kept is None:
            raise UnknownName(f"no record of {what} in the store", facts=[("store", str(store.root))])
        return kept
    event = _last_event(shared, store, what)
    kept = kept_in(event) if event["state"] == "failed" else None  # Also where the request had succeeded before.
    if kept is None and event["request_digest"]:
        kept = store.records.find(Digest(event["request_digest"])) or kept_in(event)
    if kept is None:
        raise UnknownName(
            f'step "{what}" has no remembered result',
            hint=f"how it ended: requiem log {shlex.quote(what)}",
        )
    return kept


def _last_event(shared: Globals, store: Store, step: str) -> dict[str, Any]:
    """The newest journal line about a step in this workspace."""
    import difflib

    names: set[str] = set()
    for event in _events(shared, store):
        if event["name"] == step:
            return event
        names.add(event["name"])
    instances = sorted(name for name in names if name.startswith(f"{step}:"))
    near = instances[:1] or difflib.get_close_matches(step, sorted(names), 1)
    raise UnknownName(
        f'no run of this workspace has a step "{step}"',
        facts=[("instances", ", ".join(instances[:10]))] if instances else [],
        hint=f'did you mean "{near[0]}"?' if near else None,
    )


def _events(shared: Globals, store: Store) -> Iterator[dict[str, Any]]:
    """Finished steps of this workspace's runs, newest run first."""
    site = find_site(Options(shared.start, shared.environment, manifest=shared.file))
    for run in runs_of(store, site.workspace_id):
        yield from finished_in(store, run)


@click.command("log")
@click.argument("step")
@click.pass_context
def log(context: click.Context, step: str) -> None:
    """Print what a step wrote when it was last run here."""
    shared: Globals = context.obj
    store = open_view(shared)
    event = _last_event(shared, store, step)
    streams = {name: _stream(store, event, name) for name in ("stdout", "stderr")}
    if shared.json:
        answer = {
            "name": step,
            "schema": "requiem.log/1",
            "state": event["state"],
            **{name: content.decode("utf-8", "backslashreplace") for name, content in streams.items()},
        }
        write_out(json.dumps(answer, sort_keys=True, ensure_ascii=False) + "\n")
        return
    own = _turner(shared, store, event)
    reason = own(event["failure"]) if event["failure"] else event["reason"] or "no reason was noted"
    write_err(f"{plain(step)}: {event['state']}, {plain(reason)}\n")
    for content in streams.values():
        if content:
            write_out(plain(own(words(content))) + "\n")


def _turner(shared: Globals, store: Store, event: dict[str, Any]) -> Callable[[str], str]:
    """Turns the paths of a step's words into the user's, if it saw the workspace at another place."""
    request = event.get("request") or request_of(store, event["request_digest"])
    policy = request.get("policy") if isinstance(request, dict) else None
    if isinstance(policy, dict) and policy.get("sandbox") != "strict":
        return lambda text: text
    root = find_site(Options(shared.start, shared.environment, manifest=shared.file)).root
    return lambda text: users_own(text, root)


def _stream(store: Store, event: dict[str, Any], name: str) -> bytes:
    digest_text = event.get(f"{name}_digest")
    if digest_text is None and event.get("request_digest"):
        kept = store.records.find(Digest(event["request_digest"]))
        digest_text = getattr(kept.result, name).digest if kept else None
    return store.objects.get(Digest(digest_text)) if digest_text and digest_text != EMPTY else b""
