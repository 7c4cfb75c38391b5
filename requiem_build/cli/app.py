"""The command line: commands in, exit codes out. The one place where every error becomes words."""

from __future__ import annotations

import difflib
import json
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import Any

import typer

from .. import __version__
from ..core.errors import NotBuiltYet, RequiemError, UsageError
from . import build, cas, clean, doctor, execute, init, inspect, listing, watch
from .console import print_error
from .globals import HELP, Globals, split

_USAGE = typer.BadParameter.__mro__[1]  # click's UsageError and ClickException, wherever typer keeps them.
_CLICK = _USAGE.__mro__[1]

PLUMBING = "Plumbing"


def make_app() -> typer.Typer:
    app = typer.Typer(
        name="requiem",
        add_completion=False,
        no_args_is_help=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="A declarative build and pipeline runner whose every answer can be proven.",
        epilog="Options of every command:\n\n\b\n" + HELP,
    )
    app.command("build")(build.command)
    app.command("watch")(watch.command)
    app.command("list")(listing.command)
    app.command("log")(inspect.log)
    app.command("clean")(clean.command)
    app.command("doctor")(doctor.command)
    app.command("init")(init.command)
    app.command("schema")(inspect.schema)
    app.add_typer(cas.app, name="cas", help="Look into the store and check it.")
    app.command("exec", rich_help_panel=PLUMBING)(execute.command)
    app.command("show", rich_help_panel=PLUMBING)(inspect.show)
    app.command("digest", rich_help_panel=PLUMBING)(inspect.digest)
    app.command("canonical", rich_help_panel=PLUMBING)(inspect.canonical)
    app.callback(invoke_without_command=True)(_without_command)
    return app


LATER = ["why", "graph", "report", "replay", "reproduce", "observe", "tighten", "shell", "add", "import", "pack", "unpack", "attest", "keys"]


def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        listing.command(context)


def run(arguments: list[str]) -> int:
    """Runs one command line. Returns the exit code; nothing is raised."""
    shared = Globals(start=".", environment=os.environ, json="--json" in arguments)
    try:
        shared, rest = split(arguments, os.environ)
        if "--version" in rest[:1]:
            print(f"requiem {__version__}")
            return 0
        _refuse_later(rest)
        answer: Any = make_app()(rest, standalone_mode=False, obj=shared, prog_name="requiem")
        sys.stdout.flush()
        return int(answer or 0)
    except RequiemError as error:
        return _fail(error, shared)
    except typer.Exit as finished:
        return int(finished.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except _CLICK as error:  # type: ignore[misc]
        return _fail(_usage_error(error, arguments), shared)
    except BrokenPipeError:  # Whoever read us has seen enough.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except RecursionError as error:
        return _bug(error, shared)
    except OSError as error:
        from ..engine.build import as_environment_fault

        return _fail(as_environment_fault(error), shared)
    except Exception as error:
        return _bug(error, shared)


def _fail(error: RequiemError, shared: Globals) -> int:
    with suppress(OSError):
        if shared.json:
            document = {"error": error.as_json(), "ok": False, "schema": "requiem.error/1"}
            sys.stdout.write(json.dumps(document, sort_keys=True) + "\n")
            sys.stdout.flush()
        print_error(error, color=shared.color == "always")
    return error.exit_code


def _usage_error(error: Any, arguments: list[str]) -> UsageError:
    message = str(error.format_message()).rstrip(".")
    near = ""
    if message.startswith("No such command"):
        word = message.split("'")[1] if "'" in message else ""
        names = [*(c.name or "" for c in make_app().registered_commands), "cas"]
        close = difflib.get_close_matches(word, names, 1)
        near = f'did you mean "{close[0]}"?' if close else "requiem --help lists the commands"
    return UsageError(message[:1].lower() + message[1:], hint=near or "requiem --help")


def _refuse_later(rest: list[str]) -> None:
    if rest and rest[0] in LATER:
        raise NotBuiltYet(f'the command "{rest[0]}"')


def _bug(error: BaseException, shared: Globals) -> int:
    """Our own fault: one line, and a report without environment or arguments, which could hold secrets."""
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
