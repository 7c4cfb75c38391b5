"""The command line: commands in, exit codes out. The one place where every error becomes words."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from contextlib import suppress

import click

from .. import __version__
from ..core.digest import IS_FALLBACK
from ..core.errors import EnvironmentFault, NotBuiltYet, RequiemError, UsageError
from .console import ReaderGone, print_error, write_err, write_out
from .globals import HELP, Globals, split

COMMANDS = {
    "build": ("build", "command"),
    "watch": ("watch", "command"),
    "why": ("why", "command"),
    "list": ("listing", "command"),
    "log": ("inspect", "log"),
    "replay": ("replay", "command"),
    "reproduce": ("reproduce", "command"),
    "clean": ("clean", "command"),
    "doctor": ("doctor", "command"),
    "init": ("init", "command"),
    "schema": ("inspect", "schema"),
    "keys": ("keys", "command"),
    "attest": ("attest", "command"),
    "sbom": ("sbom", "command"),
    "pack": ("pack", "command"),
    "unpack": ("unpack", "command"),
    "cas": ("cas", "command"),
}
PLUMBING = {
    "exec": ("execute", "command"),
    "show": ("inspect", "show"),
    "digest": ("inspect", "digest"),
    "canonical": ("inspect", "canonical"),
    "version": ("version", "command"),
}
LATER = frozenset({"add", "graph", "import", "observe", "report", "shell", "tighten"})


class Commands(click.Group):
    """Imports a command's module when it is called, so that none pays for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *PLUMBING]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LATER:
            raise NotBuiltYet(f'the command "{cmd_name}"')
        place = COMMANDS.get(cmd_name) or PLUMBING.get(cmd_name)
        if place is None:
            return None
        found = getattr(importlib.import_module(f".{place[0]}", __package__), place[1])
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in (("Commands", COMMANDS), ("Plumbing", PLUMBING)):
            with formatter.section(heading):
                formatter.write_dl([(name, self._about(ctx, name)) for name in names])

    def _about(self, ctx: click.Context, name: str) -> str:
        found = self.get_command(ctx, name)
        return found.get_short_help_str(300) if found else ""


@click.group(
    cls=Commands,
    invoke_without_command=True,
    help="A declarative build and pipeline runner whose every answer can be proven.",
    epilog="\b\nOptions of every command:\n" + HELP,
)
@click.pass_context
def app(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        from .listing import command

        context.invoke(command)


def run(arguments: list[str]) -> int:
    """Runs one command line. Returns the exit code; nothing is raised."""
    shared = Globals(start=".", environment=os.environ, json="--json" in arguments)
    rest: list[str] = []
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        shared, rest = split(arguments, os.environ)
        if IS_FALLBACK:
            write_err("warning: BLAKE3 cannot be loaded: names are made by SHA-256, in a store of their own\n")
        if "--version" in rest[:1]:
            print(f"requiem {__version__}")
            return 0
        answer = app.main(rest, standalone_mode=False, obj=shared, prog_name="requiem")
        sys.stdout.flush()
        return int(answer or 0)
    except RequiemError as error:
        return _fail(error, shared)
    except click.exceptions.Exit as finished:
        return int(finished.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        return _fail(_usage_error(error, rest), shared)
    except ReaderGone:
        return 128 + signal.SIGPIPE
    except RecursionError as error:
        return _bug(error, shared)
    except OSError as error:
        return _fail(_environment_fault(error), shared)
    except Exception as error:
        return _bug(error, shared)


def _fail(error: RequiemError, shared: Globals) -> int:
    with suppress(OSError, ReaderGone):
        if shared.json:
            document = {"error": error.as_json(), "ok": False, "schema": "requiem.error/1"}
            write_out(json.dumps(document, sort_keys=True) + "\n")
        print_error(error, color=shared.color == "always")
    return error.exit_code


def _usage_error(error: click.ClickException, words: list[str]) -> UsageError:
    import difflib

    if isinstance(error, click.NoSuchOption):
        near = difflib.get_close_matches(error.option_name, error.possibilities or [], 1)
        what = f'no such option "{error.option_name}"'
    elif words and words[0] not in COMMANDS and words[0] not in PLUMBING:
        near = difflib.get_close_matches(words[0], [*COMMANDS, *PLUMBING], 1)
        what = f'no such command "{words[0]}"'
    else:
        near, what = [], error.format_message().rstrip(".")
        what = what[:1].lower() + what[1:]
    return UsageError(what, hint=f'did you mean "{near[0]}"?' if near else "requiem --help, or requiem COMMAND --help")


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
