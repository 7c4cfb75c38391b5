"""The text of requiem.toml and of what it includes -> Manifest: steps with complete keys, complaints with places.

It checks the shape of everything and looks at no file but manifests: what patterns match and what
templates give is for the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import keys, kinds, paths
from .documents import Document, Place, Source, merge_tables, nearest, read_document
from .errors import ManifestError, UnknownName
from .fields import dataclass, replace
from .layers import Layer, Templates, check_keys, refuse_later
from .paths import BadPath, quoted
from .variables import check_variables, set_variable
from .versions import check_version

MANIFEST = "requiem.toml"
DEPTH_MAX = 32
MANIFESTS_MAX = 1000
NAME_MAX = 200

Read = Callable[[str], bytes | None]


@dataclass(frozen=True, eq=False)
class Scope:
    """What the steps of one manifest file share: its folder and its variables, not yet filled in."""

    folder: str
    variables: Mapping[str, Any]
    places: Mapping[str, Place]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One task with complete keys. `name` has the folder of its manifest in front: `libs/a/compile`."""

    name: str
    scope: Scope
    values: Mapping[str, Any]
    places: Mapping[str, Place]
    place: Place

    @property
    def folder(self) -> str:
        return self.scope.folder


@dataclass(frozen=True, eq=False)
class RootTree:
    """One `[roots.X]`: `path` relative to the workspace, absolute, or `~/`."""

    name: str
    path: str
    key: tuple[str, ...]
    place: Place


@dataclass(frozen=True, eq=False)
class Manifest:
    """`steps` in manifest order: a manifest's own, then those of each include. `files` is every path asked for."""

    name: str
    path: str
    profile: str
    steps: Mapping[str, Step]
    default: tuple[str, ...] | None
    default_place: Place
    roots: Mapping[str, RootTree]
    pools: Mapping[str, int]
    store: Mapping[str, object]
    files: tuple[str, ...]


def load_manifest(
    read: Read,
    path: str = MANIFEST,
    *,
    profile: str | None = None,
    sets: Mapping[str, str] | None = None,
    local: str | None = "requiem.local.toml",
    user_roots: Mapping[str, object] | None = None,
) -> Manifest:
    """Reads a manifest and all that it includes. Raises ManifestError (2), UnknownName (2) or NotBuiltYet (4).

    `read` gives a file's bytes by its workspace-relative path, or None if there is none.
    """
    return _Loader(read, profile or "").load(path, dict(sets or {}), local, dict(user_roots or {}))


@dataclass(frozen=True, eq=False)
class _Pending:
    path: str
    chain: tuple[str, ...]
    place: Place | None


