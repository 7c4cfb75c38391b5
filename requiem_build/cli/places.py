"""A step's words for its user: the sandbox's paths become the user's own. It knows nothing of where text comes from.

Only whole paths are turned: `/workspace` within another path (`/opt/workspace`) or a URL is somebody else's.
"""

from __future__ import annotations

import re
from functools import cache

from ..core.policy import WORKSPACE

_URL = r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'`<>]*"
_FILE_URL = r"(?<![A-Za-z0-9+.-])file://"
_BEFORE = r"^|[^\w.~%+@$)\]}*?/\\-]"
_FLAG = rf"(?:{_BEFORE})-[A-Za-z]"  # -I/workspace/include
_COLOR = r"\x1b\[[0-9;]*[A-Za-z]"
_ENDS = r"(?!\.*[\w~%+@$*{-])"  # It may end a sentence, but `/workspace.old` is another path.


def users_own(text: str, root: str) -> str:
    """`text` of a step that saw the workspace `root` at `/workspace`."""
    if WORKSPACE not in text:
        return text

    def turned(match: re.Match[str]) -> str:
        if match["scheme"] is not None:
            from urllib.parse import quote

            return match["scheme"] + quote(root, errors="surrogateescape")
        return match[0] if match["before"] is None else match["before"] + root

    return _paths().sub(turned, text)


@cache
def _paths() -> re.Pattern[str]:
    """Compiled for the first text that needs it: most steps say nothing."""
    here = re.escape(WORKSPACE) + _ENDS
    return re.compile(rf"(?P<scheme>{_FILE_URL}){here}|{_URL}|(?P<before>{_FLAG}|{_COLOR}|{_BEFORE}){here}")
