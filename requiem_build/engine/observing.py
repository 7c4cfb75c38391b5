"""Runs a step traced, in its own sandbox, with the whole workspace to be seen, and says what it really used.

    scene -> job, with the workspace as its backdrop -> traced run -> looks -> held against the declaration

What it finds in its way and overwrites is hidden in a further run, for a step never meets its own old outputs.
Nothing of it is remembered.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence

from ..core.blocks import inputs_line, root_line
from ..core.errors import EnvironmentFault, Interrupted
from ..core.fields import dataclass, replace
from ..core.instance import Instance, Plan
from ..core.observation import LOOKED, WROTE, Access, Declared, Lacking, Observation, Touched, judge
from ..core.paths import is_within
from ..core.patterns import compile_pattern, escape, is_never, is_pattern, never_in
from ..core.policy import WORKSPACE
from ..core.query import Graph
from ..core.request import SYSTEM_ROOT, Request
from ..core.secrecy import Masker
from ..executors.local import confide, describe, masked
from ..sandbox.base import Job, Staged
from ..sandbox.descent import walk
from ..sandbox.strace import find_strace, parse, traced
from .package_hints import unpackaged
from .rehearsal import Part, Stage
from .workspace import kind_by_mode

RUNS_MAX = 5
DIRECTORIES_MAX = 50_000
SHOWN = frozenset({"node_modules", ".venv", "venv"})
"""What no pattern enters and yet a step may well need, as a root."""
_VERSIONS = frozenset({".git", ".hg", ".svn"})
_READ_FOR_MAX = 1 << 20


@dataclass(slots=True)
class Told:
    """One traced run: what was touched, which files are left, how it ended."""

    accesses: list[Access]
    made: list[str]
    directories: list[str]
    """Directories that it made itself."""
    exit_code: int
    failure: str
    stdout: bytes
    stderr: bytes
    depfiles: dict[str, bytes]
    """What it made that is named as a depfile is, with its content."""


class Observer:
    """Observes the parts of one plan."""

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self._stage = stage
        self._plan = plan
        self._root = stage.site.root
        self._graph = Graph(plan)
        self._strace = find_strace()

    def observe(self, part: Part, *, make_parents: bool = False, as_declared: bool = False) -> tuple[Observation, Told]:
        """Raises EnvironmentFault where a step cannot be observed, Interrupted.

        With `as_declared`, and where the kernel cannot show the workspace, the step sees what it declares and no more:
        what it then looks for in vain and stands in the workspace is told all the same. With `make_parents` a
        directory that it wanted to write into and that is not there is made, as those of declared outputs are.
        """
        declared = self._declared(part)
        job = self._stage.job(part)
        base = job if as_declared else self._with_backdrop(job, part.instance)
        hidden = list(base.hidden)
        first: tuple[Observation, Told] | None = None
        runs = 0
        while True:
            try:
                told = self._run(part, replace(base, hidden=tuple(hidden)))
            except EnvironmentFault as fault:
                if base is job or "show_backdrop" not in dict(fault.facts).get("operation", ""):
                    raise
                base = job  # A kernel without overlays for everyone, before 5.11.
                continue
            runs += 1
            seen = self._judge(part, told, declared, set(hidden))
            seen.runs = runs
            seen.view = "declared" if base is job else "workspace"
            missing = self._missing_parents(told) - set(base.directories) if make_parents and told.failure else set()
            if missing and runs < RUNS_MAX:
                base = replace(base, directories=sorted({*base.directories, *missing}))
                continue
            in_its_way = [path for path in self._overwritten(told, part) if path not in hidden]
            if base is job:
                in_its_way = []  # It met none of them.
            if first is not None and told.failure and not first[1].failure:
                seen, told = first  # It cannot do without what it changes.
                seen.runs = runs
                return seen, told
            if not in_its_way or runs >= RUNS_MAX:
                return seen, told
            seen.changed = in_its_way
            first = first or (seen, told)
            hidden += in_its_way

    # One run

    def _with_backdrop(self, job: Job, instance: Instance) -> Job:
        hidden = [path for path in (self._old(output) for output in instance.outputs) if path]
        directories, hushed, unreadable = self._survey()
        staged = {item.path for item in job.staged}
        kept = [item for item in job.staged if item.source is None or not os.path.lexists(self._full(item.path))]
        present = {*directories, *staged}
        extra = [self._readable(path) for path in unreadable if path not in staged]
        return replace(
            job,
            staged=[*kept, *(item for item in extra if item is not None)],
            directories=sorted({*job.directories, *(d for d in directories if not is_within(d, hidden))} - staged),
            backdrop=self._root,
            hidden=tuple(path for path in (*hidden, *hushed) if path not in present or path in hidden),
            fresh=True,
        )

    def _old(self, output: str) -> str:
        """What an earlier build left in an output's place."""
        if is_pattern(output):
            return ""
        path = output.rstrip("/")
        return path if os.path.lexists(self._full(path)) else ""

    def _full(self, path: str) -> str:
        return os.path.join(self._root, path)

    def _survey(self) -> tuple[list[str], list[str], list[str]]:
        """Directories to be made beforehand (things may be written there), what is hushed up, what only root reads.

        The step's user owns nothing of the workspace where root observes.
        """
        directories: list[str] = []
        hushed: list[str] = []
        unreadable: list[str] = []
        pending = [""]
        for place in pending:
            try:
                with os.scandir(self._full(place)) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                path = f"{place}/{entry.name}" if place else entry.name
                if is_never(entry.name) and entry.name not in SHOWN:
                    hushed.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    directories.append(path)
                    if entry.name not in SHOWN and len(pending) < DIRECTORIES_MAX:
                        pending.append(path)
                elif os.geteuid() == 0 and entry.is_file(follow_symlinks=False):
                    seen = entry.stat(follow_symlinks=False)
                    if not seen.st_mode & stat.S_IROTH and seen.st_size <= _READ_FOR_MAX:
                        unreadable.append(path)
        return directories, hushed, unreadable

    def _readable(self, path: str) -> Staged | None:
        try:
            with open(self._full(path), "rb") as file:
                return Staged(path, data=file.read(_READ_FOR_MAX + 1), executable=os.access(self._full(path), os.X_OK))
        except OSError:
            return None

    def _run(self, part: Part, job: Job) -> Told:
        trace = os.path.join(self._stage.scratch, "trace")
        os.close(os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))  # It tells what a command was given.
        masker = self._stage.masker(part)
        ended, held = os.pipe()  # The tracer holds the other end until it has written everything.
        os.set_inheritable(held, True)
        try:
            sandbox = self._stage.boot(part.request, self._root, before=traced(self._strace, trace))
            os.close(held)
            held = -1
            try:
                self._raise_if_interrupted()
                finished = masked(sandbox.run(confide(job, masker)), masker, job.max_output_bytes)
                try:
                    made, directories = _left(finished.workspace_fd)
                    depfiles = _read_depfiles(finished.workspace_fd, made)
                finally:
                    finished.close()
            finally:
                sandbox.close()
            os.read(ended, 1)
        finally:
            os.close(ended)
            if held >= 0:
                os.close(held)
        self._raise_if_interrupted()
        with open(trace, "rb") as file:
            accesses = parse(file)
        if not accesses and finished.termination != "not_found":
            raise EnvironmentFault(
                "strace saw nothing of the step",
                facts=[("strace", self._strace)],
                hint="strace 5.9 or later is needed, and the right to trace own processes",
            )
        staged = {item.path for item in job.staged}
        told = Told(
            accesses,
            [path for path in made if path not in staged],
            [path for path in directories if not os.path.lexists(self._full(path)) and path not in job.directories],
            finished.exit_code,
            describe(finished, part.instance.limits),
            finished.stdout,
            finished.stderr,
            depfiles,
        )
        return told if masker is None else _without_secrets(told, masker)

    def _raise_if_interrupted(self) -> None:
        if self._stage.signal is not None:
            raise Interrupted(self._stage.signal)

    # What it means

    def _overwritten(self, told: Told, part: Part) -> list[str]:
        """Files of the workspace, not among the inputs, that the step wrote to, replaced or removed, or tried to."""
        staged = set(part.request.inputs)
        found: dict[str, None] = {}
        for access in told.accesses:
            path = _inside(access.path)
            if access.wanted == WROTE and path and access.error not in ("ENOENT", "EEXIST", "ENOTDIR"):
                full = self._full(path)
                if path not in staged and os.path.lexists(full) and not os.path.isdir(full):
                    found[path] = None
        return [*found]

    def _missing_parents(self, told: Told) -> set[str]:
        """Directories of the workspace that are not there and in which it wanted to write."""
        parents = {
            posixpath.dirname(_inside(a.path)) for a in told.accesses if a.wanted == WROTE and a.error == "ENOENT"
        }
        return {path for path in parents if path and _is_text(path) and not os.path.lexists(self._full(path))}

    def _declared(self, part: Part) -> Declared:
        outputs = (*part.instance.outputs, *([escape(part.instance.depfile)] if part.instance.depfile else []))
        return Declared(
            {*part.request.inputs, *([part.instance.stdin.path] if part.instance.stdin else [])},
            set(part.offered),
            _covering(outputs),
            list(part.request.roots),
        )

    def _judge(self, part: Part, told: Told, declared: Declared, hidden: set[str]) -> Observation:
        def stands(path: str) -> str | None:
            if path in hidden:
                return None
            return _kind(path if path.startswith("/") else self._full(path))

        seen = judge(part.instance.name, told.accesses, declared, stands, Links(self._root).resolve)
        if part.instance.stdin is not None:
            seen.used.add(part.instance.stdin.path)
            seen.unused = [path for path in seen.unused if path != part.instance.stdin.path]
        seen.exit_code, seen.failure = told.exit_code, told.failure
        if told.failure:
            seen.unused = []  # Nobody knows what it would have read.
        seen.made = [path for path in told.made if not declared.outputs(path)]
        seen.undeclared = [
            each for each in seen.undeclared if not never_in(each.path, SHOWN | _VERSIONS)
        ]  # Caches are no loss.
        for touched in seen.undeclared:
            touched.made_by = self._graph.maker(touched.path, ".") if _is_text(touched.path) else None
            touched.line = self._line(part.instance, touched)
        for touched in seen.outside:
            touched.line = root_line(posixpath.dirname(touched.path))
        self._name_packages(part.request, seen)
        return seen

    def _name_packages(self, request: Request, seen: Observation) -> None:
        """Whose it is what the step did not see of the system, in the order in which it looked for it."""
        distribution = self._stage.site.distribution
        view = distribution.known(request.roots[SYSTEM_ROOT]) if request.policy.system == "packages" else None
        if view is None:
            return
        shown = {package.id for package in view.packages}
        owners = distribution.owners(list(seen.system_absent))
        lacking: dict[str, Lacking] = {}
        for path in seen.system_absent:
            if path not in owners:
                ways = [line.partition(": ")[2] for line in unpackaged(path, distribution)]
                seen.outside += [Touched(path, {LOOKED}, hidden=True, line=way) for way in ways]
            elif owners[path] not in shown:
                lacking.setdefault(owners[path], Lacking(path, owners[path]))
        seen.packages = list(lacking.values())

    def _line(self, instance: Instance, touched: Touched) -> str:
        for root in touched.path.split("/"):
            if root in SHOWN:
                top = touched.path[: touched.path.index(root) + len(root)]
                return root_line(top)
            if root in _VERSIONS:
                return "no step sees version control: pass what it needs as a variable or a file"
        return inputs_line(touched.path, instance.step)


