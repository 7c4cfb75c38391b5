"""Where the values of secrets come from, and whether all that a build needs of the caller's environment is there.

Values are read when a step is about to run, and go to that step alone.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..core.errors import EnvironmentFault, UnknownName, UsageError
from ..core.instance import Instance
from ..core.secrecy import VALUE_MAX, VALUE_MIN
from .surroundings import required_names


class Secrets:
    """`environment` comes first, then `files`: what the user's configuration names, `[secrets] NAME = "~/x"`."""

    def __init__(self, environment: Mapping[str, str], files: Mapping[str, Any]) -> None:
        self._environment = environment
        self._files = files

    def __contains__(self, name: str) -> bool:
        return name in self._environment or name in self._files

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """Raises UnknownName for one that is nowhere, UsageError for a value that could not be kept secret."""
        found = {}
        for name in names:
            value = self._value(name)
            size = len(value.encode("utf-8", "surrogateescape"))
            if not VALUE_MIN <= size <= VALUE_MAX:
                raise UsageError(
                    f'the secret "{name}" has {size} bytes',
                    hint=f"a secret has {VALUE_MIN} to {VALUE_MAX} bytes: a shorter one cannot be masked",
                )
            if "\0" in value:
                raise UsageError(f'the secret "{name}" holds a NUL byte, which no variable can')
            found[name] = value
        return found

    def _value(self, name: str) -> str:
        if name in self._environment:
            return self._environment[name]
        if name in self._files:
            return _read(name, self._files[name])
        raise UnknownName(
            f'the secret "{name}" is not set',
            facts=near_names(name, [*self._environment, *self._files]),
            hint=f'set the variable {name}, or name a file in your own configuration: [secrets] {name} = "~/path"',
        )


def _read(name: str, place: object) -> str:
    if not isinstance(place, str) or not os.path.expanduser(place).startswith("/"):
        raise UsageError(
            f"secrets.{name} in the user's configuration is no path", hint=f'write {name} = "~/path" or "/path"'
        )
    path = os.path.expanduser(place)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise UsageError(
                    f'the file of the secret "{name}" may be read by others, or is no file',
                    facts=[("path", path)],
                    hint=f"chmod 600 {shlex.quote(path)}",
                )
            content = file.read(VALUE_MAX + 2)
    except OSError as error:
        cause = error.strerror or str(error)
        raise EnvironmentFault(
            f'the file of the secret "{name}" cannot be read', facts=[("path", path), ("cause", cause)]
        ) from error
    return content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def check_environment(
    instances: Iterable[Instance],
    environment: Mapping[str, str],
    secrets: Secrets,
    *,
    must_run: Callable[[Instance], bool],
    warn: Callable[[str], None],
) -> None:
    """Before anything runs. Raises UnknownName for a variable that a step must have.

    A secret is only needed by a step that runs: one that the store may answer is a warning.
    """
    for instance in instances:
        for name in required_names(instance.pass_env):
            if name not in environment:
                raise UnknownName(
                    f'step "{instance.name}" passes the variable "{name}", which is not set',
                    facts=near_names(name, environment),
                    hint=f'set it, or write pass_env = ["{name}?"] if the step does without',
                )
        for name in instance.secrets:
            if name not in secrets:
                if must_run(instance):
                    secrets.values([name])
                warn(f'the secret "{name}" of "{instance.name}" is not set: only the store can answer that step')


def near_names(name: str, known: Iterable[str]) -> Sequence[tuple[str, str]]:
    import difflib

    near = difflib.get_close_matches(name, sorted(set(known)), 3, 0.7)
    return [("nearest", ", ".join(near))] if near else []
