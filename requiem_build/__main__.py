"""The door. A plain `build` with nothing to do is answered here, before anything slow is imported."""

from __future__ import annotations

import _signal as signal
import os
import sys

TYPE_CHECKING = False  # The module of that name costs a no-op a tenth of its time.
if TYPE_CHECKING:
    from .core.errors import EnvironmentFault

JOBS_MAX = 4096
QUIET = ("-q", "--quiet")
DIRECTORY = ("-C", "--directory")
JOBS = ("-j", "--jobs")
"""All that a plain build may say besides its targets; a test compares them with the command line's own."""


def main() -> None:
    import gc

    # Nothing has begun: Ctrl-C just ends us, and who reads JSON is told. `run` takes it over.
    signal.signal(signal.SIGINT, _tell_and_end if "--json" in sys.argv else signal.SIG_DFL)
    gc.disable()  # A short life: what is made is needed to the end. The command line turns it on again.
    _open_what_is_closed()
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from . import __version__

        try:
            os.write(1, f"requiem {__version__}\n".encode())
        except OSError:
            os._exit(4)
        return
    if _nothing_to_do(arguments):
        os._exit(0)
    gc.enable()
    code = _run(arguments)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # Nobody hears us, but the exit code is still ours to give.
        os._exit(code)
    sys.exit(code)


INTERRUPTED = b"""\
{"error": {"code": 130, "facts": {}, "hint": null, "what": "interrupted"}, "ok": false, "schema": "requiem.error/1"}
"""


def _tell_and_end(*_: object) -> None:
    try:
        os.write(1, INTERRUPTED)
    finally:
        os._exit(130)


def _run(arguments: list[str]) -> int:
    from .core.errors import EnvironmentFault
    from .core.primitive import FLAG, allow_fallback

    if FLAG in arguments[: arguments.index("--") if "--" in arguments else None]:
        allow_fallback()  # Before anything that hashes is imported.
    try:
        from .cli.app import run
    except EnvironmentFault as fault:  # The hash primitive: without it there is no command line to say so.
        return _cannot_begin(fault, as_json="--json" in arguments)
    return run(arguments, plain=parse_plain(arguments) is not None)


def _cannot_begin(fault: EnvironmentFault, *, as_json: bool) -> int:
    if as_json:
        import json

        print(json.dumps({"error": fault.as_json(), "ok": False, "schema": "requiem.error/1"}, sort_keys=True))
    lines = [f"error: {fault.what}", *(f"  {name}: {value}" for name, value in fault.facts), f"  hint: {fault.hint}"]
    print("\n".join(lines), file=sys.stderr)
    return fault.exit_code


def _open_what_is_closed() -> None:
    """A closed standard stream would be given to the next file that is opened: the null device takes its place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as we live
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as we live


def parse_plain(arguments: list[str]) -> tuple[bool, str | None, tuple[str, ...]] | None:
    """Quiet, directory and targets of a plain `build`; None if the command line says anything else."""
    quiet, directory, targets, seen_build = False, None, [], False
    words = iter(arguments)
    for word in words:
        if word in QUIET:
            quiet = True
        elif word in DIRECTORY and directory is None:
            directory = next(words, None)
            if directory is None:
                return None
        elif word in JOBS and seen_build:
            count = next(words, "")
            if not _is_count(count):
                return None
        elif word.startswith(JOBS) and seen_build:
            if not _is_count(word.removeprefix("-j").removeprefix("--jobs=")):
                return None
        elif word.startswith("-"):
            return None
        elif not seen_build:
            if word != "build":
                return None
            seen_build = True
        else:
            targets.append(word)
    return (quiet, directory, tuple(targets)) if seen_build else None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4 and 0 < int(text) <= JOBS_MAX


def _nothing_to_do(arguments: list[str]) -> bool:
    plain = parse_plain(arguments)
    if plain is None:
        return False
    quiet, directory, targets = plain
    try:
        from .engine.quick import nothing_to_do

        start = os.path.realpath(directory or ".")
        root = _find_root(start)
        steps = None if root is None else nothing_to_do(root, "requiem.toml", start, targets, os.environ)
    except Exception:  # Whatever is wrong, the full build says it properly.
        return False
    if steps is None:
        return False
    if not quiet:
        try:
            os.write(2, f"nothing to do: {steps} step{'s' if steps != 1 else ''} up to date\n".encode())
        except OSError:
            return True  # Nobody reads it.
    return True


def _find_root(directory: str) -> str | None:
    while not os.path.exists(os.path.join(directory, "requiem.toml")):
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent
    return directory


if __name__ == "__main__":
    main()
