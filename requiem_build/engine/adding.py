"""A command becomes a step: it is run once, observed, and what it used and made is written down.

    manifest + bare step -> plan -> request -> observed -> block -> the new manifest is planned -> written

The manifest's own text is kept as it is; the block is put at its end.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress

from ..core.blocks import Block, grouped, literal, whole_directories
from ..core.errors import EnvironmentFault, ManifestError, RequiemError, UsageError
from ..core.fields import dataclass, replace
from ..core.instance import Instance, Plan
from ..core.manifest import Manifest, load_manifest
from ..core.observation import EXECUTED, LOOKED, READ, Observation, readable
from ..core.patterns import BadPattern, compile_pattern, escape, is_never, never_in
from ..core.plan import make_plan
from ..executors.depfile import parse_depfile
from .observing import SHOWN, Observer, Told
from .options import Options
from .rehearsal import Part, Stage
from .requests import Inputs, RequestMaker
from .site import Site, find_site, host_platform, question_of
from .surroundings import surroundings_of
from .workspace import Files, WorkspaceListing

TRIALS_MAX = 8
"""How often a command is run, each time with the packages that it lacked the time before."""
_WORD = re.compile(r"[^\s'\"();|&<>]+")
_GLOB = re.compile(r"(?=.*[*?])[\w./*?-]+")
_SHELLISH = re.compile(r"[\s|&;<>()$`*?\[\]{}~#!]")


@dataclass(frozen=True, slots=True)
class Added:
    """What was found and is to be written. `text` is the whole new manifest."""

    block: Block
    text: bytes
    path: str
    seen: Observation
    told: Told
    notes: tuple[str, ...] = ()


class Failed(RequiemError):
    """The command itself did not succeed: nothing is written."""

    exit_code = 1


def find_step(options: Options, name: str, words: Sequence[str]) -> tuple[Site, Block, Plan]:
    """The bare step and its plan. Raises UsageError if there is such a step, or it cannot be one."""
    site = find_site(options)
    cwd = os.path.relpath(options.start, site.root)
    if cwd.startswith(".."):
        raise UsageError("this directory is not in the workspace", facts=[("workspace", site.root)])
    manifest = _load(site, options, None)
    if name in manifest.steps:
        raise UsageError(f'there is a step "{name}" already', hint=f"requiem observe {shlex.quote(name)}")
    block = Block(name, _command(words), cwd=cwd)
    return site, block, _plan(site, options, block)


def _command(words: Sequence[str]) -> str | list[str]:
    """One word with anything of a shell's in it is a script; else it is as the shell would have passed it on."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"a word of the command is not UTF-8: {readable(word)}") from None
    if len(words) == 1 and _SHELLISH.search(words[0]):
        return literal(words[0], shell=True)
    return [literal(word) for word in words]


def _load(site: Site, options: Options, text: bytes | None) -> Manifest:
    files = Files(site.root)

    def read(path: str) -> bytes | None:
        return text if text is not None and path == site.manifest else files.read(path)

    return load_manifest(
        read, site.manifest, profile=options.profile, sets=dict(options.sets), user_roots=site.settings.roots
    )


def _plan(site: Site, options: Options, block: Block) -> Plan:
    manifest = _load(site, options, with_block(_text_of(site), block))
    question = question_of(site, options)
    return make_plan(manifest, (block.name,), WorkspaceListing(site.root), platform=dict(question.platform), cwd=".")


def _text_of(site: Site) -> bytes:
    with open(os.path.join(site.root, site.manifest), "rb") as file:
        return file.read()


def with_block(text: bytes, block: Block) -> bytes:
    """The manifest with a step more at its end, in its own kind of lines."""
    end = b"\r\n" if b"\r\n" in text else b"\n"
    kept = text if text.endswith(b"\n") or not text else text + end
    gap = b"" if not kept.strip() or kept.endswith(end + end) else end
    return kept + gap + block.text().encode().replace(b"\n", end)


