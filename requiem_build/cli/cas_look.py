"""`requiem cas ls|stats`: what the store holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from ..core.errors import UsageError
from ..store.inventory import holders, items
from ..store.layout import Store
from ..store.usage import Usage, quarantined, row_of, usage
from .cas_store import open_store, readable, size_max
from .console import plain, write_out
from .globals import Globals

KINDS = ("objects", "records", "paths", "divergences", "runs", "quarantine")
SORTS = ("name", "size", "used")


@click.command("ls")
@click.argument("prefix", default="")
@click.option("--kind", "kind", default="objects", show_default=True, help=f"{', '.join(KINDS)} or all.")
@click.option("--sort", "sort", default="name", show_default=True, help="name, size (largest first) or used (latest).")
@click.pass_context
def ls(context: click.Context, prefix: str, kind: str, sort: str) -> None:
    """List what the store holds, objects unless told otherwise: name, bytes, last use."""
    shared: Globals = context.obj
    if kind not in (*KINDS, "all"):
        raise UsageError(f"--kind is {kind!r}, which is none of {', '.join(KINDS)}, all")
    if sort not in SORTS:
        raise UsageError(f"--sort is {sort!r}, which is none of {', '.join(SORTS)}")
    store = open_store(shared, read_only=True)
    rows = [row for row in _rows(store, kind) if str(row["name"]).startswith(prefix)]
    if sort != "name":
        rows.sort(key=lambda row: -row[sort])
    if shared.json:
        write_out(json.dumps({"entries": rows, "schema": "requiem.cas-ls/1"}, indent=2, sort_keys=True) + "\n")
        return
    for row in rows:
        label = row["kind"] if kind == "all" else row.get("encoding", "")
        write_out(f"{plain(row['name'])} {row['size']:>12} {_moment(row['used'])} {label}".rstrip() + "\n")


def _rows(store: Store, kind: str) -> Iterator[dict[str, Any]]:
    if kind in ("objects", "all"):
        used = {digest: held.used for digest, held in holders(store).items()}
        for digest, meta in store.objects.ls():
            yield {
                "encoding": meta.encoding,
                "kind": "objects",
                "name": digest,
                "size": meta.original_size,
                "stored_size": meta.stored_size,
                "used": round(used.get(digest, 0)),
            }
    if kind not in ("objects", "quarantine"):
        yield from (row for row in map(row_of, items(store, set())) if kind in ("all", row["kind"]))
    if kind in ("quarantine", "all"):
        yield from quarantined(store)


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(seconds))


@click.command("stats")
@click.pass_context
def stats(context: click.Context) -> None:
    """Count what the store holds, how well it is packed, and how often it had the answer."""
    shared: Globals = context.obj
    store = open_store(shared, read_only=True)
    found = usage(store)
    bound = size_max(shared)
    if shared.json:
        write_out(json.dumps(_document(store, found, bound), indent=2, sort_keys=True) + "\n")
        return
    write_out("".join(f"{line}\n" for line in _lines(store, found, bound)))


def _document(store: Store, found: Usage, bound: int) -> dict[str, object]:
    return {
        "compressed": found.compressed,
        "compression_ratio": found.compression_ratio,
        "days": {day: {**asdict(one), "hit_rate": one.hit_rate} for day, one in sorted(found.days.items())},
        "dedup_ratio": found.dedup_ratio,
        "kinds": {kind: asdict(count) for kind, count in found.kinds.items()},
        "original_bytes": found.original_bytes,
        "schema": "requiem.cas-stats/1",
        "size": found.size,
        "size_max": bound,
        "store": str(store.root),
        "stored_bytes": found.stored_bytes,
        "tenants": {name: asdict(count) for name, count in found.tenants.items()},
    }


def _lines(store: Store, found: Usage, bound: int) -> Iterator[str]:
    yield f"{'store':<14} {plain(str(store.root))}"
    yield f"{'size':<14} {readable(found.size)} of {readable(bound)}"
    for kind, count in found.kinds.items():
        yield f"{kind:<14} {count.count:>9}  {readable(count.bytes):>10}"
    if found.dedup_ratio is not None:
        yield f"{'deduplicated':<14} {found.dedup_ratio:>9.2f}x"
    if found.compression_ratio is not None:
        yield f"{'compressed':<14} {found.compression_ratio:>9.2f}x  {found.compressed} objects"
    for name, day in sorted(found.days.items())[-7:]:
        rate = "" if day.hit_rate is None else f", {day.hit_rate:.0%} hits"
        yield f"{name:<14} {day.runs:>9} runs: {day.fresh} fresh, {day.hit} hit, {day.ran} ran{rate}"
