"""Steps -> drafts: each instance with its name, its variables and its outputs. Inputs are for links.py.

`foreach` patterns match sources and outputs of other steps, whose own `foreach` may do the same: such
steps are expanded again until nothing changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import paths, patterns
from .documents import Place, check_value
from .errors import RequiemError, SourceMissing
from .listing import Listing
from .manifest import Manifest, Scope, Step
from .paths import BadPath, quoted
from .patterns import BadPattern, by_bytes, compile_pattern, is_pattern
from .sources import Outputs, View
from .templates import BadTemplate, Named, Value, each_value, line, native, render_variables, words

INSTANCES_MAX = 100_000
_UP_AFTER_WILDCARD = re.compile(r"[*?\[].*/\.\.(/|$)", re.DOTALL)


@dataclass(slots=True)
class Entry:
    """One item of `inputs` or `outputs`: what it means, and what it is called. `one` if it was written as one path."""

    name: str | None
    one: bool
    items: list[str]
    places: list[Place]


@dataclass(slots=True)
class Draft:
    """`each` holds plain values; those in `exact` are paths that were matched. Paths are workspace-relative."""

    name: str
    step: Step
    each: Mapping[str, Any]
    exact: frozenset[str]
    names: dict[str, Any]
    cwd: str = "."
    outputs: list[Entry] = field(default_factory=list)

    @property
    def is_group(self) -> bool:
        return "command" not in self.step.values

    def output_paths(self) -> Iterator[tuple[str, Place]]:
        for entry in self.outputs:
            yield from zip(entry.items, entry.places, strict=True)


@dataclass(slots=True)
class _Element:
    """One written value of a foreach variable: a value, or a pattern that takes paths in or out."""

    value: Any
    place: Place
    pattern: patterns.Pattern | None = None
    excludes: bool = False


class Expansion:
    """All drafts of a manifest, in manifest order, and the workspace as they make it."""

    def __init__(self, manifest: Manifest, listing: Listing, platform: Mapping[str, str]) -> None:
        self.manifest = manifest
        self.view = View(listing, Outputs())
        self.of_step: dict[str, list[Draft]] = {}
        self._listing = listing
        self._fixed = {"platform": dict(platform), "profile": manifest.profile}
        self._variables: dict[int, dict[str, Any]] = {}
        self._failures: dict[str, RequiemError] = {}
        self._missing: dict[tuple[str, str], RequiemError] = {}
        self._expand()
        self.drafts = {draft.name: draft for drafts in self.of_step.values() for draft in drafts}

    @property
    def outputs(self) -> Outputs:
        return self.view.outputs

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
        for step in self.manifest.steps:
            if step in self._failures:
                raise self._failures[step]

    def _settle(self, moving: Sequence[tuple[Step, dict[str, list[_Element]]]]) -> None:
        """Expands steps whose values depend on outputs, until no step's values change any more."""
        last: dict[str, object] = {}
        for _ in range(len(moving) + 3):
            changed = None
            for step, elements in moving:
                values = {name: self._match(step, items) for name, items in elements.items()}
                if last.get(step.name) != values:
                    again = step.name in last
                    last[step.name] = values
                    changed = step
                    self._place(step, values)
                    if again:
                        self._rebuild()
            if changed is None:
                return
        place = changed.places["foreach"] if changed else None
        if place is not None and changed is not None:
            raise place.error(
                f'foreach of step "{changed.name}" never settles: its outputs are its values again, through other steps',
                hint="let its patterns leave those outputs out",
            )

    def _place(self, step: Step, values: Mapping[str, list[tuple[Any, bool]]]) -> None:
        self._failures.pop(step.name, None)
        drafts: list[Draft] = []
        try:
            for draft in self._drafts(step, values):
                drafts.append(draft)
        except RequiemError as error:  # It may be about a value that is not there once all has settled.
            self._failures[step.name] = error
        drafts.sort(key=lambda draft: draft.name.encode("utf-8"))
        self.of_step[step.name] = drafts
        for draft in drafts:
            for path, _ in draft.output_paths():
                self.view.add(path, draft.name)

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
                with _telling(step, "foreach", where):
                    value = _filled(item, names)
                values = value if isinstance(value, list | tuple) else [value]
                elements.extend(_element(inner, where, step) for inner in values)
            found[name] = elements
        return found

    def _match(self, step: Step, elements: Sequence[_Element]) -> list[tuple[Any, bool]]:
        """The values of one variable, and whether each is a matched path."""
        found: dict[str, None] = {}
        values: list[tuple[Any, bool]] = []
        try:
            for element in elements:
                if element.pattern is None:
                    values.append((element.value, False))
                elif element.excludes:
                    for path in [path for path in found if element.pattern(path)]:
                        del found[path]
                else:
                    matches = [path for path in element.pattern.walk(self.view) if not self._is_own(path, step)]
                    if not matches:
                        raise no_match(str(element.value), f"foreach of step {quoted(step.name)}", element.place)
                    found.update(dict.fromkeys(by_bytes(matches)))
        except RequiemError as error:  # The same one each time, so that a lasting failure settles.
            return [(self._missing.setdefault((step.name, error.what), error), False)]
        return [*((paths.spelled(path.removesuffix("/"), step.folder), True) for path in found), *values]

    def _is_own(self, path: str, step: Step) -> bool:
        maker = self.outputs.maker(path)
        return maker is not None and maker.partition(":")[0] == step.name

    # Instances

    def _drafts(self, step: Step, values: Mapping[str, list[tuple[Any, bool]]]) -> Iterator[Draft]:
        size = 1
        for items in values.values():
            size *= len(items)
            for value, _ in items:
                if isinstance(value, RequiemError):
                    raise value
        if size > INSTANCES_MAX:
            raise step.places["foreach"].error(
                f"step {quoted(step.name)} would have {size:,} instances", hint=f"the limit is {INSTANCES_MAX:,}"
            )
        seen: set[str] = set()
        for chosen in itertools.product(*values.values()):
            each = {name: value for name, (value, _) in zip(values, chosen, strict=True)}
            exact = frozenset(name for name, (_, matched) in zip(values, chosen, strict=True) if matched)
            name = _instance_name(step, each)
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
            flat = [Value(paths.spelled(path, step.folder), None, True) for path, _ in draft.output_paths()]
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


