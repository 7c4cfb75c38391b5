"""The door. A plain `build` with nothing to do is answered here, before anything slow is imported."""

import _signal as signal
import sys

if sys.platform == "win32":
    import nt as system
else:
    import posix as system  # What `os` is made of, and all that is there of it before `site` came.

TYPE_CHECKING = False  # The module of that name costs a no-op a tenth of its time; that of __future__ does, too.
if TYPE_CHECKING:
    from typing import NoReturn

    from .core.errors import EnvironmentFault

JOBS_MAX = 4096
QUIET = ("-q", "--quiet")
DIRECTORY = ("-C", "--directory")
JOBS = ("-j", "--jobs")
"""All that a plain build may say besides its targets; a test compares them with the command line's own."""


def main(begun: "int | None" = None) -> None:
    """`begun`: what stands in sys.path up to there is the interpreter's own, which has no `site` yet."""
    # Nothing has begun: Ctrl-C just ends us, and who reads JSON is told. `run` takes it over.
    signal.signal(signal.SIGINT, _tell_and_end if "--json" in sys.argv else signal.SIG_DFL)
    import gc

    gc.disable()  # A short life: what is made is needed to the end. The command line turns it on again.
    _open_what_is_closed()
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from . import __version__

        try:
            system.write(1, f"requiem {__version__}\n".encode())
        except OSError:
            system._exit(4)
        return
    if _nothing_to_do(arguments):
        system._exit(0)
    if begun is not None:
        _begin_as_usual(begun)
    _end(_run(arguments))


def _end(code: int) -> "NoReturn":
    """Without taking apart, name by name, what a build had in memory: that takes longer than many a step."""
    import atexit

    try:
        if "requiem_build.engine.quick" in sys.modules:
            from .engine.quick import let_go

            let_go()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # Nobody hears us, but the exit code is still ours to give.
        pass
    finally:
        system._exit(code)


def _begin_as_usual(begun: int) -> None:
    """All that an interpreter is besides its own library: what others installed, `.pth` files, sitecustomize."""
    del sys.path[begun:]
    import site

    site.main()


INTERRUPTED = b"""\
{"error": {"code": 130, "facts": {}, "hint": null, "what": "interrupted"}, "ok": false, "schema": "requiem.error/1"}
"""


def _tell_and_end(*_: object) -> None:
    try:
        system.write(1, INTERRUPTED)
    finally:
        system._exit(130)


def _run(arguments: list[str]) -> int:
    import gc

    from .core.errors import EnvironmentFault
    from .core.primitive import FLAG, allow_fallback

    if FLAG in arguments[: arguments.index("--") if "--" in arguments else None]:
        allow_fallback()  # Before anything that hashes is imported.
    plain = parse_plain(arguments) is not None
    try:
        from .cli.app import run

        if plain:
            from .cli import running  # noqa: F401 - before anybody looks for garbage
    except EnvironmentFault as fault:  # The hash primitive: without it there is no command line to say so.
        return _cannot_begin(fault, as_json="--json" in arguments)
    gc.freeze()  # Modules stay: nobody need look through them for garbage, neither now nor while they are made.
    gc.enable()
    return run(arguments, plain=plain)


def _cannot_begin(fault: "EnvironmentFault", *, as_json: bool) -> int:
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
            system.fstat(number)
        except OSError:
            system.open("nul" if sys.platform == "win32" else "/dev/null", system.O_RDWR)
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
        steps = _steps_up_to_date(directory, targets)
    except Exception:  # Whatever is wrong, the full build says it properly.
        return False
    if steps is None:
        return False
    if not quiet:
        try:
            system.write(2, f"nothing to do: {steps} step{'s' if steps != 1 else ''} up to date\n".encode())
        except OSError:
            return True  # Nobody reads it.
    return True


def _steps_up_to_date(directory: str | None, targets: tuple[str, ...]) -> int | None:
    from .engine.quick import nothing_to_do

    here = system.open(".", system.O_RDONLY | system.O_DIRECTORY | system.O_CLOEXEC)
    try:
        if directory:
            system.chdir(directory)
        start = system.getcwd()  # As realpath gives it.
        root = _find_root(start)
        return None if root is None else nothing_to_do(root, "requiem.toml", start, targets, _environment())
    finally:
        system.fchdir(here)
        system.close(here)


def _find_root(directory: str) -> str | None:
    while directory.startswith("/"):
        try:
            system.stat(f"{directory}/requiem.toml")
            return directory
        except FileNotFoundError:
            directory = directory.rpartition("/")[0] or "/" * (directory != "/")
    return None


def _environment() -> dict[str, str]:
    """As `os.environ` has it."""
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    return {name.decode(encoding, errors): value.decode(encoding, errors) for name, value in system.environ.items()}


if __name__ == "__main__":
    main()
