"""The package to add, named without tracing: what a failed step's words say is missing, and this host has."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from ..sandbox.distribution import SEARCH, Distribution
from ..sandbox.system import lookup
from ..sandbox.visible import View

_OTHER_WIDTHS = frozenset({"lib32", "libo32", "libx32"})
UNPACKAGED = ("/usr/local/bin", "/usr/local/sbin", *SEARCH)
LINE_MAX = 400
LINES_MAX = 300
HINTS_MAX = 5

_NAME = r"[^\s'\"`‘’:;,()<>|]+"
_PROGRAMS = (
    rf"(?:^|\s)({_NAME}): (?:command )?not found",
    rf"\"({_NAME})\" was not found in PATH",
    rf"its interpreter is missing \(({_NAME})\)",
    rf"(?:env|nice|xargs|time|setsid|stdbuf|chrt|flock): ['‘\"]?({_NAME}?)['’\"]?: No such file",
    rf"(?:execvp|posix_spawnp|spawn|exec|make(?:\[\d+\])?): ({_NAME}): No such file",
    rf"failed to run command ['‘]({_NAME})['’]",
    rf"(?:Can't exec|cannot (?:find|execute)) ['‘\"]({_NAME})['’\"]",
    rf"spawn ({_NAME}) ENOENT",
    rf"exec: \"({_NAME})\": executable file not found",
    rf"No such file or directory: ['\"]({_NAME})['\"]",
    r"unable to find a build program corresponding to \"(Ninja|Unix Makefiles)\"",
    r"(CMAKE_\w+_COMPILER) (?:not set|could be found)",
    r"(no acceptable \S+ compiler) found",
    r"Could not detect (Ninja) v[\d.]+ or newer",
    r"Unknown compiler\(s\): \[\['([\w+-]+)'",
    rf"Program\(?s?\)? \[?'?({_NAME}?)'?\]? not found or not executable",
)
_MEANT = {
    # What a build system calls a program by, and the program.
    "CMAKE_ASM_COMPILER": "gcc",
    "CMAKE_C_COMPILER": "gcc",
    "CMAKE_CXX_COMPILER": "g++",
    "CMAKE_Fortran_COMPILER": "gfortran",
    "Ninja": "ninja",
    "Unix Makefiles": "make",
    "no acceptable C compiler": "gcc",
    "no acceptable C++ compiler": "g++",
    "no acceptable Fortran compiler": "gfortran",
}
_HEADERS = (
    rf"fatal error: ({_NAME}): No such file",
    rf"fatal error: '({_NAME})' file not found",
)
_LIBRARIES = (rf"cannot find -l({_NAME})", rf"unable to find library -l({_NAME})")
_SHARED = (
    rf"error while loading shared libraries: ({_NAME}):",
    rf"({_NAME}\.so[.\d]*): cannot open shared object file",
)
_MODULES = (r"No module named ['\"]?([A-Za-z_]\w*)", r"\b(ensurepip) is not\s+available")
_PERL = (rf"Can't locate ({_NAME}\.pm) in @INC",)
_PKG_CONFIG = (rf"No package '({_NAME})' found", rf"Package '?({_NAME}?)'?,? .{{0,200}}?not found")
_CMAKE = (
    r"Could NOT find (\w+)\b",
    r"Could not find a package configuration file provided by \"(\w+)\"",
)
_NODE = (r"Cannot find (?:module|package) ['\"]((?:@[\w.-]+/)?[\w.-]+)",)
_RUBY = (rf"cannot load such file -- ({_NAME})",)
_R = (r"there is no package called ['‘]([\w.]+)['’]",)
_TEX = (r"File [`‘']([\w.-]+\.(?:sty|cls|def|tex|fd))['’] not found",)
_PATHS = (
    rf"(/(?:usr|etc|bin|lib|sbin)/{_NAME})['\"’]?: (?:No such file|not found|cannot open)",
    rf"Cannot find module ['\"](/(?:usr|lib)/{_NAME})['\"]",
)


def for_failure(text: str, distribution: Distribution, view: View) -> tuple[str, ...]:
    """Lines to add to the manifest, each naming what is missing and the package that has it."""
    found: dict[str, None] = {}
    for name, owner, lines in _missing(text, distribution, view):
        if owner:
            found[f'{name} is in {owner}, which the step does not see: tools = [..., "{owner}"]'] = None
        found |= dict.fromkeys(lines)
    return tuple(found)[:HINTS_MAX]


def missing_packages(text: str, distribution: Distribution, view: View) -> tuple[str, ...]:
    """Those that have what a failed step's words say is missing."""
    return tuple(dict.fromkeys(owner for _, owner, _ in _missing(text, distribution, view) if owner))