def _plain_values(elements: Sequence[_Element]) -> list[tuple[Any, bool]]:
    return [(element.value, False) for element in elements]


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


def workspace_pattern(text: str, folder: str, place: Place) -> patterns.Pattern:
    """A pattern as written in the manifest of `folder`. Raises ManifestError at its place."""
    try:
        if _UP_AFTER_WILDCARD.search(text):
            raise BadPath("holds .. after a wildcard")
        resolved = paths.resolve(text, folder)
        if resolved == paths.ROOT:
            raise BadPath("is the whole workspace")
        return compile_pattern(resolved)
    except (BadPath, BadPattern) as error:
        raise place.error(f"pattern {quoted(text)} {error}") from error


def no_match(text: str, owner: str, place: Place) -> RequiemError:
    return place.error(f"{owner}: nothing matches {quoted(text)}", kind=SourceMissing)


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
    with _telling(step, "when", place):
        value = native(written, names) if isinstance(written, str) else written
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    shown = quoted(value) if isinstance(value, str | int | float) else "something else"
    hint = f'write "{{{{ {written} }}}}"' if isinstance(written, str) and "{{" not in written else None
    raise place.error(f"`when` of step {quoted(step.name)} wants true or false, not {shown}", hint=hint)


def _by_name(made: Sequence[Entry], folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in made:
        if entry.name is not None:
            values = [Value(paths.spelled(path, folder), None, True) for path in entry.items]
            found[entry.name] = values[0] if entry.one and len(values) == 1 else [*found.get(entry.name, []), *values]
    return found


# Texts of one draft, with their complaints


class _telling:  # noqa: N801
    """Turns what is wrong with a template into the complaint about its key."""

    def __init__(self, step: Step, key: str, place: Place) -> None:
        self._step, self._key, self._place = step, key, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, BadTemplate):
            raise self._place.error(
                f"`{self._key}` of step {quoted(self._step.name)}: {error.what}", hint=error.hint
            ) from error


telling = _telling


