"""Where else a C compiler would have looked: the pure part of discovered inputs. No file is read here.

A depfile says what was read, never what was looked for and not found. For gcc and clang both follow from the text
of what was read and from the command: every name in an `#include` and its kin, in every directory that is searched.
Taken or not: which branches are taken follows from the same texts. Where a name is only known once macros are
expanded, or an option changes how names are looked for, `Unknown` says so, and the caller falls back.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from .fields import dataclass, field
from .policy import WORKSPACE

NAME_MAX = 1024
RESPONSE_DEPTH_MAX = 8
ARGUMENTS_MAX = 200_000


class Unknown(Exception):
    """It cannot be derived what would be looked for; the words say why."""


# What a text looks for

_SPACE = r"(?:[ \t\f\v]|/\*(?:[^*]|\*(?!/))*\*/)*"
_DIRECTIVE = rf"(?:#|%:){_SPACE}(?:include_next|include|import|embed)\b{_SPACE}"
_INCLUDE = re.compile(rf"{_DIRECTIVE}(?:\"([^\"\n]+)\"|<([^>\n]+)>)")
_HAS = re.compile(rf"\b__has_(?:include|include_next|embed)\b{_SPACE}\(?{_SPACE}(?:\"([^\"\n]+)\"|<([^>\n]+)>)")
_DEPENDENCY = re.compile(rf"\bdependency{_SPACE}\\?(?:\"([^\"\n\\]+)\\?\"|<([^>\n]+)>)")
_INCLUDE_OF_MACRO = re.compile(rf"{_DIRECTIVE}(?![\"<])")
_HAS_OF_MACRO = re.compile(rf"\b__has_(?:include|include_next|embed)\b(?!{_SPACE}\(?{_SPACE}[\"<])")
_LINE_WITH_MACRO = re.compile(
    r"^[ \t\f\v]*(?:#|%:)[ \t\f\v]*(?:include_next|include|import|embed)\b[ \t\f\v]*(?![ \t\f\v\"<])([A-Za-z_]\w*|)",
    re.M,
)
_MERELY_ASKED = re.compile(
    r"(?:defined[ \t]*\(?[ \t]*|#[ \t]*(?:ifdef|ifndef|undef)[ \t]+)__has_(?:include|include_next|embed)\b"
)
_CONDITION = re.compile(r"^[ \t]*#[ \t]*(?:el)?if\b.*$", re.M)
_OPERAND = re.compile(r"\([ \t]*(?:\"([^\"\n]+)\"|<([^<>\n]+)>)")
_DEFINED_NAME = re.compile(r"^[ \t]*#[ \t]*define[ \t]+\w+[ \t]+(?:\"([^\"\n]+)\"|<([^<>\n]+)>)", re.M)
_ASSEMBLED = re.compile(r"incbin|\.include[ \t]")
_SPLICE = re.compile(r"\\[ \t\f\v]*\r?\n")
_NOT_CODE = re.compile(
    r"(?P<comment>//[^\n]*|/\*(?:[^*]|\*(?!/))*(?:\*/)?)"
    r"|(?:#|%:)[ \t]*(?:include_next|include|import|embed)\b[ \t]*<[^>\n]*>"
    r"|(?<!\w)(?:u8|[uUL])?R\"(?P<mark>[^\s()\\]{0,16})\((?:.|\n)*?\)(?P=mark)\""
    r"|\"(?:\\.|[^\"\\\n])*\"?"
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'?"
)


@dataclass(frozen=True, slots=True)
class Scan:
    """The names that one text may look for. `probed` are those that are only asked for (`__has_include`)."""

    quoted: frozenset[str]
    angled: frozenset[str]
    probed: frozenset[str]
    opaque: bool
    """Whether some name cannot be told from texts: put together by macros, or asked for through one."""
    macros: frozenset[str]
    """Macros whose values are included: `#include CONFIG`."""
    system_header: bool
    """Whether it calls itself a system header: then `-MMD` does not report what it includes."""
    once: bool
    """Whether it is included once: another file of the same content is then read and not reported."""
    embeds: bool
    """Whether an assembler reads files for it, which no depfile names."""

    @property
    def names(self) -> frozenset[str]:
        return self.quoted | self.angled


def scan(content: bytes) -> Scan:
    """Every name is found that a compiler could see; some that it never looks for are found too (in comments)."""
    text = content.decode("utf-8", "surrogateescape")
    if "\\" in text:
        text = _SPLICE.sub("", text)
    quoted, angled, probed = set[str](), set[str](), set[str]()
    for pattern, asked in ((_INCLUDE, False), (_HAS, True), (_DEPENDENCY, True)):
        for in_quotes, in_angles in pattern.findall(text):
            (quoted if in_quotes else angled).add(in_quotes or in_angles)
            if asked:
                probed.add(in_quotes or in_angles)
    opaque, macros = _macros(text)
    return Scan(
        frozenset(filter(_is_name, quoted)),
        frozenset(filter(_is_name, angled)),
        frozenset(filter(_is_name, probed)),
        opaque=opaque,
        macros=macros,
        system_header="system_header" in text,
        once="once" in text or "import" in text,
        embeds=_ASSEMBLED.search(text) is not None,
    )


def _is_name(name: str) -> bool:
    return "\0" not in name and len(name) <= NAME_MAX and not any("\ud800" <= c <= "\udfff" for c in name)


def _macros(text: str) -> tuple[bool, frozenset[str]]:
    """(opaque, macros) of a scan: first roughly, then without comments, which may well say "#include this"."""
    if "??=" in text or "??/" in text:
        return True, frozenset()
    if not _INCLUDE_OF_MACRO.search(text) and not _HAS_OF_MACRO.search(text):
        return False, frozenset()
    bare = _NOT_CODE.sub(lambda found: " " if found["comment"] else found[0], text)
    if _HAS_OF_MACRO.search(_MERELY_ASKED.sub("", bare)):
        return True, frozenset()
    macros = frozenset(_LINE_WITH_MACRO.findall(bare))
    return any(not name or name.startswith("__") for name in macros), macros


def definitions(content: bytes, macro: str) -> Iterator[str | None]:
    """What a text defines a macro as: the name of a header as it is written there, or None for anything else."""
    text = _SPLICE.sub("", content.decode("utf-8", "surrogateescape"))
    if macro in text:
        for found in re.finditer(rf"(?:#|%:){_SPACE}define{_SPACE}{re.escape(macro)}\b(.*)", text):
            yield header_name(found[1])


def header_name(value: str) -> str | None:
    """The name in `"x.h"` or `<x.h>`; None for anything else."""
    literal = re.fullmatch(r'\s*(?:"([^"\\]+)"|<([^<>]+)>)\s*(?://.*|/\*[^*]*\*/\s*)?', value)
    return None if literal is None else literal[1] or literal[2]


def conditional_names(content: bytes) -> frozenset[str]:
    """Names that the conditions of a system header may ask for, also through macros of its own."""
    text = _SPLICE.sub("", content.decode("utf-8", "surrogateescape"))
    if "has_include" not in text and "has_embed" not in text:
        return frozenset()
    found = {a or b for line in _CONDITION.findall(text) for a, b in _OPERAND.findall(line)}
    found |= {a or b for a, b in _DEFINED_NAME.findall(text)}
    return frozenset(filter(_is_name, found))


# What a command searches

COMPILER = re.compile(r"(?:[\w.]+-)*(?:gcc|g\+\+|cc|c\+\+|clang|clang\+\+)(?:-\d+(?:\.\d+)*)?")
_SOURCE = re.compile(r"[^-].*\.(?:c|cc|cp|cxx|cpp|CPP|c\+\+|C|m|mm|M|S|sx|s|i|ii)", re.DOTALL)
_DIRECTORY_OPTIONS = ("-iquote", "-isystem", "-idirafter", "-cxx-isystem", "-c-isystem", "-I")
_FORCED_OPTIONS = ("-include", "-imacros")
_TAKE_A_VALUE = frozenset(
    {"-o", "-D", "-U", "-MF", "-MT", "-MQ", "-MJ", "-x", "-Xlinker", "-Xassembler", "-T", "-u", "-L", "-l", "-z", "-A"}
    | {"-aux-info", "-e", "-G", "--param", "-arch", "-target", "-mllvm", "-dumpbase", "-dumpdir", "-dumpbase-ext"}
)
_OPAQUE_OPTIONS = (
    *("-fmodule", "-fcxx-modules", "-fimplicit-module", "-fprebuilt-module", "-fplugin", "-fpch", "-fpreprocessed"),
    *("-fprofile-use", "-fauto-profile", "-fbranch-prob", "-finput-charset", "-fdeps-", "-specs", "--specs"),
    *("-wrapper", "-B", "-Xclang", "-Xarch", "-Xcuda", "-Xopenmp", "--config", "-remap", "--sysroot", "-F", "--gcc-"),
    *("-working-directory", "-resource-dir", "-I-", "-no-integrated-cpp", "-include-pch", "-traditional", "--i"),
    *("-stdlib++-isystem", "-index-header-map"),
)
_SYSTEM_VARIABLES = ("C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "OBJC_INCLUDE_PATH", "OBJCPLUS_INCLUDE_PATH")
_OPAQUE_VARIABLES = ("COMPILER_PATH", "GCC_EXEC_PREFIX", "CCC_OVERRIDE_OPTIONS")
_NO_LINK = frozenset(("-c", "-S", "-E", "-M", "-MM", "-fsyntax-only"))

Read = Callable[[str], "bytes | None"]


@dataclass(slots=True)
class Search:
    """Where a command looks. `directories` are as written, to be taken from `cwd`; `forced` are `-include` files."""

    directories: list[str] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    system_directories: list[str] = field(default_factory=list)
    """Those of `directories` whose headers count as the system's, which `-MMD` does not report."""
    reports_all: bool = False
    links: bool = True

    def definitions(self, macro: str) -> Iterator[str | None]:
        """What the arguments define a macro as, in the manner of `definitions` of a text."""
        for word in self.words:
            name, equals, value = word.removeprefix("-D").partition("=")
            if name.partition("(")[0].strip() == macro:
                yield header_name(value) if equals else None


