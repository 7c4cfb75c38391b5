"""A view of packages made ready to be mounted: a mask beside the host's own directories, or a copy of what is visible.

redirects   an overlay of which the upper layer lists what is visible: each file is empty, and says where below the
            host's directory its content lies. What is not listed does not exist.
whiteouts   an overlay of which the upper layer lists what is *not* visible. For kernels that refuse redirects.
copy        the files themselves. Where no overlay can be had.

What the step sees is the same by each, so which one it is belongs to no key. Masks are kept in the user's cache
and used again while the files that they show have the same stamps. A mask may lie on no file system that it shows
parts of by the same directory, and nobody but its maker may write to it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from ..core.fields import dataclass, field, replace
from ..core.policy import INPUT_MTIME_S
from .packages.base import Places
from .visible import View, stamps_of

MECHANISMS = ("redirects", "whiteouts", "copy")
KEPT_MAX = 32
UNUSED_S_MAX = 7 * 24 * 3600
WITNESS_BYTES = 64

_MTIME_NS = INPUT_MTIME_S * 1_000_000_000
_REDIRECT = "user.overlay.redirect"
_METACOPY = "user.overlay.metacopy"


class NeverHere(OSError):
    """What a mechanism needs is refused by this kernel or file system, and would be refused again."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A view that lies ready. `folder` (of the host) holds one directory for each of `tops`, in their order: 0, 1, ...

    Once mounted, the first bytes of the file `present` must be `content`, and `hidden` must not exist (either may be
    empty): a kernel that mounts a mask without understanding it is found out.
    """

    mechanism: str
    folder: str
    tops: tuple[str, ...]
    present: str = ""
    content: bytes = b""
    hidden: str = ""
    etc_files: Mapping[str, tuple[bytes, bool]] = field(default_factory=dict)
    etc_links: Mapping[str, str] = field(default_factory=dict)


def make_ready(view: View, places: Places, folder: str, mechanism: str, mount_points: Sequence[str] = ()) -> Shown:
    """The mask of a view, made if it is not there. Raises NeverHere where the mechanism cannot be had, OSError where
    something else is in the way.

    `mount_points` are directories of the host below one of its tops at which roots will lie: they are there, empty.
    """
    assert mechanism in MECHANISMS
    os.makedirs(folder, mode=0o755, exist_ok=True)
    view = _with_directories(view, mount_points)
    name = f"{view.digest[:24]}-{mechanism}-{_state(view, places, mechanism, mount_points)[:16]}"
    path = os.path.join(folder, name)
    if os.path.isdir(path):
        os.utime(path)
    else:
        _publish(view, places, path, mechanism)
        _tidy(folder)
    present = next((file for file in view.files if file.startswith("/usr/bin/")), "")
    return Shown(
        mechanism=mechanism,
        folder=path,
        tops=places.tops,
        present=present,
        content=_beginning(places.host(present)) if present else b"",
        hidden=_hidden(view, places),
        etc_files=view.etc_files,
        etc_links=view.etc_links,
    )


def _with_directories(view: View, more: Sequence[str]) -> View:
    found = set(view.directories)
    for path in more:
        parts = path.split("/")
        found.update("/".join(parts[:depth]) for depth in range(3, len(parts) + 1))
    return replace(view, directories=tuple(sorted(found)))


def _state(view: View, places: Places, mechanism: str, mount_points: Sequence[str]) -> str:
    """What a mask depends on besides the view: the files' sizes and dates, and what must be hidden."""
    from ..core.digest import object_digest

    state = view.stamps if mechanism != "whiteouts" else stamps_of(places.root, (*view.directories, *places.tops))
    return object_digest(repr((state, *sorted(mount_points))).encode("utf-8", "surrogateescape"))


