"""All that a command is made from: rendered in the plan, or kept as JSON until its inputs are known."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ManifestError
from .fields import dataclass
from .paths import quoted
from .texts import check_size, shell_text, words
from .values import BadTemplate, Named, Value, Variables, each_value

SHELLS = {"bash": ("bash", "-euo", "pipefail", "-c"), "sh": ("/bin/sh", "-eu", "-c")}


@dataclass(frozen=True, slots=True)
class Recipe:
    """`each` holds foreach variables; `inputs` and `outputs` are (name, one, paths): workspace paths of one entry.

    A late path is written as `[pattern]`, a list of one, until it is known.
    """

    step: str
    command: str | Sequence[str]
    shell: str
    folder: str
    cwd: str
    variables: Mapping[str, Any]
    each: Mapping[str, Any]
    paths: Sequence[str]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    depfile: str | None

    def argv(self, found: Mapping[str, Sequence[str]] | None = None) -> tuple[tuple[str, ...], str]:
        """The argv, and the command as a person would type it. Raises BadTemplate."""
        return self.argv_with(self.names(found or {}))

    def argv_with(self, variables: Variables) -> tuple[tuple[str, ...], str]:
        """The same with `names()` at hand."""
        if isinstance(self.command, str):
            return argv_of(shell_text(self.command, variables), self.shell)
        return argv_of([str(word) for item in self.command for word in words(item, variables)], self.shell)

    def names(self, found: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Every variable of a command, paths as seen from `cwd`."""
        view = (self.folder, self.cwd)
        names: dict[str, Any] = dict(self.variables)
        for name, value in self.each.items():
            names[name] = each_value(value, view if name in self.paths else None)
        names["inputs"] = _named(self.inputs, self.cwd, found)
        names["outputs"] = outputs = _named(self.outputs, self.cwd, found)
        if len(outputs) == 1:
            names["output"] = outputs[0]
        if self.depfile is not None:
            names["depfile"] = Value("//" + self.depfile, (".", self.cwd)) if self.cwd != "." else Value(self.depfile)
        return names


def argv_of(command: str | Sequence[str], shell: str) -> tuple[tuple[str, ...], str]:
    """The argv of a command that is filled in, and how a person would type it. Raises BadTemplate if it is too long."""
    if isinstance(command, str):
        check_size([command])
        return (*SHELLS[shell], command), command
    check_size(command)
    return tuple(command), shlex.join(command)


def _named(entries: Sequence[Any], cwd: str, found: Mapping[str, Sequence[str]]) -> Named:
    listed: dict[str, Value] = {}
    names: dict[str, Any] = {}
    for name, one, paths in entries:
        mine: dict[str, Value] = {}
        for path in paths:
            late = not isinstance(path, str)
            for known in found[path[0]] if late else (path,):
                mine[known] = listed.get(known) or seen_from(known, cwd)
        listed.update(mine)
        if name is not None:
            values = list(mine.values())
            names[name] = values[0] if one and len(values) == 1 else [*names.get(name, []), *values]
    return Named(list(listed.values()), names)


def seen_from(path: str, cwd: str) -> Value:
    """A workspace path as a value that reads as seen from `cwd`."""
    return Value(path) if cwd == "." else Value("//" + path, (".", cwd))


def late_json(recipe: Recipe, used: frozenset[str]) -> str:
    """A recipe as JSON, with those variables that its command speaks of."""
    fields = {name: getattr(recipe, name) for name in Recipe.__match_args__}
    fields["variables"] = {name: value for name, value in recipe.variables.items() if name in used}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def render_late(late: str, found: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], str]:
    """The argv and the shown text of `Instance.late`, now that inputs are known. Raises ManifestError.

    `found` maps the `path` of each late Input to the workspace paths that it turned out to be, sorted.
    """
    recipe = Recipe(**json.loads(late))
    try:
        return recipe.argv(found)
    except BadTemplate as error:
        raise ManifestError(f"the command of step {quoted(recipe.step)}: {error.what}", hint=error.hint) from error
