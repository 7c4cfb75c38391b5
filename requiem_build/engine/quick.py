"""Is there nothing to do? The whole question, with as little imported as can be: most builds ask nothing else.

`noop.py` wrote down every path that a build rested on, with its stamp. If all of them are as they were, the same
build has nothing to do. Whatever differs, even harmlessly, sends the question to the full build: this memory can be
stale and noticed, never wrong.
"""

import sys
from _struct import pack

from . import sealed

if sys.platform == "win32":
    import nt as system
else:
    import posix as system  # A no-op is answered before there is an `os`.

TYPE_CHECKING = False  # The module of that name costs a no-op a tenth of its time; that of __future__ does, too.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

SETTINGS = ("REQUIEM_SANDBOX", "REQUIEM_CAS_DIR", "REQUIEM_JOBS", "XDG_CONFIG_HOME", "HOME")


STAMP_BYTES = 40
SHARE_MIN = 4000
"""So many paths are worth a process of their own."""
SHARES_MAX = 8
PLANS_MAX = 2
seen: "list[tuple[bytes, tuple[Any, ...], Callable[[], bytes]]]" = []
"""If anything differed: the stamp of what was written down, that itself, and what gives the stamps found instead.

Who looks closer need neither read nor look again. Nobody can ask twice.
"""


def question(manifest: str, start: str, targets: tuple[str, ...]) -> tuple[object, ...]:
    """What a plain build asks. Any other flag than these makes another question, which is not answered here."""
    return ("noop 5", manifest, start, targets)


def memory_path(root: str) -> str:
    return f"{root}/.requiem/noop"


def stamps_now(paths: list[str]) -> bytes:
    """The stamps of paths, one after the other, to be compared at once. Raises OSError for one that does not exist."""
    found: list[int] = []
    for seen in map(system.lstat, paths):
        found += (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_mode)
    return packed(found)


def _stamps_of_many(paths: list[str]) -> bytes:
    """The same, by several processes where that pays: threads would wait for each other's turn at each path.

    Empty if one of them did not exist. Only for a process that has a single thread.
    """
    shares = min(system.cpu_count() or 1, SHARES_MAX, len(paths) // SHARE_MIN)
    if shares < 2 or not hasattr(system, "memfd_create"):
        return stamps_now(paths)
    size = -(-len(paths) // shares)
    others = _look_elsewhere(paths[size:], size)
    try:
        mine = stamps_now(paths[:size])
    finally:
        found = others()
    return mine + found if found else b""


def _look_elsewhere(paths: list[str], size: int) -> "Callable[[], bytes]":
    """By a process for that many paths each, while we do something else. What it returns waits for them."""
    begun = [_look_apart(paths[begin : begin + size]) for begin in range(0, len(paths), size)]

    def found() -> bytes:
        pieces = [_seen_apart(child, memory) for child, memory in begun]
        return b"" if b"" in pieces else b"".join(pieces)

    return found


def _look_apart(paths: list[str]) -> tuple[int, int]:
    """A child that looks at them, and the memory where it leaves their stamps."""
    memory = system.memfd_create("stamps", system.MFD_CLOEXEC)
    try:
        child = system.fork()
    except OSError:  # No room for another process.
        child = -1
    if child > 0:
        return child, memory
    try:
        rest = memoryview(stamps_now(paths))
        while rest:
            rest = rest[system.write(memory, rest) :]
    except OSError:
        pass  # One of them is missing: nothing is left in the memory.
    finally:
        if child == 0:
            system._exit(0)
    return child, memory


def _seen_apart(child: int, memory: int) -> bytes:
    if child > 0:
        system.waitpid(child, 0)
    try:
        return system.pread(memory, system.fstat(memory).st_size, 0)
    finally:
        system.close(memory)


def packed(numbers: list[int]) -> bytes:
    return pack(f"={len(numbers)}q", *numbers)


def nothing_to_do(
    root: str, manifest: str, start: str, targets: tuple[str, ...], environment: "Mapping[str, str]"
) -> int | None:
    """The number of steps that are all up to date; None if that cannot be told from here. Changes nothing."""
    memory = memory_path(root)
    try:
        written = stamps_now([memory])  # Before it is read: it is only ever replaced.
    except OSError:
        return None
    key = sealed.seal_key(sealed.cache_home(environment))
    value = sealed.load(memory, key)
    if value is None:
        return None
    asked, steps, settings, patterns, passed, inside, outside, stamps, absent, witnesses, lately, *_ = value
    if asked != question(manifest, start, targets) or settings != settings_of(environment):
        return None
    if patterns and not same_environment(patterns, passed, environment):
        return None
    here = system.open(".", system.O_RDONLY | system.O_DIRECTORY | system.O_CLOEXEC)
    try:
        system.chdir(root)  # Looking at a relative path is a fifth cheaper.
        paths = [*inside, *outside]
        if len(paths) >= SHARE_MIN and _differs(lately, inside, stamps) and hasattr(system, "memfd_create"):
            others = min((system.cpu_count() or 1) - 1, SHARES_MAX, len(paths) // SHARE_MIN) or 1
            seen.append((written, value, _look_elsewhere(paths, -(-len(paths) // others))))
            read_early(root, key)
            return None
        now = _stamps_of_many(paths)
        if now != stamps:
            seen.append((written, value, lambda: now))
            if len(paths) >= SHARE_MIN:
                read_early(root, key)
            return None
        if any(map(_is_there, absent)):
            return None
    except OSError:
        return None
    finally:
        system.fchdir(here)
        system.close(here)
    return int(steps) if _witnessed(witnesses) else None


def _differs(numbers: list[int], paths: list[str], stamps: bytes) -> bool:
    """Whether one of a few paths has another stamp: then there is something to do, whatever the others have."""
    try:
        return any(stamps_now([paths[n]]) != stamps[n * STAMP_BYTES : (n + 1) * STAMP_BYTES] for n in numbers)
    except OSError:
        return True


def read_early(root: str, key: bytes) -> None:
    """What a build that looks closer will need (`memory.py`, `plans.py`, `lines.py`), while its code is imported."""
    dot = f"{root}/.requiem"
    try:
        plans = [f"{dot}/plans/{name}" for name in system.listdir(f"{dot}/plans")]
    except OSError:
        return
    sealed.read_early([f"{dot}/memory", *plans[:PLANS_MAX], f"{dot}/lines"], key)


def let_go() -> None:
    """Waits for those who looked and whom nobody asked."""
    while seen:
        seen.pop()[2]()


def _is_there(path: str) -> bool:
    try:
        system.lstat(path)
    except (OSError, ValueError):
        return False
    return True


def settings_of(environment: "Mapping[str, str]") -> dict[str, str | None]:
    """What of the environment decides how a build is done, and where the user's configuration lies."""
    return {name: environment.get(name) for name in SETTINGS}


def same_environment(patterns: list[str], passed: "Mapping[str, str]", environment: "Mapping[str, str]") -> bool:
    from .surroundings import passed_names

    return passed == {name: environment[name] for name in passed_names(patterns, environment)}


def _witnessed(witnesses: "Mapping[str, str]") -> bool:
    """Whether the few files whose stamps were too young to be believed still have their content."""
    if not witnesses:
        return True
    from ..core.digest import object_digest

    for path, digest in witnesses.items():
        with open(path, "rb", opener=sealed.at_once) as file:
            if object_digest(file.read()) != digest:
                return False
    return True
