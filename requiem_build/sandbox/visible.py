"""What of /usr and /etc a set of packages makes visible, and the document whose digest stands for it.

Everything that a step can see by it is in the document: packages by their file sums, which the files were compared
with, and by content what no sum covers. It does not know how the view is mounted.
"""

from __future__ import annotations

import marshal
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ..core.fields import dataclass, field, replace
from . import ldcache
from .packages.base import Contents, Database, Package, Places

RULE = 1
"""Raised whenever what is shown or how it is digested changes."""

SCHEMA = "requiem.system/1"
ETC_BYTES_MAX = 8 << 20
LINKER_CACHE = "/etc/ld.so.cache"

_OF_THE_WORLD = frozenset(
    # Made for every step, or nobody's business: who the host is and who may do what on it.
    f"/etc/{name}"
    for name in (
        *("passwd", "group", "hosts", "nsswitch.conf", "resolv.conf", "ld.so.preload", "ld.so.cache", "shadow"),
        *("gshadow", "hostname", "machine-id", "environment", "fstab", "mtab", "localtime", "timezone", "sudoers"),
    )
)
_CERTIFICATES = ("/etc/ssl/certs", "ca-certificates")
_LOCALES = ("/usr/lib/locale/locale-archive", ("locales", "glibc-all-langpacks", "glibc-locale", "glibc"))
_CONVERSIONS = "gconv-modules.cache"

Stamp = tuple[int, int, int, int, int]


@dataclass(slots=True)
class Survey:
    """What lies below the root at the paths of a set of packages: kinds and stamps, each path canonical."""

    directories: dict[str, Stamp] = field(default_factory=dict)
    files: dict[str, Stamp] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    """Files that a step's user may not read: shown as they are, their content counts for nothing."""

    def holds(self, path: str) -> bool:
        return path in self.files or path in self.links or path in self.directories


@dataclass(frozen=True, slots=True)
class View:
    """`document` is the canonical JSON whose object digest names the view; paths are canonical and sorted."""

    digest: str
    document: bytes
    packages: tuple[Package, ...]
    directories: tuple[str, ...]
    files: tuple[str, ...]
    links: Mapping[str, str]
    etc_files: Mapping[str, tuple[bytes, bool]]
    """Path -> content, and whether it may be executed."""
    etc_links: Mapping[str, str]
    stamps: str
    """A digest of the stamps of all files that the host shows through it: what is shown is as it was looked at."""
    watched: tuple[str, ...]
    """Paths whose content or existence counts beside the database's own."""
    changed: tuple[str, ...] = ()
    """Files that are not what their package says; they count by their content."""


class Verifier:
    """Compares files with the sums of their packages, each package once until a stamp of it changes.

    `known` is package id -> [digest of its sums, digest of its stamps, {path: digest of a file that differs}], kept
    by the caller from one time to the next.
    """

    def __init__(self, known: dict[str, list[object]], host: Callable[[str], str]) -> None:
        self.known = known
        self.is_new = False
        self._host = host

    def differing(self, package: Package, contents: Contents, survey: Survey) -> dict[str, str]:
        """Path -> digest of the content of each file that is not what the package's sums say."""
        import hashlib
        from functools import partial

        from ..core.digest import object_digest

        present = [p for p in contents.sums if p in survey.files and p not in survey.closed]
        sums = object_digest(contents.record)
        stamps = object_digest(
            repr([(path, survey.files[path]) for path in present]).encode("utf-8", "surrogateescape")
        )
        known = self.known.get(package.id)
        if known is not None and known[:2] == [sums, stamps] and isinstance(known[2], dict):
            return dict(known[2])
        found: dict[str, str] = {}
        for path in present:
            algorithm, _, wanted = contents.sums[path].partition(":")
            with open(self._host(path), "rb") as file:
                summed = hashlib.file_digest(file, partial(hashlib.new, algorithm, usedforsecurity=False))
                if summed.hexdigest() != wanted:
                    file.seek(0)
                    found[path] = object_digest(file.read())
        self.known[package.id] = [sums, stamps, found]
        self.is_new = True
        return found