def search_of(command: Sequence[str], environment: Mapping[str, str], read: Read) -> Search:
    """What a compiler's arguments and environment say. `read` gives a response file's content. Raises Unknown."""
    found = Search()
    words = _expanded(command[1:], read, found)
    flags = set(words)
    found.reports_all = bool(flags & {"-MD", "-M"}) and not flags & {"-MMD", "-MM"}
    found.links = not flags & _NO_LINK
    found.words = words
    for name in _OPAQUE_VARIABLES:
        if name in environment:
            raise Unknown(f"the variable {name} is set")
    rest = iter(words)
    for word in rest:
        _option(word, rest, found)
    for name in ("CPATH", *_SYSTEM_VARIABLES):
        if name in environment:
            listed = [part or "." for part in environment[name].split(":")]
            found.directories += listed
            if name != "CPATH":
                found.system_directories += listed
    return found


def _option(word: str, rest: Iterator[str], found: Search) -> None:
    if not word.startswith("-"):
        if _SOURCE.fullmatch(word):
            found.sources.append(word)
        return
    for option in _FORCED_OPTIONS:
        if word.startswith(option) and not word.startswith("-include-pch"):
            found.forced.append(word[len(option) :] or next(rest, ""))
            return
    if any(word.startswith(option) for option in _OPAQUE_OPTIONS):
        raise Unknown(f"the option {word}")
    for option in _DIRECTORY_OPTIONS:
        if word.startswith(option):
            directory = word[len(option) :] or next(rest, "")
            if directory.startswith(("=", "$SYSROOT")) or directory.endswith(".hmap"):
                raise Unknown(f"the directory {directory}")
            found.directories.append(directory)
            if option not in ("-I", "-iquote"):
                found.system_directories.append(directory)
            return
    if word.startswith("-i"):
        raise Unknown(f"the option {word}")
    if word in _TAKE_A_VALUE:
        next(rest, None)


