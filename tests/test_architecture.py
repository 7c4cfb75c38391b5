"""The shape that everything rests on: one direction of imports, no cycle, one home for each library."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "requiem_build"
ORDER = ["core", "store", "sandbox", "executors", "plugins", "engine", "cli"]
HOMES = {
    "networkx": {"core/plan.py"},
    "blake3": {"core/digest.py", "engine/sealed.py"},  # The seal is keyed, which no digest of the formats is.
    "rfc8785": {"core/canonical.py"},
    "jinja2": {"core/expressions.py"},
    "click": {f"cli/{name}.py" for name in ("build", "cas", "clean", "commands", "doctor", "execute", "init")}
    | {f"cli/cas_{name}.py" for name in ("bytes", "care", "look", "migrate")}
    | {
        f"cli/{name}.py"
        for name in ("attest", "inspect", "keys", "listing", "pack", "replay", "reproduce", "sbom", "unpack", "version")
    }
    | {f"cli/{name}.py" for name in ("add", "observe", "shell", "tighten", "watch", "why")},
    "cryptography": {"store/keys.py"},
    "rich": {"cli/console.py"},
    "zstandard": {"store/encoding.py"},
    "watchfiles": {"engine/watch.py"},
}
IMPURE = {"os", "io", "pathlib", "subprocess", "socket", "time", "datetime", "random", "secrets", "tempfile", "shutil"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), _parsed(path)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(name: str, tree: ast.Module) -> tuple[str, ...]:
    """Absolute names of everything that a module imports, also inside functions, but not for types alone."""
    return tuple(_imports(name, tree))


def _imports(name: str, tree: ast.Module) -> Iterator[str]:
    package = ["requiem_build", *name.split("/")[:-1]]
    for node in _runtime(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def _runtime(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _runtime(child)


def folder(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "requiem_build" and len(parts) > 1 and parts[1] in ORDER else None


def test_each_folder_imports_only_what_stands_left_of_it() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules()
        if name.split("/")[0] in ORDER
        for imported in imports(name, tree)
        if (target := folder(imported)) is not None and ORDER.index(target) > ORDER.index(name.split("/")[0])
    ]
    assert wrong == []


def test_the_import_graph_has_no_cycle() -> None:
    known = {name for name, _ in modules()}
    graph: dict[str, set[str]] = {}
    for name, tree in modules():
        graph[name] = set()
        for imported in imports(name, tree):
            parts = imported.split(".")[1:]
            for candidate in ("/".join(parts) + ".py", "/".join(parts[:-1]) + ".py"):
                if candidate in known and candidate != name:
                    graph[name].add(candidate)
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_library_has_one_home(library: str) -> None:
    users = {name for name, tree in modules() for i in imports(name, tree) if i.split(".")[0] == library}
    assert users <= HOMES[library]


def test_core_is_pure() -> None:
    found = [
        f"{name} imports {imported}"
        for name, tree in modules()
        if name.startswith("core/")
        for imported in imports(name, tree)
        if imported.split(".")[0] in IMPURE
    ]
    opened = [
        name
        for name, tree in modules()
        if name.startswith("core/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "input", "print")
    ]
    assert found == [] and opened == []


def test_no_file_is_mapped_into_memory() -> None:
    """A file that somebody cuts short while it is read would kill the process by a signal."""
    for name, tree in modules():
        assert "mmap" not in {found.split(".")[0] for found in imports(name, tree)}, name
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {attribute for attribute in used if "mmap" in attribute}, name


def test_every_module_says_first_what_it_is() -> None:
    assert [name for name, tree in modules() if not ast.get_docstring(tree)] == []


def test_only_the_doors_catch_everything() -> None:
    allowed = {"cli/app.py", "__main__.py", "engine/schedule.py", "sandbox/worker.py"}
    allowed |= {"sandbox/serving.py", "sandbox/threads.py"}
    catching = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)  # It only tidies up.
    }
    assert catching <= allowed
