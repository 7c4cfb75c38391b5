"""Is there nothing to do? Answered from stamps alone, before anything slow is imported.

After a build that left the whole plan right, every path that it rested on is written down with its
stamp. If all of them are as they were, the same build has nothing to do. Whatever differs, even
harmlessly, sends the question to the full build: this memory can be stale and noticed, never wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ..core.digest import object_digest
from ..sandbox.system import system_digest
from . import sealed
from .stamps import NOTHING, Stamp, is_racy, links_of, stamp_of

if TYPE_CHECKING:
    from .options import Options
    from .plans import Planned
    from .site import Site
    from .stamps import Stamps
    from .surroundings import Surroundings

RACY_MAX = 64
RACY_BYTES_MAX = 1 << 20
SETTINGS = ("REQUIEM_SANDBOX", "REQUIEM_CAS_DIR", "REQUIEM_JOBS", "XDG_CONFIG_HOME", "HOME")


def question(manifest: str, start: str, targets: tuple[str, ...]) -> tuple[object, ...]:
    """What a plain build asks. Any other flag than these makes another question, which is not answered here."""
    return ("noop 1", manifest, start, targets)


def _path(dot: str) -> str:
    return os.path.join(dot, "noop")


def forget(site: Site) -> None:
    """The next build looks at everything."""
    with suppress(OSError):
        os.unlink(_path(site.dot))


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
        items.setdefault(path, _stamp(path))
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
    sealed.save(
        _path(site.dot),
        site.seal,
        (
            question(site.manifest, options.start, options.targets),
            steps,
            _settings(options.environment),
            patterns,
            passed,
            surroundings.system(),
            list(items),
            list(items.values()),
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


def nothing_to_do(
    root: str, manifest: str, start: str, targets: tuple[str, ...], environment: Mapping[str, str]
) -> int | None:
    """The number of steps that are all up to date; None if that cannot be told from here."""
    home = sealed.cache_home(environment)
    dot = os.path.join(root, ".requiem")
    value = sealed.load(_path(dot), sealed.seal_key(home))
    if value is None:
        return None
    asked, steps, settings, patterns, passed, system, paths, expected, witnesses = value
    if asked != question(manifest, start, targets):
        return None
    if settings != _settings(environment):
        return None
    if patterns and not _same_environment(patterns, passed, environment):
        return None
    lstat = os.lstat
    for path, stamp in zip(paths, expected, strict=True):
        try:
            found = lstat(path)
        except OSError:
            if stamp == NOTHING:
                continue
            return None
        if stamp_of(found) != stamp:
            return None
    for path, digest in witnesses.items():
        with open(path, "rb") as file:
            if object_digest(file.read()) != digest:
                return None
    if system_digest(home) != system:
        return None
    return int(steps)


def _settings(environment: Mapping[str, str]) -> dict[str, str | None]:
    """What of the environment decides how a build is done, and where the user's configuration lies."""
    return {name: environment.get(name) for name in SETTINGS}


def _same_environment(patterns: list[str], passed: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    from .surroundings import passed_names

    return passed == {name: environment[name] for name in passed_names(patterns, environment)}


def _stamp(path: str) -> Stamp:
    try:
        return stamp_of(os.lstat(path))
    except OSError:
        return NOTHING
