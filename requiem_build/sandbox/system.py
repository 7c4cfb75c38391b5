"""The host's own files that every step sees at `system = "host"`, and the digest that stands for them.

It does not know sandboxes or requests: it names what is shown, says what owns it, and digests it. The digest
is taken on trust where it says so: packages count by name and version, not by the content of their files.
"""

from __future__ import annotations

import errno
import fnmatch
import marshal
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.errors import EnvironmentFault
from ..core.fields import dataclass

if TYPE_CHECKING:
    from ..core.digest import Digest
    from .stamped import Memory

RULE = 1
"""Raised whenever what is shown or how it is digested changes."""

_SHOWN_OF_ETC = (
    # What makes programs of /usr work. Not who the host is: no passwd, hosts, shadow, environment or profile.
    *("ImageMagick-*", "R", "alternatives", "crypto-policies", "debian_version", "fonts", "ghc", "groff", "gtk-*"),
    *("java*", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "lsb-release", "magic", "magic.mime", "matplotlibrc"),
    *("maven*", "mime.types", "ocaml", "octave*", "OpenCL", "os-release", "pango", "perl", "php", "protocols"),
    *("python*", "services", "sgml", "ssl/openssl.cnf", "terminfo", "texmf", "xml"),
)

_LOCAL = "/usr/local"

# Where each kind of package database lies.
DPKG = "/var/lib/dpkg"
PACMAN = "/var/lib/pacman/local"
APK = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
RPM = tuple(
    f"{folder}/{name}"
    for folder in ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
    for name in ("rpmdb.sqlite", "Packages.db", "Packages")
)
"""The newest form first."""

_WILD = re.compile(r"[*?[]")


def etc_entries(etc: str = "/etc") -> tuple[str, ...]:
    """The absolute paths of /etc that are shown: files and directories, in one order everywhere."""
    found = set()
    names = set(_names(etc))
    for pattern in _SHOWN_OF_ETC:
        if "/" in pattern:
            found.add(pattern)
        elif not _WILD.search(pattern):
            found.update({pattern} & names)
        else:
            found.update(name for name in names if fnmatch.fnmatchcase(name, pattern))
    paths = (f"{etc}/{name}" for name in found)
    return tuple(sorted(path for path in paths if os.path.exists(path) and os.access(path, os.R_OK)))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        _reason(error)
        return []


@dataclass(frozen=True, slots=True)
class Looked:
    """What the host's system was. `stamps`, at `at_ns`, are of every path that the digest rests on: None for what is
    absent and would count. Equal stamps, equal digest."""

    digest: Digest
    stamps: Mapping[str, os.stat_result | None]
    at_ns: int


class HostSystem:
    """The host's system as it was when it was first asked about."""

    def __init__(self, cache_dir: str) -> None:
        self._cache_dir = cache_dir
        self._looked: Looked | None = None

    def digest(self) -> Digest:
        """As `system_digest`."""
        return self.look().digest

    def look(self) -> Looked:
        if self._looked is None:
            self._looked = _look(self._cache_dir)
        return self._looked


def _look(cache_dir: str) -> Looked:
    """The stamps are taken before anything is read, and in one walk."""
    began_ns = time.time_ns()
    databases, shown = _package_databases(), _shown()
    surveys = _surveys(databases, shown)
    stamps = {"/etc": _lstat("/etc")}
    for top, entries in surveys.items():
        stamps |= {path: _lstat(path) for path in _way(top)}
        for path, seen in entries:
            if path != top:
                stamps[path] = seen if isinstance(seen, os.stat_result) else _lstat(path)
    return Looked(_digest(cache_dir, began_ns, databases, shown, surveys), stamps, began_ns)


def system_digest(cache_dir: str) -> Digest:
    """One digest for the host's system: packages, /usr/local and the shown part of /etc.

    `cache_dir` remembers content by stamp, so that an unchanged system costs only a look at each file.
    Raises EnvironmentFault where no package database is known.
    """
    began_ns = time.time_ns()
    databases, shown = _package_databases(), _shown()
    surveys = {top: _survey(top) for top in (*shown, *databases)}
    return _digest(cache_dir, began_ns, databases, shown, surveys)