def add(site: Site, options: Options, block: Block, plan: Plan, stage: Stage) -> Added:
    """Runs the command and finds its declaration. Raises Failed, UsageError, EnvironmentFault, Interrupted."""
    block, instance, seen, told = _tried(site, options, block, plan, stage)
    if seen.changed and seen.runs > 1 and set(seen.changed) & {each.path for each in seen.undeclared}:
        raise UsageError(
            f'the command changes "{readable(seen.changed[0])}", which it also reads',
            hint="a step must not change what it reads: let it write a new file",
        )
    notes = _declare(block, instance, seen, told, site)
    text = with_block(_text_of(site), block)
    try:
        manifest = _load(site, options, text)
        make_plan(manifest, (), WorkspaceListing(site.root), platform=host_platform(), cwd=".")
    except ManifestError as error:
        raise UsageError(f"the step cannot be written: {error.what}", facts=error.facts, hint=error.hint) from error
    return Added(block, text, os.path.join(site.root, site.manifest), seen, told, tuple(notes))


def _tried(
    site: Site, options: Options, block: Block, plan: Plan, stage: Stage, *, may_guess: bool = True
) -> tuple[Block, Instance, Observation, Told]:
    """Runs the command until it sees every package that it needs. Raises Failed."""
    guessed: set[str] = set()
    for left in reversed(range(TRIALS_MAX)):
        instance = plan.instances[block.name]
        maker, part = _part(site, options, instance, stage, plan)
        seen, told = Observer(stage, plan).observe(part, make_parents=True)
        if not told.failure:
            break
        said = (told.stdout + b"\n" + told.stderr).decode("utf-8", "replace")
        missing = set(maker.missing_packages(part.request, said)) - set(block.tools)
        if not missing and may_guess:  # Its words tell nothing: then whatever it looked for.
            missing = {each.package for each in seen.packages} - set(block.tools)
            guessed |= missing
        if not missing or not left:
            raise Failed(
                f"the command {told.failure}: nothing is written",
                facts=[("said", line) for line in said.strip().splitlines()[-1:]],
                hint="it ran in the sandbox: fixed environment, no network, of this host only its programs' packages",
            )
        block = replace(block, tools=sorted({*block.tools, *missing}))
        plan = _plan(site, options, block)
    unused = guessed - set(site.distribution.owners(list(seen.system_seen)).values())
    if unused:
        fewer = replace(block, tools=[name for name in block.tools if name not in unused])
        with suppress(Failed):
            return _tried(site, options, fewer, _plan(site, options, fewer), stage, may_guess=False)
    return block, instance, seen, told


def _part(site: Site, options: Options, instance: Instance, stage: Stage, plan: Plan) -> tuple[RequestMaker, Part]:
    """Its program and whatever else it reads is seen through the backdrop: nothing is declared yet."""
    bare = replace(instance, inputs=(), needs=(), after=())
    surroundings = surroundings_of(site, plan.roots, stage.workspace.stamps, options.environment)
    maker = RequestMaker(stage.workspace, surroundings, host_platform(), "strict")
    asked = maker.make(bare, Inputs({}, frozenset(), {}), instance.command, {})
    return maker, Part(bare, asked.request, {})


