"""The tree of commands, and what click says of a line that is none of them."""

from __future__ import annotations

import importlib

import click

from .. import __version__
from ..core.errors import NotBuiltYet, UsageError
from .globals import HELP, Globals

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


def run(shared: Globals, words: list[str]) -> int:
    """One command line without its global options. Raises RequiemError."""
    if "--version" in words[:1]:
        print(f"requiem {__version__}")
        return 0
    try:
        return int(app.main(words, standalone_mode=False, obj=shared, prog_name="requiem") or 0)
    except click.exceptions.Exit as finished:
        return int(finished.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None  # What click makes of Ctrl-C: the caller tells of it.
    except click.ClickException as error:
        raise _usage_error(error, words) from error


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