class _Loader:
    def __init__(self, read: Read, profile: str) -> None:
        self._read_bytes = read
        self._profile = profile
        self._asked: dict[str, None] = {}
        self._profiles: dict[str, None] = {}
        self._steps: dict[str, Step] = {}
        self._roots: dict[str, RootTree] = {}
        self._pools: dict[str, int] = {}

    def load(self, path: str, sets: Mapping[str, str], local: str | None, user_roots: Mapping[str, object]) -> Manifest:
        document = self._document(path, None)
        over = self._local(local)
        source = Source((document,), document.tables)
        if over is not None:
            source = Source((over, document), merge_tables(document.tables, over.tables))
        project = self._file(source, path, (path,), sets)
        store = self._store(source, over)
        self._user_roots(user_roots)
        place = Place(source, ("profiles",))
        if self._profile and self._profile not in self._profiles:
            raise UnknownName(
                f"no profile {quoted(self._profile)}",
                facts=[("manifest", path)],
                hint=nearest(self._profile, self._profiles),
            )
        default = project.values.get("default")
        return Manifest(
            name=project.values["name"],
            path=path,
            profile=self._profile,
            steps=self._steps,
            default=None if default is None else tuple(default),
            default_place=project.places.get("default", place),
            roots=self._roots,
            pools=self._pools,
            store=store,
            files=tuple(self._asked),
        )

    # Files

    def _ask(self, path: str) -> bytes | None:
        self._asked[path] = None
        return self._read_bytes(path)

    def _document(self, path: str, asker: Place | None) -> Document:
        content = self._ask(path)
        if content is not None:
            return read_document(path, content)
        if asker is None:
            raise ManifestError(f"no {path}", facts=[("manifest", path)], hint="requiem init makes one")
        raise asker.error(f"{quoted(path)} does not exist")

    def _local(self, local: str | None) -> Document | None:
        """What is laid over the manifest. Its [trust] is no part of any plan: engine/trust.py reads it."""
        content = self._ask(local) if local else None
        if local is None or content is None:
            return None
        document = read_document(local, content)
        return replace(document, tables={name: table for name, table in document.tables.items() if name != "trust"})

    def _file(self, source: Source, path: str, chain: tuple[str, ...], sets: Mapping[str, str]) -> Layer:
        """One manifest, then all that it includes, depth first."""
        project = self._tables(source, path, sets)
        loaded = {path}
        pending = self._includes(project, path, chain)
        while pending:
            item = pending.pop()
            if item.path in loaded:
                continue
            loaded.add(item.path)
            if len(loaded) > MANIFESTS_MAX and item.place:
                raise item.place.error(f"more than {MANIFESTS_MAX} manifests")
            document = self._document(item.path, item.place)
            inner = self._tables(Source((document,), document.tables), item.path, None)
            pending.extend(self._includes(inner, item.path, item.chain))
        return project

    def _includes(self, project: Layer, path: str, chain: tuple[str, ...]) -> list[_Pending]:
        """The includes of one manifest, the first last: the list is a stack."""
        found = []
        for index, text in enumerate(project.values.get("include", ())):
            place = project.places["include"].at(index)
            target = _resolved(text, paths.parent(path), place)
            if not target.endswith(".toml"):
                target = paths.join(target.rstrip("/"), MANIFEST)
            if target in chain:
                cycle = " -> ".join([*chain[chain.index(target) :], target])
                raise place.error(f"manifests include each other in a cycle: {cycle}")
            if len(chain) >= DEPTH_MAX:
                raise place.error(f"includes nest deeper than {DEPTH_MAX}")
            found.append(_Pending(target, (*chain, target), place))
        return found[::-1]

    # Tables

    def _tables(self, source: Source, path: str, sets: Mapping[str, str] | None) -> Layer:
        main = sets is not None
        folder = paths.parent(path)
        tables = source.tables
        top = Place(source, ())
        for name in tables:
            if name == "trust":
                raise top.at(name).error(
                    "a manifest does not say whom to trust: whoever can change it could then forge results",
                    hint="put [trust] into ~/.config/requiem/config.toml, or tighten it in requiem.local.toml",
                    key=True,
                )
            if name not in keys.TABLES:
                hint = nearest(name, keys.TABLES) or _table_hint(name)
                raise top.at(name).error(f"unknown table or key {quoted(name)}", hint=hint, key=True)
        if "project" not in tables:
            raise top.error(f"{path} has no [project]", hint='begin it with two lines: [project] and name = "..."')
        project = check_keys(tables["project"], keys.PROJECT, top.at("project"), "[project]")
        if "name" not in project.values:
            raise top.at("project").error("[project] has no name", hint='add name = "..."')
        check_version(project)
        profile = self._profile_tables(tables, top)
        scope = self._scope(folder, tables, top, project, profile, sets)
        self._make_steps(tables, top, scope, profile.get("defaults", Layer()))
        self._named_trees(tables, top, folder)
        if not main and "store" in tables:
            raise top.at("store").error("only the workspace's own manifest has a [store]", key=True)
        return project

    def _profile_tables(self, tables: Mapping[str, Any], top: Place) -> dict[str, Any]:
        """The chosen profile's defaults (a Layer) and variables, every profile checked."""
        found: dict[str, Any] = {}
        for name, table in _named(tables, "profiles", top):
            place = top.at("profiles", name)
            self._profiles[name] = None
            if not isinstance(table, dict):
                raise place.error(f"profile {quoted(name)} wants a table")
            for inner in table:
                if inner not in ("defaults", "vars"):
                    hint = nearest(inner, ("defaults", "vars")) or "a profile holds `defaults` and `vars`"
                    raise place.at(inner).error(
                        f"unknown key {quoted(inner)} in profile {quoted(name)}", hint=hint, key=True
                    )
            layer = check_keys(table.get("defaults", {}), keys.STEP, place.at("defaults"), f"profile {quoted(name)}")
            variables = check_variables(table.get("vars", {}), place.at("vars"))
            if name == self._profile:
                found = {"defaults": layer, "vars": variables, "place": place.at("vars")}
        return found

    def _scope(
        self,
        folder: str,
        tables: Mapping[str, Any],
        top: Place,
        project: Layer,
        profile: Mapping[str, Any],
        sets: Mapping[str, str] | None,
    ) -> Scope:
        """Variables: [vars] < vars_files < the profile's < --set."""
        values: dict[str, Any] = {}
        places: dict[str, Place] = {}

        def lay(more: Mapping[str, Any], place: Place) -> None:
            for name in more:
                places[name] = place.at(name)
            values.update(merge_tables(values, more))

        lay(check_variables(tables.get("vars", {}), top.at("vars")), top.at("vars"))
        for index, text in enumerate(project.values.get("vars_files", ())):
            asker = project.places["vars_files"].at(index)
            document = self._variables_file(_resolved(text, folder, asker), asker)
            place = Place(Source((document,), document.tables), ())
            lay(check_variables(document.tables, place), place)
        if profile:
            lay(profile["vars"], profile["place"])
        for name, text in (sets or {}).items():
            lay(*set_variable(name, text, values))
        return Scope(folder, values, places)

    def _variables_file(self, path: str, asker: Place) -> Document:
        if not path.endswith(".json"):
            return self._document(path, asker)
        from . import canonical
        from .errors import RequestError

        content = self._ask(path)
        if content is None:
            raise asker.error(f"{quoted(path)} does not exist")
        try:
            value = canonical.parse(content)
        except RequestError as error:
            raise asker.error(f"{quoted(path)}: {error.what}", facts=error.facts) from error
        if not isinstance(value, dict):
            raise asker.error(f"{quoted(path)} holds no JSON object")
        return Document(path, "", value)

    def _make_steps(self, tables: Mapping[str, Any], top: Place, scope: Scope, profile: Layer) -> None:
        defaults = check_keys(tables.get("defaults", {}), keys.STEP, top.at("defaults"), "[defaults]")
        layers = {
            name: check_keys(table, keys.STEP, top.at("templates", name), f"template {quoted(name)}")
            for name, table in _named(tables, "templates", top)
        }
        templates = Templates(profile.over(defaults.over(Layer())), layers)
        for name, table in _named(tables, "steps", top):
            place = top.at("steps", name)
            _check_name(name, place)
            owner = f"step {quoted(name)}"
            layer = templates.complete(check_keys(table, keys.STEP, place, owner))
            refuse_later(layer, owner)
            full = paths.join(scope.folder, name)
            if full in self._steps:
                first = dict(self._steps[full].place.error("").facts)["manifest"]
                raise place.error(f"two steps are named {quoted(full)}", facts=[("first", first)], key=True)
            self._steps[full] = Step(full, scope, layer.values, layer.places, place)

    def _named_trees(self, tables: Mapping[str, Any], top: Place, folder: str) -> None:
        for name, table in _named(tables, "roots", top):
            place = top.at("roots", name)
            _check_name(name, place)
            tree = _root_tree(paths.join(folder, name), table, place, folder)
            self._roots[tree.name] = tree
        for name, size in _named(tables, "pools", top):
            place = top.at("pools", name)
            _check_name(name, place)
            problem = keys.POOL.kind.check(size)
            if problem:
                raise place.error(f"pool {quoted(name)} {problem.what}")
            self._pools[paths.join(folder, name)] = size

    def _user_roots(self, user_roots: Mapping[str, object]) -> None:
        document = Document("the user's configuration", "", {"roots": dict(user_roots)})
        place = Place(Source((document,), document.tables), ("roots",))
        for name, table in user_roots.items():
            self._roots[name] = _root_tree(name, table, place.at(name), paths.ROOT)

    def _store(self, source: Source, local: Document | None) -> dict[str, object]:
        place = Place(source, ("store",))
        layer = check_keys(source.tables.get("store", {}), keys.STORE, place, "[store]")
        found: dict[str, object] = {}
        if "max_size" in layer.values:
            found["max_size"] = kinds.size_bytes(layer.values["max_size"])
        if "durability" in layer.values:
            found["durability"] = layer.values["durability"]
        if "path" in layer.values:
            if local is None or not local.holds(("store", "path")):
                raise layer.places["path"].error(
                    "a manifest does not say where the store lies",
                    hint="put [store] path into requiem.local.toml or ~/.config/requiem/config.toml",
                    key=True,
                )
            found["path"] = layer.values["path"]
        return found


