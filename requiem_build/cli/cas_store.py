"""Which store a `cas` command means, and how it answers."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.digest import Digest, parse_digest
from ..core.errors import UnknownName, UsageError
from ..engine import site as places
from ..engine.options import Options
from ..engine.settings import load_settings
from ..store.growth import SIZE_MAX
from ..store.layout import Store
from .console import write_out
from .globals import Globals


def open_store(shared: Globals, *, read_only: bool) -> Store:
    """The store of the workspace around us, or the one that the user's configuration names."""
    configured = load_settings(shared.environment).store_path
    site = _site(shared, needed=configured is None)
    if site is not None:
        return places.open_store(site, read_only=read_only)
    assert configured is not None
    return Store(Path(configured).expanduser(), read_only=read_only)


def open_view(shared: Globals) -> Store:
    """As `open_store` for reading only, with what the workspace's builds made while it could not be written."""
    site = _site(shared)
    return open_store(shared, read_only=True) if site is None else places.open_view(site)


def open_working(shared: Globals) -> Store:
    """As `open_view`, for those who may have to write."""
    site = _site(shared)
    return open_store(shared, read_only=False) if site is None else places.working_store(site)


def _site(shared: Globals, *, needed: bool = False) -> places.Site | None:
    """The workspace; None outside of one, unless it is needed: then UsageError."""
    try:
        return places.find_site(Options(shared.start, shared.environment, manifest=shared.file))
    except UsageError:
        if needed:
            raise
        return None


def resolve(store: Store, text: str) -> Digest:
    digest = parse_digest(text)
    if not store.objects.has(digest):
        raise UnknownName(f"no object {digest} in the store", facts=[("store", str(store.root))])
    return digest


def size_max(shared: Globals) -> int:
    """The bound of that store, in bytes."""
    site = _site(shared)
    return places.size_max(site) if site is not None else load_settings(shared.environment).store_size_max or SIZE_MAX


def answer(shared: Globals, document: dict[str, object], text: str) -> None:
    write_out(json.dumps(document, sort_keys=True) + "\n" if shared.json else text)


def readable(size: int) -> str:
    """Bytes for a person."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
