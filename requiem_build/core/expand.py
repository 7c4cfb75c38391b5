"""Steps -> drafts: each instance with its name, its variables and its outputs. Inputs are for links.py.

`foreach` patterns match sources and outputs of other steps, whose own `foreach` may do the same: such
steps are expanded again until nothing changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import paths, patterns
from .claims import output_path
from .documents import Place, check_value
from .drafts import Draft, Entry, entries, no_match, nothing_left, one_word, telling, workspace_pattern
from .errors import RequiemError, SourceMissing
from .fields import dataclass
from .listing import Listing
from .manifest import Manifest, Scope, Step
from .paths import BadPath, quoted
from .patterns import by_bytes, is_pattern
from .sources import Outputs, View
from .texts import native
from .values import BadTemplate, Named, Value, each_value
from .variables import render_variables

INSTANCES_MAX = 100_000
INSTANCES_OF_ALL_MAX = 300_000
CIRCLES_MAX = 4
"""Rounds in which a step may be offered what goes back to itself: stale files need a few until they are known."""


class _Chosen(NamedTuple):
    """One value of a foreach variable: whether it is a path that was matched, and the steps that it goes back to."""

    value: Any
    exact: bool = False
    origin: frozenset[str] = frozenset()


@dataclass(eq=False, slots=True)
class _Element:
    """One written value of a foreach variable: a value, or a pattern that takes paths in or out."""

    value: Any
    place: Place
    pattern: patterns.Pattern | None = None
    excludes: bool = False


class Expansion:
    """All drafts of a manifest, in manifest order, and the workspace as they make it.

    With `missing` the complaints about sources that are not there are collected in it.
    """

    def __init__(
        self,
        manifest: Manifest,
        listing: Listing,
        platform: Mapping[str, str],
        missing: list[RequiemError] | None = None,
    ) -> None:
        self.manifest = manifest
        self._missing = missing
        self.view = View(listing, Outputs())
        self.of_step: dict[str, list[Draft]] = {}
        self._listing = listing
        self._fixed = {"platform": dict(platform), "profile": manifest.profile}
        self._count = 0
        self._origins: dict[str, frozenset[str]] = {}
        self._circling: set[str] = set()
        self._variables: dict[int, dict[str, Any]] = {}
        self._failures: dict[str, RequiemError | _Element] = {}
        self._expand()
        self.drafts = {draft.name: draft for drafts in self.of_step.values() for draft in drafts}

    @property
    def outputs(self) -> Outputs:
        return self.view.outputs

    def miss(self, complaint: RequiemError) -> None:
        """Raises it, unless it is about a missing source and these are collected."""
        if self._missing is None or not isinstance(complaint, SourceMissing):
            raise complaint
        self._missing.append(complaint)

    def variables(self, scope: Scope) -> dict[str, Any]:
        """The variables of one manifest file, filled in, with `platform` and `profile`."""
        known = self._variables.get(id(scope))
        if known is None:

            def fail(name: str, error: BadTemplate) -> Exception:
                return scope.places[name].error(f"variable {quoted(name)}: {error.what}", hint=error.hint)

            rendered = render_variables(scope.variables, self._fixed, fail)
            known = self._variables[id(scope)] = {**self._fixed, **rendered}
        return known

    def _expand(self) -> None:
        moving: list[tuple[Step, dict[str, list[_Element]]]] = []
        for step in self.manifest.steps.values():
            self.of_step[step.name] = []
            elements = self._elements(step)
            if any(element.pattern for items in elements.values() for element in items):
                moving.append((step, elements))
            else:
                self._place(step, {name: _plain_values(items) for name, items in elements.items()})
        self._settle(moving)
        for name in self.manifest.steps:
            if name in self._failures:
                self.miss(self._failure(self.manifest.steps[name], self._failures[name]))

    def _settle(self, moving: Sequence[tuple[Step, dict[str, list[_Element]]]]) -> None:
        """Expands steps whose values depend on outputs, until no step's values change any more."""
        last: dict[str, object] = {}
        circles: dict[str, int] = {}
        for count in range(len(moving) + 3):
            changed = None
            self._circling.clear()
            for step, elements in moving if count % 2 == 0 else reversed(moving):
                values = {name: self._match(step, items) for name, items in elements.items()}
                if last.get(step.name) != values:
                    last[step.name] = values
                    changed = step
                    self._place(step, values)
            circles = {name: circles.get(name, 0) + 1 for name in sorted(self._circling)}
            for name, rounds in circles.items():
                if changed is None or rounds > CIRCLES_MAX:
                    raise self._never_settles(self.manifest.steps[name])
            if changed is None:
                return
        raise self._never_settles(moving[0][0])

    def _never_settles(self, step: Step) -> RequiemError:
        return step.places["foreach"].error(
            f"foreach of step {quoted(step.name)} never settles: through other steps its outputs are its values",
            hint="let its patterns leave those outputs out",
        )

    def _place(self, step: Step, values: Mapping[str, list[_Chosen]]) -> None:
        self._failures.pop(step.name, None)
        drafts: list[Draft] = []
        missing = [value for items in values.values() for value, _, _ in items if isinstance(value, _Element)]
        if missing:
            self._failures[step.name] = missing[0]
            values = {name: [] for name in values}
        try:
            for draft in self._drafts(step, values):
                drafts.append(draft)
        except RequiemError as error:  # It may be about a value that is not there once all has settled.
            self._failures[step.name] = error
        drafts.sort(key=lambda draft: draft.name.encode("utf-8"))
        before = {path for draft in self.of_step[step.name] for path, _ in draft.output_paths()}
        self._count += len(drafts) - len(self.of_step[step.name])
        self.of_step[step.name] = drafts
        if self._count > INSTANCES_OF_ALL_MAX:
            raise step.place.error(f"more than {INSTANCES_OF_ALL_MAX:,} instances in all")
        if before and not before.issubset(path for draft in drafts for path, _ in draft.output_paths()):
            self._rebuild()
            return
        for draft in drafts:
            for path, _ in draft.output_paths():
                self.view.add(path, draft.name)

    def _failure(self, step: Step, cause: RequiemError | _Element) -> RequiemError:
        if isinstance(cause, RequiemError):
            return cause
        complaint = nothing_left if cause.excludes else no_match
        return complaint(str(cause.value), f"foreach of step {quoted(step.name)}", cause.place)

    def _rebuild(self) -> None:
        self.view = View(self._listing, Outputs())
        for drafts in self.of_step.values():
            for draft in drafts:
                for path, _ in draft.output_paths():
                    self.view.add(path, draft.name)

    # Values

    def _elements(self, step: Step) -> dict[str, list[_Element]]:
        found: dict[str, list[_Element]] = {}
        names = self.variables(step.scope)
        for name, written in step.values.get("foreach", {}).items():
            place = step.places["foreach"].at(name)
            items = written if isinstance(written, list) else [written]
            elements: list[_Element] = []
            for index, item in enumerate(items):
                where = place.at(index) if isinstance(written, list) else place
                check_value(item, where)
                with telling(step, "foreach", where):
                    value = _filled(item, names)
                values = value if isinstance(value, list | tuple) else [value]
                elements.extend(_element(inner, where, step) for inner in values)
            found[name] = elements
        return found

    def _match(self, step: Step, elements: Sequence[_Element]) -> list[_Chosen]:
        """The values of one variable; the element itself where it matches nothing, or takes away all that there is."""
        found: dict[str, frozenset[str]] = {}
        emptied: _Element | None = None
        values: list[_Chosen] = []
        for element in elements:
            if element.pattern is None:
                values.append(_Chosen(element.value))
            elif element.excludes:
                taken = [path for path in found if element.pattern(path)]
                for path in taken:
                    del found[path]
                emptied = element if taken else emptied
            else:
                matches = {path: self._origin(path) for path in by_bytes(element.pattern.walk(self.view))}
                own = {path for path, origin in matches.items() if step.name in origin}
                if any(not self._is_own(path, step) for path in own):
                    self._circling.add(step.name)
                if len(own) == len(matches):
                    return [_Chosen(element)]
                found.update((path, origin) for path, origin in matches.items() if path not in own)
        if emptied is not None and not found and not values:
            return [_Chosen(emptied)]
        matched = (
            _Chosen(paths.spelled(path.removesuffix("/"), step.folder), True, origin) for path, origin in found.items()
        )
        return [*matched, *values]

    def _origin(self, path: str) -> frozenset[str]:
        """The steps that a path goes back to: its maker's, and those whose outputs the maker took as values."""
        maker = self.outputs.maker(path)
        if maker is None:
            return frozenset()
        return self._origins.get(maker, frozenset()) | {maker.partition(":")[0]}

    def _is_own(self, path: str, step: Step) -> bool:
        maker = self.outputs.maker(path)
        return maker is not None and maker.partition(":")[0] == step.name

    # Instances

    def _drafts(self, step: Step, values: Mapping[str, list[_Chosen]]) -> Iterator[Draft]:
        size = 1
        for items in values.values():
            size *= len(items)
        if size > INSTANCES_MAX:
            raise step.places["foreach"].error(
                f"step {quoted(step.name)} would have {size:,} instances", hint=f"the limit is {INSTANCES_MAX:,}"
            )
        seen: set[str] = set()
        for chosen in itertools.product(*values.values()):
            each = {name: choice.value for name, choice in zip(values, chosen, strict=True)}
            exact = frozenset(name for name, choice in zip(values, chosen, strict=True) if choice.exact)
            name = _instance_name(step, each)
            self._origins[name] = frozenset().union(*(choice.origin for choice in chosen))
            if name in seen:
                raise step.places["foreach"].error(f"two instances are named {quoted(name)}")
            seen.add(name)
            draft = self._draft(step, name, each, exact)
            if draft is not None:
                yield draft

    def _draft(self, step: Step, name: str, each: Mapping[str, Any], exact: frozenset[str]) -> Draft | None:
        names = dict(self.variables(step.scope))
        for variable, value in each.items():
            names[variable] = each_value(value, None, variable in exact)
        draft = Draft(name, step, each, exact, names, step.folder)
        if "when" in step.values and not _condition(step, names):
            return None
        if "cwd" in step.values:
            draft.cwd = self._cwd(draft)
        if "outputs" in step.values:
            draft.outputs = [self._output(draft, entry) for entry in entries(draft, "outputs")]
            flat = [_made(path, step.folder) for path, _ in draft.output_paths()]
            names["outputs"] = Named(flat, _by_name(draft.outputs, step.folder))
            if len(flat) == 1:
                names["output"] = flat[0]
            if draft.is_group and flat:
                raise step.places["outputs"].error(
                    f"step {quoted(name)} has outputs and no command", hint="a step without a command is a group"
                )
        return draft

    def _cwd(self, draft: Draft) -> str:
        text = one_word(draft, "cwd")
        try:
            return paths.resolve(text, draft.step.folder).rstrip("/")
        except BadPath as error:
            raise draft.step.places["cwd"].error(f"cwd {quoted(text)} {error}") from error

    def _output(self, draft: Draft, entry: Entry) -> Entry:
        items = [output_path(draft, text, place) for text, place in zip(entry.items, entry.places, strict=True)]
        return Entry(entry.name, entry.one, items, entry.places)


