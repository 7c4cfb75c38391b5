"""The text of a step as a person would write it into the manifest. Pure."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from .fields import dataclass, field
from .locate import BARE
from .paths import ROOT, spelled
from .patterns import escape

WIDTH = 100
GROUPED_MIN = 8
"""From so many files of one kind in one directory on, all of them are said by a pattern."""


@dataclass(slots=True)
class Block:
    """One `[steps.NAME]`; paths are patterns already. `roots` are new ones: name -> path."""

    name: str
    command: str | Sequence[str]
    cwd: str = "."
    inputs: Sequence[str] = ()
    discover: Sequence[str] = ()
    depfile: str | None = None
    outputs: Sequence[str] = ()
    tools: Sequence[str] = ()
    use_roots: Sequence[str] = ()
    roots: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        lines: list[str] = []
        for name, path in self.roots.items():
            lines += [f"[roots.{key(name)}]", f"path = {string(path)}", ""]
        lines.append(f"[steps.{key(self.name)}]")
        command = self.command if isinstance(self.command, str) else [*self.command]
        lines.append(f"command = {string(command) if isinstance(command, str) else strings(command)}")
        if self.cwd != ".":
            lines.append(f"cwd = {string(self.cwd)}")
        lists = {"tools": self.tools, "inputs": self.inputs, "roots": self.use_roots, "discover": self.discover}
        for name, items in lists.items():
            if items:
                lines.append(f"{name} = {strings(items)}")
        if self.depfile is not None:
            lines.append(f"depfile = {string(self.depfile)}")
        if self.outputs:
            lines.append(f"outputs = {strings(self.outputs)}")
        return "\n".join(lines) + "\n"


def key(name: str) -> str:
    return name if BARE.fullmatch(name) else string(name)


def string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def strings(items: Iterable[str]) -> str:
    """A list in one line if it fits, else one item a line."""
    spelled = [string(item) for item in items]
    line = f"[{', '.join(spelled)}]"
    return line if len(line) <= WIDTH else "[\n" + "".join(f"    {item},\n" for item in spelled) + "]"


def inputs_line(path: str, step: str) -> str:
    """What to add to the manifest that has this step, so that it reads a path of the workspace."""
    return f"inputs = [..., {string(input_text(path, step))}]"


def input_text(path: str, step: str) -> str:
    """A path as the manifest that has this step writes it in a list of patterns."""
    return escape(spelled(path, posixpath.dirname(step) or ROOT))


def root_line(directory: str, more: str = "") -> str:
    """What to add to the manifest, so that a step sees a directory; `more` belongs into the step too."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", posixpath.basename(directory)).strip("-") or "root"
    return f"[roots.{name}] path = {string(directory)}, then roots = [{string(name)}]{more} in the step"


def literal(text: str, *, shell: bool = False) -> str:
    """Text of a command that no template may change."""
    return text.replace("{{", '{{ "{{" | raw }}' if shell else '{{ "{{" }}')


def grouped(paths: Collection[str], present: Collection[str]) -> list[str]:
    """Patterns for these paths and nothing else of what is `present`: one for a kind of file where all is meant."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for path in sorted(paths):
        kinds.setdefault((posixpath.dirname(path), posixpath.splitext(path)[1]), []).append(path)
    found: list[str] = []
    for (folder, suffix), members in sorted(kinds.items()):
        prefix = f"{folder}/" if folder else ""
        all_of_it = {
            path
            for path in present
            if posixpath.dirname(path) == folder
            and posixpath.splitext(path)[1] == suffix
            and not posixpath.basename(path).startswith(".")
        }
        if len(members) >= GROUPED_MIN and suffix and all_of_it == set(members):
            found.append(f"{escape(prefix)}*{escape(suffix)}")
        else:
            found += [escape(path) for path in members]
    return found


WHOLE_MIN = 4
"""So many files in a directory are said by the directory."""


def whole_directories(made: Collection[str], present: Collection[str], own: Collection[str] = ()) -> list[str]:
    """Outputs: the topmost directories that hold nothing but what was made, if it is much; else the files.

    One of its `own`, which the command made itself, is always said as a whole: it must not be there before.
    """
    by_folder: dict[str, set[str]] = {}
    for path in made:
        folder = posixpath.dirname(path)
        while folder:
            by_folder.setdefault(folder, set()).add(path)
            folder = posixpath.dirname(folder)
    others = set(present) - set(made)
    tops: list[str] = []
    for folder in sorted(by_folder):
        mixed = any(path.startswith(folder + "/") for path in others)
        inside = any(folder.startswith(top + "/") for top in tops)
        if not mixed and not inside and (folder in own or len(by_folder[folder]) >= WHOLE_MIN):
            tops.append(folder)
    rest = [path for path in made if not any(path.startswith(top + "/") for top in tops)]
    return sorted([*(f"{escape(top)}/" for top in tops), *(escape(path) for path in rest)])
