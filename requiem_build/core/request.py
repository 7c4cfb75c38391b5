"""All that may influence a step's result, and nothing else: its digest is the key of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from . import canonical
from .digest import Digest, Domain, digest, is_digest
from .entries import is_link_target
from .errors import RequestError
from .fields import dataclass, field, replace
from .policy import CLOCKS, LEVELS, NETWORKS, RANDOMS, SYSTEMS, WORLD, Policy

SCHEMA = "requiem.request/1"
SYSTEM_ROOT = "/usr"
"""The root that stands for the system view: its digest is that of all that a step sees of the host's system."""
ABSENT = "absent"
LISTING = "//discover"
"""The key in `discovered` that holds the digest of the list of all paths that `discover` matches."""
SHADOWS = "//shadows"
"""The key that holds the digest of the list of those among them that end in the name of a system header.

`//shadows:/usr/include/x` counts further directories of the system, joined by colons.
"""


def is_read(path: str) -> bool:
    """Whether a key of `discovered` is the path of something that may be read, and no mark of a list."""
    return not path.startswith("//")


def by_bytes(texts: Sequence[str] | set[str]) -> list[str]:
    """Sorted by UTF-8 bytes, without repeats."""
    return sorted(set(texts))  # UTF-8 keeps the order of code points.


@dataclass(frozen=True)
class Request:
    """`inputs` holds the JSON form of each entry; every other field is as the schema spells it."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, object]]
    outputs: tuple[str, ...]
    policy: Policy
    platform: Mapping[str, str]
    cwd: str = "."
    secrets: tuple[str, ...] = ()
    stdin: Digest | None = None
    roots: Mapping[str, Digest] = field(default_factory=dict)
    tools: Mapping[str, Digest] = field(default_factory=dict)
    world: int = WORLD
    discover: tuple[str, ...] = ()
    depfile: str | None = None
    salt: str = ""
    discovered: Mapping[str, str] | None = None

    def as_json(self) -> dict[str, object]:
        return {
            "command": list(self.command),
            "cwd": self.cwd,
            "depfile": self.depfile,
            "discover": by_bytes(self.discover),
            "discovered": None if self.discovered is None else dict(self.discovered),
            "env": dict(self.env),
            "inputs": dict(self.inputs),
            "outputs": by_bytes(self.outputs),
            "platform": dict(self.platform),
            "policy": self.policy.as_json(),
            "roots": dict(self.roots),
            "salt": self.salt,
            "schema": SCHEMA,
            "secrets": by_bytes(self.secrets),
            "stdin": self.stdin,
            "tools": dict(self.tools),
            "world": self.world,
        }

    @cached_property
    def encoded(self) -> bytes:
        return canonical.encode_plain(self.as_json())

    @cached_property
    def digest(self) -> Digest:
        return digest(Domain.REQUEST, self.encoded)

    @property
    def system_document(self) -> Digest | None:
        """The list of packages that it saw, an object of the store; None where it saw the host's whole system."""
        return self.roots.get(SYSTEM_ROOT) if self.policy.system == "packages" else None

    def with_discovered(self, discovered: Mapping[str, str]) -> Request:
        """The request that a record is filed under, once the read set is known."""
        return replace(self, discovered=dict(discovered))


_FIELDS = frozenset(Request.__match_args__) | {"schema"}


def parse_request(content: bytes) -> Request:
    """A request from outside, checked field by field. Raises RequestError that names the field."""
    value = canonical.parse(content)
    if not isinstance(value, dict):
        raise RequestError("a request is a JSON object")
    if value.get("schema", SCHEMA) != SCHEMA:
        raise RequestError(
            f"request schema {value['schema']!r} is not {SCHEMA!r}", hint="it may be made by a newer requiem"
        )
    _check_fields(value)
    request = Request(
        command=tuple(_strings(value, "command")),
        env=_string_map(value, "env"),
        inputs=_inputs(value["inputs"]),
        outputs=tuple(_paths(_strings(value, "outputs"), "outputs")),
        policy=_policy(value["policy"]),
        platform=_string_map(value, "platform"),
        cwd=_string(value, "cwd"),
        secrets=tuple(_strings(value, "secrets")),
        stdin=_optional_digest(value, "stdin"),
        roots=_digest_map(value, "roots"),
        tools=_digest_map(value, "tools"),
        world=_world(value["world"]),
        discover=tuple(_strings(value, "discover")),
        depfile=None if value["depfile"] is None else _string(value, "depfile"),
        salt=_string(value, "salt"),
        discovered=_discovered(value["discovered"]),
    )
    if not request.command:
        raise RequestError("request.command is empty")
    if set(request.platform) != {"os", "arch"}:
        raise RequestError("request.platform must hold exactly os and arch")
    if request.depfile is not None:
        _paths([request.depfile], "depfile")
    if not request.cwd.startswith("/") and request.cwd != ".":
        _paths([request.cwd], "cwd")
    if canonical.encode_plain(value) != request.encoded:
        raise RequestError("request has unsorted or repeated items in outputs, discover or secrets")
    return request


