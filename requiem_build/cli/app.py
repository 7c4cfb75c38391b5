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
    except RecursionError as error:
        return _bug(error, shared)
    except OSError as error:
        return _fail(_environment_fault(error), shared)
    except Exception as error:
        return _bug(error, shared)


def _interrupted(shared: Globals) -> int:
    error = Interrupted(signal.SIGINT)
    if shared.json:
        with suppress(OSError, ReaderGone):
            write_out(_document(error))
    return error.exit_code


def _document(error: RequiemError) -> str:
    return json.dumps({"error": error.as_json(), "ok": False, "schema": "requiem.error/1"}, sort_keys=True) + "\n"


def _fail(error: RequiemError, shared: Globals) -> int:
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
    }.get(error.errno or 0, error.strerror or str(error))
    named = isinstance(error.filename, str | bytes)
    facts = [("path", os.fsdecode(error.filename))] if named else []
    return EnvironmentFault(what, facts=facts)


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
