"""What an object's metadata says, and stored bytes back to the plain ones. The only user of zstandard.

python-zstandard fails open: a truncated frame is short data without an error, a limit is ignored where the
header names a size, trailing bytes are dropped. So every frame is walked first, and every read is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ..core import canonical
from ..core.digest import Digest, Hasher, is_digest
from ..core.errors import RequestError
from ..core.fields import dataclass

IDENTITY = "identity"
ZSTD = "zstd"
META_MAX = 4096
WINDOW_MAX = 8 << 20  # What zstd's own levels up to 19 need; a hostile frame may ask for 2 GiB.
_LEVEL = 3
_LEVEL_OF_LARGE = 1
"""A journal of 10,000 steps: three times as fast as level 3, and smaller."""
_LARGE = 1 << 20
_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_MAX = 128 << 10
_PIECE = 1 << 20


class Malformed(Exception):
    """Metadata or stored bytes that do not mean anything."""


@dataclass(frozen=True, slots=True)
class Meta:
    """`<digest>.meta`. Sizes in bytes; `stored_blob_hash` is the `cas:` digest of the stored bytes."""

    digest: Digest
    encoding: str
    original_size: int
    stored_size: int
    stored_blob_hash: Digest

    @property
    def encoded(self) -> bytes:
        return (
            f'{{"digest":"{self.digest}","encoding":"{self.encoding}","original_size":{self.original_size},'
            f'"stored_blob_hash":"{self.stored_blob_hash}","stored_size":{self.stored_size}}}'
        ).encode("ascii")

    def fits(self, size: int) -> bool:
        """Whether a blob of that size may be what this describes.

        While an object changes between encodings its blob may be the plain one beside zstd's metadata (ADR 3).
        """
        return size in (self.stored_size, self.original_size)


def plain_meta(digest: Digest, size: int) -> bytes:
    """The metadata of an object that is stored as it is: everything follows from its name and size."""
    return (
        f'{{"digest":"{digest}","encoding":"identity","original_size":{size},'
        f'"stored_blob_hash":"{digest}","stored_size":{size}}}'
    ).encode("ascii")


def parse_meta(content: bytes, digest: Digest, blob_size: int) -> Meta:
    """The metadata of `digest`; whether it fits the blob is another question. Raises Malformed with the reason."""
    if content == plain_meta(digest, blob_size):  # Nearly always, and 20 times as fast as parsing.
        return Meta(digest, IDENTITY, blob_size, blob_size, digest)
    meta = _parse(content)
    if meta.digest != digest:
        raise Malformed("its metadata names another digest")
    return meta


def _parse(content: bytes) -> Meta:
    try:
        value = canonical.parse(content)
    except RequestError as error:
        raise Malformed(f"its metadata is not JSON: {error.what}") from error
    if not isinstance(value, dict) or value.keys() != set(Meta.__match_args__):
        raise Malformed("its metadata has other fields than it must")
    if value["encoding"] not in (IDENTITY, ZSTD):
        raise Malformed(f"its encoding is unknown: {str(value['encoding'])[:20]!r}")
    sizes = (value["original_size"], value["stored_size"])
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise Malformed("its metadata's sizes are not whole numbers")
    if not is_digest(value["digest"]) or not is_digest(value["stored_blob_hash"]):
        raise Malformed("its metadata's digests are not digests")
    meta = Meta(**value)
    if meta.encoded != content:
        raise Malformed("its metadata is not canonical")
    plain = sizes[0] == sizes[1] and meta.stored_blob_hash == meta.digest
    smaller = sizes[1] < sizes[0]  # Only what saves space is compressed, so a blob's size tells which of the two it is.
    if not (plain if meta.encoding == IDENTITY else smaller):
        raise Malformed("its metadata contradicts itself")
    return meta


def compress(content: bytes) -> bytes | None:
    """One zstd frame with its size and checksum; None where that saves nothing."""
    import zstandard

    level = _LEVEL if len(content) < _LARGE else _LEVEL_OF_LARGE
    frame = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(content)
    return frame if len(frame) < len(content) else None


class Packed:
    """Bytes that come piece by piece: their name, and one zstd frame of all of them that has a checksum and no size."""

    def __init__(self) -> None:
        import zstandard

        self._hasher = Hasher()
        compressor = zstandard.ZstdCompressor(level=_LEVEL_OF_LARGE, write_checksum=True)
        self._compressor: Any = compressor.compressobj()
        self._frame: list[bytes] = []

    def add(self, piece: bytes | memoryview) -> None:
        self._hasher.update(piece)
        self._frame.append(self._compressor.compress(piece))

    def end(self) -> tuple[Digest, int, bytes]:
        """Digest and size of the plain bytes, and the frame. Nothing can be added any more."""
        self._frame.append(self._compressor.flush())
        return self._hasher.digest(), self._hasher.size, b"".join(self._frame)


def plain_pieces(descriptor: int, size: int, meta: Meta) -> Iterator[bytes]:
    """The plain pieces of a stored blob of `size` bytes, at most one byte more than there should be.

    The blob's size tells how it is stored: only what is smaller than the original is a frame. Raises
    Malformed; the caller still compares the plain bytes with the object's name.
    """
    if size >= meta.original_size:
        yield from _as_it_lies(descriptor, meta.original_size + 1)
        return
    mixed = meta.encoding == IDENTITY  # A writer of the plain bytes left its metadata beside a frame (ADR 3).
    try:
        if mixed or size == meta.stored_size:
            yield from _decompress(descriptor, size, meta)
            return
    except Malformed:
        if not mixed:
            raise
    raise Malformed(f"{size} bytes where its metadata says {meta.stored_size}")


def _as_it_lies(descriptor: int, left: int) -> Iterator[bytes]:
    while left > 0 and (piece := os.read(descriptor, min(_PIECE, left))):
        left -= len(piece)
        yield piece


def _decompress(descriptor: int, size: int, meta: Meta) -> Iterator[bytes]:
    """One whole frame that fills the blob, at most `original_size` + 1 bytes of it."""
    import zstandard

    _walk(descriptor, size, meta.original_size)
    source = _Hashed(descriptor, size)
    decompressor: Any = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
    reader = decompressor.stream_reader(source, read_size=_PIECE // 8)
    left = meta.original_size + 1
    try:
        while piece := reader.read(min(_PIECE, left)):
            left -= len(piece)
            yield piece
            if left == 0:
                raise Malformed("it decompresses to more than its metadata says")
    except (zstandard.ZstdError, MemoryError) as error:
        raise Malformed(f"its zstd frame is damaged: {error}") from error
    if meta.encoding == ZSTD and source.digest() != meta.stored_blob_hash:
        raise Malformed("its stored bytes are not what its metadata says")


class _Hashed:
    """A blob's bytes for the decompressor, hashed on the way."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._left = size
        self._hasher = Hasher()

    def read(self, size: int) -> bytes:
        piece = os.read(self._descriptor, min(size, self._left))
        self._left -= len(piece)
        self._hasher.update(piece)
        return piece

    def digest(self) -> Digest:
        while self._left > 0 and self.read(_PIECE):
            pass
        return self._hasher.digest()


