"""Views of packages, and whose programs are, written down between commands. Lost or damaged, they are made again."""

from __future__ import annotations

import marshal
import os
from contextlib import suppress

from ..core.fields import dataclass
from .packages.base import Package
from .stamped import Sealed
from .visible import View

_MAGIC = b"requiem view 2\n"
_SEAL_CHARACTERS = 64
NAMES_MAX = 5000


@dataclass(frozen=True, slots=True)
class Kept:
    """`stamps` are those of the package database, `watched_stamps` those of the view's `watched` paths."""

    view: View
    stamps: str
    watched_stamps: str


class Names:
    """What the package database says of paths and names while its stamps are these: costly to ask, and asked each time.

    `owners` is canonical path -> id of a package, or nothing; `packages` name -> ids. Whether a path exists, and where
    a link leads, is for others to look at.
    """

    def __init__(self, path: str, stamps: str, root: str) -> None:
        self._file = Sealed(path)
        self._of = [root, stamps]
        known = self._file.load()
        holds = known.get("of") == self._of
        self.owners: dict[str, str] = known["owners"] if holds else {}
        self.packages: dict[str, list[str]] = known["packages"] if holds else {}
        self.is_new = False

    def save(self) -> None:
        """Not more than a workspace's worth: who looks at very many names writes down none."""
        if len(self.owners) + len(self.packages) <= NAMES_MAX:
            self._file.save({"of": self._of, "owners": self.owners, "packages": self.packages})
        self.is_new = False


def load(path: str, stamps: str) -> Kept | None:
    """What was kept there, if it was made when the database had these stamps."""
    from ..core.digest import object_digest

    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    if not content.startswith(_MAGIC):
        return None
    seal = content[len(_MAGIC) : len(_MAGIC) + _SEAL_CHARACTERS]
    body = content[len(_MAGIC) + _SEAL_CHARACTERS :]
    if object_digest(body).encode() != seal:
        return None
    made_at, watched_stamps, packages, fields = marshal.loads(body)
    if made_at != stamps:
        return None
    with suppress(OSError):
        os.utime(path)
    return Kept(View(packages=tuple(Package(*each) for each in packages), **fields), made_at, watched_stamps)


def save(path: str, kept: Kept, *, kept_max: int) -> None:
    """Writes it beside the others, of which the oldest go."""
    from ..core.digest import object_digest

    view = kept.view
    names = [name for name in View.__match_args__ if name != "packages"]
    fields = {name: getattr(view, name) for name in names}
    packages = [(p.id, p.name, p.version, p.architecture) for p in view.packages]
    body = marshal.dumps((kept.stamps, kept.watched_stamps, packages, fields), 2)
    mine, folder = f"{path}.{os.getpid()}", os.path.dirname(path)
    with suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        with open(mine, "wb") as file:
            file.write(_MAGIC + object_digest(body).encode() + body)
        os.replace(mine, path)  # Readers see the whole or none.
        there = sorted(os.scandir(folder), key=lambda item: -item.stat().st_mtime_ns)
        for item in there[kept_max:]:
            os.unlink(item.path)