def _expanded(command: Sequence[str], read: Read, found: Search) -> list[str]:
    """The arguments with response files and what is passed on to the preprocessor in their places."""
    words: list[str] = []
    pending = [(word, 0) for word in reversed(command)]
    while pending:
        word, depth = pending.pop()
        if word.startswith("@") and len(word) > 1:
            content = read(word[1:])
            if content is None or depth == RESPONSE_DEPTH_MAX:
                raise Unknown(f"the response file {word}")
            found.responses.append(word[1:])
            pending += [(inner, depth + 1) for inner in reversed(response_words(content))]
        elif word.startswith("-Wp,"):
            pending += [(inner, depth) for inner in reversed(word[4:].split(","))]
        elif word != "-Xpreprocessor":
            words.append(word)
        if len(words) + len(pending) > ARGUMENTS_MAX:
            raise Unknown("too many arguments")
    return words


def response_words(content: bytes) -> list[str]:
    """A response file's arguments, as libiberty's buildargv cuts them: spaces, quotes of both kinds, backslashes."""
    words: list[str] = []
    word: list[str] = []
    quote, began, escaped = "", False, False
    for character in content.decode("utf-8", "surrogateescape"):
        if escaped:
            word.append(character)
            escaped = False
        elif character == "\\":
            escaped = began = True
        elif quote:
            if character == quote:
                quote = ""
            else:
                word.append(character)
        elif character in "'\"":
            quote, began = character, True
        elif character in " \t\n\r\f\v":
            if began:
                words.append("".join(word))
            word, began = [], False
        else:
            word.append(character)
            began = True
    return [*words, "".join(word)] if began else words


