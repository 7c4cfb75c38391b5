"""Which names Windows would take for something else than they say. Pure: it can be asked on any system."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.I)
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_BATCH_UNSAFE = re.compile(r'["%&|<>^!\r\n]')


def name_refusal(files: Iterable[str], directories: Iterable[str]) -> str:
    """Why these workspace paths cannot lie there together under their names; empty if they can."""
    seen: dict[str, str] = {}
    for path in (*files, *(directory.rstrip("/") for directory in directories)):
        if path in ("", "."):
            continue
        parts = path.rstrip("/").split("/")
        for part in parts:
            if part in ("", "..") or _FORBIDDEN.search(part):
                return f"{path!r} has a character that no name may have"
            if part.endswith((".", " ")):
                return f"{path!r} ends in a dot or a space, which would be dropped"
            if _DEVICE.fullmatch(part):
                return f"{path!r} is the name of a device"
        for depth in range(1, len(parts) + 1):
            plain = "/".join(parts[:depth])
            other = seen.setdefault(plain.casefold(), plain)
            if other != plain:
                return f"{plain!r} and {other!r} are one name there"
    return ""


def batch_refusal(program: str, arguments: Sequence[str]) -> str:
    """cmd.exe reads the arguments of a batch file anew: what it would understand otherwise is refused."""
    if not program.lower().endswith((".bat", ".cmd")):
        return ""
    for argument in arguments:
        if _BATCH_UNSAFE.search(argument):
            return f'"{program}" is a batch file, and cmd.exe would read its argument {argument!r} as something else'
    return ""
