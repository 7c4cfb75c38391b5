"""What a build rested on, written down so that the next one can be told from stamps alone that there is nothing to do.

After a build that left the whole plan right, every path that it rested on is written down with its stamp, those of
the host's system too. `quick.py` asks whether all of them are as they were.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..core.digest import object_digest
from ..core.fields import dataclass, field
from . import quick, sealed
from .stamps import NOTHING, Stamp, is_racy, links_of, stamp_at, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..sandbox.system import HostSystem
    from .options import Options
    from .plans import Planned
    from .site import Site
    from .stamps import Stamps
    from .surroundings import Surroundings

RACY_MAX = 64
RACY_BYTES_MAX = 1 << 20
LATELY_MAX = 8
SEARCHED_MAX = 16
"""So many paths are searched for one by one before an index of all of them pays."""


@dataclass(slots=True)
class Written:
    """The file's value. The first eleven are all that `quick.py` looks at."""

    asked: tuple[object, ...]
    steps: int
    settings: dict[str, str | None]
    patterns: list[str]
    passed: dict[str, str]
    inside: list[str]
    """Paths of the workspace, relative to its root; then come the others."""
    outside: list[str]
    stamps: bytes
    absent: list[str]
    witnesses: dict[str, str]
    lately: list[int]
    """What of `inside` had changed when it was last looked at, the latest first: most probably it is edited again."""
    last_run: str | None
    """The run whose memory these stamps belong to."""
    told: str | None
    """The run after which `.requiem/lines` was begun, and the steps whose line in it no longer holds."""
    stale: list[str]
    reached: list[str]
    """Paths of the workspace, relative, that steps rest on also without naming them: not all who do so are known."""
    at_the_door: bytes | None = field(default=None, init=False)
    """The stamps that this process found before it began, if it looked and all were there."""
    _asked: int = field(default=0, init=False)
    _numbers: dict[str, int] = field(default_factory=dict, init=False)

    def _number(self, root: str, path: str) -> int | None:
        """Where a path's stamp is; None if it is not here."""
        name = path[len(root) + 1 :] if path.startswith(root + "/") else path
        self._asked += 1
        if self._asked <= SEARCHED_MAX:
            with suppress(ValueError):
                return self.inside.index(name)
            with suppress(ValueError):
                return len(self.inside) + self.outside.index(name)
            return None
        if not self._numbers:
            self._numbers = {each: number for number, each in enumerate((*self.inside, *self.outside))}
        return self._numbers.get(name)

    def note_changed(self, root: str, paths: Iterable[str]) -> None:
        numbers = [self._number(root, path) for path in islice(paths, LATELY_MAX)]
        inside = [number for number in numbers if number is not None and number < len(self.inside)]
        self.lately = list(dict.fromkeys((*inside, *self.lately)))[:LATELY_MAX]

    def stamp(self, root: str, path: str) -> Stamp | None:
        number = self._number(root, path)
        if number is None:
            return None
        return unpacked(self.stamps, number * quick.STAMP_BYTES)

    def is_witnessed(self, path: str) -> bool:
        """Whether a file whose stamp was too young still has its content."""
        try:
            with open(path, "rb", opener=sealed.at_once) as file:
                return object_digest(file.read()) == self.witnesses[path]
        except OSError:
            return False

    def put(self, root: str, seen: Mapping[str, Stamp]) -> None:
        """Other stamps of paths, also of new ones. Raises struct.error."""
        stamps = bytearray(self.stamps)
        inside, outside = bytearray(), bytearray()
        numbers = [self._number(root, path) for path in seen]
        for number, (path, stamp) in zip(numbers, seen.items(), strict=True):
            packed = quick.packed(list(stamp))
            if number is not None:
                stamps[number * quick.STAMP_BYTES : (number + 1) * quick.STAMP_BYTES] = packed
            elif path.startswith(root + "/"):
                inside += packed
                self.inside.append(path[len(root) + 1 :])
            else:
                outside += packed
                self.outside.append(path)
        at = (len(self.inside) - len(inside) // quick.STAMP_BYTES) * quick.STAMP_BYTES
        self.stamps = bytes(stamps[:at] + inside + stamps[at:] + outside)
        self.absent = [path for path in self.absent if path not in seen]


def unpacked(stamps: bytes, at: int) -> Stamp:
    """One of `quick.packed`, `at` its first byte."""
    a, b, c, d, e = struct.unpack_from("=5q", stamps, at)
    return (a, b, c, d, e)


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
    last_run: str | None,
    host: HostSystem,
) -> None:
    """Writes down what a plain build rested on, with paths of the user's own in `rested_on`.

    `host` is what `surroundings` ask about the host's system.

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
    system = _system(surroundings, host)
    if system is None:
        return
    items |= system
    now = time.time_ns()
    witnesses: dict[str, str] = {}
    if not all(_is_believed(site, stamps, path, stamp, now, witnesses) for path, stamp in items.items()):
        return  # Too new to be believed and too much to read again each time: the full build will look.
    patterns = sorted({p for i in instances for p in i.pass_env})
    passed = {n: options.environment[n] for i in instances for n in surroundings.passed(i)}
    top = site.root.rstrip("/") + "/"
    inside = [path for path, stamp in items.items() if stamp != NOTHING and path.startswith(top)]
    outside = [path for path, stamp in items.items() if stamp != NOTHING and not path.startswith(top)]
    numbers = [number for path in (*inside, *outside) for number in items[path]]
    try:
        packed = quick.packed(numbers)
    except struct.error:
        return  # A file system with inode numbers beyond 63 bits: the full build will look.
    absent = [path for path, stamp in items.items() if stamp == NOTHING]
    inside = [path[len(top) :] for path in inside]
    asked = quick.question(site.manifest, options.start, options.targets)
    settings = quick.settings_of(options.environment)
    _save(
        site,
        Written(
            asked,
            steps,
            settings,
            patterns,
            passed,
            inside,
            outside,
            packed,
            absent,
            witnesses,
            [],
            last_run,
            last_run,
            [],
            sorted(_reached(site, stamps)),
        ),
    )


def _reached(site: Site, stamps: Stamps) -> list[str]:
    top = site.root.rstrip("/") + "/"
    return [path[len(top) :] for path in stamps.reached if path.startswith(top)]


def _is_believed(site: Site, stamps: Stamps, path: str, stamp: Stamp, now: int, witnesses: dict[str, str]) -> bool:
    """Whether a stamp proves a path's content; for a few small files that are too young, the content is noted."""
    if not is_racy(stamp, now) or (stamps.fine and path.startswith(site.root + "/")):
        return True
    known = stamps.known.get(path)
    if known is None or len(known[2]) != 3 or known[0][2] > RACY_BYTES_MAX or len(witnesses) >= RACY_MAX:
        return False
    witnesses[path] = str(known[2][0])
    return True


