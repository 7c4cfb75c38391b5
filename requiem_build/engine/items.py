"""A result taken apart: each file, link and stream by itself, so that each can have a cause of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

from ..core.differences.base import Difference, first_difference
from ..core.differences.compare import compare
from ..core.digest import Digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.fields import dataclass
from ..core.result import Result
from ..executors.blobs import Blobs

COMPARED_MAX = 64 * 1024 * 1024
"""Larger files are only searched for their first differing byte."""
_PIECE = 1 << 20
DIFFOSCOPE_S = 60


@dataclass(frozen=True, slots=True)
class Item:
    """`digest` is None for what has no content of its own; `facts` is all else by which two can differ."""

    facts: str
    digest: Digest | None = None
    size: int = 0


Items = Mapping[str, Item]
ENDING = "exit"


def items_of(result: Result, blobs: Blobs) -> dict[str, Item]:
    """A step that did not end as it should has no other item than its ending: what it left says nothing."""
    ending = f"{result.termination} {result.exit_code}"
    found = {ENDING: Item(ending)}
    if not result.ok:
        return found
    for stream in ("stdout", "stderr"):
        captured = getattr(result, stream)
        found[stream] = Item("", captured.digest, captured.size)
    pending: list[tuple[str, Entry]] = list(result.outputs.items())
    for path, entry in pending:  # Grows while it is walked: no recursion over what a step wrote.
        match entry:
            case Link():
                found[path] = Item(f"link to {entry.target}")
            case File():
                found[path] = Item("executable" if entry.executable else "", entry.digest, entry.size)
            case Tree():
                children = parse_tree(blobs.get(entry.digest))
                found[path if path.endswith("/") else f"{path}/"] = Item("directory")
                pending += [(f"{path.rstrip('/')}/{name}", child) for name, child in children]
    return found


def differing(then: Items, now: Items) -> list[str]:
    """The names of the items that are not the same. Endings that differ say it all."""
    if then[ENDING] != now[ENDING]:
        return [ENDING]
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def explain(then: Item | None, now: Item | None, blobs: Blobs) -> list[Difference]:
    """Where two items differ, in the terms of their format."""
    if then is None or now is None:
        return [Difference(("presence",), "there" if then else "absent", "there" if now else "absent")]
    found = []
    if then.facts != now.facts:
        found.append(Difference(("kind",), then.facts or "plain file", now.facts or "plain file"))
    if then.digest == now.digest or then.digest is None or now.digest is None:
        return found
    if max(then.size, now.size) > COMPARED_MAX:
        return [*found, _first_of_large(blobs.objects.file(then.digest), blobs.objects.file(now.digest))]
    return found + compare(blobs.get(then.digest), blobs.get(now.digest))


def _first_of_large(then: str, now: str) -> Difference:
    with open(then, "rb") as before, open(now, "rb") as after:
        at = 0
        while True:
            one, other = before.read(_PIECE), after.read(_PIECE)
            if one != other or not one:
                found = first_difference(one, other)
                return Difference(("bytes",), one[found:][:16].hex(" "), other[found:][:16].hex(" "), at + found)
            at += len(one)


def diffoscope(program: str, name: str, then: Item, now: Item, blobs: Blobs) -> Iterator[str]:
    """What diffoscope says of two files, line by line; nothing if it cannot."""
    if then.digest is None or now.digest is None:
        return
    with tempfile.TemporaryDirectory(prefix="requiem-diff-") as folder:
        paths = []
        for side, item in (("then", then), ("now", now)):
            os.mkdir(f"{folder}/{side}")
            paths.append(f"{side}/{os.path.basename(name) or 'file'}")
            with open(f"{folder}/{paths[-1]}", "wb") as file:
                assert item.digest is not None
                blobs.objects.copy_to(item.digest, file.fileno())
        command = [program, "--no-progress", "--text", "-", "--max-text-report-size", "20000", *paths]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=DIFFOSCOPE_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return
        yield from done.stdout.decode("utf-8", "replace").splitlines()
