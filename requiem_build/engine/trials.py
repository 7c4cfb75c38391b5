"""The perturbations that `reproduce` tries, one at a time, and what mends a step that depends on one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator

from ..core.differences.base import Difference
from ..core.fields import dataclass
from ..core.policy import UID
from ..sandbox.perturbation import STILL, Perturbation

AGAIN = "again"
CLOCK = "clock"
RANDOMNESS = "randomness"
PARALLELISM = "parallelism"
HOST_FACTS = "host facts"
INODES = "inode numbers"
PROCESS_IDS = "process ids"
AT_ONCE = 4
"""Runs of one step side by side, for `parallelism`."""

SHIFT = "+400d"
_REAL_FILE_TIMES = (("NO_FAKE_STAT", "1"),)
"""Else libfaketime would move the dates of inputs too, which are the same each time, in some of the calls for them."""

FROZEN = "2001-02-03 04:05:06"
_LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")


@dataclass(frozen=True, slots=True)
class Trial:
    """`held`: the request or its world fixes this, so that a result that depends on it is still the request's own.

    `control` is what the trial is compared with, where that is not the still surroundings.
    """

    name: str
    here: Perturbation
    held: bool = False
    control: Perturbation = STILL
    at_once: int = 1


def find_clock_library() -> str | None:
    """libfaketime, by which the clock of dynamically linked programs can be moved; None if it is not installed."""
    for pattern in _LIBRARIES:
        for path in sorted(glob.glob(pattern)):
            if os.path.isfile(path):
                return path
    return None


def trials(library: str | None) -> Iterator[Trial]:
    """What is tried on a step that gives the same when it is just run again."""
    if library is not None:
        still_clock = Perturbation(clock="+0d", library=library, env=_REAL_FILE_TIMES)
        moved = Perturbation(clock=SHIFT, library=library, env=_REAL_FILE_TIMES)
        yield Trial(CLOCK, moved, control=still_clock)
    yield Trial("directory order", Perturbation(newest_last=True))
    yield Trial("cpu count", Perturbation(cpus=1 if len(os.sched_getaffinity(0)) > 1 else 2))
    yield Trial(PARALLELISM, STILL, at_once=AT_ONCE)
    yield Trial("address layout", Perturbation(addresses_vary=True))
    yield Trial(HOST_FACTS, Perturbation(other_host=True))
    yield Trial(PROCESS_IDS, Perturbation(first_pid=4711), held=True)
    seeds = (("PYTHONHASHSEED", "4711"), ("PERL_HASH_SEED", "0x4711"))
    yield Trial("hash seed", Perturbation(env=seeds), held=True)
    yield Trial("time zone", Perturbation(env=(("TZ", "XYZ-13:45"),)), held=True)
    yield Trial("locale", Perturbation(env=tuple((name, _other_locale()) for name in ("LANG", "LC_ALL"))), held=True)
    junk = tuple((f"REQUIEM_OTHER_{number}", "x" * 50 * number) for number in range(1, 4))
    yield Trial("environment", Perturbation(env=junk), held=True)
    other = UID + 3321
    yield Trial("uid and HOME", Perturbation(uid=other, gid=other, user="someone", home="/tmp/someone"), held=True)
    yield Trial("hostname", Perturbation(hostname="elsewhere"), held=True)
    yield Trial("umask", Perturbation(umask=0o077), held=True)
    yield Trial("workspace path", Perturbation(workspace="/elsewhere/and/deeper"), held=True)


def holdable(library: str | None) -> tuple[str, ...]:
    """What can be held still here, to see which of it makes an unsteady step steady."""
    return (INODES, *((CLOCK,) if library is not None else ()), RANDOMNESS, PARALLELISM, HOST_FACTS)


def held(names: Iterable[str], library: str | None) -> Perturbation:
    """The surroundings in which these things do not change from run to run."""
    still = set(names)
    return Perturbation(
        own_view=INODES in still,  # As has whatever else is held: alone it is what is left when nothing is.
        clock=FROZEN if CLOCK in still else None,
        library=library or "" if CLOCK in still else "",
        held_random=RANDOMNESS in still,
        cpus=1 if PARALLELISM in still else None,
        other_host=HOST_FACTS in still,
    )


def _other_locale() -> str:
    """Another locale that this host has; `C` is everywhere, and knows no UTF-8."""
    named = [os.path.basename(path) for path in sorted(glob.glob("/usr/lib/locale/*_*"))]
    return next((name for name in named if not name.startswith(("C", "en"))), "C")


_FIXES = {
    CLOCK: "use $SOURCE_DATE_EPOCH, which every step has, instead of the present time",
    RANDOMNESS: "give the tool a fixed seed",
    PARALLELISM: "collect what runs side by side in a fixed order, or use one thread",
    "order": "write in a fixed order: a race or a random choice decides it now",
    "cpu count": "give the number of jobs or threads, and collect results in a fixed order",
    "directory order": "sort the names before use: sort, sorted(os.listdir()), tar --sort=name",
    "address layout": "do not write or sort by addresses (id(), %p, default repr)",
    HOST_FACTS: "do not write what /proc, uname or df say of the host: give the tool the number it needs",
    PROCESS_IDS: "do not write $$ or name files by it",
    INODES: "do not write inode numbers: they differ in steps that share a view",
    "hash seed": "sort sets and dictionaries before they are written",
    "time zone": "write times in UTC",
    "locale": "set LC_ALL in the step's env",
    "environment": "do not write the whole environment",
    "uid and HOME": "do not write the user, its id or HOME: tar --owner=0 --group=0 --numeric-owner",
    "hostname": "do not write the host's name",
    "umask": "set modes: install -m, tar --mode, zip -X after chmod",
    "workspace path": "use relative paths, or gcc -ffile-prefix-map=$PWD=.",
}

_PLACED_FIXES = (
    (("member", "mtime"), "tar --mtime=@$SOURCE_DATE_EPOCH, zip after touch -d @$SOURCE_DATE_EPOCH, ar with D"),
    (("gzip header",), "gzip -n"),
    (("pyc header",), "python -m compileall --invalidation-mode unchecked-hash"),
    (("section .gnu.lto_",), "gcc -frandom-seed=NAME"),
    (("order of members",), "sort the names: tar --sort=name, ar over a sorted list"),
)


def fix_for(cause: str, differences: list[Difference]) -> str:
    """What to change in the step; empty if nothing better than its cause is known."""
    place = " ".join(" ".join(found.place) for found in differences[:1])
    for words, fix in _PLACED_FIXES:
        if all(word in place for word in words):
            return fix
    return _FIXES.get(cause, "")