def _plain_values(elements: Sequence[_Element]) -> list[_Chosen]:
    return [_Chosen(element.value) for element in elements]


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return native(value, names) if "{{" in value else value
    if isinstance(value, dict):
        return {name: _filled(item, names) for name, item in value.items()}
    return [_filled(item, names) for item in value] if isinstance(value, list) else value


def _element(value: Any, place: Place, step: Step) -> _Element:
    if isinstance(value, dict):
        return _Element(value, place)
    if not isinstance(value, str | int | float):
        raise place.error(f"foreach of step {quoted(step.name)} wants scalars and tables")
    if not isinstance(value, str):
        return _Element(value, place)
    excludes = value.startswith("!")
    if not excludes and not is_pattern(value):
        if not value or paths.has_control(value):
            problem = "is empty" if not value else "holds a control character"
            raise place.error(f"the value {quoted(value)} of foreach in step {quoted(step.name)} {problem}")
        return _Element(patterns.unescape(value), place)
    pattern = workspace_pattern(value.removeprefix("!"), step.folder, place)
    return _Element(value, place, pattern, excludes)


def _instance_name(step: Step, each: Mapping[str, Any]) -> str:
    if not each:
        return step.name
    shown = {name: _shown(value) for name, value in each.items()}
    tail = next(iter(shown.values())) if len(shown) == 1 else ",".join(f"{k}={shown[k]}" for k in sorted(shown))
    if not tail or paths.has_control(tail):
        raise step.places["foreach"].error(
            f"step {quoted(step.name)} would have an instance named {quoted(tail)}: names have no control characters"
        )
    return f"{step.name}:{tail}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        if isinstance(value.get("name"), str | int):
            return _shown(value["name"])
        return ",".join(f"{name}={_shown(value[name])}" for name in sorted(value))
    if isinstance(value, list | tuple):
        return "+".join(_shown(item) for item in value)
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _condition(step: Step, names: Mapping[str, Any]) -> bool:
    written = step.values["when"]
    place = step.places["when"]
    with telling(step, "when", place):
        value = native(written, names) if isinstance(written, str) else written
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    shown = quoted(value) if isinstance(value, str | int | float) else "something else"
    hint = f'write "{{{{ {written} }}}}"' if isinstance(written, str) and "{{" not in written else None
    raise place.error(f"`when` of step {quoted(step.name)} wants true or false, not {shown}", hint=hint)


def _made(path: str, folder: str) -> Value:
    return Value(paths.spelled(patterns.unescape(path), folder), None, True)


def _by_name(made: Sequence[Entry], folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in made:
        if entry.name is not None:
            values = [_made(path, folder) for path in entry.items]
            found[entry.name] = values[0] if entry.one and len(values) == 1 else [*found.get(entry.name, []), *values]
    return found
