"""Which programs a command names, by its words alone. It does not know what is installed, nor what the command does.

A shell's text is read as far as it takes to tell words from quotes, comments and here-documents. Rather one name too
many than one too few: who asks drops what is no program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .shelltext import ASSIGNMENT, OPAQUE, simple_commands

NAME_MAX = 255
TEXTS_MAX = 200
"""So many pieces of shell text within one command are looked at."""

SHELLS = frozenset({"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh"})

_BEFORE_A_COMMAND: dict[str, tuple[str, int]] = {
    # name: its short options that take a value, and how many words come before the command.
    "builtin": ("", 0),
    "ccache": ("", 0),
    "chroot": ("", 1),
    "chrt": ("TPD", 1),
    "command": ("", 0),
    "distcc": ("", 0),
    "doas": ("uC", 0),
    "env": ("uCS", 0),
    "exec": ("a", 0),
    "fakeroot": ("lsib", 0),
    "faketime": ("f", 1),
    "flock": ("wE", 1),
    "hash": ("", 0),
    "ionice": ("cnpPu", 0),
    "ltrace": ("aeoplnsux", 0),
    "nice": ("n", 0),
    "nohup": ("", 0),
    "parallel": ("jIaNnL", 0),
    "setarch": ("", 1),
    "setsid": ("", 0),
    "stdbuf": ("ioe", 0),
    "strace": ("abeIoOpPsSuUX", 0),
    "sudo": ("ughpCDRT", 0),
    "taskset": ("", 1),
    "time": ("fo", 0),
    "timeout": ("ks", 1),
    "type": ("", 0),
    "unshare": ("SGRw", 0),
    "valgrind": ("", 0),
    "watch": ("nd", 0),
    "which": ("", 0),
    "xargs": ("adEILnPs", 0),
    "xvfb-run": ("efnpsw", 0),
}
_LONG_WITH_VALUE = frozenset(
    f"--{name}"
    for name in (
        *(
            "adjustment",
            "arg-file",
            "argv0",
            "chdir",
            "classdata",
            "delimiter",
            "error",
            "format",
            "init-file",
            "input",
        ),
        *("interval", "kill-after", "max-args", "max-chars", "max-lines", "max-procs", "output", "rcfile", "signal"),
        *("unset", "user"),
    )
)
_AFTER_THESE_OF_FIND = frozenset({"-exec", "-execdir", "-ok", "-okdir"})
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?([-=+])([^{}]*))?\})\Z")
_SPLIT_MAX = 100


def programs(command: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """Names as they are written: alone (to be looked up in PATH), absolute, or relative to where the command runs.

    `env` is what its variables are looked up in. In the order in which they stand, without repeats.
    """
    found: dict[str, None] = {}
    variables = {name: [value] for name, value in env.items()}
    pending: list[Sequence[str] | str] = [command]
    for piece in pending:  # It grows while it is read: text in a command, and commands in text.
        commands = [list(piece)] if not isinstance(piece, str) else simple_commands(piece)
        for words in commands:
            for name, text in _named(words, variables):
                if text and len(pending) < TEXTS_MAX:
                    pending.append(text)
                if _is_name(name):
                    found[name] = None
    return tuple(found)


def interpreter(first_line: bytes) -> tuple[str, ...]:
    """The programs that a script is run by: those of its first line, as the kernel reads it."""
    line = first_line.partition(b"\n")[0]
    if not line.startswith(b"#!"):
        return ()
    program, _, argument = line[2:].decode("utf-8", "replace").strip().partition(" ")
    return programs([program, *([argument.strip()] if argument.strip() else [])], {}) if program else ()


def _is_name(name: str) -> bool:
    return 0 < len(name) <= NAME_MAX and not re.search(r"[\s\0*?$'\"`{}<>|;&()]", name) and name not in (".", "..")


def _named(words: list[str], variables: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """(name, "") for each program that a simple command runs, and ("", text) for each text that a shell will read."""
    pending = [words]
    for each in pending:
        rest = _without_assignments(each, variables)
        while rest and rest[0].startswith("-"):
            rest = rest[1:]
        if not rest or len(pending) > TEXTS_MAX:
            continue
        first, rest = rest[0], rest[1:]
        values = _values(first, variables)
        if values is not None:
            pending += [[*value.split()[:_SPLIT_MAX], *rest] for value in values[:_SPLIT_MAX]] or [rest]
            continue
        yield first, ""
        name = first.rpartition("/")[2]
        if name == "for":
            _note_loop(rest, variables)
        elif name in SHELLS:
            yield "", _text_of_shell(rest)
        elif name == "eval":
            yield "", " ".join(rest)
        elif name == "trap":
            yield "", next((word for word in rest if not word.startswith("-")), "")
        elif name == "find":
            starts = [at + 1 for at, word in enumerate(rest) if word in _AFTER_THESE_OF_FIND]
            pending += [rest[at:] for at in starts[:_SPLIT_MAX]]
        elif name in _BEFORE_A_COMMAND:
            texts = list(_text_of_options(name, rest))
            yield from texts
            if not texts:
                pending.append(_after_options(rest, *_BEFORE_A_COMMAND[name]))


def _without_assignments(words: list[str], variables: dict[str, list[str]]) -> list[str]:
    """What follows the assignments in front, whose values are kept: `CC=gcc; $CC -c a.c`."""
    for at, word in enumerate(words):
        match = ASSIGNMENT.match(word)
        if match is None:
            return words[at:]
        variables.setdefault(match[1], []).append(word[match.end() :])
    return []


def _note_loop(rest: list[str], variables: dict[str, list[str]]) -> None:
    """`for cc in gcc clang`."""
    if len(rest) > 2 and rest[1] == "in":
        variables.setdefault(rest[0], []).extend(rest[2 : 2 + _SPLIT_MAX])


def _values(word: str, variables: Mapping[str, Sequence[str]]) -> list[str] | None:
    """What a word that is a variable may stand for; None for any other word."""
    match = _VARIABLE.match(word)
    if match is None:
        return None
    found = list(variables.get(match[1] or match[2], ()))
    if match[4]:
        found.append(match[4])  # ${CC:-gcc}
    return [value for value in found if value.strip() and not value.startswith("$")]


def _text_of_shell(rest: Sequence[str]) -> str:
    """What follows `-c` and further options; empty where there is none."""
    reads_text = False
    skip = False
    for word in rest:
        if skip:
            skip = False
        elif word[:1] in ("-", "+") and len(word) > 1:
            letters = word[1:] if not word.startswith("--") else ""
            reads_text |= "c" in letters and word[0] == "-"
            skip = letters[-1:] in ("o", "O") or word in _LONG_WITH_VALUE
        else:
            return word if reads_text else ""
    return ""


def _text_of_options(name: str, rest: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`env -S "python3 -u"`, also as one word (in a script's first line), and `flock FILE -c TEXT`."""
    for at, word in enumerate(rest):
        after = rest[at + 1] if at + 1 < len(rest) else ""
        if name == "env" and word[:1] == "-" and not word.startswith("--") and "S" in word:
            yield "", word.partition("S")[2].strip() or after
        elif name == "env" and word.startswith("--split-string"):
            yield "", word.partition("=")[2] or after
        elif name == "flock" and word in ("-c", "--command"):
            yield "", after


def _after_options(rest: list[str], with_value: str, positionals: int) -> list[str]:
    """The command that another one runs: what comes after its options and so many words."""
    at = 0
    while at < len(rest):
        word = rest[at]
        if word == "--":
            at += 1
            break
        if len(word) > 1 and word[0] == "-":
            at += 2 if word in _LONG_WITH_VALUE or (word[1] != "-" and word[-1] in with_value) else 1
        elif positionals and not ASSIGNMENT.match(word):
            positionals -= 1
            at += 1
        elif ASSIGNMENT.match(word) or OPAQUE in word:
            at += 1
        else:
            break
    return rest[at + positionals :] if at < len(rest) else []
