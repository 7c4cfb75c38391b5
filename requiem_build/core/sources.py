"""What stands in the workspace as a plan sees it: source files, and the outputs that steps declare.

A file on the disk that a step makes is that step's output, whether it is there yet or not; so a clean
and a used checkout look the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from .listing import Listing
from .paths import ROOT, ancestors, parent
from .patterns import OWN, Pattern, compile_pattern, is_never, is_pattern, unescape


class Outputs:
    """Declared outputs and who makes them: files, whole directories, patterns."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.directories: dict[str, str] = {}
        self.patterns: dict[str, str] = {}
        self.below: dict[str, dict[str, str]] = {}
        """Directory -> name -> `file`, `dir` or `tree`: the declared outputs as a tree."""
        self._matchers: dict[str, list[tuple[Pattern, str]]] = {}

    def add(self, path: str, instance: str) -> list[str]:
        """Notes an output; gives the directories whose children changed."""
        if is_pattern(path):
            self.patterns.setdefault(path, instance)
            pattern = compile_pattern(path)
            self._matchers.setdefault(pattern.prefix, []).append((pattern, instance))
            return [pattern.prefix]
        plain = unescape(path.removesuffix("/"))
        if path.endswith("/"):
            self.directories.setdefault(plain, instance)
            return self._grow(plain, "tree")
        self.files.setdefault(plain, instance)
        return self._grow(plain, "file")

    def _grow(self, path: str, kind: str) -> list[str]:
        changed: list[str] = []
        while True:
            directory, _, name = path.rpartition("/")
            siblings = self.below.setdefault(directory or ROOT, {})
            if siblings.get(name) in (kind, "tree"):
                return changed
            changed.append(directory or ROOT)
            known = name in siblings
            siblings[name] = kind
            if known or not directory:
                return changed
            path, kind = directory, "dir"

    def directory_above(self, path: str) -> str | None:
        """The directory output that a path is or lies in."""
        plain = path.removesuffix("/")
        if plain in self.directories:
            return plain
        if self.directories:
            for above in ancestors(plain):
                if above in self.directories:
                    return above
        return None

    def pattern_maker(self, path: str) -> str | None:
        if self._matchers and not path.endswith("/"):
            for above in (*ancestors(path), ROOT):
                for pattern, instance in self._matchers.get(above, ()):
                    if pattern(path):
                        return instance
        return None

    def maker(self, path: str) -> str | None:
        """The instance that makes a path: by name, in a directory output, or by a pattern."""
        found = self.files.get(path) if not path.endswith("/") else None
        if found is None:
            directory = self.directory_above(path)
            found = self.directories[directory] if directory is not None else self.pattern_maker(path)
        return found

    def inside(self, directory: str) -> str | None:
        """Some declared output in a directory, if there is one."""
        pending = [directory]
        while pending:
            at = pending.pop()
            for name, kind in self.below.get(at, {}).items():
                path = name if at == ROOT else f"{at}/{name}"
                if kind != "dir":
                    return path + ("/" if kind == "tree" else "")
                pending.append(path)
        for prefix, matchers in self._matchers.items():
            if directory in (ROOT, prefix) or prefix.startswith(directory + "/"):
                return matchers[0][0].text
        return None


class View:
    """The workspace's listing with declared outputs in place of what lies about at their paths."""

    def __init__(self, listing: Listing, outputs: Outputs) -> None:
        self._listing = listing
        self.outputs = outputs
        self._children: dict[str, dict[str, str]] = {}
        self._with_source: dict[str, bool] = {}

    def add(self, path: str, instance: str) -> None:
        for directory in self.outputs.add(path, instance):
            self._children.pop(directory, None)
            if is_pattern(path):
                self._children.clear()
        self._with_source.clear()

    def children(self, directory: str) -> Mapping[str, str]:
        known = self._children.get(directory)
        if known is None:
            known = self._children[directory] = self._list(directory)
        return known

    def _list(self, directory: str) -> dict[str, str]:
        prefix = "" if directory == ROOT else directory + "/"
        found: dict[str, str] = dict(self._listing.children(directory))
        if directory == ROOT:
            for name in OWN:
                found.pop(name, None)
        if self.outputs.patterns:
            for name, kind in list(found.items()):
                if kind != "dir" and self.outputs.pattern_maker(prefix + name) is not None:
                    del found[name]
        found.update(self.outputs.below.get(directory, {}))
        return found

    def kind(self, path: str) -> str | None:
        """`file`, `link`, `dir`, `other`, `tree` (a directory output); None where nothing is known to stand."""
        plain = path.removesuffix("/")
        if plain == ROOT:
            return "dir"
        declared = self.outputs.below.get(parent(plain), {}).get(plain.rpartition("/")[2])
        if declared is not None:
            return declared
        if plain.partition("/")[0] in OWN or self.outputs.directory_above(plain) is not None:
            return None
        found = self._listing.kind(plain)
        if found is not None and found != "dir" and self.outputs.pattern_maker(plain) is not None:
            return None
        return found

    def has_source(self, directory: str) -> bool:
        """Whether a source file stands anywhere in a directory: else it is there only because something was built."""
        known = self._with_source.get(directory)
        if known is not None:
            return known
        pending, answer = [directory], False
        while pending and not answer:
            at = pending.pop()
            made = self.outputs.below.get(at, {})
            for name, kind in self.children(at).items():
                if is_never(name):
                    continue
                if kind == "dir":
                    pending.append(f"{at}/{name}")
                elif name not in made and kind in ("file", "link"):
                    answer = True
        self._with_source[directory] = answer
        return answer