def _check_fields(value: dict[str, Any]) -> None:
    for name in sorted(_FIELDS - value.keys()):
        raise RequestError(f"request lacks the field {name!r}")
    for name in sorted(value.keys() - _FIELDS):
        raise RequestError(f"request has the unknown field {name!r}")


def _string(value: dict[str, Any], name: str) -> str:
    if not isinstance(value[name], str) or "\0" in value[name]:
        raise RequestError(f"request.{name} must be a string without NUL")
    return str(value[name])


def _strings(value: dict[str, Any], name: str) -> list[str]:
    items = value[name]
    if not isinstance(items, list) or not all(isinstance(item, str) and "\0" not in item for item in items):
        raise RequestError(f"request.{name} must be a list of strings without NUL")
    return items


def _string_map(value: dict[str, Any], name: str) -> dict[str, str]:
    items = value[name]
    if not isinstance(items, dict) or not all(isinstance(item, str) and "\0" not in item for item in items.values()):
        raise RequestError(f"request.{name} must map names to strings")
    for key in items:
        if not key or "=" in key or "\0" in key:
            raise RequestError(f"request.{name} has the impossible name {key!r}")
    return items


def _digest_map(value: dict[str, Any], name: str) -> dict[str, Digest]:
    items = value[name]
    if not isinstance(items, dict) or not all(is_digest(item) for item in items.values()):
        raise RequestError(f"request.{name} must map names to digests")
    return items


def _optional_digest(value: dict[str, Any], name: str) -> Digest | None:
    if value[name] is not None and not is_digest(value[name]):
        raise RequestError(f"request.{name} must be a digest or null")
    return None if value[name] is None else Digest(value[name])


def _world(value: object) -> int:
    if type(value) is not int or value != WORLD:
        raise RequestError(f"request.world {value!r} is not {WORLD}", hint="it may be made by a newer requiem")
    return value


def is_workspace_path(path: str) -> bool:
    """A relative path in its plainest spelling that stays where it begins."""
    body = path[:-1] if path.endswith("/") else path
    return (
        bool(body)
        and body[0] != "/"
        and "\0" not in body
        and all(part not in ("", ".", "..") for part in body.split("/"))
    )


def _paths(paths: list[str], name: str) -> list[str]:
    for path in paths:
        if not is_workspace_path(path):
            raise RequestError(f"request.{name} leaves the workspace or is not plain: {path!r}")
    return paths


def _inputs(value: object) -> dict[str, dict[str, object]]:
    if not isinstance(value, dict):
        raise RequestError("request.inputs must map paths to entries")
    for path, entry in value.items():
        _paths([path], "inputs")
        is_tree = isinstance(entry, dict) and entry.keys() == {"tree"} and is_digest(entry["tree"])
        is_file = (
            isinstance(entry, dict)
            and entry.keys() == {"digest", "executable"}
            and is_digest(entry["digest"])
            and isinstance(entry["executable"], bool)
        )
        is_link = isinstance(entry, dict) and entry.keys() == {"symlink"} and is_link_target(entry["symlink"])
        if not (is_tree if path.endswith("/") else is_file or is_link):
            raise RequestError(f"request.inputs[{path!r}] is not an entry of its kind")
    return value


def _discovered(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError("request.discovered must be null or map paths to digests")
    for path, found in value.items():
        if path != LISTING and path.split(":")[0] != SHADOWS:
            _paths([path], "discovered")
        if found != ABSENT and not is_digest(found):
            raise RequestError(f"request.discovered[{path!r}] must be a digest or 'absent'")
    return value


_CHOICES = {"sandbox": LEVELS, "system": SYSTEMS, "network": NETWORKS, "clock": CLOCKS, "random": RANDOMS}


def _policy(value: object) -> Policy:
    if not isinstance(value, dict) or value.keys() != set(Policy.__match_args__):
        raise RequestError(f"request.policy must hold exactly {', '.join(sorted(Policy.__match_args__))}")
    for name, choices in _CHOICES.items():
        if value[name] not in choices:
            raise RequestError(f"request.policy.{name} {value[name]!r} is none of {', '.join(choices)}")
    if type(value["max_output_bytes"]) is not int or value["max_output_bytes"] < 0:
        raise RequestError("request.policy.max_output_bytes must be a whole number of bytes")
    path = _strings(value, "path")
    return Policy(**{**value, "path": tuple(path)})
