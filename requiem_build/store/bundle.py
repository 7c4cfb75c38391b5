"""One file that holds a run and all that proves it: a plain tar, byte for byte the same for the same content.

    bundle.json              what follows, in order: each name with its size and digest
    seal.json                the digest of bundle.json, and perhaps signatures of it
    objects/<digest> ...     records/<n>.json ...    runs/<run id>
    end                      the digest of every byte before it

`tar -tvf` and any other tool can read it. It is read here without trusting a byte: every header must be exactly
the one that the content list demands next, so that there are no links, no other paths, no second members, no
padding and no tail. It knows names, sizes and digests, not what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..core import canonical
from ..core.digest import HASH, Digest, Hasher, is_digest, object_digest
from ..core.errors import IntegrityError, RequestError
from ..core.fields import dataclass
from ..core.seal import PACK_TYPE, Envelope, parse_envelope

SCHEMA = "requiem.bundle/1"
SEAL_SCHEMA = "requiem.bundle-seal/1"
CONTENTS, SEAL, END = "bundle.json", "seal.json", "end"

MEMBERS_MAX = 1_000_000
SMALL_MAX = 64 * 1024 * 1024
SIZE_MAX = 2**53 - 1
_BLOCK = 512
_PIECE = 1 << 20
_NAME = re.compile(r"objects/[0-9a-f]{64}|records/[0-9]{1,7}\.json|runs/[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


class Damaged(IntegrityError):
    """The file is not, byte for byte, a bundle that was written whole."""

    def __init__(self, why: str, at: str = "") -> None:
        super().__init__(f"the bundle is damaged: {why}", facts=[("at", at)] if at else [])


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a bundle: its name in the tar, the `cas:` digest of its bytes and their number."""

    name: str
    digest: Digest
    size: int


@dataclass(frozen=True)
class Contents:
    """`manifest` maps each of the project's own manifest files to its digest, as the run's journal does."""

    run: str
    manifest: dict[str, str | None]
    members: tuple[Member, ...]

    @property
    def encoded(self) -> bytes:
        return canonical.encode_plain(
            {
                "hash": HASH,
                "manifest": self.manifest,
                "members": [[member.name, member.digest, member.size] for member in self.members],
                "run": self.run,
                "schema": SCHEMA,
            }
        )

    def envelope(self) -> Envelope:
        """What whoever packs it may sign: the list of digests, and with it every byte."""
        return Envelope(PACK_TYPE, self.encoded)


def header(name: str, size: int) -> bytes:
    """The one header (POSIX ustar) that a member may have: mode 0444, owner 0, no time; sizes beyond 8 GiB as GNU's."""
    length = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    fields = [name.encode("ascii").ljust(100, b"\0"), b"0000444\0", b"0000000\0", b"0000000\0", length]
    head = b"".join([*fields, b"00000000000\0"])
    tail = b"".join([b"0", bytes(100), b"ustar\x0000", bytes(64), b"0000000\0", b"0000000\0", bytes(167)])
    assert len(name) <= 100
    checksum = sum(head) + sum(tail) + 8 * 0x20
    return head + b"%06o\0 " % checksum + tail


class Writer:
    """Writes a bundle front to back. `members` must be given in the order of the contents, and be what they say."""

    def __init__(self, file: BinaryIO, contents: Contents, signed: Envelope | None) -> None:
        self._file = file
        self._whole = Hasher()
        self._left = list(reversed(contents.members))
        self.add_small(CONTENTS, contents.encoded)
        self.add_small(SEAL, _seal(contents.encoded, signed))

    def _put(self, content: bytes) -> None:
        self._whole.update(content)
        self._file.write(content)

    def add_small(self, name: str, content: bytes) -> None:
        self._put(header(name, len(content)))
        self._put(content)
        self._put(bytes(-len(content) % _BLOCK))

    def add(self, member: Member, pieces: Iterator[bytes]) -> None:
        """Raises IntegrityError if the pieces are not the member that was announced."""
        assert self._left.pop() == member
        own = Hasher()
        self._put(header(member.name, member.size))
        for piece in pieces:
            own.update(piece)
            self._put(piece)
        if own.size != member.size or own.digest() != member.digest:
            raise IntegrityError(f"{member.name} changed while it was packed")
        self._put(bytes(-member.size % _BLOCK))

    def finish(self) -> None:
        assert not self._left
        digest = self._whole.digest().encode()
        self._file.write(header(END, len(digest)) + digest + bytes(-len(digest) % _BLOCK) + bytes(2 * _BLOCK))


def _seal(content: bytes, signed: Envelope | None) -> bytes:
    signatures = [] if signed is None else signed.as_json()["signatures"]
    return canonical.encode_plain({"digest": object_digest(content), "schema": SEAL_SCHEMA, "signatures": signatures})