def look(places: Places, packages: Sequence[tuple[Package, Contents]], links: Iterable[str]) -> Survey:
    """Which of the packages' paths there are, with the directories above them, and the extras that are kept."""
    survey = Survey()
    wanted = {path for _, contents in packages for path in contents.paths if _is_shown(path, places.tops)}
    for path in sorted(wanted):
        _see(places, path, survey)
    for link in links:
        way = places.resolve(link)
        if len(way) > 1 and survey.holds(way[-1]):
            for step in way[:-1]:
                _see(places, step, survey)
    for path in _extras(places, {package.name for package, _ in packages}, survey):
        _see(places, path, survey)
    for path in (*survey.files, *survey.links):
        _see_above(places, path, survey)
    return survey


def _is_shown(path: str, tops: tuple[str, ...]) -> bool:
    top = "/" + path[1:].partition("/")[0]
    if top == "/etc":
        return path not in _OF_THE_WORLD and path != "/etc"
    return top in tops and path != top and not path.startswith("/usr/local/") and path != "/usr/local"


def _see(places: Places, path: str, survey: Survey) -> None:
    if survey.holds(path):
        return
    try:
        seen = os.lstat(places.host(path))
    except OSError:
        survey.absent.append(path)
        return
    if stat.S_ISDIR(seen.st_mode):
        if not path.startswith("/etc/"):
            survey.directories[path] = stamp_of(seen)
    elif stat.S_ISLNK(seen.st_mode):
        survey.links[path] = os.readlink(places.host(path))
    elif stat.S_ISREG(seen.st_mode):
        survey.files[path] = stamp_of(seen)
        if not seen.st_mode & 0o004:
            survey.closed.add(path)


def _see_above(places: Places, path: str, survey: Survey) -> None:
    """The directories on the way to what is shown. A link that stands in a directory's place is followed."""
    parent = os.path.dirname(path)
    while parent not in survey.directories and parent not in survey.links and parent.count("/") > 1:
        _see(places, parent, survey)
        parent = os.path.dirname(parent)


def stamp_of(seen: os.stat_result) -> Stamp:
    return (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_mode)


def _extras(places: Places, names: set[str], survey: Survey) -> list[str]:
    """What belongs to no package and is made of what is shown: compiled Python, locales, conversions, certificates."""
    found = list(_compiled(places, survey))
    archive, of = _LOCALES
    if names.intersection(of) and os.path.isfile(places.host(archive)):
        found.append(archive)
    for folder in [path for path in survey.directories if path.endswith("/gconv")]:
        if os.path.isfile(places.host(f"{folder}/{_CONVERSIONS}")):
            found.append(f"{folder}/{_CONVERSIONS}")
    folder, owner = _CERTIFICATES
    if owner in names:
        found += [f"{folder}/{name}" for name in _names(places.host(folder))]
    return found


def _compiled(places: Places, survey: Survey) -> Iterable[str]:
    """Every `__pycache__/NAME.*.pyc` beside a visible NAME.py."""
    folders: dict[str, set[str]] = {}
    for path in survey.files:
        if path.endswith(".py"):
            folder, _, name = path.rpartition("/")
            folders.setdefault(folder, set()).add(name[:-3])
    for folder, stems in folders.items():
        for name in _names(places.host(f"{folder}/__pycache__")):
            if name.endswith(".pyc") and name.partition(".")[0] in stems:
                yield f"{folder}/__pycache__/{name}"


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def make_view(
    database: Database,
    places: Places,
    packages: Sequence[tuple[Package, Contents]],
    verifier: Verifier,
    linked: Sequence[str] = (),
) -> View:
    """Looks at everything that the packages own, and digests it. Raises OSError for a file that vanishes meanwhile.

    `linked` are roots whose libraries stay in the linker's cache: without it /usr/local/lib is not looked into.
    """
    survey = look(places, packages, database.links())
    covered: dict[str, str] = {}
    changed: dict[str, str] = {}
    for package, contents in packages:
        covered.update(contents.sums)
        changed |= verifier.differing(package, contents, survey)
    etc = _etc(places, survey, tuple(f"{root}/" for root in linked))
    kept = {path: _digest(content) for path, (content, _) in etc.items()} | changed
    below_usr = sorted(path for path in survey.files if not path.startswith("/etc/"))
    uncovered = [path for path in below_usr if path not in covered and path not in survey.closed]
    for path in uncovered:
        with open(places.host(path), "rb") as file:
            kept[path] = _digest(file.read())
    document = _document(database, packages, survey, kept)
    return View(
        digest=_digest(document),
        document=document,
        packages=tuple(replace(package, needs=(), provides=()) for package, _ in packages),
        directories=tuple(sorted(survey.directories)),
        files=tuple(below_usr),
        links={path: survey.links[path] for path in sorted(survey.links) if not path.startswith("/etc/")},
        etc_files=etc,
        etc_links={path: survey.links[path] for path in sorted(survey.links) if path.startswith("/etc/")},
        stamps=digest_of_stamps(survey.files[path] for path in below_usr),
        watched=tuple(_watched(places, [*etc, *uncovered, *changed])),
        changed=tuple(sorted(changed)),
    )


