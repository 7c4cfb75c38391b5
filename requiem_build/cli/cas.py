"""`requiem cas ...`: the store from the outside. Each command's module is imported when it is called."""

from __future__ import annotations

import importlib

import click

from .console import write_out

COMMANDS = {
    "put": "cas_bytes",
    "get": "cas_bytes",
    "path": "cas_bytes",
    "ls": "cas_look",
    "stats": "cas_look",
    "verify": "cas_care",
    "gc": "cas_care",
    "migrate": "cas_migrate",
}


class CasCommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = getattr(importlib.import_module(f".{COMMANDS[cmd_name]}", __package__), cmd_name)
        assert isinstance(found, click.Command)
        return found


@click.group("cas", cls=CasCommands, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Look into the store and check it."""
    if context.invoked_subcommand is None:
        write_out(context.get_help() + "\n")
