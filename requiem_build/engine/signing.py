"""Who signs here and whose word counts, told to a person who asks. It makes no key and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..core.errors import RequiemError
from ..core.fields import dataclass
from ..store.keys import LOCAL, Key, available
from .settings import config_path, load_settings
from .trust import Wish, keys_of, wish_of

ID_SHOWN = 16


@dataclass(frozen=True, slots=True)
class Signing:
    """`problem` is what keeps the configuration or a key from being used, or empty."""

    available: bool
    directory: str
    configuration: str
    keys: tuple[Key, ...]
    wish: Wish
    problem: str = ""

    def as_json(self) -> dict[str, object]:
        return {
            "accept": None if self.wish.accept is None else list(self.wish.accept),
            "available": self.available,
            "configuration": self.configuration,
            "directory": self.directory,
            "keys": [
                {"id": key.key_id, "kind": "own" if key.own else "trusted", "name": key.name, "revoked": key.revoked}
                for key in self.keys
            ],
            "min_level": self.wish.min_level,
            "problem": self.problem,
            "signs_with": self.wish.sign,
            "threshold": self.wish.threshold,
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and answer, for a person."""
        if not self.available:
            yield "signing", "cannot be had: pip install 'requiem-build[sign]'"
        elif self.wish.sign is None:
            yield "signing", f"off: no [trust] sign in {self.configuration}"
        else:
            yield "signing", f"on, with the key {self._named(self.wish.sign)}"
        for kind, own in (("own keys", True), ("trusted keys", False)):
            found = [self._named(key.name) for key in self.keys if key.own == own]
            none = f'none; "{LOCAL}" is made on first use, in {self.directory}/own' if own else "none"
            yield kind, ", ".join(found) or none
        if self.wish.accept is None:
            yield "hit policy", "none: any record in the store answers"
        else:
            level = "" if self.wish.min_level == "unknown" else f", at level {self.wish.min_level} at least"
            names = ", ".join(self.wish.accept) or "nobody that the configuration and requiem.local.toml both name"
            yield "hit policy", f"records signed by {self.wish.threshold} of: {names}{level}"
        if self.problem:
            yield "problem", self.problem

    def _named(self, name: str) -> str:
        key = next((key for key in self.keys if key.name == name), None)
        if key is None:
            return f"{name} (made on first use)" if name == LOCAL else f"{name} (which is not there)"
        return f"{name} ({key.key_id[:ID_SHOWN]}{', revoked' if key.revoked else ''})"


def look(environment: Mapping[str, str], root: str | None) -> Signing:
    """What is so for this user, in the workspace `root` or outside of any. Raises nothing of its own."""
    ring, can, problem = keys_of(environment), available(), ""
    wish, keys = Wish(), tuple[Key, ...]()
    try:
        wish = wish_of(load_settings(environment).trust, root, environment)
        keys = tuple(ring.all()) if can else ()
    except RequiemError as error:
        problem = error.what
    return Signing(can, ring.directory, config_path(environment), keys, wish, problem)
