"""Disposable caches that may be lost at any time and are never believed when anyone else wrote them.

A file holds a marshalled value under a keyed BLAKE3 seal. The key is this user's own
(`$XDG_CACHE_HOME/requiem/seal`), so a cache that came with a clone, was damaged or was made by
another version reads as absent. Marshal is safe here because nothing unsealed is ever unmarshalled.
"""

import errno
import marshal
import sys
from _struct import Struct
from _thread import allocate_lock, start_new_thread

from .. import __version__

if sys.platform == "win32":
    import nt as system
else:
    import posix as system  # A no-op is answered before there is an `os`.

TYPE_CHECKING = False  # A no-op imports this module, and little else.
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Any

try:
    from blake3 import blake3

    def _seal(body: bytes | memoryview, key: bytes) -> bytes:
        return blake3(body, key=key).digest()
except ImportError:  # What another primitive sealed is not believed, so its digests are never mixed with these.
    from hashlib import blake2b

    def _seal(body: bytes | memoryview, key: bytes) -> bytes:
        return blake2b(body, key=key, digest_size=_SEAL_BYTES).digest()


FORMAT = 22
"""Raised whenever what any of these files holds changes its shape."""

_MAGIC = f"requiem cache {FORMAT} {__version__} {sys.hexversion:x}\n".encode()
_SEAL_BYTES = 32
_LENGTH = Struct("=q")


def cache_home(environment: "Mapping[str, str]") -> str:
    """`$XDG_CACHE_HOME/requiem`, or `~/.cache/requiem`: facts of this machine that all workspaces share."""
    base = environment.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):
        base = _inside(environment.get("HOME") or _home(), ".cache")
    return _inside(base, "requiem")


def _inside(directory: str, name: str) -> str:
    return f"{directory}{name}" if directory.endswith("/") else f"{directory}/{name}"


def _home() -> str:
    import os

    return os.path.expanduser("~")


def seal_key(home: str) -> bytes:
    """This user's key, made on first use. Where none can be kept, a fresh one: nothing old is believed."""
    path = _inside(home, "seal")
    for _ in range(2):
        try:
            descriptor = system.open(path, system.O_RDONLY | system.O_NOFOLLOW | system.O_CLOEXEC)
        except OSError:
            _make_key(home, path)
            continue
        with open(descriptor, "rb") as file:
            found = system.fstat(descriptor)
            key = file.read(_SEAL_BYTES + 1)
        if len(key) == _SEAL_BYTES and found.st_uid == system.geteuid() and not found.st_mode & 0o077:
            return key
        try:
            system.unlink(path)
        except OSError:
            break
    return system.urandom(_SEAL_BYTES)


def _make_key(home: str, path: str) -> None:
    import os
    from contextlib import suppress

    temporary = f"{path}.{os.getpid()}"
    with suppress(OSError):
        os.makedirs(home, mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(_SEAL_BYTES))
        with suppress(FileExistsError):
            os.link(temporary, path)  # The first of two processes wins, and both use its key.
        os.unlink(temporary)


def at_once(path: str, flags: int) -> int:
    """An opener that waits for nobody: a named pipe reads as an empty file."""
    return system.open(path, flags | system.O_NONBLOCK)


def load(path: str, key: bytes) -> "Any":
    """The value saved at a path; None if there is none that can be believed."""
    body = _believed(path, key)
    return None if body is None else _value(body)


def _value(body: memoryview) -> "Any":
    try:
        return marshal.loads(body)
    except (EOFError, ValueError, TypeError):
        return None


_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class _Early:
    """A file that is being read, by a thread that holds `ready` until it knows."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ready = allocate_lock()
        self.ready.acquire()
        self.found: tuple[tuple[int, ...], memoryview | None] | None = None


_early: dict[str, _Early] = {}


def read_early(paths: "Iterable[str]", key: bytes) -> None:
    """Begins to read and to check what will be loaded, while something else is done."""
    files = [_Early(path) for path in paths]

    def read() -> None:
        for file in files:
            try:
                file.found = _read(file.path, key)
            except OSError:
                continue  # Who loads it will see.
            finally:
                file.ready.release()

    start_new_thread(read, ())
    _early.update((file.path, file) for file in files)


def _believed(path: str, key: bytes) -> memoryview | None:
    early = _early.pop(path, None)
    if early is not None:
        early.ready.acquire()
    try:
        if early is not None and early.found is not None and early.found[0] == _which(system.lstat(path)):
            return early.found[1]
        return _read(path, key)[1]
    except OSError as error:
        if error.errno in _NO_MORE:
            raise  # It may be there: what it remembers must not be taken for forgotten.
        return None


def _which(found: "os.stat_result") -> tuple[int, ...]:
    """Another file, or one that was changed, has another: ours are only ever replaced."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(path: str, key: bytes) -> tuple[tuple[int, ...], memoryview | None]:
    with open(path, "rb", opener=at_once) as file:
        which = _which(system.fstat(file.fileno()))
        content = file.read()
    head = len(_MAGIC)
    body = memoryview(content)[head + _SEAL_BYTES :]  # Megabytes, often: not copied.
    believed = content[:head] == _MAGIC and _seal(body, key) == content[head : head + _SEAL_BYTES]
    return which, body if believed else None


def load_long(path: str, key: bytes) -> "tuple[Any, memoryview] | None":
    """What `save_long` saved: a value, and bytes that are not copied once more."""
    body = _believed(path, key)
    if body is None or len(body) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(body[-_LENGTH.size :])
    value = _value(body)
    return None if value is None else (value, body[len(body) - _LENGTH.size - length : -_LENGTH.size])


def save(path: str, key: bytes, value: "Any") -> None:
    """Saves what `marshal` can hold. A cache that cannot be written is no error."""
    _save(path, key, marshal.dumps(value))


def save_long(path: str, key: bytes, value: "Any", tail: bytes) -> None:
    """The same with many bytes beside it."""
    _save(path, key, b"".join((marshal.dumps(value), tail, _LENGTH.pack(len(tail)))))


def _save(path: str, key: bytes, body: bytes) -> None:
    import os
    from contextlib import suppress

    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(_MAGIC + _seal(body, key))
            file.write(body)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