def _digest(
    cache_dir: str,
    began_ns: int,
    databases: Sequence[str],
    shown: Sequence[str],
    surveys: Mapping[str, Sequence[_Entry]],
) -> Digest:
    from ..core.digest import object_digest, parse_digest
    from .stamped import Memory, Sealed

    entries = [entry for top in shown for entry in surveys[top]]
    fingerprint = _fingerprint([*(entry for path in databases for entry in surveys[path]), *entries], began_ns)
    whole = Sealed(f"{cache_dir}/system.whole.json")
    if fingerprint is not None and (known := whole.load().get(fingerprint)) is not None:
        return parse_digest(known)
    memory = Memory(f"{cache_dir}/system.json", began_ns)
    lines = [f"rule {RULE}\0".encode(), _packages(databases, memory)]
    lines += sorted(_describe(path, seen, memory) for path, seen in entries)
    memory.save()
    digest = object_digest(b"\n".join(lines))
    if fingerprint is not None:
        whole.save({fingerprint: digest})
    from . import parts

    parts.keep(cache_dir, digest, package_lines(databases), lines[2:])
    return digest


def package_lines(databases: Sequence[str]) -> list[bytes]:
    """`name version architecture` of each installed package, for messages; empty where the database is not text."""
    first = databases[0]
    if first == PACMAN:
        return [os.fsencode(" ".join(name.rpartition("-")[0].rpartition("-")[::2])) for name in _names(first)]
    if not first.startswith(DPKG) and first not in APK:
        return []
    with open(first, "rb") as file:
        content = file.read()
    return parse_dpkg(content) if first.startswith(DPKG) else parse_apk(content)


def _shown() -> tuple[str, ...]:
    return (*etc_entries(), _LOCAL)


def _surveys(databases: Sequence[str], shown: Sequence[str]) -> dict[str, list[_Entry]]:
    """What is at and below each path that counts, or would if it were there."""
    nested = (f"/etc/{name}" for name in _SHOWN_OF_ETC if "/" in name)
    logs = (f"{path}-wal" for path in databases if path in RPM)
    return {top: _survey(top) for top in (*nested, *shown, *databases, *logs)}


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError as error:
        _reason(error)
        return None


def _way(path: str) -> list[str]:
    """A path and, if it is a link, all that it leads through."""
    found = [path]
    while len(found) < 40 and os.path.islink(found[-1]):
        found.append(os.path.normpath(os.path.join(os.path.dirname(found[-1]), os.readlink(found[-1]))))
    return found


def _package_databases() -> list[str]:
    """The files (or the directory) in which this host's package manager keeps what is installed."""
    for found in (f"{DPKG}/status", PACMAN, *APK):
        if os.path.exists(found):
            return [found]
    for found in RPM:
        if os.path.exists(found):
            return [path for path in (found, f"{found}-wal") if os.path.exists(path)]
    raise EnvironmentFault(
        "no package database that Requiem knows: the system cannot be part of a step's key",
        facts=[("looked for", ", ".join((DPKG, PACMAN, *APK[:1], "rpmdb")))],
        hint="keep the distribution's package database in this image: the system is part of every step's key",
    )


def _packages(databases: Sequence[str], memory: Memory) -> bytes:
    """The installed packages in one line: which database, and the digest of its sorted content."""
    from ..core.digest import object_digest

    first = databases[0]
    if first.startswith(DPKG):
        return b"dpkg " + memory.derive(first, lambda content: b"\n".join(parse_dpkg(content))).encode()
    if first == PACMAN:
        return b"pacman " + object_digest("\n".join(sorted(_names(first))).encode()).encode()
    if first in APK:
        return b"apk " + memory.derive(first, lambda content: b"\n".join(parse_apk(content))).encode()
    return b"rpm " + b" ".join(memory.digest(path, os.stat(path)).encode() for path in databases)


def parse_dpkg(status: bytes) -> list[bytes]:
    """`package version architecture` of each installed package, sorted."""
    found = []
    for stanza in status.split(b"\n\n"):
        fields = _fields(stanza, (b"Package", b"Version", b"Architecture", b"Status"))
        if fields.get(b"Status", b"").split()[-1:] == [b"installed"]:
            found.append(b" ".join((fields[b"Package"], fields.get(b"Version", b""), fields.get(b"Architecture", b""))))
    return sorted(found)


def parse_apk(installed: bytes) -> list[bytes]:
    """The same for Alpine's database (apk-package(5)), with the checksum that it keeps."""
    found = []
    for stanza in installed.split(b"\n\n"):
        fields = _fields(stanza, (b"P", b"V", b"A", b"C"))
        if b"P" in fields:
            found.append(b" ".join(fields.get(name, b"") for name in (b"P", b"V", b"A", b"C")))
    return sorted(found)


