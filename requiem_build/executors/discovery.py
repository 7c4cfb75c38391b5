"""Which paths a step's answer rests on beyond its declared inputs: what it read, and what it looked for in vain.

What a depfile names comes from the step; where else a compiler would have looked is derived (`core/includes.py`) from
bytes that the step was shown. Where that cannot be derived, the list of all that `discover` matches stands in.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..core import canonical
from ..core.digest import object_digest
from ..core.entries import Entry, File
from ..core.policy import BASE_PATH, WORKSPACE
from ..core.request import ABSENT, LISTING, SHADOWS, Request, by_bytes
from .paths import plain, relative_cwd
from .system_headers import shadows

if TYPE_CHECKING:  # What derives is only needed, and only imported, once a compiler has run.
    from .shown import GetObject, Shown

_SYSTEM_INCLUDE = r"-(?:isystem|idirafter|cxx-isystem)[ =]?\s*([^\s'\"]+)"


def discovered_now(paths: Sequence[str], offered: Mapping[str, Entry]) -> dict[str, str]:
    """The path set filled with what stands there now: digests, or `absent`."""
    found: dict[str, str] = {}
    for path in paths:
        entry = offered.get(path)
        if isinstance(entry, File):
            found[path] = entry.digest
        else:
            named = named_in_discovered(path, offered)
            found[path] = ABSENT if named is None else object_digest(named)
    return found


def named_in_discovered(path: str, offered: Mapping[str, Entry]) -> bytes | None:
    """What a path set's digest names where that is no file's content: a list of paths, a link or a directory."""
    if path == LISTING:
        return canonical.encode_plain(by_bytes(set(offered)))
    if path.startswith(SHADOWS):
        directories = tuple(filter(None, path[len(SHADOWS) :].split(":")))
        return canonical.encode_plain(by_bytes({each for each in offered if shadows(each, directories)}))
    entry = offered.get(path)
    return None if entry is None or isinstance(entry, File) else canonical.encode_plain(entry.as_input())


def path_set(
    request: Request, named: Sequence[str], offered: Mapping[str, Entry], get: GetObject, root: str
) -> tuple[str, ...]:
    """What a step's answer rests on, by the paths that its depfile names. `root` is the workspace on this host."""
    from ..core.includes import Unknown
    from .derivation import Derivation
    from .shown import Shown

    shown = Shown(request, offered, get)
    cwd = relative_cwd(request.cwd, root)
    host = WORKSPACE if request.policy.sandbox == "strict" else root
    read = {shown.real(path) for path in (plain(name, cwd, host) for name in named)}
    try:
        if not _is_compiler(request):
            raise Unknown("not a compiler that is run directly")
        extra, marker = Derivation(request, shown, cwd, host).derive(read)
        return (*by_bytes({*(read & offered.keys()), *extra}), marker)
    except Unknown:
        return (*by_bytes(_listed(request, read & offered.keys(), offered, shown, cwd)), LISTING)


def workspace_paths(request: Request, named: Sequence[str], root: str) -> list[str]:
    """What of a depfile lies in the workspace, by its plain path."""
    host = WORKSPACE if request.policy.sandbox == "strict" else root
    paths = (plain(name, relative_cwd(request.cwd, root), host) for name in named)
    return [path for path in paths if not path.startswith("..")]


def _listed(request: Request, read: set[str], offered: Mapping[str, Entry], shown: Shown, cwd: str) -> set[str]:
    """What counts as read where it is not derived: also headers that `-MMD` leaves out as the system's."""
    command = " ".join(request.command)
    found = set(read)
    texts = [shown.scan(path) for path in read | request.inputs.keys()]
    hides = "-MM" in command and any(shadows(path) for path in offered)
    if hides or any(text.embeds or (text.system_header and "-MM" in command) for text in texts if text is not None):
        return set(offered)
    for path in re.findall(_SYSTEM_INCLUDE, command):
        folder = plain(path, cwd, WORKSPACE)
        found |= {each for each in offered if each.startswith(folder + "/")}
    return shown.with_targets(found)


# The compiler


def _is_compiler(request: Request) -> bool:
    """Whether argv[0] is gcc or clang itself, as the step's PATH gives it: no wrapper, no workspace program."""
    from ..core.includes import COMPILER

    program = request.command[0]
    if request.env.get("PATH", "") != BASE_PATH or not COMPILER.fullmatch(posixpath.basename(program)):
        return False
    if "/" in program and posixpath.dirname(program) not in BASE_PATH.split(":"):
        return False
    return _is_binary_compiler(program)


@lru_cache(maxsize=256)
def _is_binary_compiler(program: str) -> bool:
    from ..core.includes import COMPILER
    from ..sandbox.system import lookup

    path = lookup(program, BASE_PATH.split(":"))
    if path is None:
        return False
    real = os.path.realpath(path)
    if not COMPILER.fullmatch(os.path.basename(real)):
        return False
    try:
        with open(real, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False