# Places

OUTSIDE = ""
"""Not in the workspace: nothing can come to stand there."""


def place(base: str, name: str, standing: Collection[str], host: str = WORKSPACE) -> str:
    """A name as seen from a directory of the workspace: the workspace path, `.` for its root, or OUTSIDE.

    `x/../y` leads somewhere only while `x` stands: raises Unknown unless `standing` says that it does.
    `host` is the workspace's absolute path as the step sees it.
    """
    if name.startswith("/"):
        if name != host and not name.startswith(host + "/"):
            return OUTSIDE
        base, name = ".", name[len(host) :]
    if ".." not in name and "./" not in name and "//" not in name and name not in (".", ""):
        return name.strip("/") if base == "." else f"{base}/{name}".rstrip("/")
    parts = [] if base == "." else base.split("/")
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return OUTSIDE
            if "/".join(parts) not in standing:
                raise Unknown(f"{name}: whether {'/'.join(parts)} stands may change")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or "."


def looked_for(
    directories: Sequence[str], file: str | None, found: Scan, standing: Collection[str], host: str = WORKSPACE
) -> Iterator[tuple[str, str]]:
    """(name, workspace path) of every place where a text's names are looked for. `file` is its own path.

    Also precompiled forms that the compiler prefers. Raises Unknown.
    """
    own = [] if file is None else [posixpath.dirname(file) or "."]
    for names, places in ((found.quoted, [*own, *directories]), (found.angled, directories)):
        for name in names:
            for directory in places:
                path = place(directory, name, standing, host)
                if path not in (OUTSIDE, "."):
                    yield name, path
                if name.startswith("/"):
                    break
