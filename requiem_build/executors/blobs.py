"""The store's objects with the small hot ones in memory: what was just hashed is about to be shown to a step."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from ..core.digest import Digest, object_digest
from ..store.objects import Objects

EACH_MAX = 128 * 1024
ALL_MAX = 64 * 1024 * 1024


class Blobs:
    """Bytes by digest, bounded to 64 MiB in all. Safe for several threads."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._lock = threading.Lock()
        self._held: OrderedDict[Digest, bytes] = OrderedDict()
        self._size = 0
        self._stored: set[Digest] = set()

    def hold(self, digest: Digest, content: bytes) -> None:
        """Remembers bytes that were just hashed; they need not be in the store."""
        if len(content) > EACH_MAX:
            return
        with self._lock:
            if digest in self._held:
                return
            self._held[digest] = content
            self._size += len(content)
            while self._size > ALL_MAX:
                _, dropped = self._held.popitem(last=False)
                self._size -= len(dropped)

    def held(self, digest: Digest) -> bytes | None:
        with self._lock:
            return self._held.get(digest)

    def put(self, content: bytes) -> Digest:
        return self._put(content, self.objects.put)

    def put_cold(self, content: bytes) -> Digest:
        """As `put`, of what is seldom read again."""
        return self._put(content, self.objects.put_cold)

    def put_named(self, digest: Digest, content: bytes) -> None:
        """As `put_cold`, of content whose digest is known: nothing is hashed where it was put before."""
        if digest not in self._stored:
            self.put_cold(content)

    def _put(self, content: bytes, store: Callable[[bytes], Digest]) -> Digest:
        digest = object_digest(content)
        if digest in self._stored:  # Above all the empty one, which every quiet step has twice.
            return digest
        store(content)
        self._stored.add(digest)
        self.hold(digest, content)
        return digest

    def stored(self, digest: Digest) -> bool:
        """Whether the store has it; a yes is remembered for this process."""
        if digest in self._stored:
            return True
        if self.objects.has(digest):
            self._stored.add(digest)
            return True
        return False

    def note_stored(self, digest: Digest) -> None:
        self._stored.add(digest)

    def forget_all(self) -> None:
        """The store turned out not to have something: ask it again about everything."""
        self._stored.clear()

    def glance(self, digest: Digest) -> bytes:
        """As `get`, of what is not about to be asked for again."""
        found = self.held(digest)
        return self.objects.get(digest) if found is None else found

    def get(self, digest: Digest) -> bytes:
        """Verified bytes. Raises as `Objects.get`."""
        found = self.held(digest)
        if found is None:
            found = self.objects.get(digest)
            self.hold(digest, found)
        return found