def _fields(stanza: bytes, wanted: Iterable[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in stanza.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon and name in wanted:
            fields.setdefault(name, value.strip())
    return fields


_Entry = tuple[str, "os.stat_result | str | None"]
"""A path and what was seen there: a stamp, None for a directory, or why it could not be seen."""


def _survey(top: str) -> list[_Entry]:
    """Everything at and below `top`; only `top` itself may be a link to what is meant."""
    try:
        seen = os.stat(top)
    except OSError as error:
        return [(top, _reason(error))]
    if not stat.S_ISDIR(seen.st_mode):
        return [(top, seen)]
    found: list[_Entry] = [(top, None)]
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        found.append((entry.path, None))
                    else:
                        found.append((entry.path, entry.stat(follow_symlinks=False)))
        except OSError as error:
            found.append((folder, _reason(error)))
    return found


def _reason(error: OSError) -> str:
    """Why something cannot be seen. Raises EnvironmentFault for what is no fact of the path: too many open files."""
    from ..store.files import HOST_FAILED, fault

    if error.errno in HOST_FAILED:
        raise fault(error, "looking at the host's system", str(error.filename or "/"))
    return errno.errorcode.get(error.errno or 0, "unknown")


def _fingerprint(entries: Iterable[_Entry], began_ns: int) -> str | None:
    """One name for all stamps together; None if a file is too young for its stamp to be trusted."""
    from ..core.digest import object_digest
    from . import stamped

    stamps: list[object] = [RULE, os.geteuid()]
    youngest = 0
    for path, seen in entries:
        if isinstance(seen, os.stat_result):
            stamps += (path, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_mode)
            youngest = max(youngest, seen.st_mtime_ns, seen.st_ctime_ns)
        else:
            stamps += (path, seen)
    return object_digest(marshal.dumps(stamps, 2)) if youngest < began_ns - stamped.SETTLED_NS else None


def _describe(path: str, seen: os.stat_result | str | None, memory: Memory) -> bytes:
    """One line for an entry. No path or link target can hold a NUL."""
    name = os.fsencode(path)
    if seen is None:
        return b"directory\0" + name
    if isinstance(seen, str):
        return b"closed\0" + name + b"\0" + seen.encode()
    if stat.S_ISLNK(seen.st_mode):
        return b"link\0" + name + b"\0" + os.fsencode(os.readlink(path))
    if not stat.S_ISREG(seen.st_mode):
        return b"special\0" + name + b"\0%o" % stat.S_IFMT(seen.st_mode)
    kind = b"program\0" if seen.st_mode & 0o111 else b"file\0"
    if not seen.st_mode & 0o004 and os.geteuid() == 0:  # The step's user is not root and cannot read it either.
        return _closed_file(name, seen)
    try:
        return kind + name + b"\0" + memory.digest(path, seen).encode()
    except OSError as error:
        _reason(error)
        return _closed_file(name, seen)


def _closed_file(name: bytes, seen: os.stat_result) -> bytes:
    return b"closed\0" + name + b"\0%o %d %d" % (seen.st_mode, seen.st_size, seen.st_mtime_ns)


def lookup(program: str, path_entries: Sequence[str]) -> str | None:
    """The file that a step's PATH gives for a program, on this host; None if there is none."""
    candidates = [program] if program.startswith("/") else [f"{entry}/{program}" for entry in path_entries if entry]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def package_of(path: str) -> str | None:
    """The Debian package that owns a path, for hints. None if nobody does, or where there is no dpkg.

    Only asked when something has failed, so it reads the lists then instead of keeping an index.
    """
    spellings = _spellings(path)
    if os.path.realpath(path) != path:  # Alternatives and other links that no package owns.
        spellings += _spellings(os.path.realpath(path))
    wanted = [b"\n" + os.fsencode(spelling) + b"\n" for spelling in spellings]
    info = f"{DPKG}/info"
    for name in sorted(_names(info)):
        if not name.endswith(".list"):
            continue
        try:
            with open(f"{info}/{name}", "rb") as file:
                content = b"\n" + file.read()
        except OSError:
            continue
        if any(line in content for line in wanted):
            return name.removesuffix(".list").partition(":")[0]
    return None


def _spellings(path: str) -> list[str]:
    """Since /bin is a link to /usr/bin, packages list their files under either name."""
    if path.startswith("/usr/"):
        return [path, path.removeprefix("/usr")]
    return [path, f"/usr{path}"]
