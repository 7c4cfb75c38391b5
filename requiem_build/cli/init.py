"""`requiem init`: a first manifest that builds at once."""

from __future__ import annotations

import json
import os
import re

import click

from ..core.errors import EnvironmentFault, UsageError
from .console import write_err, write_out
from .globals import Globals

_MANIFEST = """\
[project]
name = "{name}"

# A step runs a command in a sandbox that holds its inputs and nothing else of this directory.
# Build it with `requiem build`; once more, and there is nothing to do.
[steps.hello]
command = "echo 'Hello from {name}' > build/hello.txt"
outputs = ["build/hello.txt"]
"""

_C_STEPS = """\
[project]
name = "{name}"
default = ["app"]

[vars]
cflags = ["-O2", "-Wall"]

[steps.compile]
foreach.src = "{pattern}"
command = "gcc {{{{ cflags }}}} -MMD -MF {{{{ depfile }}}} -c {{{{ src }}}} -o {{{{ output }}}}"
inputs = ["{{{{ src }}}}"]
discover = ["**/*.h"]
depfile = "build/{{{{ src.stem }}}}.d"
outputs = ["build/{{{{ src.stem }}}}.o"]

[steps.app]
command = ["gcc", "{{{{ inputs }}}}", "-o", "{{{{ output }}}}"]
inputs = ["@compile"]
outputs = ["build/{name}"]
"""


@click.command()
@click.argument("directory", required=False)
@click.pass_context
def command(context: click.Context, directory: str | None) -> int:
    """Write a first requiem.toml that builds at once."""
    shared: Globals = context.obj
    where = os.path.normpath(os.path.join(shared.start, directory or "."))
    path = os.path.join(where, "requiem.toml")
    if os.path.lexists(path):
        raise UsageError("requiem.toml is here already", facts=[("path", path)])
    try:
        os.makedirs(where, exist_ok=True)
        text = starter(where)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise EnvironmentFault(
            "cannot write requiem.toml", facts=[("path", path), ("cause", error.strerror or str(error))]
        ) from error
    if shared.json:
        write_out(json.dumps({"path": path, "schema": "requiem.init/1"}) + "\n")
    elif not shared.quiet:
        write_err(f"wrote {path}; now: requiem build\n")
    return 0


def starter(where: str) -> str:
    """A manifest for what lies in a directory: C sources if there are any, else a hello."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", os.path.basename(os.path.realpath(where))).strip("-.") or "project"
    for folder, pattern in (("src", "src/*.c"), (".", "*.c")):
        here = os.path.join(where, folder)
        if os.path.isdir(here) and any(item.endswith(".c") for item in os.listdir(here)):
            return _C_STEPS.format(name=name, pattern=pattern)
    return _MANIFEST.format(name=name)
