"""Disposable caches that may be lost at any time and are never believed when anyone else wrote them.

A file holds a marshalled value under a keyed BLAKE3 seal. The key is this user's own
(`$XDG_CACHE_HOME/requiem/seal`), so a cache that came with a clone, was damaged or was made by
another version reads as absent. Marshal is safe here because nothing unsealed is ever unmarshalled.
"""

import marshal
import sys

from .. import __version__

if sys.platform == "win32":
    import nt as system
else:
    import posix as system  # A no-op is answered before there is an `os`.

TYPE_CHECKING = False  # A no-op imports this module, and little else.
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

try:
    from blake3 import blake3

    def _seal(body: bytes | memoryview, key: bytes) -> bytes:
        return blake3(body, key=key).digest()
except ImportError:  # What another primitive sealed is not believed, so its digests are never mixed with these.
    from hashlib import blake2b

    def _seal(body: bytes | memoryview, key: bytes) -> bytes:
        return blake2b(body, key=key, digest_size=_SEAL_BYTES).digest()


FORMAT = 19
"""Raised whenever what any of these files holds changes its shape."""

_MAGIC = f"requiem cache {FORMAT} {__version__} {sys.hexversion:x}\n".encode()
_SEAL_BYTES = 32


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
    try:
        with open(path, "rb", opener=at_once) as file:
            content = file.read()
    except OSError:
        return None
    head = len(_MAGIC)
    body = memoryview(content)[head + _SEAL_BYTES :]  # Megabytes, often: not copied.
    if content[:head] != _MAGIC or _seal(body, key) != content[head : head + _SEAL_BYTES]:
        return None
    try:
        return marshal.loads(body)
    except (EOFError, ValueError, TypeError):
        return None


def save(path: str, key: bytes, value: "Any") -> None:
    """Saves what `marshal` can hold. A cache that cannot be written is no error."""
    import os
    from contextlib import suppress

    body = marshal.dumps(value)
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(_MAGIC + _seal(body, key))
            file.write(body)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
