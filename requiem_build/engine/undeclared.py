"""Words of a command that name a file which its step will not see: a warning, before anything fails for it."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection

from ..core.instance import Instance
from ..core.paths import is_within

_WORD = re.compile(r"[^\s'\"<>|;&()`$]+")


def covered(path: str, visible: Collection[str]) -> bool:
    """Whether a directory among these holds it."""
    return any(seen.endswith("/") and path.startswith(seen) for seen in visible)


def undeclared_arguments(
    instance: Instance, shown: str, root: str, *, visible: Collection[str], roots: Collection[str]
) -> list[str]:
    """Warnings for words of a command that are existing files of the workspace which the step will not see."""
    known = {*visible, *instance.outputs, instance.depfile, instance.stdin.path if instance.stdin else None}
    found = []
    for word in dict.fromkeys(_WORD.findall(shown)):  # Roughly the shell's words: it is only a warning.
        if word in known or word[0] in "-/" or "=" in word or not word.strip("./"):
            continue
        path = posixpath.normpath(posixpath.join(instance.cwd, word))
        if path.startswith("..") or path in known or not os.path.isfile(os.path.join(root, path)):
            continue
        if not covered(path, visible) and not covered(path, instance.outputs) and not is_within(path, roots):
            found.append(f'the command of "{instance.name}" names "{path}", which exists but is not among its inputs')
    return found