def _watched(places: Places, paths: Iterable[str]) -> list[str]:
    """Beside the files themselves, the directories in which one more of their kind would count."""
    found: dict[str, None] = {}
    for path in paths:
        found[places.host(path)] = None
        folder = os.path.dirname(path)
        if folder.endswith("/__pycache__") or folder == _CERTIFICATES[0]:
            found[places.host(folder)] = None
    return list(found)


def _etc(places: Places, survey: Survey, linked: tuple[str, ...]) -> dict[str, tuple[bytes, bool]]:
    """The visible files of /etc with their content: they are small, and written into the view from memory."""
    found: dict[str, tuple[bytes, bool]] = {}
    size = 0
    for path in sorted(survey.files):
        if not path.startswith("/etc/") or path in survey.closed:
            continue
        with open(places.host(path), "rb") as file:
            content = file.read(ETC_BYTES_MAX)
        size += len(content)
        if size <= ETC_BYTES_MAX:  # Beyond that it is no configuration.
            found[path] = (content, bool(survey.files[path][4] & 0o111))
    try:
        with open(places.host(LINKER_CACHE), "rb") as file:
            cache = ldcache.cut_down(
                file.read(), lambda path: survey.holds(places.canonical(path)) or path.startswith(linked)
            )
    except OSError:
        cache = None
    if cache is not None:
        found[LINKER_CACHE] = (cache, False)
    return found


def _document(
    database: Database,
    packages: Sequence[tuple[Package, Contents]],
    survey: Survey,
    kept: Mapping[str, str],
) -> bytes:
    from ..core import canonical

    named = {path for _, contents in packages for path in contents.paths}
    names = {package.name for package, _ in packages}
    return canonical.encode_plain(
        {
            "absent": sorted(_name(path) for path in survey.absent),
            "diversions": sorted(
                [_name(path), _name(aside), by]
                for path, aside, by in database.diversions()
                if by in names or path in named or aside in named
            ),
            "files": {_name(path): digest for path, digest in kept.items()},
            "kind": database.kind,
            "links": {_name(path): _name(target) for path, target in survey.links.items()},
            "packages": [
                [package.name, package.version, package.architecture, _digest(contents.record)]
                for package, contents in sorted(packages, key=lambda item: item[0].id)
            ],
            "rule": RULE,
            "schema": SCHEMA,
        }
    )


def stamps_of(root: str, paths: Collection[str], known: dict[str, Stamp | None] | None = None) -> str:
    """One digest for the stamps of all these below a root; what is gone counts as gone. Compare with `View.stamps`.

    `known` remembers them from one call to the next: to whoever gives it, the host holds still meanwhile.
    """
    if known is None:
        return digest_of_stamps(look_at(root, paths))
    unknown = [path for path in paths if path not in known]
    known.update(zip(unknown, look_at(root, unknown), strict=True))
    return digest_of_stamps(map(known.__getitem__, paths))


def look_at(root: str, paths: Iterable[str]) -> list[Stamp | None]:
    """The stamp of each path below a root; None for what is not there."""
    lstat = os.lstat
    found: list[Stamp | None] = []
    for path in paths:
        try:
            seen = lstat(root + path)
        except OSError:
            found.append(None)
        else:
            found.append((seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_mode))
    return found


def digest_of_stamps(stamps: Iterable[Stamp | None]) -> str:
    numbers: list[int | None] = []
    for stamp in stamps:
        numbers += stamp or (None,)
    return _digest(marshal.dumps(numbers, 2))


def _digest(content: bytes) -> str:
    from ..core.digest import object_digest

    return str(object_digest(content))


def _name(path: str) -> str:
    """Not every path is UTF-8, and every document is."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