def _resolved(text: str, folder: str, place: Place) -> str:
    try:
        if any(character in text for character in "*?["):
            raise BadPath("is a pattern; name each one")
        return paths.resolve(text, folder)
    except BadPath as error:
        raise place.error(f"{quoted(text)} {error}") from error


def _named(tables: Mapping[str, Any], name: str, top: Place) -> list[tuple[str, Any]]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise top.at(name).error(f"[{name}] wants a table, not {kinds.type_name(table)}")
    return list(table.items())


def _table_hint(name: str) -> str | None:
    if name in keys.PROJECT:
        return f"{quoted(name)} belongs into [project]"
    return f"{quoted(name)} is a key of a step: put it below [steps.NAME] or [defaults]" if name in keys.STEP else None


def _check_name(name: str, place: Place) -> None:
    """Own names stay clear of what separates names from folders, instances, references and options."""
    problem = ""
    if not name:
        problem = "is empty"
    elif len(name) > NAME_MAX:
        problem = f"is longer than {NAME_MAX} characters"
    elif not all(character.isprintable() for character in name):
        problem = "holds a character that cannot be printed"
    elif name != name.strip():
        problem = "begins or ends with a space"
    elif name[0] in "-!@." or any(character in name for character in "/\\:@*?[]{}"):
        problem = "holds what names may not: / \\ : @ * ? [ ] { }, or one of - ! @ . in front"
    if problem:
        raise place.error(f"the name {quoted(name)} {problem}", key=True)


def _root_tree(name: str, table: object, place: Place, folder: str) -> RootTree:
    owner = f"root {quoted(name)}"
    layer = check_keys(table, keys.ROOT, place, owner)
    if "path" not in layer.values:
        raise place.error(f"{owner} has no path", hint='add path = "..."')
    key = [
        _tree_path(text, folder, layer.places["key"].at(index))
        for index, text in enumerate(layer.values.get("key", ()))
    ]
    path = _tree_path(layer.values["path"], folder, layer.places["path"])
    return RootTree(name, path.rstrip("/") or "/", tuple(key), place)


def _tree_path(text: str, folder: str, place: Place) -> str:
    if text.startswith("~/") or (text.startswith("/") and not text.startswith("//")):
        if paths.has_control(text) or ".." in text.split("/"):
            raise place.error(f"{quoted(text)} is not a plain path")
        return text
    found = _resolved(text, folder, place)
    if found == paths.ROOT:
        raise place.error(f"{quoted(text)} is the whole workspace")
    return found