def load(site: Site, options: Options) -> Written | None:
    """What the last build wrote down, if a plain build asks the same question now."""
    path = quick.memory_path(site.root)
    try:
        value, at_the_door = _at_the_door(path) or (sealed.load(path, site.seal), None)
    except OSError:
        return None
    if value is None:
        return None
    written = Written(*value)
    written.at_the_door = at_the_door or None
    asked = quick.question(site.manifest, options.start, options.targets)
    if written.asked != asked or written.settings != quick.settings_of(options.environment):
        return None
    if written.patterns and not quick.same_environment(written.patterns, written.passed, options.environment):
        return None
    return written


def _at_the_door(path: str) -> tuple[tuple[Any, ...], bytes] | None:
    """What this process read a moment ago and the stamps that it then found, if the same is still written down.

    Once: what is made of it is changed along the way. Raises OSError if nothing is there.
    """
    if not quick.seen:
        return None
    stamp, value, stamps = quick.seen.pop()
    found = stamps()
    return (value, found) if stamp == quick.stamps_now([path]) else None


def renew(site: Site, written: Written, seen: Mapping[str, Stamp], stamps: Stamps, *, run: str | None) -> None:
    """After a build that looked only at some paths: these have other stamps, all else stays as it was written down."""
    now = time.time_ns()
    witnesses = {path: digest for path, digest in written.witnesses.items() if path not in seen}
    known_absent = set(written.absent)
    for path, stamp in seen.items():
        gone = stamp == NOTHING and path not in known_absent
        if gone or not _is_believed(site, stamps, path, stamp, now, witnesses):
            forget(site)
            return
    try:
        written.put(site.root, {path: stamp for path, stamp in seen.items() if stamp != NOTHING})
    except struct.error:
        forget(site)
        return
    written.witnesses = witnesses
    written.reached = sorted({*written.reached, *_reached(site, stamps)})
    written.last_run = run
    _save(site, written)


def failed(site: Site, written: Written, run: str | None) -> None:
    """After one that did not end well: what it rested on is not as it was, and the next one sees that."""
    written.last_run = run
    _save(site, written)


def _save(site: Site, written: Written) -> None:
    value = tuple(getattr(written, name) for name in Written.__match_args__)
    sealed.save(quick.memory_path(site.root), site.seal, value)


def _system(surroundings: Surroundings, host: HostSystem) -> dict[str, Stamp] | None:
    """The stamps of what the steps saw of the system; None if it is no longer that, or too young to be believed.

    Those of all that the host has were taken before it was first asked about, so what has changed since is seen.
    """
    found: dict[str, Stamp] = {}
    if surroundings.saw_packages:
        distribution = surroundings.packaged.distribution
        found |= {path: stamp_at(path) for path in distribution.watched()}
        if not distribution.still_holds():
            return None
    if surroundings.saw_host or not surroundings.saw_packages:
        looked = host.look()
        stamps = {path: NOTHING if seen is None else stamp_of(seen) for path, seen in looked.stamps.items()}
        if any(is_racy(stamp, looked.at_ns) for stamp in stamps.values()):
            return None
        found |= stamps
    return found


def is_plain(options: Options) -> bool:
    return (
        options.mode == "turbo"
        and options.cache == "rw"
        and options.profile is None
        and options.sandbox is None
        and options.shuffle is None
        and not (options.sets or options.tags or options.dry_run or options.explain or options.verbose)
    )