def _walk(descriptor: int, size: int, original_size: int) -> None:
    """Steps over the blocks of the frame (RFC 8878, 3.1.1): it must be whole, alone, honest and affordable."""
    import zstandard

    head = os.pread(descriptor, 18, 0)
    if head[:4] != _MAGIC:
        raise Malformed("it does not begin with a zstd frame")
    try:
        frame: Any = zstandard.get_frame_parameters(head)
        at = zstandard.frame_header_size(head)
    except zstandard.ZstdError as error:
        raise Malformed(f"its zstd header is damaged: {error}") from error
    if frame.content_size not in (original_size, zstandard.CONTENTSIZE_UNKNOWN):
        raise Malformed("its zstd header claims another size")
    if frame.window_size > WINDOW_MAX or frame.dict_id:
        raise Malformed("its zstd frame needs a larger window or a dictionary")
    for _ in range(original_size // 256 + 1024):  # No writer makes blocks so small; a hostile one wastes our time.
        word = int.from_bytes(os.pread(descriptor, 3, at), "little")
        kind, length = word >> 1 & 3, word >> 3
        if kind == 3 or length > _BLOCK_MAX:
            raise Malformed("a block of its zstd frame is damaged")
        at += 3 + (1 if kind == 1 else length)  # A run-length block stores one byte.
        if at > size:
            raise Malformed("its zstd frame is cut off")
        if word & 1:
            break
    else:
        raise Malformed("its zstd frame has too many blocks")
    if at + (4 if frame.has_checksum else 0) != size:
        raise Malformed("its zstd frame is cut off or followed by something else")