def _beginning(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(WITNESS_BYTES)


def _hidden(view: View, places: Places) -> str:
    """Something that the host has and the view has not, if there is anything."""
    shown = {*view.files, *view.links, *view.directories}
    for folder in ("/usr/bin", "/usr/include", "/usr/lib"):
        with suppress(OSError):
            for name in sorted(os.listdir(places.host(folder))):
                if f"{folder}/{name}" not in shown:
                    return f"{folder}/{name}"
    return ""


def _publish(view: View, places: Places, path: str, mechanism: str) -> None:
    mine = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    os.mkdir(mine, 0o755)
    try:
        for number, top in enumerate(places.tops):
            _make_layer(view, places, f"{mine}/{number}", top, mechanism)
        os.chmod(mine, 0o755)
        try:
            os.rename(mine, path)
        except OSError:
            if not os.path.isdir(path):  # Another process made the same one meanwhile: it is as good.
                raise
    finally:
        import shutil

        shutil.rmtree(mine, ignore_errors=True)


def _make_layer(view: View, places: Places, layer: str, top: str, mechanism: str) -> None:
    below = f"{top}/"
    directories = [path for path in view.directories if path.startswith(below)]
    os.mkdir(layer, 0o755)
    for path in directories:
        os.mkdir(layer + path[len(top) :], 0o755)
    for path, target in view.links.items():
        if path.startswith(below):
            place = layer + path[len(top) :]
            os.symlink(target, place)
            os.utime(place, ns=(_MTIME_NS, _MTIME_NS), follow_symlinks=False)
    if mechanism == "whiteouts":
        _white_out(view, places, layer, top, directories)
    else:
        make = _redirect if mechanism == "redirects" else _copy
        for path in view.files:
            if path.startswith(below):
                make(places.host(path), layer + path[len(top) :], path[len(top) :])
    for path in sorted(directories, reverse=True):
        _date_directory(places.host(path), layer + path[len(top) :])
    _date_directory(places.host(top), layer)


def _date_directory(host: str, place: str) -> None:
    """When a package was unpacked is this machine's business: all directories bear one date."""
    mode = stat.S_IMODE(os.stat(host).st_mode) if os.path.isdir(host) else 0o755  # A root's place may be nowhere yet.
    os.chmod(place, mode & 0o755 | 0o700)
    os.utime(place, ns=(_MTIME_NS, _MTIME_NS))


def _redirect(host: str, place: str, inside: str) -> None:
    seen = os.stat(host)
    descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with _refused_for_good(errno.ENOTSUP, place):
            os.setxattr(descriptor, _METACOPY, b"")
            os.setxattr(descriptor, _REDIRECT, os.fsencode(inside))
        os.truncate(descriptor, seen.st_size)
        os.fchmod(descriptor, stat.S_IMODE(seen.st_mode) & 0o755 | 0o400)
        os.utime(descriptor, ns=(seen.st_mtime_ns, seen.st_mtime_ns))
    finally:
        os.close(descriptor)


def _copy(host: str, place: str, _: str) -> None:
    seen = os.stat(host)
    if not seen.st_mode & 0o004:
        return  # What nobody but root may read, a step may not either.
    import shutil

    shutil.copyfile(host, place)
    os.chmod(place, stat.S_IMODE(seen.st_mode) & 0o755)
    os.utime(place, ns=(seen.st_mtime_ns, seen.st_mtime_ns))


def _white_out(view: View, places: Places, layer: str, top: str, directories: list[str]) -> None:
    shown = {*view.files, *view.links, *view.directories}
    first = ""
    for folder in (top, *directories):
        for name in os.listdir(places.host(folder)):
            if f"{folder}/{name}" in shown:
                continue
            place = f"{layer}{folder[len(top) :]}/{name}"
            if first:
                with suppress(OSError):  # As many links to one as the file system allows.
                    os.link(first, place)
                    continue
            with _refused_for_good(errno.EPERM, place):
                os.mknod(place, stat.S_IFCHR | 0o600, 0)
            first = place


@contextmanager
def _refused_for_good(number: int, place: str) -> Iterator[None]:
    """A full disk or a directory that nobody may write to is mended one day. This error says that it never works."""
    try:
        yield
    except OSError as error:
        if error.errno == number:
            raise NeverHere(number, os.strerror(number), place) from error
        raise


def _tidy(folder: str) -> None:
    """What nobody used for a week goes, if there are many."""
    now = time.time()
    with suppress(OSError):
        there = sorted(os.scandir(folder), key=lambda item: -item.stat().st_mtime)
        for item in there[KEPT_MAX:]:
            if now - item.stat().st_mtime > UNUSED_S_MAX:
                import shutil

                shutil.rmtree(item.path, ignore_errors=True)