def entries(draft: Draft, key: str) -> Iterator[Entry]:
    """`inputs` or `outputs`, filled in: one entry for each item as written."""
    value = draft.step.values[key]
    place = draft.step.places[key]
    named = value.items() if isinstance(value, dict) else [(None, value)]
    for name, written in named:
        where = place if name is None else place.at(name)
        items = written if isinstance(written, list) else [written]
        for index, item in enumerate(items):
            at = where.at(index) if isinstance(written, list) else where
            with telling(draft.step, key, at):
                filled = words(item, draft.names, literal_paths=True)
            yield Entry(name, not isinstance(written, list), filled, [at] * len(filled))


def list_words(draft: Draft, key: str, names: Mapping[str, Any] | None = None) -> list[tuple[str, Place]]:
    """A list of texts (or one text), filled in, each with its place."""
    value = draft.step.values.get(key)
    if value is None:
        return []
    place = draft.step.places[key]
    found: list[tuple[str, Place]] = []
    items = value if isinstance(value, list) else [value]
    for index, item in enumerate(items):
        at = place.at(index) if isinstance(value, list) else place
        with telling(draft.step, key, at):
            found.extend((word, at) for word in words(item, names or draft.names, literal_paths=True))
    return found


def one_word(draft: Draft, key: str) -> str:
    found = list_words(draft, key)
    if len(found) != 1:
        raise draft.step.places[key].error(
            f"`{key}` of step {quoted(draft.step.name)} wants one path, not {len(found)}"
        )
    return found[0][0]


def one_line(draft: Draft, key: str, names: Mapping[str, Any]) -> str:
    text = draft.step.values.get(key, "")
    with telling(draft.step, key, draft.step.places.get(key, draft.step.place)):
        return line(text, names)


def output_path(draft: Draft, text: str, place: Place, what: str = "output") -> str:
    """A path that the step makes, workspace-relative. Raises ManifestError."""
    try:
        if text.startswith(("!", "@")):
            raise BadPath(f"begins with {text[0]}: outputs are paths and patterns")
        if is_pattern(text):
            path = workspace_pattern(text, draft.step.folder, place).text
        else:
            path = patterns.unescape(paths.resolve(text, draft.step.folder))
        if path == paths.ROOT:
            raise BadPath("is the whole workspace")
        if paths.is_reserved(path):
            raise BadPath("is a reserved path: .git, .requiem and .cas are not for outputs")
    except BadPath as error:
        raise place.error(f"{what} {quoted(text)} of step {quoted(draft.step.name)} {error}") from error
    return path


def check_outputs(expansion: Expansion) -> list[str]:
    """Refuses outputs that two instances claim. Gives warnings about those that some file systems take for one."""
    known: dict[str, tuple[str, Place]] = {}
    folded: dict[str, str] = {}
    warnings: list[str] = []
    outputs = expansion.outputs
    for name, draft in expansion.drafts.items():
        for path, place in draft.output_paths():
            plain = path.removesuffix("/")
            if plain in known:
                raise _twice(plain, name, place, *known[plain])
            known[plain] = (name, place)
            other = folded.setdefault(paths.folded(plain), plain)
            if other != plain:
                warnings.append(
                    f"outputs {quoted(other)} and {quoted(plain)} collide on case-insensitive or normalising file systems"
                )
    for name, draft in expansion.drafts.items():
        for path, place in draft.output_paths():
            _check_output(path, name, place, known, outputs)
    return warnings


def _check_output(path: str, name: str, place: Place, known: Mapping[str, tuple[str, Place]], outputs: Outputs) -> None:
    plain = path.removesuffix("/")
    for above in paths.ancestors(plain):
        if above in known:
            other, first = known[above]
            inside = "the directory output" if above in outputs.directories else "the output"
            raise place.error(
                f"output {quoted(path)} of step {quoted(name)} lies inside {inside} {quoted(above)} of step {quoted(other)}",
                facts=[("first", _where(first))],
            )
    if not is_pattern(path) and not path.endswith("/"):
        maker = outputs.pattern_maker(path)
        if maker is not None and maker != name:
            raise place.error(f"steps {quoted(maker)} and {quoted(name)} both make {quoted(path)}: one by a pattern")


def _twice(path: str, name: str, place: Place, other: str, first: Place) -> RequiemError:
    if name == other:
        return place.error(f"step {quoted(name)} names the output {quoted(path)} twice")
    return place.error(
        f"steps {quoted(other)} and {quoted(name)} both make {quoted(path)}", facts=[("first", _where(first))]
    )


def _where(place: Place) -> str:
    return dict(place.error("").facts)["manifest"]