def _declare(block: Block, instance: Instance, seen: Observation, told: Told, site: Site) -> list[str]:
    """Fills the block. What cannot be declared comes back in words."""
    notes = [f"{each.path} is on this host and the step does not see it: {each.line}" for each in seen.outside]
    made = [path for path in told.made if not never_in(path)]
    used = _inputs(seen, instance, block, notes)
    unnamable = next((path for path in used if not _can_be_written(path)), None)
    if unnamable is not None:
        raise UsageError(
            f"the command reads {readable(unnamable)!r}, a name that no manifest can hold", hint="rename the file"
        )
    odd = [path for path in made if not _can_be_written(path)]
    notes += [f"{readable(path)!r}, which it made, is no name that a manifest can hold" for path in odd]
    made = [path for path in made if path not in odd]
    depfile = _depfile(told, used)
    present = _present(site.root, {posixpath.dirname(path) for path in (*made, *used)})
    if depfile is not None:
        named = set(depfile[1])
        on_line = {
            posixpath.normpath(posixpath.join(block.cwd, word)) for word in shlex.split(instance.shown, posix=True)
        }
        found = [path for path in used if path in named and path not in on_line]
        block.depfile = depfile[0]
        block.discover = sorted({_kind_of(path) for path in found})
        used = [path for path in used if path not in found]
        made = [path for path in made if path != depfile[0]]
    asked = _patterns(instance.shown, block.cwd, used, present)
    used = [path for path in used if not any(compile_pattern(pattern)(path) for pattern in asked)]
    block.inputs = [*asked, *grouped(used, present)]
    block.outputs = whole_directories(made, present, told.directories)
    if not made and not told.depfiles:
        notes.append("it made no file: it will be remembered by its success and what it prints")
    return notes


def _inputs(seen: Observation, instance: Instance, block: Block, notes: list[str]) -> list[str]:
    """Paths to be declared; roots are noted in the block. A program of the workspace is an input anyway."""
    program = {item.path for item in instance.inputs}
    found: list[str] = []
    roots: dict[str, str] = {}
    for touched in seen.undeclared:
        if not touched.how & {READ, EXECUTED, LOOKED} or touched.path in program:
            continue
        never = never_in(touched.path)
        if never is None:
            found.append(touched.path)
        elif never in SHOWN:
            top = touched.path[: touched.path.index(never) + len(never)]
            roots[never.strip(".")] = top
    if roots:
        block.roots, block.use_roots = roots, sorted(roots)
    return found


def _patterns(shown: str, cwd: str, used: Sequence[str], present: Collection[str]) -> list[str]:
    """Patterns that a shell's words hold, where they mean nothing but what was used: new files will count too."""
    found: list[str] = []
    for word in dict.fromkeys(_WORD.findall(shown)):
        if not _GLOB.fullmatch(word):
            continue
        pattern = posixpath.normpath(posixpath.join(cwd, word))
        with suppress(BadPattern):
            meant = {path for path in present if not pattern.startswith("..") and compile_pattern(pattern)(path)}
            if meant and meant <= set(used):
                found.append(pattern)
    return found


def _can_be_written(path: str) -> bool:
    from ..core.paths import refusal

    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not refusal(path)


def _depfile(told: Told, used: Sequence[str]) -> tuple[str, list[str]] | None:
    """The one depfile that the command made, if it names something that was read."""
    if len(told.depfiles) != 1:
        return None
    ((path, content),) = told.depfiles.items()
    with suppress(ValueError):
        named = [posixpath.normpath(name) for name in parse_depfile(content)]
        if set(named) & set(used):
            return path, named
    return None


def _kind_of(path: str) -> str:
    folder, suffix = posixpath.dirname(path), posixpath.splitext(path)[1]
    return f"{escape(folder) + '/**/' if folder else ''}*{escape(suffix)}" if suffix else escape(path)


def _present(root: str, folders: set[str]) -> set[str]:
    """Files of the workspace that lie in these directories or below."""
    found: set[str] = set()
    for folder in sorted(folders):
        for place, directories, names in os.walk(os.path.join(root, folder)):
            directories[:] = [name for name in directories if not is_never(name)]
            inside = os.path.relpath(place, root)
            found |= {name if inside == "." else f"{inside}/{name}" for name in names}
            if not folder:
                break
    return found


def write(added: Added) -> None:
    """Readers see the old manifest or the new one. Raises EnvironmentFault."""
    path = os.path.realpath(added.path)
    temporary = f"{path}.{os.getpid()}.part"
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        with open(temporary, "wb") as file:
            file.write(added.text)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise EnvironmentFault(
            f'cannot write "{added.path}"', facts=[("cause", error.strerror or str(error))]
        ) from error
