"""What a build rested on, written down so that the next one can be told from stamps alone that there is nothing to do.

After a build that left the whole plan right, every path that it rested on is written down with its stamp, those of
the host's system too. `quick.py` asks whether all of them are as they were.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..sandbox.system import system_digest, watched
from . import quick, sealed
from .stamps import NOTHING, Stamp, is_racy, links_of, stamp_at

if TYPE_CHECKING:
    from .options import Options
    from .plans import Planned
    from .site import Site
    from .stamps import Stamps
    from .surroundings import Surroundings

RACY_MAX = 64
RACY_BYTES_MAX = 1 << 20


def forget(site: Site) -> None:
    """The next build looks at everything."""
    with suppress(OSError):
        os.unlink(quick.memory_path(site.root))


def remember(
    site: Site,
    options: Options,
    planned: Planned,
    stamps: Stamps,
    surroundings: Surroundings,
    steps: int,
    rested_on: list[str],
) -> None:
    """Writes down what a plain build rested on, with paths of the user's own in `rested_on`.

    Builds with other flags are not plain, and forget nothing.
    """
    instances = planned.plan.instances.values()
    if not is_plain(options) or not stamps.settled or not all(i.lay_out for i in instances):
        return  # What is only in the store must be looked for there.
    items: dict[str, Stamp] = {path: stamp for path, (stamp, _, _) in planned.evidence.items()}
    items |= stamps.seen
    from .settings import config_path

    for path in (*links_of(config_path(options.environment)), *planned.kinds, *rested_on):
        items.setdefault(path, stamp_at(path))
    system = {path: stamp_at(path) for path in watched()}
    if system_digest(site.cache_home) != surroundings.system():
        return  # Looked at again after its stamps were taken: it is no longer what the steps saw.
    items |= system
    now = time.time_ns()
    witnesses: dict[str, str] = {}
    for path, stamp in items.items():
        if not is_racy(stamp, now) or (stamps.fine and path.startswith(site.root + "/")):
            continue
        known = stamps.known.get(path)
        if known is None or len(known[2]) != 3 or known[0][2] > RACY_BYTES_MAX or len(witnesses) >= RACY_MAX:
            return  # Too new to be believed and too much to read again each time: the full build will look.
        witnesses[path] = str(known[2][0])
    patterns = sorted({p for i in instances for p in i.pass_env})
    passed = {n: options.environment[n] for i in instances for n in surroundings.passed(i)}
    top = site.root.rstrip("/") + "/"
    inside = [path for path, stamp in items.items() if stamp != NOTHING and path.startswith(top)]
    outside = [path for path, stamp in items.items() if stamp != NOTHING and not path.startswith(top)]
    try:
        numbers = quick.packed([number for path in (*inside, *outside) for number in items[path]])
    except struct.error:
        return  # A file system with inode numbers beyond 63 bits: the full build will look.
    sealed.save(
        quick.memory_path(site.root),
        site.seal,
        (
            quick.question(site.manifest, options.start, options.targets),
            steps,
            quick.settings_of(options.environment),
            patterns,
            passed,
            [path[len(top) :] for path in inside],
            outside,
            numbers,
            [path for path, stamp in items.items() if stamp == NOTHING],
            witnesses,
        ),
    )


def is_plain(options: Options) -> bool:
    return (
        options.mode == "turbo"
        and options.cache == "rw"
        and options.profile is None
        and options.sandbox is None
        and options.shuffle is None
        and not (options.sets or options.tags or options.dry_run or options.explain or options.verbose)
    )
