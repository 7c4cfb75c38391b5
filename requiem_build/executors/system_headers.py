"""The system's own headers, by name: those of this host, which a request names as a whole by its digest.

Which directories a compiler has built in is not asked of it: all that any compiler of this host could have are taken.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache

HEADER_BYTES_MAX = 8 << 20

_SYSTEM_DIRECTORIES = (
    *("/usr/include", "/usr/local/include", "/usr/include/*-*-*", "/usr/include/*-*", "/usr/lib/gcc/*/*/include"),
    *("/usr/lib/gcc/*/*/include-fixed", "/usr/lib64/gcc/*/*/include", "/usr/lib/gcc-cross/*/*/include"),
    *("/usr/include/c++/*", "/usr/include/c++/*/backward", "/usr/include/c++/*/*-*-*", "/usr/include/c++/*/*-*"),
    *("/usr/include/*/c++/*", "/usr/lib/llvm-*/lib/clang/*/include", "/usr/lib/clang/*/include"),
    *("/usr/lib/llvm-*/include/c++/v1", "/usr/*-*/include", "/usr/*-*/include/c++/*", "/usr/*-*/sys-include"),
)


@lru_cache(maxsize=1)
def system_directories() -> tuple[str, ...]:
    """Every directory in which some compiler of this host looks by itself: more than any one of them has."""
    import glob

    return tuple(
        sorted({path for pattern in _SYSTEM_DIRECTORIES for path in glob.glob(pattern) if os.path.isdir(path)})
    )


@lru_cache(maxsize=1)
def _beginnings() -> dict[str, list[str]]:
    """The first name of every header of the system -> the directories that have it: most names are in none."""
    found: dict[str, list[str]] = {}
    for directory in system_directories():
        for name in os.listdir(directory):
            found.setdefault(name, []).append(directory)
    return found


@lru_cache(maxsize=1 << 17)
def shadows(path: str, extra: tuple[str, ...] = ()) -> bool:
    """Whether a workspace path ends in the name of a system header, so that it could be taken instead of it."""
    beginnings = _beginnings()
    parts = path.split("/")
    for index, part in enumerate(parts):
        places = (*beginnings.get(part, ()), *extra)
        if places:
            name = "/".join(parts[index:])
            if any(os.path.exists(f"{directory}/{name}") for directory in places):
                return True
    return False


def missing_from_the_system(names: frozenset[str], extra: tuple[str, ...]) -> frozenset[str]:
    """Names that reachable system headers look for and the system does not have."""
    return reachable(names, extra)[1]


@lru_cache(maxsize=4096)
def reachable(names: frozenset[str], extra: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """The system headers that texts which look for these names may come to read, and the names that are nowhere."""
    missing: set[str] = set()
    reached: set[str] = set()
    pending = [(name, "") for name in (*names, "stdc-predef.h")]
    seen = set(pending)
    for name, folder in pending:  # Grows while it is walked.
        files = _system_files(name, folder, extra)
        if not files and name not in names:
            missing.add(name)
        for file in files:
            reached.add(file)
            for wanted in _system_scan(file):
                item = (wanted, os.path.dirname(file))
                if item not in seen:
                    seen.add(item)
                    pending.append(item)
    return frozenset(reached), frozenset(missing)


@lru_cache(maxsize=4096)
def macros_of(path: str) -> frozenset[str]:
    """The macros that a system header defines, and perhaps some more words."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return frozenset(re.findall(r"define\s+(\w+)", file.read(HEADER_BYTES_MAX)))
    except OSError:
        return frozenset()


@lru_cache(maxsize=1 << 15)
def _system_files(name: str, folder: str, extra: tuple[str, ...]) -> tuple[str, ...]:
    if name.startswith("/"):
        return ()
    places = (*system_directories(), *extra, *([folder] if folder else []))
    found = {os.path.normpath(f"{place}/{name}") for place in places if os.path.isfile(f"{place}/{name}")}
    return tuple(sorted(found))


@lru_cache(maxsize=1 << 15)
def _system_scan(path: str) -> tuple[str, ...]:
    from ..core import includes

    try:
        with open(path, "rb") as file:
            content = file.read(HEADER_BYTES_MAX)
    except OSError:
        return ()
    return tuple(sorted(includes.scan(content).names | includes.conditional_names(content)))