def _missing(text: str, distribution: Distribution, view: View) -> Iterator[tuple[str, str, list[str]]]:
    """What is missing, the package that has it or nothing, and what to do where no package has it."""
    text = "\n".join(line[:LINE_MAX] for line in text.splitlines()[-LINES_MAX:])
    shown = {package.id for package in view.packages}
    for patterns, search in _searches(distribution):
        for name in _named(patterns, text):
            owners = search(name)
            owner = next((id_ for id_ in owners if id_ not in shown), "")
            is_file = patterns in (_PROGRAMS, _PATHS) and not owners
            yield name, owner, unpackaged(name, distribution) if is_file else []


def unpackaged(name: str, distribution: Distribution) -> list[str]:
    """What to do about a program, or a file, that the host has below /usr and that no package owns."""
    path = lookup(name, UNPACKAGED) if not name.startswith("/usr/") else name if os.path.exists(name) else None
    if path is None or distribution.owner(path) is not None:
        return []
    if not path.startswith("/usr/local/"):
        return [f'{path} belongs to no package, so the step does not see it: system = "host"']
    ways = '[roots.local] path = "/usr/local", then roots = ["local"] in the step; or system = "host"'
    return [f"{path} belongs to no package, so the step does not see it: {ways}"]


def _searches(distribution: Distribution) -> Iterator[tuple[tuple[str, ...], Callable[[str], list[str]]]]:
    """What to look for in the words of a failure, and how a name is turned into packages, the likeliest first."""
    database = distribution.database

    def program(name: str) -> list[str]:
        owner = distribution.owner(name)
        return [owner.package] if owner is not None else []

    def ending(suffix: str, keep: Callable[[str], bool]) -> list[str]:
        paths = [(path, id_) for path, id_ in database.ending(suffix) if keep(path[: -len(suffix)] + "/")]
        return [id_ for path, id_ in sorted(paths, key=lambda item: (_is_foreign(item[0]), item[0].count("/"), item))]

    def any_of(suffixes: tuple[str, ...], keep: Callable[[str], bool]) -> list[str]:
        return [id_ for suffix in suffixes for id_ in ending(suffix, keep)]

    yield _HEADERS, lambda name: ending(f"/{name}", lambda folder: "/include/" in folder)
    yield _PROGRAMS, lambda name: program(_MEANT.get(name, name))
    yield _LIBRARIES, lambda name: any_of((f"/lib{name}.so", f"/lib{name}.a"), lambda folder: "/lib" in folder)
    yield _SHARED, lambda name: ending(f"/{name}", lambda folder: "/lib" in folder)
    yield _MODULES, lambda name: any_of((f"/{name}/__init__.py", f"/{name}.py"), _is_module_path)
    yield _PERL, lambda name: ending(f"/{name}", lambda folder: "/perl" in folder)
    yield _PKG_CONFIG, lambda name: ending(f"/{name}.pc", lambda folder: folder.endswith("/pkgconfig/"))
    yield (
        _CMAKE,
        lambda name: any_of(
            (f"/{name}Config.cmake", f"/{name.lower()}-config.cmake", f"/{name.lower()}.pc"),
            lambda folder: "/lib" in folder,
        ),
    )
    yield _NODE, lambda name: ending(f"/{name}/package.json", lambda folder: "/nodejs/" in folder)
    yield _RUBY, lambda name: ending(f"/{name}.rb", lambda folder: "/ruby" in folder)
    yield _R, lambda name: ending(f"/{name}/DESCRIPTION", lambda folder: folder.startswith("/usr/lib/R/"))
    yield _TEX, lambda name: ending(f"/{name}", lambda folder: "/tex" in folder)
    yield _PATHS, lambda path: list(database.owners([distribution.places.canonical(path)]).values())


def _is_foreign(path: str) -> bool:
    """Whether a library is for programs of another kind than the host's own: 32 bits, or another processor."""
    parts = path.split("/")
    if not _OTHER_WIDTHS.isdisjoint(parts):
        return True
    processors = [part.partition("-")[0] for part in parts if "-linux-gnu" in part]
    return bool(processors) and os.uname().machine not in processors


def _is_module_path(folder: str) -> bool:
    return re.fullmatch(r"/usr/lib(?:64)?/python3[\d.]*/(?:(?:dist|site)-packages/)?", folder) is not None


def _named(patterns: tuple[str, ...], text: str) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        for match in re.finditer(pattern, text, re.M):
            found[match.group(1)] = None
    return list(found)
