"""The options that every command takes, wherever they stand on the line."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..core.errors import UsageError
from ..core.fields import dataclass, replace
from ..core.primitive import FLAG

COLORS = ("auto", "always", "never")
_FLAGS = {
    "-v": "verbose",
    "--verbose": "verbose",
    "-q": "quiet",
    "--quiet": "quiet",
    "--json": "json",
    FLAG: "fallback",
}
_VALUES = {"-C": "directory", "--directory": "directory", "-f": "file", "--file": "file", "--color": "color"}
HELP = """\
  -C, --directory DIR    act as if started in DIR
  -f, --file FILE        the manifest (default: the first requiem.toml walking up)
  -v, --verbose          more: fresh steps, reasons, undeclared outputs
  -q, --quiet            only failures and warnings
      --color WHEN       auto, always or never
      --json             one JSON document on stdout, of every command that answers
      --allow-hash-fallback
                         without BLAKE3: names by SHA-256, in a store of their own
      --version          print the version
"""


@dataclass(frozen=True, slots=True)
class Globals:
    start: str
    environment: Mapping[str, str]
    file: str | None = None
    verbose: bool = False
    quiet: bool = False
    json: bool = False
    color: str = "auto"


def split(arguments: list[str], environment: Mapping[str, str]) -> tuple[Globals, list[str]]:
    """Takes the global options out of a command line, up to `--`. Raises UsageError."""
    found: dict[str, str | bool] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--":
            rest.append(word)
            rest.extend(words)
        elif word in _FLAGS:
            found[_FLAGS[word]] = True
        elif name in _VALUES and (equals == "" or name.startswith("--")):
            given = value if equals else next(words, None)
            if given is None:
                raise UsageError(f"option {word} needs a value")
            found[_VALUES[name]] = given
        else:
            rest.append(word)
    color = str(found.get("color", "auto"))
    if color not in COLORS:
        raise UsageError(f"--color is {color!r}, which is none of {', '.join(COLORS)}")
    made = Globals(
        start=_start(found.get("directory")),
        environment=environment,
        verbose=bool(found.get("verbose")),
        quiet=bool(found.get("quiet")),
        json=bool(found.get("json")),
        color=color,
    )
    file = found.get("file")
    return (made if file is None else replace(made, file=str(file))), rest


def _start(directory: str | bool | None) -> str:
    try:
        start = os.path.realpath(str(directory or "."))
        os.stat(start)
    except OSError as error:
        what = f'no directory "{directory}"' if directory else "the current directory is gone"
        raise UsageError(what, facts=[("cause", error.strerror or str(error))]) from error
    if not os.path.isdir(start):
        raise UsageError(f'"{directory}" is not a directory')
    return start