class Links:
    """Where paths of a workspace lead. What was looked at once is not looked at again, however deep paths are."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._straight: set[str] = set()
        """Paths that are no link, and behind none."""

    def resolve(self, path: str) -> Sequence[str]:
        """The links of the workspace on the way of a path, and where they lead."""
        found: list[str] = []
        at = path
        for _ in range(40):
            link = self._first(at)
            if link is None:
                return [*found, at] if at and not at.startswith("..") else found
            found.append(link)
            target = os.readlink(os.path.join(self._root, link))
            if target.startswith("/"):
                return found
            at = posixpath.normpath(posixpath.join(posixpath.dirname(link), target) + at[len(link) :])
            if at.startswith(".."):
                return found
        return found

    def _first(self, path: str) -> str | None:
        """The first link on the way."""
        unknown: list[str] = []
        while path and path not in self._straight:
            unknown.append(path)
            path = path.rpartition("/")[0]
        for each in reversed(unknown):
            if os.path.islink(os.path.join(self._root, each)):
                return each
            self._straight.add(each)
        return None


def _is_text(path: str) -> bool:
    return path.isprintable() or "\n" in path


def _inside(path: str) -> str:
    plain = posixpath.normpath(path)
    return plain[len(WORKSPACE) + 1 :] if plain.startswith(WORKSPACE + "/") else ""


def _ways(path: str) -> Iterator[str]:
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        yield "/".join(parts[:depth])


def _kind(full: str) -> str | None:
    try:
        return kind_by_mode(os.lstat(full).st_mode)
    except (OSError, ValueError):
        return None


def _covering(outputs: Sequence[str]) -> Callable[[str], bool]:
    patterns = [compile_pattern(path) for path in outputs if not path.endswith("/")]
    trees = [compile_pattern(path.rstrip("/")) for path in outputs if path.endswith("/")]

    def covers(path: str) -> bool:
        return any(means(path) for means in patterns) or any(
            means(above) for means in trees for above in (*_ways(path),)
        )

    return covers


def _without_secrets(told: Told, masker: Masker) -> Told:
    """A file may be named by a secret, and a command too."""
    return replace(
        told,
        accesses=[replace(access, path=masker.mask_text(access.path)) for access in told.accesses],
        made=[masker.mask_text(path) for path in told.made],
        directories=[masker.mask_text(path) for path in told.directories],
        failure=masker.mask_text(told.failure),
        depfiles={masker.mask_text(path): masker.mask(content) for path, content in told.depfiles.items()},
    )


def _read_depfiles(workspace: int, made: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for path in made:
        if path.endswith(".d"):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=workspace)
            with os.fdopen(descriptor, "rb") as file:
                found[path] = file.read(_READ_FOR_MAX)
    return found


def _left(workspace: int) -> tuple[list[str], list[str]]:
    """Files and links below the upper layer, and directories; the marks of what was hidden or removed are devices."""
    files: list[str] = []
    found: list[str] = []
    for folder, _, entries in walk(workspace):
        for name, seen in entries.items():
            path = f"{folder}/{name}" if folder else name
            if stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode):
                files.append(path)
            elif stat.S_ISDIR(seen.st_mode):
                found.append(path)
    return sorted(files), sorted(found)
