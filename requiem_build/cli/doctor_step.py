"""`requiem doctor STEP`: what a step sees of the system, proven by mounting it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from .console import plain, write_out
from .globals import Globals
from .running import make_options

if TYPE_CHECKING:
    from ..engine.seen import Seen

CHANGED_MAX = 10


def answer(shared: Globals, step: str) -> int:
    from ..engine import seen as engine

    options = make_options(shared, mode="repro", jobs=None, targets=(), profile=None, sets={}, sandbox=None)
    found = engine.look(options, step)
    if shared.json:
        document = {"schema": engine.SCHEMA, "steps": [each.as_json() for each in found]}
        write_out(json.dumps(document, indent=2, sort_keys=True) + "\n")
        return 0
    for each in found:
        _show(each)
    return 0


def _show(seen: Seen) -> None:
    write_out(f'{plain(seen.step)}: system = "{seen.system}"\n')
    write_out(f"  digest     {seen.digest}\n")
    if seen.divergences:
        others = sum(len(each.results) for each in seen.divergences)
        also = f"other results of the same request: {others}"
        write_out(f"  diverged   {also} (requiem why {plain(shlex.quote(seen.step))})\n")
    if seen.view is None:
        write_out("  sees       all of /usr\n")
        return
    view = seen.view
    write_out(f"  mechanism  {seen.mechanism}, mounted just now\n")
    write_out(f"  files      {len(view.files)} of /usr, {len(view.etc_files)} of /etc; {len(view.links)} links\n")
    for path in view.changed[:CHANGED_MAX]:
        write_out(f"  changed    {plain(path)} is not its package's; it counts by its content\n")
    if len(view.changed) > CHANGED_MAX:
        write_out(f"  changed    and {len(view.changed) - CHANGED_MAX} more\n")
    write_out(f"  packages   {len(view.packages)}\n")
    width = max(len(package.id) for package in view.packages)
    for package in view.packages:
        write_out(f"    {package.id.ljust(width)}  {package.version}\n")
