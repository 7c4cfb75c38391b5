"""Which programs a step's command names: its own words, and the first lines of the scripts among its inputs."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence

from ..core.instance import Instance
from ..core.programs import interpreter, programs

FIRST_LINE_MAX = 256
"""So much of a script the kernel reads."""


def named_programs(
    instance: Instance, command: Sequence[str], env: Mapping[str, str], first_line: Callable[[str], bytes]
) -> tuple[str, ...]:
    """Names to be looked up in the step's PATH, and absolute ones; no paths of the workspace.

    `first_line` gives that of a path of the workspace that the step sees, nothing for another. Its content is in the
    key, so what is read here adds nothing to what the key rests on.
    """
    found: dict[str, None] = {}
    for name in programs(command, env):
        if "/" not in name or name.startswith("/"):
            found[name] = None
            continue
        line = first_line(posixpath.normpath(posixpath.join(instance.cwd, name)))
        found |= dict.fromkeys(interpreter(line))
    return tuple(found)


def is_source(path: str, instance: Instance) -> bool:
    """Whether it is a source that the step names, or lies in a directory that it names."""
    return any(
        item.producer is None and (item.path == path or (item.path.endswith("/") and path.startswith(item.path)))
        for item in instance.inputs
    )


def first_line(path: str) -> bytes:
    """Of a file, as far as the kernel reads it; empty for what cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # Whatever stands there by now.
    except OSError:
        return b""
    try:
        return os.read(descriptor, FIRST_LINE_MAX)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
