"""A linked draft -> its command: the argv now, or its recipe if inputs are only known once they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import paths
from .documents import Place
from .drafts import Draft, telling
from .expand import Expansion
from .fields import dataclass, field
from .instance import Input
from .paths import BadPath, quoted
from .patterns import is_pattern, unescape
from .templates import Recipe, argv_of, late_json
from .texts import roots_of, shell_text, words
from .values import BadTemplate


@dataclass(slots=True)
class Link:
    """A draft with everything around it known; `needs` and `after` have no order yet."""

    draft: Draft
    inputs: dict[str, Input] = field(default_factory=dict)
    entries: list[list[Any]] = field(default_factory=list)
    """(name, one, paths) of each item of `inputs` and `needs`, as a Recipe takes them."""
    needs: dict[str, None] = field(default_factory=dict)
    after: dict[str, None] = field(default_factory=dict)
    discover: tuple[str, ...] = ()
    depfile: str | None = None
    stdin: Input | None = None
    env_file: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    lock: tuple[str, ...] = ()
    pool: str | None = None
    command: tuple[str, ...] = ()
    shown: str = ""
    late: str = ""
    names: Mapping[str, Any] = field(default_factory=dict)

    def need(self, item: Input) -> None:
        if item.producer is not None:
            self.needs[item.producer] = None


def make_command(link: Link, expansion: Expansion) -> None:
    draft = link.draft
    step = draft.step
    written = step.values["command"]
    place = step.places["command"]
    if not written or not written[0] or (isinstance(written, str) and not written.strip()):
        raise place.error(f"the command of step {quoted(step.name)} is empty")
    texts = [written] if isinstance(written, str) else written
    shell = step.values.get("shell", "bash")
    if not any("{{" in text for text in (*texts, *step.values.get("env", {}).values())):
        with telling(step, "command", place):  # Most commands that a program writes: nothing to fill in.
            link.command, link.shown = argv_of(written, shell)
        if isinstance(written, list):
            _add_program(link, link.command, expansion)
        return
    recipe = Recipe(
        step=draft.name,
        command=written,
        shell=shell,
        folder=step.folder,
        cwd=draft.cwd,
        variables=expansion.variables(step.scope),
        each=draft.each,
        paths=[name for name, value in draft.each.items() if _stands(draft, name, value, expansion)],
        inputs=link.entries,
        outputs=[[entry.name, entry.one, [unescape(path) for path in entry.items]] for entry in draft.outputs],
        depfile=link.depfile,
    )
    with telling(step, "command", place):
        used = frozenset().union(*(roots_of(text) for text in texts))
    if used & {"outputs", "output"}:
        _refuse_pattern_outputs(draft, place)
    link.names = recipe.names({path: [] for path, item in link.inputs.items() if item.late})
    if "inputs" in used and any(item.late for item in link.inputs.values()):
        link.late = late_json(recipe, used)
        link.shown = written if isinstance(written, str) else " ".join(texts)
        if isinstance(written, list) and "inputs" not in roots_of(written[0]):
            with telling(step, "command", place.at(0)):
                _add_program(link, words(written[0], link.names), expansion)
        return
    try:
        link.command, link.shown = recipe.argv_with(link.names)
    except BadTemplate:
        _tell_at_item(link, written, place)
    if not link.command or not link.command[0]:
        raise place.error(f"the command of step {quoted(draft.name)} is empty")
    if isinstance(written, list):
        _add_program(link, link.command, expansion)


def _tell_at_item(link: Link, written: str | list[str], place: Place) -> None:
    """Fills the items in once more, one by one, so that the complaint points at the one."""
    if isinstance(written, str):
        with telling(link.draft.step, "command", place):
            shell_text(written, link.names)
        return
    for index, item in enumerate(written):
        with telling(link.draft.step, "command", place.at(index)):
            words(item, link.names)
    raise place.error(f"the command of step {quoted(link.draft.name)} is too long")


def _stands(draft: Draft, name: str, value: Any, expansion: Expansion) -> bool:
    """Whether a foreach value is a path, which then reads as seen from `cwd`."""
    if name in draft.exact:
        return True
    if draft.cwd == draft.step.folder or not isinstance(value, str):
        return False
    try:
        path = paths.resolve(value, draft.step.folder)
    except BadPath:
        return False
    return expansion.outputs.maker(path) is not None or expansion.view.kind(path) is not None


def _refuse_pattern_outputs(draft: Draft, place: Place) -> None:
    for path, _ in draft.output_paths():
        if is_pattern(path):
            raise place.error(
                f"the command of step {quoted(draft.name)} speaks of its outputs, and {quoted(path)} is a pattern",
                hint="what matches is only known after the run: name the directory in the command instead",
            )


def _add_program(link: Link, argv: Sequence[str], expansion: Expansion) -> None:
    """A program of the workspace is an input without being declared."""
    program = argv[0] if argv else ""
    if "/" not in program or program.startswith("/"):
        return
    try:
        path = paths.resolve(program, link.draft.cwd)
    except BadPath:
        return
    maker = expansion.outputs.maker(path)
    if path in link.inputs or path.endswith("/") or maker == link.draft.name:
        return
    if maker is not None or expansion.view.kind(path) in ("file", "link"):
        item = link.inputs[path] = Input(path, maker)
        link.need(item)
