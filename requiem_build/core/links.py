"""A draft's inputs -> who makes them: references, patterns, trees and plain paths, and the command made from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from . import paths, patterns
from .claims import output_path
from .commands import Link, make_command
from .documents import Place, nearest
from .drafts import Draft, entries, list_words, no_match, nothing_left, one_word, workspace_pattern
from .errors import SourceMissing
from .expand import Expansion
from .instance import Input, Root
from .manifest import RootTree
from .paths import BadPath, quoted
from .patterns import by_bytes, is_pattern

NEAREST_MAX = 2000


class _Unlinked(Exception):
    """Groups must be linked before what reads them."""

    def __init__(self, groups: list[str]) -> None:
        super().__init__()
        self.groups = groups


class _Outputs:
    """Only what steps declare, as a tree to walk."""

    def __init__(self, below: Mapping[str, Mapping[str, str]]) -> None:
        self._below = below

    def children(self, directory: str) -> Mapping[str, str]:
        return self._below.get(directory, {})

    def has_source(self, directory: str) -> bool:
        return False


class Linker:
    def __init__(self, expansion: Expansion) -> None:
        self._expansion = expansion
        self._manifest = expansion.manifest
        self._view = expansion.view
        self._outputs = expansion.outputs
        self._declared = _Outputs(expansion.outputs.below)
        self._drafts = expansion.drafts
        self.links: dict[str, Link] = {}
        self.roots: dict[str, Root] = {}
        self._linking: set[str] = set()
        self._made: dict[str, tuple[Input, ...]] = {}
        self._matches: dict[str, list[str]] = {}
        self._discovered: dict[tuple[str, ...], list[str]] = {}

    def close(self, wanted: Iterable[str]) -> None:
        """Links the wanted instances and all that they wait for."""
        pending = list(wanted)
        while pending:
            name = pending.pop()
            if name in self.links:
                continue
            link = self._linked(name)
            pending.extend(link.needs)
            pending.extend(link.after)

    def _linked(self, name: str) -> Link:
        """One link, after those of the groups that it reads; a cycle of groups is for the plan to name."""
        stack = [name]
        while stack:
            top = stack[-1]
            if top in self.links:
                stack.pop()
                continue
            self._linking.add(top)
            try:
                link = self._link(self._drafts[top])
            except _Unlinked as unlinked:
                stack.extend(unlinked.groups)
                continue
            self.links[top] = link
            self._linking.discard(top)
            stack.pop()
        return self.links[name]

    def _link(self, draft: Draft) -> Link:
        link = Link(draft)
        if "inputs" in draft.step.values:
            self._add_inputs(link)
        for text, place in list_words(draft, "needs"):
            found = self._reference(link, text.removeprefix("@"), place)
            link.entries.append([None, False, [_spelled(item) for item in found]])
        self._refuse_own(link)
        if "discover" in draft.step.values:
            self._add_discover(link)
        if "depfile" in draft.step.values:
            text = one_word(draft, "depfile", literal_paths=True)
            link.depfile = self._depfile(draft, text, draft.step.places["depfile"])
        if "stdin" in draft.step.values:
            link.stdin = self._stdin(link)
            link.need(link.stdin)
        link.env_file = self._env_file(link)
        link.lock = self._lock(link)
        link.roots = self._roots(link)
        if "pool" in draft.step.values:
            place = draft.step.places["pool"]
            what = f"pool of step {quoted(draft.step.name)}"
            link.pool = self._own(draft.step.values["pool"], draft.step.folder, self._manifest.pools, place, what)
        if draft.is_group:
            self._refuse_idle(draft)
        else:
            make_command(link, self._expansion)
        for need in link.needs:
            link.after.pop(need, None)
        return link

    def _depfile(self, draft: Draft, text: str, place: Place) -> str:
        path = output_path(draft, text, place, "depfile")
        if is_pattern(path) or path.endswith("/"):
            raise place.error(f"depfile {quoted(text)} of step {quoted(draft.step.name)} is not one file")
        return patterns.unescape(path)

    # Inputs

    def _add_inputs(self, link: Link) -> None:
        written: list[tuple[str | None, bool, dict[str, None]]] = []
        takers: dict[str, tuple[str, Place]] = {}
        """What was taken away -> the exclude that did."""
        for entry in entries(link.draft, "inputs"):
            found: dict[str, None] = {}
            for text, place in zip(entry.items, entry.places, strict=True):
                if text.startswith("!"):
                    exclude = workspace_pattern(text[1:], link.draft.step.folder, place)
                    for path in [path for path, item in link.inputs.items() if not item.late and exclude(path)]:
                        del link.inputs[path]
                        takers[path] = text, place
                    continue
                for item in self._input(link, text, place):
                    link.inputs.setdefault(item.path, item)
                    found[item.path] = None
            written.append((entry.name, entry.one and not text.startswith("@") and not is_pattern(text), found))
        self._refuse_emptied(link, written, takers)
        for name, one, found in written:
            kept = [_spelled(link.inputs[path]) for path in found if path in link.inputs]
            link.entries.append([name, one, kept])
        for item in link.inputs.values():
            link.need(item)

    def _refuse_emptied(
        self,
        link: Link,
        written: Iterable[tuple[str | None, bool, Mapping[str, None]]],
        takers: Mapping[str, tuple[str, Place]],
    ) -> None:
        """A list of which excludes leave nothing means nothing, as a pattern without a match."""
        lists: dict[str | None, list[str]] = {}
        for name, _, found in written if takers else ():
            lists.setdefault(name, []).extend(found)
        for name, listed in lists.items():
            if listed and link.inputs.keys().isdisjoint(listed):
                owner = "inputs" if name is None else f"inputs.{name}"
                text, place = takers[listed[-1]]
                self._expansion.miss(nothing_left(text, f"{owner} of step {quoted(link.draft.name)}", place))

    def _input(self, link: Link, text: str, place: Place) -> Sequence[Input]:
        draft = link.draft
        if text.startswith("@"):
            return self._reference(link, text[1:], place)
        if is_pattern(text):
            return self._pattern(draft, text, place)
        return (self._plain(draft, text, place),)

    def _pattern(self, draft: Draft, text: str, place: Place) -> list[Input]:
        pattern = workspace_pattern(text, draft.step.folder, place)
        maker = self._outputs.patterns.get(pattern.text)
        if maker is not None:
            return [Input(pattern.text, maker, late=True)]
        found = self._matches.get(pattern.text)
        if found is None:
            found = self._matches[pattern.text] = by_bytes(pattern.walk(self._view))
        items = []
        for path in found:
            made_by = self._outputs.maker(path)
            if made_by is None or made_by.partition(":")[0] != draft.step.name:
                if paths.has_control(path):
                    raise place.error(f"step {quoted(draft.name)} reads {quoted(path)}, a name that is not plain UTF-8")
                items.append(Input(path, made_by))
        if not items:
            above = self._outputs.directory_above(pattern.prefix)
            if above is not None:
                raise place.error(
                    f"step {quoted(draft.name)} reads {quoted(text)}, inside the directory output {quoted(above)}",
                    hint=f'what is in it is not known before it is made: read the whole "{above}/"',
                )
            self._expansion.miss(no_match(text, f"inputs of step {quoted(draft.name)}", place))
        return items

    def _plain(self, draft: Draft, text: str, place: Place) -> Input:
        path = self._path(draft, text, place)
        maker = self._outputs.maker(path)
        if path.endswith("/") and maker is None:
            inside = self._outputs.inside(path[:-1])
            if inside is not None:
                raise place.error(
                    f"step {quoted(draft.name)} reads the tree {quoted(path)}, and a step makes {quoted(inside)} in it",
                    hint="name the sources by patterns, or let a step make the whole directory",
                )
        if maker is not None:
            if path + "/" in self._outputs.directories or path in self._outputs.directories:
                raise place.error(f"{quoted(text)} is a directory output", hint=f'write "{path}/" for the whole tree')
            return Input(path, maker)
        self._check_source(draft, text, path, place)
        return Input(path)

    def _path(self, draft: Draft, text: str, place: Place) -> str:
        try:
            path = patterns.unescape(paths.resolve(text, draft.step.folder))
            if path == paths.ROOT:
                raise BadPath("is the whole workspace: name what the step reads")
            if path.partition("/")[0] in (".requiem", ".cas"):
                raise BadPath("is a reserved path: .requiem and .cas are Requiem's own")
        except BadPath as error:
            raise place.error(f"input {quoted(text)} of step {quoted(draft.step.name)} {error}") from error
        return path

    def _check_source(self, draft: Draft, text: str, path: str, place: Place) -> None:
        kind = self._view.kind(path)
        subject = f"step {quoted(draft.name)} reads {quoted(path)}"
        if kind is None:
            complaint = place.error(
                f"{subject}, which does not exist and no step makes",
                facts=[("step", draft.name)],
                hint=self._nearest_path(path),
                kind=SourceMissing,
            )
            self._expansion.miss(complaint)
            return
        if path.endswith("/") != (kind == "dir"):
            if kind == "dir":
                raise place.error(f"{subject}, which is a directory", hint=f'write "{path}/" for the whole tree')
            raise place.error(f"{subject}, which is no directory", hint=f'write "{path[:-1]}" for the file')
        if kind == "other":
            raise place.error(f"{subject}, which is a pipe, a socket or a device", hint="an input is a file")

    def _nearest_path(self, path: str) -> str | None:
        plain = path.removesuffix("/")
        known = list(self._outputs.files)[:NEAREST_MAX]
        directory = paths.parent(plain)
        for name, kind in itertools.islice(self._view.children(directory).items(), NEAREST_MAX):
            known.append(paths.join(directory, name) + ("/" if kind in ("dir", "tree") else ""))
        return nearest(path, [other for other in known if not paths.has_control(other)])

    # References

    def _reference(self, link: Link, text: str, place: Place) -> tuple[Input, ...]:
        """What `@step` or `@step:instance` gives; it orders, also where it gives nothing."""
        drafts = self._named(link.draft, text, place)
        unlinked = []
        for draft in drafts:
            link.needs[draft.name] = None
            if draft.is_group and draft.name not in self.links and draft.name not in self._linking:
                unlinked.append(draft.name)
        if unlinked:
            raise _Unlinked(unlinked)
        found: dict[str, Input] = {}
        for draft in drafts:
            for item in self._made_by(draft):
                found.setdefault(item.path, item)
                link.inputs.setdefault(item.path, item)
                link.need(item)
        return tuple(found.values())

    def _named(self, draft: Draft, text: str, place: Place) -> list[Draft]:
        step, colon, _ = text.partition(":")
        for full in _candidates(step, draft.step.folder):
            if full not in self._manifest.steps:
                continue
            if not colon:
                return self._expansion.of_step[full]
            name = full + text[len(step) :]
            for spelling in (name, patterns.unescape(name)):
                if spelling in self._drafts:
                    return [self._drafts[spelling]]
            known = [other.name for other in self._expansion.of_step[full]]
            raise place.error(
                f"step {quoted(draft.step.name)} refers to {quoted(name)}, which is no instance of {quoted(full)}",
                hint=nearest(name, known),
            )
        raise place.error(
            f"step {quoted(draft.step.name)} refers to the unknown step {quoted(step)}",
            hint=nearest(step, [*self._manifest.steps, *_short_names(self._manifest.steps, draft.step.folder)]),
        )

    def _made_by(self, draft: Draft) -> tuple[Input, ...]:
        known = self._made.get(draft.name)
        if known is not None:
            return known
        if draft.is_group:
            if draft.name not in self.links:
                return ()  # It is being linked: a cycle.
            known = tuple(self.links[draft.name].inputs.values())
        else:
            known = tuple(_output(path, draft.name) for path, _ in draft.output_paths())
        self._made[draft.name] = known
        return known

    # What else a step reads

    def _add_discover(self, link: Link) -> None:
        draft = link.draft
        includes: dict[str, None] = {}
        excludes: dict[str, None] = {}
        for text, place in list_words(draft, "discover", literal_paths=True):
            if text.startswith("@") or text.endswith("/"):
                raise place.error(
                    f"discover of step {quoted(draft.step.name)} wants patterns, not {quoted(text)}",
                    hint='such as "include/**/*.h"',
                )
            pattern = workspace_pattern(text.removeprefix("!"), draft.step.folder, place)
            if text.startswith("!"):
                excludes["!" + pattern.text] = None
                continue
            includes[pattern.text] = None
            for maker in (
                self._outputs.patterns.get(pattern.text),
                self._outputs.directories.get(self._outputs.directory_above(pattern.prefix) or ""),
            ):
                if maker is not None:
                    link.after[maker] = None
        link.discover = (*by_bytes(includes), *by_bytes(excludes))
        found = self._discovered.get(link.discover)
        if found is None:
            found = self._discovered[link.discover] = patterns.select(link.discover, self._declared)
        for path in found:
            link.after[self._outputs.files[path]] = None
        for maker in list(link.after):
            if maker.partition(":")[0] == draft.step.name:
                del link.after[maker]

    def _stdin(self, link: Link) -> Input:
        draft, place = link.draft, link.draft.step.places["stdin"]
        text = one_word(draft, "stdin", literal_paths=True)
        found = self._input(Link(draft), text, place)
        if len(found) != 1 or found[0].late or found[0].path.endswith("/"):
            raise place.error(f"stdin of step {quoted(draft.name)} wants exactly one file, and {quoted(text)} is not")
        if found[0].producer == draft.name:
            raise place.error(f"step {quoted(draft.name)} reads its own output {quoted(found[0].path)}")
        return found[0]

    def _env_file(self, link: Link) -> tuple[str, ...]:
        found = []
        for text, place in list_words(link.draft, "env_file", literal_paths=True):
            item = self._plain(link.draft, text, place)
            if item.path.endswith("/"):
                raise place.error(f"env_file of step {quoted(link.draft.name)} wants a file, not {quoted(text)}")
            link.need(item)
            found.append(item.path)
        return tuple(found)

    def _lock(self, link: Link) -> tuple[str, ...]:
        found = []
        for text, place in list_words(link.draft, "lock", literal_paths=True):
            path = self._path(link.draft, text, place)
            if path not in link.inputs and not any(above + "/" in link.inputs for above in paths.ancestors(path)):
                raise place.error(
                    f"lock of step {quoted(link.draft.name)} names {quoted(text)}, which is not among its inputs",
                    hint="add it to inputs: what pins the network must count",
                )
            found.append(path)
        return tuple(by_bytes(set(found)))

    def _roots(self, link: Link) -> tuple[str, ...]:
        step = link.draft.step
        found = []
        for index, text in enumerate(step.values.get("roots", ())):
            place = step.places["roots"].at(index)
            tree = self._own(text, step.folder, self._manifest.roots, place, f"root of step {quoted(step.name)}")
            root = self.roots.get(tree)
            if root is None:
                root = self.roots[tree] = self._root(self._manifest.roots[tree])
            if root.producer is not None:
                link.needs[root.producer] = None
            found.append(tree)
        return tuple(by_bytes(set(found)))

    def _root(self, tree: RootTree) -> Root:
        producer = None
        if not tree.path.startswith(("/", "~")):
            above = self._outputs.directory_above(tree.path)
            producer = self._outputs.directories[above] if above is not None else None
            if producer is None and tree.path in self._outputs.files:
                raise tree.place.error(f"root {quoted(tree.name)} is a file that a step makes, not a directory")
        return Root(tree.name, tree.path, tree.key, producer)

    def _own(self, text: str, folder: str, known: Mapping[str, Any], place: Place, what: str) -> str:
        for full in _candidates(text, folder):
            if full in known:
                return full
        raise place.error(f"{what}: no {quoted(text)}", hint=nearest(text, [*known, *_short_names(known, folder)]))

    # Refusals

    def _refuse_own(self, link: Link) -> None:
        draft = link.draft
        for path, item in link.inputs.items():
            if item.producer == draft.name and not draft.is_group:
                place = draft.step.places.get("inputs") or draft.step.places["needs"]
                raise place.error(
                    f"step {quoted(draft.name)} has {quoted(path)} both as input and as output",
                    hint="write the result to another path",
                )

    def _refuse_idle(self, draft: Draft) -> None:
        for key in ("stdin", "depfile"):
            place = draft.step.places.get(key)
            if place is not None and place.path[:2] == draft.step.place.path:
                raise place.error(
                    f"step {quoted(draft.name)} has {key} and no command", hint="a step without a command is a group"
                )


def _candidates(text: str, folder: str) -> Iterator[str]:
    """The full names that a name in the manifest of `folder` may stand for: its own first."""
    if not text.startswith("//"):
        yield paths.join(folder, text)
    if folder != paths.ROOT or text.startswith("//"):
        yield text.removeprefix("//")


def _short_names(known: Iterable[str], folder: str) -> list[str]:
    return [] if folder == paths.ROOT else [name[len(folder) + 1 :] for name in known if name.startswith(folder + "/")]


def _output(path: str, maker: str) -> Input:
    return Input(path, maker, late=True) if is_pattern(path) else Input(patterns.unescape(path), maker)


def _spelled(item: Input) -> str | list[str]:
    return [item.path] if item.late else item.path
