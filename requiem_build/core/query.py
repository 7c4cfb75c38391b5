"""A question about a plan: `deps(app) - compile`, `inputs(test) & outputs(gen)`. Text and Plan in, a set out.

    expression := union of terms: term (("+" | "-" | nothing) term)*
    term       := factor ("&" factor)*
    factor     := "(" expression ")" | FUNCTION "(" arguments ")" | a name, a path or a pattern

An operator stands alone between spaces or brackets, so that `a-b` stays a name. Every part is linear in the
plan's steps and edges.
"""

from __future__ import annotations

import fnmatch
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from . import paths
from .documents import nearest
from .errors import UnknownName, UsageError
from .fields import dataclass, field
from .instance import Instance, Plan
from .paths import BadPath, quoted
from .patterns import compile_pattern, is_pattern, unescape

FUNCTIONS = {"deps": 1, "rdeps": 1, "path": 2, "inputs": 1, "outputs": 1, "tag": 1}
DEPTH_MAX = 64
TEXT_MAX = 100_000
_TOKEN = re.compile(
    r'\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<bracket>[()])|(?P<comma>,(?=[\s"]|$))|(?P<word>[^\s()]+))'
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Steps (instances) in plan order, or files in the order of their UTF-8 bytes: one of the two."""

    names: tuple[str, ...]
    files: bool = False


def ask(plan: Plan, text: str, cwd: str = paths.ROOT) -> Answer:
    """Raises UsageError for a malformed expression and UnknownName for a name that is nowhere, with the position."""
    if len(text) > TEXT_MAX:
        raise UsageError(f"an expression has at most {TEXT_MAX} characters")
    found = _Reader(text, _Evaluator(Graph(plan), cwd)).whole()
    if found.files:
        return Answer(tuple(sorted(found.members, key=lambda path: path.encode("utf-8"))), files=True)
    return Answer(tuple(name for name in plan.instances if name in found.members))


@dataclass(slots=True)
class _Set:
    members: frozenset[str]
    files: bool
    empty_name: bool = False


class Graph:
    """A plan with the look-ups that questions need, each made once and only if it is used."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def of_step(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, instance in self.plan.instances.items():
            found.setdefault(instance.step, []).append(name)
        return found

    @cached_property
    def dependents(self) -> Mapping[str, list[str]]:
        return self.plan.dependents()

    @cached_property
    def readers(self) -> Mapping[str, list[str]]:
        """Source -> who reads it."""
        found: dict[str, list[str]] = {}
        for name, instance in self.plan.instances.items():
            for item in (*instance.inputs, *([instance.stdin] if instance.stdin else ())):
                if item.producer is None:
                    found.setdefault(item.path, []).append(name)
        return found

    @cached_property
    def directories(self) -> frozenset[str]:
        """Outputs and inputs that are whole directories."""
        outputs = (path for path in self.plan.declared if path.endswith("/"))
        return frozenset((*outputs, *(path for path in self.readers if path.endswith("/"))))

    def resolve(self, text: str, cwd: str) -> list[str] | None:
        """An exact name, a step, an output path from `cwd`, a pattern over names: the instances of the first found."""
        if text in self.plan.instances:
            return [text]
        if text in self.of_step:
            return self.of_step[text]
        maker = self.maker(text, cwd)
        if maker is not None:
            return [maker] if maker in self.plan.instances else []
        if re.search(r"[*?\[]", text):
            match = re.compile(fnmatch.translate(text)).match
            names = [name for name, i in self.plan.instances.items() if match(name) or match(i.step)]
            return names or None
        return None

    def running(self, text: str, cwd: str) -> list[Instance]:
        """The instances with a command that a name means; of a group, its members'. Raises UnknownName."""
        found = self.resolve(text, cwd)
        if not found:
            known = (*self.of_step, *self.plan.instances)
            raise UnknownName(f"no step, output or name matches {quoted(text)}", hint=nearest(text, known))
        running: dict[str, Instance] = {}
        pending = list(found)
        for name in pending:  # Grows while it is walked: groups of groups.
            instance = self.plan.instances[name]
            if instance.is_group:
                pending.extend(need for need in instance.needs if need not in pending)
            else:
                running[name] = instance
        if not running:
            raise UnknownName(f"{quoted(text)} is a group without steps")
        return list(running.values())

    def maker(self, text: str, cwd: str) -> str | None:
        """The instance that declares a path, or a directory above it, or a pattern that means it."""
        path = self.path(text, cwd)
        if path is None:
            return None
        declared = self.plan.declared
        plain = path.removesuffix("/")
        for candidate in (path, plain, plain + "/", *(above + "/" for above in paths.ancestors(path))):
            if candidate in declared:
                return declared[candidate]
        for pattern, name in self._output_patterns:
            if compile_pattern(pattern)(path):
                return name
        return None

    @cached_property
    def _output_patterns(self) -> list[tuple[str, str]]:
        return [(path, name) for path, name in self.plan.declared.items() if is_pattern(path)]

    def path(self, text: str, cwd: str) -> str | None:
        try:
            return unescape(paths.resolve(text, cwd))
        except BadPath:
            return None

    def source(self, text: str, cwd: str) -> str | None:
        """The input path that a text means, a directory input for what lies in it."""
        path = self.path(text, cwd)
        if path is None:
            return None
        plain = path.removesuffix("/")
        for candidate in (path, plain, plain + "/", *(above + "/" for above in paths.ancestors(path))):
            if candidate in self.readers:
                return candidate
        return None

    def waits_for(self, name: str) -> Iterable[str]:
        instance = self.plan.instances[name]
        return (*instance.needs, *instance.after)

    def closure(self, start: Iterable[str], edges: Mapping[str, Sequence[str]] | None = None) -> set[str]:
        """Everything reachable, the start included: against the arrows, or along `edges`."""
        found = set(start)
        pending = list(found)
        for name in pending:  # Grows while it is walked: chains may be long.
            for other in edges[name] if edges is not None else self.waits_for(name):
                if other not in found:
                    found.add(other)
                    pending.append(other)
        return found


@dataclass(slots=True)
class _Evaluator:
    graph: Graph
    cwd: str

    def name(self, text: str) -> _Set | None:
        found = self.graph.resolve(text, self.cwd)
        if found is not None:
            return _Set(frozenset(found), False)
        source = self.graph.source(text, self.cwd)
        return None if source is None else _Set(frozenset((source,)), True)

    def nearest(self, text: str) -> str | None:
        graph = self.graph
        known = [*graph.of_step, *(name for name in graph.plan.instances if name not in graph.of_step)]
        return nearest(text, known[:20_000]) or nearest(
            text, [*list(graph.plan.declared)[:2000], *list(graph.readers)[:2000]]
        )

    def apply(self, function: str, sets: Sequence[_Set]) -> _Set:
        graph = self.graph
        match function:
            case "deps":
                return _Set(frozenset(graph.closure(self._makers(sets[0]))), False)
            case "rdeps":
                return _Set(frozenset(graph.closure(self._users(sets[0]), graph.dependents)), False)
            case "path":
                return _Set(frozenset(self._chain(*(self._users(each) for each in sets))), False)
            case "inputs":
                return _Set(frozenset(path for i in self._instances(sets[0]) for path in _inputs(i)), True)
            case _:
                return _Set(frozenset(unescape(p) for i in self._instances(sets[0]) for p in i.outputs), True)

    def _instances(self, given: _Set) -> list[Instance]:
        names = self._makers(given) if given.files else given.members
        return [self.graph.plan.instances[name] for name in names]

    def _makers(self, given: _Set) -> set[str]:
        """Steps as they are; of files who makes them."""
        if not given.files:
            return set(given.members)
        makers = {self.graph.maker(path, paths.ROOT) for path in given.members}
        return {name for name in makers if name is not None and name in self.graph.plan.instances}

    def _users(self, given: _Set) -> set[str]:
        """Steps as they are; of files who makes and who reads them."""
        if not given.files:
            return set(given.members)
        return self._makers(given) | {name for path in given.members for name in self.graph.readers.get(path, ())}

    def _chain(self, first: set[str], second: set[str]) -> Sequence[str]:
        """A shortest chain of needs between the two, whichever needs the other."""
        return self._shortest(first, second) or self._shortest(second, first)

    def _shortest(self, start: set[str], goal: set[str]) -> Sequence[str]:
        rank = [name for name in self.graph.plan.instances if name in start]
        came: dict[str, str | None] = dict.fromkeys(rank)
        queue = deque(rank)
        while queue:
            name = queue.popleft()
            if name in goal:
                chain: list[str] = []
                at: str | None = name
                while at is not None:
                    chain.append(at)
                    at = came[at]
                return chain
            for other in self.graph.waits_for(name):
                if other not in came:
                    came[other] = name
                    queue.append(other)
        return ()

    def tag(self, text: str) -> _Set | None:
        found = frozenset(name for name, i in self.graph.plan.instances.items() if text in i.tags)
        return _Set(found, False) if found else None

    def tags(self) -> list[str]:
        return sorted({tag for i in self.graph.plan.instances.values() for tag in i.tags})


def _inputs(instance: Instance) -> list[str]:
    items = [*instance.inputs, *([instance.stdin] if instance.stdin else [])]
    return [item.path for item in items]


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


@dataclass(slots=True)
class _Reader:
    """Reads and evaluates at once; brackets nest at most DEPTH_MAX deep."""

    text: str
    evaluator: _Evaluator
    _tokens: list[_Token] = field(default_factory=list)
    _next: int = 0
    _depth: int = 0

    def whole(self) -> _Set:
        self._tokens = list(_tokens(self.text))
        if not self._tokens:
            raise self._error("an empty expression", len(self.text))
        found = self._expression()
        if self._peek() is not None:
            token = self._peek()
            assert token is not None
            raise self._error(
                f'"{token.text}" closes nothing' if token.text == ")" else f'"{token.text}" is not expected here',
                token.at,
            )
        return found

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _is(self, *texts: str) -> bool:
        token = self._peek()
        return token is not None and token.kind != "quoted" and token.text in texts

    def _expression(self) -> _Set:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(f"brackets nest deeper than {DEPTH_MAX}", self._tokens[self._next].at)
        found = self._term()
        while self._peek() is not None and not self._is(")", ","):
            operator = "+"
            at = self._tokens[self._next].at
            if self._is("+", "-"):
                operator = self._tokens[self._next].text
                self._next += 1
            found = self._combine(operator, found, self._term(), at)
        self._depth -= 1
        return found

    def _term(self) -> _Set:
        found = self._factor()
        while self._is("&"):
            at = self._tokens[self._next].at
            self._next += 1
            found = self._combine("&", found, self._factor(), at)
        return found

    def _combine(self, operator: str, left: _Set, right: _Set, at: int) -> _Set:
        if left.files != right.files:
            sides = ("files", "steps") if left.files else ("steps", "files")
            raise self._error(
                f"{sides[0]} and {sides[1]} do not mix",
                at,
                hint="inputs(x) and outputs(x) are files; all else is steps",
            )
        match operator:
            case "+":
                return _Set(left.members | right.members, left.files)
            case "-":
                return _Set(left.members - right.members, left.files)
        return _Set(left.members & right.members, left.files)

    def _factor(self) -> _Set:
        token = self._peek()
        if token is None:
            raise self._error("the expression ends where a name is expected", len(self.text))
        self._next += 1
        if token.kind == "quoted":
            return self._name(re.sub(r"\\(.)", r"\1", token.text[1:-1]), token.at)
        if token.text == "(":
            found = self._expression()
            self._close(token)
            return found
        if token.kind in ("bracket", "comma") or token.text in ("+", "-", "&"):
            raise self._error(f'"{token.text}" where a name is expected', token.at)
        following = self._peek()
        if following is not None and following.text == "(" and following.at == token.at + len(token.text):
            return self._call(token, following)
        return self._name(token.text, token.at)

    def _call(self, token: _Token, bracket: _Token) -> _Set:
        count = FUNCTIONS.get(token.text)
        if count is None:
            near = nearest(token.text, list(FUNCTIONS))
            raise self._error(
                f'no function "{token.text}"', token.at, hint=near or f"known: {', '.join(FUNCTIONS)}", unknown=True
            )
        self._next += 1
        if token.text == "tag":
            return self._tag(bracket)
        sets = []
        if count == 2:
            self._split_comma()
        while self._peek() is not None and not self._is(")"):
            sets.append(self._expression())
            if self._is(","):
                self._next += 1
        self._close(bracket)
        if len(sets) != count:
            wanted = "one argument" if count == 1 else "two arguments: path(a, b)"
            raise self._error(f"{token.text} takes {wanted}, not {len(sets)}", token.at)
        return self.evaluator.apply(token.text, sets)

    def _split_comma(self) -> None:
        """Within `path(a,b)` a comma parts even without a space, unless the whole word is a name."""
        token = self._peek()
        if token is None or token.kind != "word" or "," not in token.text or self.evaluator.name(token.text):
            return
        pieces: list[_Token] = []
        at = token.at
        for piece in re.split("(,)", token.text):
            if piece:
                pieces.append(_Token("comma" if piece == "," else "word", piece, at))
            at += len(piece)
        self._tokens[self._next : self._next + 1] = pieces

    def _tag(self, bracket: _Token) -> _Set:
        token = self._peek()
        if token is None or token.kind not in ("word", "quoted"):
            raise self._error("tag takes the name of a tag", bracket.at)
        self._next += 1
        self._close(bracket)
        text = token.text.strip('"')
        found = self.evaluator.tag(text)
        if found is None:
            raise self._error(
                f'no step has the tag "{text}"', token.at, hint=nearest(text, self.evaluator.tags()), unknown=True
            )
        return found

    def _close(self, opened: _Token) -> None:
        if not self._is(")"):
            raise self._error("this bracket is never closed", opened.at)
        self._next += 1

    def _name(self, text: str, at: int) -> _Set:
        found = self.evaluator.name(text)
        if found is None:
            raise self._error(
                f'no step, output, source or pattern "{text}"', at, hint=self.evaluator.nearest(text), unknown=True
            )
        return found

    def _error(self, what: str, at: int, *, hint: str | None = None, unknown: bool = False) -> UsageError:
        kind = UnknownName if unknown else UsageError
        start = max(0, at - 60)
        shown = self.text[start : at + 40].replace("\n", " ")
        return kind(what, facts=[("at", f"column {at + 1}\n{shown}\n{' ' * (at - start)}^")], hint=hint)


def _tokens(text: str) -> Iterable[_Token]:
    at = 0
    while match := _TOKEN.match(text, at):
        kind = match.lastgroup
        assert kind is not None
        word = match.group(kind)
        at = match.end()
        if kind == "word" and word.endswith(",") and len(word) > 1:  # `path(a, b)`: the comma is no part of the name.
            yield _Token("word", word[:-1], match.start(kind))
            yield _Token("comma", ",", at - 1)
        else:
            yield _Token(kind, word, match.start(kind))
