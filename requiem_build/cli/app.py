"""The command line: commands in, exit codes out. The one place where every error becomes words."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from contextlib import suppress

from .. import __version__
from ..core.digest import IS_FALLBACK
from ..core.errors import EnvironmentFault, Interrupted, RequiemError
from ..store.files import hint_of
from .console import ReaderGone, print_error, write_err, write_out
from .globals import Globals, split


def run(arguments: list[str], *, plain: bool = False) -> int:
    """Runs one command line. Returns the exit code; nothing is raised.

    A `plain` build needs no click, which would take a small build longer than all else.
    """
    shared = Globals(start=".", environment=os.environ, json="--json" in arguments)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        shared, rest = split(arguments, os.environ)
        if IS_FALLBACK:
            write_err("warning: BLAKE3 cannot be loaded: names are made by SHA-256, in a store of their own\n")
        if plain:
            from .running import build_plain as answer
        else:
            from .commands import run as answer
        code = answer(shared, rest)
        sys.stdout.flush()
        return code
    except RequiemError as error:
        return _fail(error, shared)
    except KeyboardInterrupt:
        return _interrupted(shared)
    except ReaderGone:
        return 128 + signal.SIGPIPE
    except Exception as error:
        refused = _translated(error, arguments)
        return _bug(error, shared) if refused is None else _fail(refused, shared)


def _translated(error: Exception, arguments: list[str]) -> RequiemError | None:
    """What a foreign exception means where the host refused something; None for a bug of ours."""
    if isinstance(error, OSError):
        return _environment_fault(error)
    if isinstance(error, MemoryError):
        return _out_of(errno.ENOMEM)
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return _out_of(errno.EAGAIN)
    if isinstance(error, ImportError) and (number := _refused_at_import(error)):
        return _out_of(number)
    if sys.platform == "win32" and isinstance(error, ImportError | AttributeError | NotImplementedError):
        return _not_on_windows(error, arguments)
    return None


def _interrupted(shared: Globals) -> int:
    error = Interrupted(signal.SIGINT)
    if shared.json:
        with suppress(OSError, ReaderGone):
            write_out(_document(error))
    return error.exit_code


def _document(error: RequiemError) -> str:
    return json.dumps({"error": error.as_json(), "ok": False, "schema": "requiem.error/1"}, sort_keys=True) + "\n"


def _not_on_windows(error: Exception, words: list[str]) -> EnvironmentFault:
    """What rests on POSIX is refused there, and not approximated."""
    return EnvironmentFault(
        f'"{words[0] if words else "list"}" cannot run on Windows',
        facts=[("reason", f"it needs what only POSIX systems have: {error}")],
        hint="use it in WSL 2, where the level strict can be had too; requiem doctor says what there is here",
    )


def _out_of(number: int) -> RequiemError:
    what = {errno.ENOMEM: "not enough memory", errno.EAGAIN: "no thread can be started"}
    return _environment_fault(OSError(number, what.get(number, os.strerror(number).lower())))


def _refused_at_import(error: ImportError) -> int | None:
    """What the host refused when a module was to be loaded, if that is why it is not: the loader says it in words."""
    text = str(error).lower()
    numbers = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO)
    if "failed to map segment" in text:
        return errno.ENOMEM
    return next((number for number in numbers if os.strerror(number).lower() in text), None)


def _fail(error: RequiemError, shared: Globals) -> int:
    if error.hint is None and isinstance(error, EnvironmentFault) and isinstance(error.__cause__, OSError):
        error.hint = hint_of(error.__cause__.errno)
    with suppress(OSError, ReaderGone):
        if shared.json:
            write_out(_document(error))
        print_error(error, color=shared.color == "always")
    return error.exit_code


def _environment_fault(error: OSError) -> RequiemError:
    """What the system refused, wherever that was: the border at which foreign errors become ours."""
    what = {
        errno.ENOSPC: "no space left",
        errno.EDQUOT: "disk quota used up",
        errno.EMFILE: "too many open files",
        errno.EROFS: "read-only file system",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.ENOMEM: "not enough memory",
    }.get(error.errno or 0, error.strerror or str(error))
    named = isinstance(error.filename, str | bytes)
    facts = [("path", os.fsdecode(error.filename))] if named else []
    fault = EnvironmentFault(what, facts=facts)
    fault.__cause__ = error
    return fault


def _bug(error: BaseException, shared: Globals) -> int:
    """Our own fault: one line, and a report without environment or arguments, which could hold secrets."""
    import tempfile
    import traceback

    what = f"{type(error).__name__} in Requiem {__version__}"
    facts = []
    with suppress(OSError):
        with tempfile.NamedTemporaryFile("w", prefix="requiem-crash-", suffix=".txt", delete=False) as file:
            file.write(f"requiem {__version__}, Python {sys.version}\n\n")
            for frame in traceback.extract_tb(error.__traceback__):
                file.write(f"{frame.filename}:{frame.lineno} {frame.name}\n")
            file.write(f"{type(error).__name__}\n")
        facts.append(("report", file.name))
    bug = RequiemError(f"a bug: {what}", facts=facts, hint="please report it, with that file")
    return _fail(bug, shared)
