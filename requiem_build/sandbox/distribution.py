"""The host's distribution as a toolchain: names of tools in, the view of their packages out, remembered by stamps.

One object serves one command of the user. It knows neither steps nor requests, and mounts nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from ..core.elf import HEAD, Kind, kind_of
from ..core.errors import EnvironmentFault
from ..core.fields import dataclass
from . import parts
from .ldcache import places_of
from .packages.base import Contents, Database, Package, Places
from .packages.choose import open_database
from .packages.closure import BASE_PACKAGES, BASE_PROGRAMS, Installed
from .remembered import Kept, Names, load, save
from .stamped import SETTLED_NS, Sealed
from .visible import (
    LINKER_CACHE,
    RULE,
    Stamp,
    Verifier,
    View,
    digest_of_stamps,
    look_at,
    make_view,
    stamp_of,
    stamps_of,
)

SEARCH = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
"""Where a program of a package is looked for by its name. What lies in /usr/local belongs to no package."""

LIBRARIES = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
"""Where the dynamic linker looks without its cache."""

_ALL_OF_THE_BASE = f"({' '.join((*BASE_PACKAGES, *BASE_PROGRAMS))})"
"""Among the remembered names of packages: none has parentheses."""

TRIES = 3
NEAREST_MAX = 3
REMEMBERED_MAX = 64


@dataclass(frozen=True, slots=True)
class Owner:
    """A package, and a program of it; `package` is its id."""

    path: str
    package: str


class Distribution:
    """Views of the packages below `root`, each made once. `cache_dir` remembers them for later commands."""

    def __init__(self, cache_dir: str, root: str = "/") -> None:
        self._cache_dir = cache_dir
        self._root = root
        self._lock = threading.RLock()
        self._open()

    def _open(self) -> None:
        """Reads nothing yet; what was known of an earlier state of the host is dropped."""
        self.places = Places(self._root)
        self._database: Database | None = None
        self._installed: Installed | None = None
        self._looks: list[Stamp | None] = []
        self._stamps: str = ""
        self._names: Names | None = None
        self._files: dict[str, Stamp | None] = {}
        self._views: dict[tuple[tuple[str, ...], tuple[str, ...]], View] = {}
        self._by_digest: dict[str, View] = {}
        self._resolved: dict[str, tuple[str, ...]] = {}
        self._base_ids: frozenset[str] | None = None
        self._libraries: dict[tuple[str, Kind], str | None] = {}
        self._linkers: dict[str, list[str]] | None = None
        self._own_kind: Kind | None = None
        self._watched_stamps: dict[tuple[str, ...], str] = {}

    @property
    def database(self) -> Database:
        """Raises SandboxUnavailable where there is none."""
        if self._database is None:
            self._database = open_database(self._root)
            self._looks = self._looks_now()
            self._stamps = digest_of_stamps(self._looks)
        return self._database

    @property
    def installed(self) -> Installed:
        if self._installed is None:
            self._installed = Installed(self.database.packages())
        return self._installed

    def _looks_now(self) -> list[Stamp | None]:
        """At what changes with the database; its paths are the host's own, not below `root`."""
        assert self._database is not None
        return look_at("", self._database.stamped())

    # Names

    def resolve(self, name: str) -> tuple[str, ...]:
        """The ids of the packages that a name of a program or a package stands for; empty if it is neither.

        Both count where both are there: `python3` is a program of python3-minimal and a package with its library.
        """
        with self._lock:
            if name not in self._resolved:
                owner = self.owner(name)
                named = [] if "/" in name else self._named(name)
                self._resolved[name] = tuple(sorted({*named, *([owner.package] if owner else [])}))
            return self._resolved[name]

    def _named(self, name: str) -> list[str]:
        """The ids of the packages of that name, or that provide it."""
        known = self._known_names.packages
        if name not in known:
            known[name] = [package.id for package in self.installed.find(name)]
            self._known_names.is_new = True
        return known[name]

    @property
    def _known_names(self) -> Names:
        if self._names is None:
            _ = self.database
            self._names = Names(f"{self._cache_dir}/packages.names", self._stamps, self._root)
        return self._names

    def program(self, name: str) -> str | None:
        """The host path of a program that some package owns, by its name or absolute path."""
        owner = self.owner(name)
        return None if owner is None else self.places.host(owner.path)

    def owner(self, name: str) -> Owner | None:
        """Who owns a program, by its name or absolute path."""
        found = self.places.find_program(name, SEARCH)
        package = None if found is None else self.owners([found]).get(found)
        return None if found is None or package is None else Owner(found, package)

    def owners(self, paths: Sequence[str]) -> dict[str, str]:
        """Each absolute path that belongs to a package -> the package's id.

        Alternatives and other links that no package owns lead to one that does.
        """
        ways = {path: self.places.resolve(self.places.canonical(path)) for path in paths}
        with self._lock:
            owners = self._known_names.owners
            unknown = list(dict.fromkeys(path for way in ways.values() for path in way if path not in owners))
            if unknown:
                owners |= dict.fromkeys(unknown, "") | self.database.owners(unknown)
                self._known_names.is_new = True
            found = {path: next((owners[each] for each in way if owners[each]), "") for path, way in ways.items()}
        return {path: id_ for path, id_ in found.items() if id_}

    def library(self, name: str, kind: Kind) -> str | None:
        """The canonical path at which the dynamic linker finds a package's library for a program of that kind.

        None for what belongs to no package, and for what every step sees.
        """
        with self._lock:
            if (name, kind) not in self._libraries:
                self._libraries[name, kind] = self._library(name, kind)
            return self._libraries[name, kind]

    def own_library(self, name: str) -> str | None:
        """The same for programs of the host's own kind."""
        if self._own_kind is None:
            with suppress(OSError), open(self.places.host("/bin/sh"), "rb") as file:
                self._own_kind = kind_of(file.read(HEAD))
        return None if self._own_kind is None else self.library(name, self._own_kind)

    def _library(self, name: str, kind: Kind) -> str | None:
        if self._linkers is None:
            self._linkers = places_of(self._linker_cache())
        for path in self._linkers.get(name) or [f"{folder}/{name}" for folder in LIBRARIES]:
            place = self.places.canonical(path)
            with suppress(OSError), open(self.places.host(place), "rb") as file:
                if kind_of(file.read(HEAD)) == kind:
                    owner = self.owners([place]).get(place)
                    return None if owner is None or owner in self._all_of_the_base else place
        return None

    @property
    def _all_of_the_base(self) -> Collection[str]:
        """With all that the base needs."""
        known = self._known_names.packages
        if _ALL_OF_THE_BASE not in known:
            known[_ALL_OF_THE_BASE] = [package.id for package in self.installed.closure(sorted(self._base))]
            self._known_names.is_new = True
        return known[_ALL_OF_THE_BASE]

    def _linker_cache(self) -> bytes:
        """Empty where there is none."""
        try:
            with open(self.places.host(LINKER_CACHE), "rb") as file:
                return file.read()
        except OSError:
            return b""

    def is_base(self, name: str) -> bool:
        """Whether a name stands for nothing but what every step sees."""
        return self._base.issuperset(self.resolve(name))

    @property
    def _base(self) -> frozenset[str]:
        if self._base_ids is None:
            ids = [id_ for name in BASE_PACKAGES for id_ in self._named(name)]
            self._base_ids = frozenset([*ids, *(id_ for name in BASE_PROGRAMS for id_ in self.resolve(name))])
        return self._base_ids

    def nearest(self, name: str) -> list[str]:
        """Names of packages and programs that somebody who wrote this may have meant."""
        import difflib

        names = {package.name for package in self.database.packages().values()}
        for folder in SEARCH[:1]:
            names.update(os.listdir(self.places.host(folder)))
        return difflib.get_close_matches(name, sorted(names), NEAREST_MAX, 0.7)

    # Views

    def view(self, names: Iterable[str], roots: Iterable[str] = ()) -> View:
        """What a step sees that asks for these names; those that are no package's add nothing.

        `roots` are directories of the host that it sees too, for what the dynamic linker is to find in them.

        Raises SandboxUnavailable without a package database, EnvironmentFault if the system does not hold still.
        """
        asked = set(names)
        with self._lock:
            linked = self._linked(roots)
            wanted = self._wanted(asked)
            if (wanted, linked) not in self._views:
                wanted, view = self._view(asked, linked)
                self._views[wanted, linked] = view
                self._by_digest[view.digest] = view
            return self._views[wanted, linked]

    def known(self, digest: str) -> View | None:
        """The view of that digest, if this object has made it."""
        return self._by_digest.get(digest)

    @property
    def is_used(self) -> bool:
        return bool(self._by_digest)

    def _wanted(self, names: Collection[str]) -> tuple[str, ...]:
        """The ids of the packages that these names and the base stand for."""
        return tuple(sorted(self._base.union(*map(self.resolve, names))))

    def _linked(self, roots: Iterable[str]) -> tuple[str, ...]:
        """Those of the roots that the linker's cache names: most have none, and share the view of all others."""
        wanted = sorted(root for root in roots if root.startswith("/"))
        if not wanted:
            return ()
        cache = self._linker_cache()
        return tuple(root for root in wanted if b"\0" + os.fsencode(root) + b"/" in cache)

    def _view(self, names: Collection[str], linked: tuple[str, ...]) -> tuple[tuple[str, ...], View]:
        for _ in range(TRIES):
            began_ns = time.time_ns()
            wanted = self._wanted(names)
            kept = load(self._path(wanted, linked), self._stamps)
            if kept is not None and self._holds(kept):
                self._watched_stamps[kept.view.watched] = kept.watched_stamps
                self._keep_names(began_ns)
                return wanted, kept.view
            try:
                view = self._made(wanted, linked)
            except OSError:
                view = None  # A file that was listed went away, or the database did.
            if view is not None and self.is_unchanged():
                self._watched_stamps[view.watched] = stamps_of("", view.watched)
                self._keep(self._path(wanted, linked), view, began_ns)
                self._keep_names(began_ns)
                return wanted, view
            self._open()
        raise EnvironmentFault(
            "the system's packages change while they are looked at",
            facts=[("database", self.database.kind)],
            hint="wait until the package manager has finished",
        )

    def _made(self, wanted: Sequence[str], linked: Sequence[str]) -> View:
        ids = list(wanted)
        while True:
            packages = [(package, self.database.contents(package)) for package in self.installed.closure(ids)]
            more = self._diverting(packages)
            if not more:
                return self._look(packages, linked)
            ids += more

    def _diverting(self, packages: Sequence[tuple[Package, Contents]]) -> list[str]:
        """Packages that took the place of a program or library of these: without them it would be missing."""
        shown = {package.name for package, _ in packages}
        paths = {path for _, contents in packages for path in contents.paths}
        return [
            found.id
            for path, aside, by in self.database.diversions()
            if aside in paths and by not in shown and not path.startswith("/usr/share/")
            for found in self.installed.find(by)
        ]

    def _look(self, packages: Sequence[tuple[Package, Contents]], linked: Sequence[str]) -> View:
        memory = Sealed(f"{self._cache_dir}/packages.verified.json")
        verifier = Verifier(memory.load(), self.places.host)
        view = make_view(self.database, self.places, packages, verifier, linked)
        if verifier.is_new:
            memory.save(verifier.known)
        return view

    def _holds(self, kept: Kept) -> bool:
        """Whether everything that is shown, and everything that counts by content, is as it was looked at."""
        view = kept.view
        return (
            stamps_of("", view.watched) == kept.watched_stamps
            and stamps_of(self.places.root, view.files, self._files) == view.stamps
        )

    def _keep(self, path: str, view: View, began_ns: int) -> None:
        packages = [f"{p.name} {p.version} {p.architecture}".encode() for p in view.packages]
        parts.keep(self._cache_dir, view.digest, packages, parts.lines_of(view.document))
        paths = (*self.database.stamped(), *view.watched, *map(self.places.host, view.files))
        if self._youngest_ns(paths) < began_ns - SETTLED_NS:  # Else a stamp might stand for two contents.
            kept = Kept(view, self._stamps, self._watched_stamps[view.watched])
            save(path, kept, kept_max=REMEMBERED_MAX)

    def _keep_names(self, began_ns: int) -> None:
        names = self._known_names
        if names.is_new and self._youngest_ns(self.database.stamped()) < began_ns - SETTLED_NS:
            names.save()

    def _youngest_ns(self, paths: Iterable[str]) -> int:
        found = [0]
        for path in paths:
            try:
                stamp = stamp_of(os.lstat(path))
            except OSError:
                continue
            found.append(max(stamp[:2]))
        return max(found)

    def _path(self, wanted: tuple[str, ...], linked: tuple[str, ...]) -> str:
        from ..core.digest import object_digest

        asked = repr((RULE, self._root, os.geteuid() == 0, wanted, linked)).encode("utf-8", "surrogateescape")
        return f"{self._cache_dir}/views/{object_digest(asked)[:32]}"

    # Did it hold still?

    def watched(self) -> list[str]:
        """Every path whose stamp the views rest on: equal stamps, equal digests, as far as packages count by sums."""
        found = dict.fromkeys(self.database.stamped())
        for view in self._views.values():
            found |= dict.fromkeys(view.watched)
        return list(found)

    def still_holds(self) -> bool:
        """Whether all that the views count by content is as it was, and the database too."""
        with self._lock:
            views = list(self._watched_stamps.items())
        return self.is_unchanged() and all(stamps_of("", paths) == stamps for paths, stamps in views)

    def is_unchanged(self) -> bool:
        """Whether the package database is what it was when the first view was made."""
        return self._database is None or self._looks_now() == self._looks

    def forget(self) -> None:
        """The next view is made of the system as it is then."""
        with self._lock:
            self._open()
