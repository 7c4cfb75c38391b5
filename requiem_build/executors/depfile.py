"""The prerequisites that a depfile names: the Makefile dialect that compilers write. No files are touched here."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"(?:\\[ #\\:]|\$\$|\\(?![\n\r])|[^\s\\$]|\$(?!\$))+")


def parse_depfile(content: bytes) -> list[str]:
    """Every prerequisite of every rule, in order, without repeats. Raises ValueError if it is not a depfile.

    `\\` at a line's end continues it; `\\ `, `\\#`, `\\\\` and `$$` are escapes; a rule without
    prerequisites (`header.h:`, as `-MP` writes) names none.
    """
    text = content.decode("utf-8")  # UnicodeDecodeError is a ValueError.
    if "\0" in text:
        raise ValueError("NUL in a depfile")
    found: dict[str, None] = {}
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        tokens = _TOKEN.findall(line)
        if not tokens or line.lstrip().startswith("#"):
            continue
        split = next((i for i, token in enumerate(tokens) if token.endswith(":") and not token.endswith("\\:")), None)
        if split is None:
            raise ValueError(f"no target in the line {line.strip()[:80]!r}")
        for token in tokens[split + 1 :]:
            found[_unescape(token)] = None
    return list(found)


def _unescape(token: str) -> str:
    return re.sub(r"\\([ #:\\])", r"\1", token).replace("$$", "$")
