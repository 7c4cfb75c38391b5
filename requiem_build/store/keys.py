"""The user's keys: his own, those he trusts, those he revoked. The only module that knows a signature's algorithm.

    <configuration>/requiem/keys/own/<name>.pem        private, PKCS#8, mode 0600
    <configuration>/requiem/keys/trusted/<name>.pem    public, SubjectPublicKeyInfo
    <configuration>/requiem/keys/revoked/<key id>      its name, for people

A key's id is the SHA-256 of its public key's DER form: `openssl pkey -pubin -outform der | sha256sum`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..core.errors import EnvironmentFault, UnknownName, UsageError
from ..core.fields import dataclass, replace
from ..core.seal import Envelope, Signature
from .files import NotAFile, entries, kind_of, read_judged

LOCAL = "local"
"""The name of the key that is made on first use."""

PEM_MAX = 16 * 1024
KEYS_MAX = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID = re.compile(r"[0-9a-f]{64}")
_PIP = "pip install 'requiem-build[sign]'"


@dataclass(frozen=True, slots=True)
class Key:
    """`public` is the raw 32 bytes. `own`: the private half is here; `secret` is it, when it was asked for."""

    name: str
    key_id: str
    public: bytes
    own: bool = False
    revoked: bool = False
    secret: Any = None

    def sign(self, envelope: Envelope) -> Envelope:
        """The envelope with this key's signature added."""
        assert self.secret is not None
        mine = Signature(self.key_id, self.secret.sign(envelope.signed_bytes))
        return replace(envelope, signatures=(*envelope.signatures, mine))


def available() -> bool:
    """Whether signatures can be made and checked here at all."""
    try:
        _ed25519()
    except EnvironmentFault:
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise EnvironmentFault("signatures need the package cryptography, which is not installed", hint=_PIP) from error
    return ed25519