class Reader:
    """Reads a bundle front to back, from a file or a pipe. Everything that it gives has been verified.

    Raises Damaged, from the constructor on, for whatever is not exactly a bundle.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._whole = Hasher()
        content = self._small(CONTENTS)
        self.contents = _parse_contents(content)
        self.envelope = _parse_seal(self._small(SEAL), content)

    def members(self) -> Iterator[tuple[Member, Iterator[bytes]]]:
        """Every member with its bytes in pieces, which must be taken before the next. A member is verified when its
        pieces end, the whole bundle when this does."""
        for member in self.contents.members:
            self._expect_header(member.name, member.size)
            yield member, self._verified(member)
            self._expect(bytes(-member.size % _BLOCK), member.name)
        before = self._whole.digest().encode()
        self._expect_header(END, len(before))
        self._expect(before, END)
        self._expect(bytes(-len(before) % _BLOCK) + bytes(2 * _BLOCK), END)
        if self._file.read(1):
            raise Damaged("something follows its end")

    def _verified(self, member: Member) -> Iterator[bytes]:
        own, left = Hasher(), member.size
        while left:
            piece = self._read(min(left, _PIECE), member.name)
            own.update(piece)
            left -= len(piece)
            yield piece
        if own.digest() != member.digest:
            raise Damaged("its bytes are not those of its digest", member.name)

    def _small(self, name: str) -> bytes:
        head = self._read(_BLOCK, name)
        try:
            size = int(head[124:135], 8)
        except ValueError:
            size = -1
        if not 0 <= size <= SMALL_MAX or head != header(name, size):
            raise Damaged("this is no bundle, or one of another version", name)
        content = self._read(size, name)
        self._expect(bytes(-size % _BLOCK), name)
        return content

    def _expect_header(self, name: str, size: int) -> None:
        if self._read(_BLOCK, name) != header(name, size):
            raise Damaged("another member stands where this one belongs", name)

    def _expect(self, wanted: bytes, at: str) -> None:
        if wanted and self._read(len(wanted), at) != wanted:
            raise Damaged("bytes that should be fixed are not", at)

    def _read(self, size: int, at: str) -> bytes:
        """Exactly so many bytes, never more than are there, whatever a header said."""
        pieces: list[bytes] = []
        left = size
        while left:
            piece = self._file.read(min(left, _PIECE))
            if not piece:
                raise Damaged("it ends too early", at)
            pieces.append(piece)
            left -= len(piece)
        content = b"".join(pieces)
        self._whole.update(content)
        return content


def _parse_contents(content: bytes) -> Contents:
    try:
        value = canonical.parse(content)
        fits = isinstance(value, dict) and value.keys() == {"hash", "manifest", "members", "run", "schema"}
        if not fits or value["schema"] != SCHEMA:
            raise RequestError(f"its list is not {SCHEMA}")
        if value["hash"] != HASH:
            raise RequestError(f"its names are made by {str(value['hash'])[:40]}, not {HASH}")
        manifest, rows = value["manifest"], value["members"]
        if not isinstance(value["run"], str) or not isinstance(manifest, dict) or not isinstance(rows, list):
            raise RequestError("a field of its list is not of its type")
        if not all(each is None or is_digest(each) for each in manifest.values()):
            raise RequestError("its manifest does not map files to digests")
        if len(rows) > MEMBERS_MAX:
            raise RequestError(f"it has more than {MEMBERS_MAX} members")
        contents = Contents(value["run"], manifest, tuple(_member(row) for row in rows))
        if not _is_ordered(contents):
            raise RequestError("its members are not objects, records and the run, in this order and each once")
        if contents.encoded != content:
            raise RequestError("its list is not canonical")
    except RequestError as error:
        raise Damaged(error.what, CONTENTS) from error
    return contents


def _is_ordered(contents: Contents) -> bool:
    names = [member.name for member in contents.members]
    objects = [name for name in names if name.startswith("objects/")]
    records = [f"records/{number}.json" for number in range(len(names) - len(objects) - 1)]
    return names == [*sorted(set(objects)), *records, f"runs/{contents.run}"]


def _member(row: Any) -> Member:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and _NAME.fullmatch(row[0])):
        raise RequestError("a member's name is none that a bundle has")
    name, digest, size = row
    if not is_digest(digest) or type(size) is not int or not 0 <= size <= SIZE_MAX:
        raise RequestError("a member is not [name, digest, size]")
    if name.startswith("objects/") and name != f"objects/{digest}":
        raise RequestError("an object does not bear its own name")
    return Member(name, Digest(digest), size)


def _parse_seal(content: bytes, contents: bytes) -> Envelope:
    """The envelope over the list, with whatever signatures there are. What they are worth is for others to say."""
    try:
        value = canonical.parse(content)
        if not isinstance(value, dict) or value.keys() != {"digest", "schema", "signatures"}:
            raise RequestError("its seal does not hold exactly digest, schema and signatures")
        if value["schema"] != SEAL_SCHEMA or value["digest"] != object_digest(contents):
            raise RequestError("its seal is of another list")
        empty = Envelope(PACK_TYPE, contents).as_json()
        envelope = parse_envelope({**empty, "signatures": value["signatures"]})
        if canonical.encode_plain(value) != content:
            raise RequestError("its seal is not canonical")
    except RequestError as error:
        raise Damaged(error.what, SEAL) from error
    return envelope
