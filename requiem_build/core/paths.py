"""Paths as text: one plain spelling each, never outside the workspace. It does not look at any disk.

Three spellings of one place: in the workspace (`libs/a/src/x.c`: what plans and requests hold), in a manifest
(`src/x.c` in `libs/a/requiem.toml`, `//other/x.c` for what lies elsewhere), and in a command (relative to `cwd`).
A path that ends in `/` is a whole directory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

ROOT = "."
PATH_BYTES_MAX = 4096
NAME_BYTES_MAX = 255
RESERVED = frozenset({".git", ".requiem", ".cas"})


class BadPath(ValueError):
    """Why a text is no path of the workspace, worded to follow the path: `"../x" leaves the workspace`."""


@lru_cache(maxsize=65536)
def resolve(text: str, folder: str = ROOT) -> str:
    """A path as written in the manifest of `folder` -> workspace-relative, `.` for the root. Raises BadPath."""
    problem = refusal(text)
    if problem:
        raise BadPath(problem)
    body = text.lstrip("/") if text.startswith("//") else text
    parts = [] if folder == ROOT or text.startswith("//") else folder.split("/")
    for part in body.split("/"):
        if part == "..":
            if not parts:
                raise BadPath("leaves the workspace")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if not parts:
        return ROOT
    return "/".join(parts) + ("/" if text.endswith(("/", "/.", "/..")) else "")


def refusal(text: str) -> str:
    """Why a text can be no path at all, or nothing."""
    if not text:
        return "is empty"
    if not text.isprintable() and has_control(text):
        return "holds a control character"
    if "\\" in text:
        return "holds a backslash: names are joined by /"
    if text.startswith("/") and not text.startswith("//"):
        return "is absolute, so it leaves the workspace"
    if text == "~" or text.startswith("~/"):
        return "is in the home directory, so it leaves the workspace"
    if len(text) > 60:
        encoded = text.encode("utf-8", "surrogateescape")
        if len(encoded) > PATH_BYTES_MAX or any(len(name) > NAME_BYTES_MAX for name in encoded.split(b"/")):
            return f"is longer than a path ({PATH_BYTES_MAX} bytes) or a name in it ({NAME_BYTES_MAX}) can be"
    return ""


def has_control(text: str) -> bool:
    """Control characters, and halves of surrogate pairs (what Python makes of names that are not UTF-8)."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def is_within(path: str, tops: Iterable[str]) -> bool:
    """Whether a path is one of these directories, or lies below one."""
    return any(path == top or path.startswith(top + "/") for top in tops)


def is_reserved(path: str) -> bool:
    """Whether a path lies where git, Requiem or the store keep their own."""
    return path.partition("/")[0].lower() in RESERVED or ".git" in path.lower().split("/")


def spelled(path: str, folder: str) -> str:
    """A workspace path as the manifest of `folder` writes it."""
    if folder == ROOT:
        return path
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else "//" + path


def relative(path: str, cwd: str) -> str:
    """A workspace path as seen from the directory `cwd`, without the `/` of a directory."""
    plain = path.removesuffix("/")
    if cwd == ROOT:
        return plain
    here, there = cwd.split("/"), [] if plain == ROOT else plain.split("/")
    same = 0
    while same < min(len(here), len(there)) and here[same] == there[same]:
        same += 1
    return "/".join([".."] * (len(here) - same) + there[same:]) or "."


def join(folder: str, name: str) -> str:
    return name if folder == ROOT else f"{folder}/{name}"


def parent(path: str) -> str:
    return path.rpartition("/")[0] or ROOT


def ancestors(path: str) -> list[str]:
    """The directories above a path, nearest first, without the root."""
    found = []
    at = path.rfind("/", 0, len(path) - 1)
    while at > 0:
        found.append(path[:at])
        at = path.rfind("/", 0, at)
    return found


def folded(path: str) -> str:
    """What a case-insensitive, normalising file system takes a path for."""
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def quoted(text: object, limit: int = 120) -> str:
    """Any text in quotes, safe for a terminal: nothing unprintable, nothing endless."""
    whole = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in whole[:limit])
    return f'"{shown}"' if len(whole) <= limit else f'"{shown}..."'
