"""What stands at a path: a file, a symlink or a whole directory, each named by its content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from . import canonical
from .digest import Digest, is_digest, object_digest
from .errors import RequestError
from .fields import dataclass


@dataclass(frozen=True, slots=True)
class File:
    digest: Digest
    size: int
    executable: bool = False

    def as_input(self) -> dict[str, object]:
        return {"digest": self.digest, "executable": self.executable}

    def as_output(self) -> dict[str, object]:
        return {"digest": self.digest, "size": self.size, "executable": self.executable}


@dataclass(frozen=True, slots=True)
class Link:
    target: str

    def as_input(self) -> dict[str, object]:
        return {"symlink": self.target}

    as_output = as_input


@dataclass(frozen=True, slots=True)
class Tree:
    """`digest` names the canonical list of one directory; `files` and `size` (bytes) count all below it."""

    digest: Digest
    files: int
    size: int

    def as_input(self) -> dict[str, object]:
        return {"tree": self.digest}

    def as_output(self) -> dict[str, object]:
        return {"tree": self.digest, "files": self.files, "size": self.size}


Entry: TypeAlias = File | Link | Tree


def make_tree(children: Mapping[str, Entry]) -> tuple[Tree, bytes]:
    """The tree of one directory from its named children, and the object that it names."""
    names = sorted(children, key=lambda name: name.encode("utf-8"))
    content = canonical.encode_plain([[name, children[name].as_output()] for name in names])
    files = size = 0
    for child in children.values():
        match child:
            case Tree():
                files, size = files + child.files, size + child.size
            case File():
                files, size = files + 1, size + child.size
            case Link():
                files += 1
    return Tree(object_digest(content), files, size), content


def parse_tree(content: bytes) -> list[tuple[str, Entry]]:
    """The children of one directory. Raises RequestError if the bytes are not a canonical tree."""
    value = canonical.parse(content)
    if not isinstance(value, list) or canonical.encode_plain(value) != content:
        raise RequestError("a tree object is not canonical")
    children: list[tuple[str, Entry]] = []
    previous = b""
    for item in value:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)):
            raise RequestError("a tree object's item is not [name, entry]")
        name = item[0]
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise RequestError(f"a tree object holds the name {name!r}")
        key = name.encode("utf-8")
        if children and key <= previous:
            raise RequestError("a tree object's names are not sorted")
        previous = key
        children.append((name, parse_output(item[1])))
    return children


def files_below(prefix: str, tree: Digest, get: Callable[[Digest], bytes]) -> Iterator[tuple[str, Entry]]:
    """All files and links in a tree by their paths; `prefix` is the tree's own, and ends in a slash."""
    pending = [(prefix, tree)]
    for above, digest in pending:
        for name, entry in parse_tree(get(digest)):
            if isinstance(entry, Tree):
                pending.append((f"{above}{name}/", entry.digest))
            else:
                yield above + name, entry


def parse_output(value: Any) -> Entry:
    """An entry as results and trees spell it."""
    if isinstance(value, dict):
        keys = value.keys()
        if keys == {"symlink"} and is_link_target(value["symlink"]):
            return Link(value["symlink"])
        if keys == {"digest", "size", "executable"} and is_digest(value["digest"]) and _count(value["size"]):
            if isinstance(value["executable"], bool):
                return File(Digest(value["digest"]), value["size"], value["executable"])
        elif keys == {"tree", "files", "size"} and is_digest(value["tree"]) and _count(value["files"], value["size"]):
            return Tree(Digest(value["tree"]), value["files"], value["size"])
    raise RequestError("an entry is none of {digest, size, executable}, {symlink} and {tree, files, size}")


def is_link_target(target: object) -> bool:
    """What a symlink can hold: any text but none, without NUL."""
    return isinstance(target, str) and target != "" and "\0" not in target


def _count(*values: object) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def digests_of(entries: Iterable[Entry]) -> list[Digest]:
    """The objects that the entries name directly."""
    return [entry.digest for entry in entries if not isinstance(entry, Link)]
