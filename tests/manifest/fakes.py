"""A workspace that is only a dict, and short ways to load and plan a manifest in it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from requiem_build.core.errors import RequiemError
from requiem_build.core.instance import Plan
from requiem_build.core.listing import Kind
from requiem_build.core.manifest import Manifest, load_manifest
from requiem_build.core.plan import make_plan

PLATFORM = {"os": "linux", "arch": "x86_64"}
PROJECT = '[project]\nname = "test"\n'


class FakeListing:
    """`src/a.c` is a file, `src/` a directory, `link@` a symlink, `pipe|` something else."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.tree: dict[str, dict[str, Kind]] = {".": {}}
        self.listed: list[str] = []
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        kinds: dict[str, Kind] = {"/": "dir", "@": "link", "|": "other"}
        kind = kinds.get(path[-1], "file")
        parts = (path if kind == "file" else path[:-1]).split("/")
        for depth, name in enumerate(parts):
            above = "/".join(parts[:depth]) or "."
            last = depth == len(parts) - 1
            here = self.tree.setdefault(above, {})
            here[name] = kind if last else here.get(name, "dir")
        if kind == "dir":
            self.tree.setdefault("/".join(parts), {})

    def children(self, directory: str) -> Mapping[str, Kind]:
        self.listed.append(directory)
        return self.tree.get(directory, {})

    def kind(self, path: str) -> Kind | None:
        if path == ".":
            return "dir"
        above, _, name = path.rpartition("/")
        return self.tree.get(above or ".", {}).get(name)

    def is_program(self, path: str) -> bool:
        return self.kind(path) == "file"


def load(text: str, files: Mapping[str, str] | None = None, *, head: str = PROJECT, **options: Any) -> Manifest:
    """A manifest's text without its [project], and the texts of other files that it reads."""
    contents = {"requiem.toml": (head + textwrap.dedent(text)).encode("utf-8", "surrogateescape")}
    contents |= {path: textwrap.dedent(content).encode() for path, content in (files or {}).items()}
    return load_manifest(contents.get, **options)


def plan(
    text: str,
    paths: Iterable[str] = (),
    targets: Iterable[str] = (),
    *,
    files: Mapping[str, str] | None = None,
    head: str = PROJECT,
    cwd: str = ".",
    tags: tuple[str, ...] = (),
    **options: Any,
) -> Plan:
    manifest = load(text, files, head=head, **options)
    return make_plan(manifest, list(targets), FakeListing(paths), tags=tags, platform=PLATFORM, cwd=cwd)


def refusal(text: str, paths: Iterable[str] = (), targets: Iterable[str] = (), **options: Any) -> RequiemError:
    """The error that a manifest is refused with: always Requiem's own, and the user's fault."""
    with pytest.raises(RequiemError) as caught:
        plan(text, paths, targets, **options)
    assert caught.value.exit_code in (2, 4)
    return caught.value


def shown(error: RequiemError) -> str:
    """An error as the command line prints it, for golden files."""
    lines = [f"error: {error.what}"]
    for label, text in error.facts:
        first, *more = text.split("\n")
        lines += [f"  {label}: {first}", *(f"  {' ' * len(label)}  {line}" for line in more)]
    if error.hint:
        lines.append(f"  hint: {error.hint}")
    return "\n".join(lines) + "\n"


def inputs_of(made: Plan, name: str) -> list[str]:
    return [item.path for item in made.instances[name].inputs]