class Keys:
    """One user's keys, in `<configuration>/requiem/keys`. Nothing is made before a key is."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    # -- finding ------------------------------------------------------------------------------------------

    def all(self) -> list[Key]:
        """Every key, own ones first, by name. Raises UsageError for a file that is no key or that others may write."""
        revoked = self._revoked()
        found = [*self._read_all("own", own=True), *self._read_all("trusted", own=False)]
        if len(found) > KEYS_MAX:
            raise UsageError(f"more than {KEYS_MAX} keys", facts=[("keys", self.directory)])
        return [replace(key, revoked=key.key_id in revoked) for key in found]

    def named(self, name: str) -> Key:
        """A key by its name or its whole id. Raises UnknownName."""
        for key in self.all():
            if name in (key.name, key.key_id):
                return key
        known = ", ".join(key.name for key in self.all()) or "none"
        raise UnknownName(
            f'no key "{name}"', facts=[("keys", self.directory), ("known", known)], hint="requiem keys trust NAME FILE"
        )

    def signer(self, name: str = LOCAL) -> Key:
        """An own key with its private half; `local` is made when it is first asked for.

        Raises UnknownName, UsageError if others can read it or it is revoked, EnvironmentFault without cryptography.
        """
        _ed25519()
        path = self._path("own", name)
        if name == LOCAL and not os.path.lexists(path):
            return self._make(LOCAL)
        if not os.path.lexists(path):
            raise UnknownName(
                f'no key "{name}" of your own', facts=[("looked for", path)], hint=f"requiem keys new {name}"
            )
        key = self._own(name, path)
        if key.key_id in self._revoked():
            raise UsageError(f'the key "{name}" is revoked', facts=[("key", key.key_id)], hint="requiem keys new NAME")
        return key

    def _read_all(self, folder: str, *, own: bool) -> Iterator[Key]:
        for item in entries(f"{self.directory}/{folder}"):
            name = item.name.removesuffix(".pem")
            if item.name.endswith(".pem") and _NAME.fullmatch(name):
                yield replace(self._own(name, item.path), secret=None) if own else self._trusted(name, item.path)

    def _own(self, name: str, path: str) -> Key:
        content = self._read(path, private=True)
        key = _private(content, path)
        return _key(name, key.public_key(), own=True, secret=key)

    def _trusted(self, name: str, path: str) -> Key:
        return _key(name, _public(self._read(path, private=False), path))

    def _read(self, path: str, *, private: bool) -> bytes:
        """A key's file, if only its owner could have written it, and for a private one only he can read it."""
        try:
            found = read_judged(path, PEM_MAX)
            folder = os.stat(os.path.dirname(path))
        except NotAFile as error:
            with suppress(OSError):
                raise UsageError(f'"{path}" is not a key: it is {kind_of(os.lstat(path).st_mode)}') from error
            raise UsageError(f'"{path}" is not a key') from error
        except ValueError as error:
            raise UsageError(f'"{path}" is not a key', facts=[("cause", str(error))]) from error
        except OSError as error:
            raise EnvironmentFault(f'cannot read "{path}"', facts=[("cause", error.strerror or str(error))]) from error
        if found is None:
            raise UnknownName(f'no key at "{path}"')
        content, status = found
        for what, seen in ((path, status), (os.path.dirname(path), folder)):
            mode = stat.S_IMODE(seen.st_mode)
            if seen.st_uid not in (os.geteuid(), 0) or mode & 0o022:
                raise UsageError(
                    f'"{what}" could be written by others: it is not believed',
                    facts=[("mode", f"{mode:04o}"), ("owner", str(seen.st_uid))],
                    hint=f"chmod go-w {shlex.quote(what)}",
                )
        if private and (stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid()):
            raise UsageError(
                f'the private key "{path}" can be read by others: it is not used',
                facts=[("mode", f"{stat.S_IMODE(status.st_mode):04o}"), ("owner", str(status.st_uid))],
                hint=f"chmod 600 {shlex.quote(path)}, or revoke it and make another: "
                "requiem keys revoke, requiem keys new",
            )
        return content

    def _revoked(self) -> set[str]:
        return {item.name for item in entries(f"{self.directory}/revoked") if _ID.fullmatch(item.name)}

    # -- changing -----------------------------------------------------------------------------------------

    def new(self, name: str) -> Key:
        """Makes a key of one's own. Raises UsageError if the name is taken."""
        self._check_free(name)
        return self._make(name)

    def _make(self, name: str) -> Key:
        ed25519 = _ed25519()
        from cryptography.hazmat.primitives import serialization as forms

        secret = ed25519.Ed25519PrivateKey.generate()
        pem = secret.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
        self._write("own", name, pem, 0o600)
        return self._own(name, self._path("own", name))  # Of two processes that make it at once, one key stays.

    def trust(self, name: str, pem: bytes) -> Key:
        """Takes a public key in under a name. Raises UsageError if that is taken by another key, or it is none."""
        key = _key(name, _public(pem, "the given key"))
        if key.key_id in self._revoked():
            raise UsageError(f"the key {key.key_id} is revoked", hint="a revoked key is never trusted again")
        for known in self.all():
            if known.name == name and known.key_id == key.key_id:
                return known
        self._check_free(name)
        self._write("trusted", name, public_pem(key), 0o644)
        return key

    def revoke(self, name: str) -> str:
        """Ends a key by name or id, known or not; gives its id. Nothing that it signed counts any more."""
        key_id, label = (name, "") if _ID.fullmatch(name) else (self.named(name).key_id, name)
        self._write("revoked", key_id, f"{label}\n".encode(), 0o644)
        return key_id

    def _check_free(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(f"not a name for a key: {name[:80]!r}", hint="letters, digits, . _ -, at most 64")
        if any(key.name == name for key in self.all()):
            raise UsageError(
                f'there is a key "{name}" already', facts=[("keys", self.directory)], hint="give it another name"
            )

    def _write(self, folder: str, name: str, content: bytes, mode: int) -> None:
        path = self._path(folder, name)
        temporary = f"{path}.{os.urandom(8).hex()}.new"
        try:
            for directory in (self.directory, os.path.dirname(path)):
                os.makedirs(directory, mode=0o700, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            try:
                os.fchmod(descriptor, mode)
                os.write(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            with suppress(FileExistsError):
                os.link(temporary, path)  # The first of two processes wins.
        except OSError as error:
            raise EnvironmentFault(f'cannot write "{path}"', facts=[("cause", error.strerror or str(error))]) from error
        finally:
            with suppress(OSError):
                os.unlink(temporary)

    def _path(self, folder: str, name: str) -> str:
        return f"{self.directory}/{folder}/{name}" + ("" if folder == "revoked" else ".pem")


def _key(name: str, public: Any, *, own: bool = False, secret: Any = None) -> Key:
    from cryptography.hazmat.primitives import serialization as forms

    der = public.public_bytes(forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo)
    raw = public.public_bytes(forms.Encoding.Raw, forms.PublicFormat.Raw)
    return Key(name, hashlib.sha256(der).hexdigest(), raw, own=own, secret=secret)


def _private(pem: bytes, what: str) -> Any:
    return _loaded("private", pem, what)


def _public(pem: bytes, what: str) -> Any:
    return _loaded("public", pem, what)


def _loaded(half: str, pem: bytes, what: str) -> Any:
    ed25519 = _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as forms

    try:
        key: Any = (
            forms.load_pem_private_key(pem, password=None) if half == "private" else forms.load_pem_public_key(pem)
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what} is not a {half} key in PEM", hint="requiem keys export writes one") from error
    kind = ed25519.Ed25519PrivateKey if half == "private" else ed25519.Ed25519PublicKey
    if not isinstance(key, kind):
        raise UsageError(f"{what} is not an Ed25519 key", hint="openssl genpkey -algorithm ed25519 makes one")
    return key


def public_pem(key: Key) -> bytes:
    """The public half as other tools read it."""
    from cryptography.hazmat.primitives import serialization as forms

    public = _ed25519().Ed25519PublicKey.from_public_bytes(key.public)
    return bytes(public.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))


class Verifier:
    """Whose signatures hold, among some keys. Revoked ones are known by name and never count."""

    def __init__(self, keys: list[Key]) -> None:
        ed25519 = _ed25519() if keys else None
        self.keys: Mapping[str, Key] = {key.key_id: key for key in keys}
        self._public = {key.key_id: ed25519.Ed25519PublicKey.from_public_bytes(key.public) for key in keys if ed25519}

    def signers(self, envelope: Envelope) -> frozenset[str]:
        """Ids of the distinct, unrevoked keys whose signature over the envelope holds."""
        owners = (self.owner(envelope, signature) for signature in envelope.signatures)
        return frozenset(owner for owner in owners if owner is not None and not self.keys[owner].revoked)

    def owner(self, envelope: Envelope, signature: Signature) -> str | None:
        """The id of the key that made a signature. A hint that names a key here is held to it; any other is ignored."""
        content = envelope.signed_bytes
        hinted = [signature.key_id] if signature.key_id in self._public else list(self._public)
        return next((key_id for key_id in hinted if self.holds(key_id, content, signature.signature)), None)

    def holds(self, key_id: str, content: bytes, signature: bytes) -> bool:
        """Whether one signature over exact bytes is of that key (RFC 8032)."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._public[key_id].verify(signature, content)
        except InvalidSignature:
            return False
        return True
