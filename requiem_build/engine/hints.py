"""The fix, named without tracing: what a failed step's words mention that exists but that it could not see."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Collection, Iterator, Mapping

from ..core.blocks import inputs_line, root_line, string
from ..core.instance import Instance
from ..core.policy import WORKSPACE
from ..core.request import Request
from ..core.secrecy import looks_secret
from .undeclared import covered

HINTS_MAX = 5
LINE_MAX = 400
LINES_MAX = 300
_NAME = r"[^\s'\"`:;,()<>|]+"
_MENTIONS = [
    re.compile(p)
    for p in (
        rf"fatal error: ({_NAME}): No such file",
        rf"fatal error: '({_NAME})' file not found",
        rf"['\"‘]({_NAME})['\"’]:? (?:No such file|does not exist|not found)",
        rf"({_NAME}): (?:No such file or directory|cannot open|not found|does not exist)",
        r": (?:(?:cannot|can't) \w+:? )?([^:\n]+): [Nn]o such file",  # Shells and their tools, also names with spaces.
        r"No such file or directory: '([^'\n]+)'",
        r'No such file or directory: "([^"\n]+)"',
        r"Cannot find module ['\"]([^'\"]+)['\"]",
        r"no such file or directory, \w+ ['\"]([^'\"]+)['\"]",
        r"can't open file ['\"]([^'\"]+)['\"]",
        r"No rule to make target ['\"`‘]([^'\"’]+)['\"’]",
        rf"(?:open|stat|lstat|fork/exec|chdir|read) ({_NAME}): no such file or directory",  # Go
        rf"({_NAME}) \(No such file or directory",  # Java, xmllint
        r"couldn't read `?([^`:\n]+)`?: No such file",  # rustc
        rf"cannot load such file -- ({_NAME})",  # Ruby
        rf"Can't locate ({_NAME}) in @INC",  # Perl
    )
]
_GENERATED = re.compile(r'^read "(.+)", which step ".+" makes, without declaring it$', re.M)
_MISSED = re.compile(
    r"no such file|not found|enoent|(?:can ?not|can't|could not|couldn't|unable to) "
    r"(?:be )?(?:open|find|found|load|locate|resolve|detect)",
    re.I,
)
_MODULE = re.compile(r"No module named ['\"]?([A-Za-z_][\w.]*)")
_COMMAND = re.compile(rf"({_NAME}): (?:command )?not found|not found in PATH.*?: ({_NAME})|cannot run \"({_NAME})\"")
_OF_SYSTEM = ("/usr/", "/bin/", "/sbin/")
_INCLUDE = re.compile(r"-(?:I|iquote|isystem)\s*(\S+)")
_VARIABLE = re.compile(r"(?<![\w./-])[A-Za-z_][A-Za-z0-9_]{2,}(?![\w./-])")
_LACKS = re.compile(r"unbound|unset|undefined|not set|not defined|missing|required|null|KeyError|environ", re.I)


def for_failure(
    instance: Instance,
    text: str,
    root: str,
    *,
    visible: Collection[str],
    request: Request,
    environment: Mapping[str, str],
) -> tuple[str, ...]:
    """TOML lines to add, for what a failed step's output mentions."""
    text = "\n".join(line[:LINE_MAX] for line in text.splitlines()[-LINES_MAX:])  # Minified code is no message.
    found: dict[str, None] = {}
    for mention in _mentions(text):
        for path in _candidates(mention, instance, root):
            if path not in visible and not covered(path, visible):
                found[_input_line(instance, path)] = None
                break
        else:
            outside = _outside(mention, instance)
            if outside:
                found[outside] = None
    for match in _GENERATED.finditer(text):
        found[_input_line(instance, match.group(1))] = None
    for name in _held_back(text, request, environment):
        key = "secrets" if looks_secret(name) else "pass_env"
        found[f'"{name}" is set on this host but "{instance.name}" does not see it: {key} = [..., "{name}"]'] = None
    for match in _COMMAND.finditer(text):
        name = next(group for group in match.groups() if group)
        line = _program(name, instance)
        if line:
            found[line] = None
    return tuple(found)[:HINTS_MAX]


def last_resort(instance: Instance, text: str) -> tuple[str, ...]:
    """Where nothing could be named, but something is missing: how to find out what."""
    if not _MISSED.search(text):
        return ()
    return (f"requiem observe {shlex.quote(instance.name)} says what it looked for and what of that exists",)


def _held_back(text: str, request: Request, environment: Mapping[str, str]) -> Iterator[str]:
    """Variables of the host that a line complains of, and that the step was not given."""
    for line in text.splitlines():
        if _LACKS.search(line):
            for name in _VARIABLE.findall(line):
                if name in environment and name not in request.env and name not in request.secrets:
                    yield name


def _mentions(text: str) -> Iterator[str]:
    seen: set[str] = set()
    for pattern in _MENTIONS:
        for match in pattern.finditer(text):
            for name in dict.fromkeys((match.group(1), match.group(1).strip("'\"‘’"))):
                if name not in seen:
                    seen.add(name)
                    yield name
    for match in _MODULE.finditer(text):
        stem = match.group(1).replace(".", "/")
        yield from (f"{stem}.py", f"{stem}/__init__.py")


def _candidates(mention: str, instance: Instance, root: str) -> Iterator[str]:
    """Workspace files that a mention may mean: by its path, beside what the step reads, and by include directories."""
    mention = mention.removeprefix(WORKSPACE + "/")
    if mention.startswith("/"):
        inside = os.path.relpath(mention, root)
        places = [] if inside.startswith("..") else [inside]
    else:
        nearby = [posixpath.dirname(item.path.rstrip("/")) for item in instance.inputs]
        includes = _INCLUDE.findall(" ".join(instance.command))
        bases = dict.fromkeys([instance.cwd, *(posixpath.join(instance.cwd, i) for i in includes), *nearby, "."])
        endings = ["", ".js", ".mjs", ".ts", "/index.js"] if mention.startswith(".") else [""]
        places = [posixpath.normpath(posixpath.join(base, mention + end)) for base in bases for end in endings]
    for place in places:
        if not place.startswith("..") and place != "." and os.path.lexists(os.path.join(root, place)):
            yield place + "/" if os.path.isdir(os.path.join(root, place)) else place


def _input_line(instance: Instance, path: str) -> str:
    return f'"{path}" exists but is not an input of "{instance.name}": {inputs_line(path, instance.step)}'


def _outside(mention: str, instance: Instance) -> str | None:
    """Something absolute that the host has and the step does not see."""
    if not mention.startswith("/") or mention.startswith((WORKSPACE, "/usr/", "/tmp", "/proc", "/dev", "/etc/")):
        return None
    if not os.path.exists(mention):
        return None
    directory = mention if os.path.isdir(mention) else os.path.dirname(mention)
    return f'"{mention}" exists on this host but "{instance.name}" does not see it: {root_line(directory)}'


def _program(name: str, instance: Instance) -> str | None:
    """A command that the user's own PATH has and the step's has not."""
    if "/" in name:
        return None
    for directory in os.environ.get("PATH", "").split(":"):
        path = os.path.join(directory, name)
        of_system = f"{directory}/".startswith(_OF_SYSTEM)
        if directory.startswith("/") and not of_system and os.access(path, os.X_OK):
            top = os.path.dirname(directory.rstrip("/"))
            line = root_line(top, f" and path = [{string(directory)}]")
            return f'"{name}" is at {path}, outside of the step\'s PATH: {line}'
    return None
