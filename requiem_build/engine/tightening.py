"""What was observed becomes a change to the manifest: what is never read goes, what is needed comes.

Only what stands in a step's own table is taken away: what it inherits, others inherit too. Each change is planned
before it is offered; one that makes no manifest is left out, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..core.blocks import input_text
from ..core.documents import Place
from ..core.edits import CannotEdit, add_items, add_key, add_named, patch, remove_item
from ..core.errors import RequiemError, UsageError
from ..core.fields import dataclass, field
from ..core.instance import Instance
from ..core.locate import KeyPath
from ..core.manifest import Manifest, Step, load_manifest
from ..core.observation import Observation, readable
from ..core.paths import BadPath, resolve
from ..core.patterns import NEVER, compile_pattern, never_in, unescape
from ..core.plan import make_plan
from .options import Options
from .rehearsal import Part
from .site import Site, find_site, host_platform, named
from .workspace import Files, WorkspaceListing


@dataclass(slots=True)
class Tightened:
    """`patch` is empty if nothing is to be changed."""

    patch: str = ""
    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Item:
    """One string of a step's `inputs`, and where it stands."""

    text: str
    place: Place


def step_of(options: Options, name: str) -> str:
    """The one step that a name means: what is declared for all its instances is judged by all. Raises UsageError."""
    _, instances = named(find_site(options), options, name)
    steps = list(dict.fromkeys(each.step for each in instances))
    if len(steps) > 1:
        raise UsageError(f'"{name}" is {len(steps)} steps', facts=[("steps", ", ".join(steps[:5]))], hint="name one")
    return steps[0]


def tighten(site: Site, options: Options, step: str, seen: Sequence[tuple[Part, Observation]]) -> Tightened:
    """The change for one step, from what all its instances were seen to use."""
    return _Tightening(site, options, step, seen).run()


class _Tightening:
    def __init__(self, site: Site, options: Options, step: str, seen: Sequence[tuple[Part, Observation]]) -> None:
        self._site = site
        self._options = options
        self._name = step
        self._seen = seen
        self._files = Files(site.root)
        manifest = self._load({})
        self._step: Step = manifest.steps[step]
        self._found = Tightened()
        self._texts: dict[str, str] = {}
        self._changed: dict[str, str] = {}

    def run(self) -> Tightened:
        for item in [*self._items()][::-1]:  # From the end, so that the places of the others stay.
            if self._is_unused(item):
                self._take_away(item)
        needed = self._needed()
        if needed:
            self._add(needed)
        self._found.removed.reverse()
        self._found.patch = "".join(
            patch(path, self._texts[path], new)
            for path, new in sorted(self._changed.items())
            if new != self._texts[path]
        )
        return self._found

    def _items(self) -> Iterator[_Item]:
        values, place = self._step.values.get("inputs"), self._step.places.get("inputs")
        if values is None or place is None:
            return
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            if isinstance(value, str):
                yield _Item(value, place.at(key))
            else:
                yield from (_Item(text, place.at(key, index)) for index, text in enumerate(value))

    def _is_unused(self, item: _Item) -> bool:
        """Whether no instance saw anything of what this says. What is not plain says too much to be judged."""
        text = item.text
        if not text or text.startswith("!") or "{{" in text:
            return False
        matched = False
        for part, seen in self._seen:
            for path in self._meant(text, part.instance):
                matched = True
                if path not in seen.unused:
                    return False
        return matched

    def _meant(self, text: str, instance: Instance) -> list[str]:
        if text.startswith("@"):
            names = {text[1:], f"{self._step.folder}/{text[1:]}"}
            return [i.path for i in instance.inputs if i.producer and {i.producer, i.producer.split(":")[0]} & names]
        try:
            pattern = resolve(text, self._step.folder)
        except BadPath:
            return []
        plain, means = unescape(pattern), compile_pattern(pattern)
        return [item.path for item in instance.inputs if item.path == plain or means(item.path)]

    def _take_away(self, item: _Item) -> None:
        place = item.place
        if tuple(place.path[:2]) != ("steps", self._name.rpartition("/")[2]):
            self._found.notes.append(f'"{item.text}" is never read, and is inherited: {_spelled(place.path)}')
            return
        if self._try(place, lambda text: remove_item(text, place.path), f'"{item.text}" is never read'):
            self._found.removed.append(item.text)

    def _needed(self) -> list[str]:
        found: dict[str, None] = {}
        for _, seen in self._seen:
            for touched in seen.undeclared:
                if never_in(touched.path):
                    if NEVER & set(touched.path.split("/")):
                        self._note(f"{readable(touched.path)} is used: {touched.line}")
                    continue
                try:
                    touched.path.encode()
                except UnicodeEncodeError:
                    self._note(f"{readable(touched.path)!r} is no name that a manifest can hold")
                    continue
                found[input_text(touched.path, self._name)] = None
            for outside in seen.outside:
                self._note(f"{readable(outside.path)} is used: {outside.line}")
        return list(found)

    def _note(self, text: str) -> None:
        if text not in self._found.notes:
            self._found.notes.append(text)

    def _add(self, needed: list[str]) -> None:
        table: KeyPath = ("steps", self._name.rpartition("/")[2])
        values, place = self._step.values.get("inputs"), self._step.places.get("inputs")
        own = place is not None and tuple(place.path[:2]) == table
        where = place if place is not None and own else self._step.place
        why = "these are needed: " + ", ".join(f'"{text}"' for text in needed)

        def change(text: str) -> str:
            if not own:
                return add_key(text, table, "inputs", needed if values is None else ["...", *needed])
            assert place is not None
            if isinstance(values, dict):
                names = (f"also{number or ''}" for number in range(len(values) + 1))
                return add_named(text, place.path, next(name for name in names if name not in values), needed)
            return add_items(text, place.path, needed)

        if self._try(where, change, why):
            self._found.added += needed

    def _try(self, place: Place, change: Callable[[str], str], why: str) -> bool:
        """Makes one change if a manifest comes of it."""
        document = place.source.document(place.path)
        old = self._changed.get(document.path)
        if old is None:
            content = self._files.read(document.path) or b""
            old = self._texts[document.path] = content.decode("utf-8")
        try:
            new = change(old)
            self._check(document.path, new)
        except CannotEdit as cannot:
            self._found.notes.append(f"{why}, but {cannot}")
            return False
        except RequiemError as error:
            self._found.notes.append(f"{why}, but without it: {error.what}")
            return False
        self._changed[document.path] = new
        return True

    def _check(self, path: str, text: str) -> None:
        manifest = self._load({**self._changed, path: text})
        make_plan(manifest, (self._name,), WorkspaceListing(self._site.root), platform=host_platform(), cwd=".")

    def _load(self, texts: Mapping[str, str]) -> Manifest:
        def read(path: str) -> bytes | None:
            return texts[path].encode() if path in texts else self._files.read(path)

        return load_manifest(
            read,
            self._site.manifest,
            profile=self._options.profile,
            sets=dict(self._options.sets),
            user_roots=self._site.settings.roots,
        )


def _spelled(path: KeyPath) -> str:
    from ..core.locate import spelled_path

    return spelled_path(path)
