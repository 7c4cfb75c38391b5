"""What is more than a name inside `{{ }}`: an expression of Jinja2, in a sandbox with a limit on every size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import GeneratorType
from typing import Any

from .fields import dataclass
from .paths import quoted
from .values import ATTRIBUTES, ITEMS_MAX, METHODS, TEXT_MAX, BadTemplate, Named, Raw, Value, as_text, limited

NODES_MAX = 200
INTEGER_MAX = 2**63 - 1

FILTERS = frozenset(
    {
        "default",
        "first",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "reject",
        "replace",
        "reverse",
        "select",
        "sort",
        "trim",
        "unique",
        "upper",
    }
)
TESTS = frozenset(
    {"defined", "eq", "equalto", "even", "false", "in", "ne", "none", "number", "odd", "string", "true", "undefined"}
)
TEXT_METHODS = frozenset(
    {
        "capitalize",
        "endswith",
        "lower",
        "lstrip",
        "removeprefix",
        "removesuffix",
        "replace",
        "rstrip",
        "split",
        "startswith",
        "strip",
        "title",
        "upper",
    }
)


@dataclass(frozen=True, slots=True)
class Compiled:
    text: str
    roots: frozenset[str]
    call: Any

    def value(self, variables: Mapping[str, Any]) -> Any:
        from jinja2 import Undefined
        from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

        try:
            found = self.call(variables)
            if isinstance(found, Undefined):
                str(found)  # Says what is undefined.
            return _checked(found)
        except BadTemplate:
            raise
        except UndefinedError as error:
            raise BadTemplate(_plain(error), hint=_nearest(self.roots, variables)) from error
        except SecurityError as error:
            raise BadTemplate(_plain(error), hint="expressions see values and a few methods only") from error
        except (
            TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
            MemoryError,
        ) as error:
            raise BadTemplate(f"{{{{ {self.text} }}}}: {_plain(error)}") from error
        except AttributeError as error:
            raise BadTemplate(f"{{{{ {self.text} }}}}: {_plain(error)}") from error


@lru_cache(maxsize=16384)
def compile_expression(text: str) -> Compiled:
    """Raises BadTemplate for what is no expression."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.parser import Parser

    environment = _environment()
    try:
        parser = Parser(environment, text, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise BadTemplate(f"{{{{ {_short(text)} }}}} is more than one expression")
        roots = set()
        pending: list[nodes.Node] = [tree]
        for count, node in enumerate(pending):
            if count > NODES_MAX:
                raise BadTemplate("an expression has too many parts", hint="put some into [vars]")
            if isinstance(node, nodes.Name):
                roots.add(node.name)
            pending.extend(node.iter_child_nodes())
        if "self" in roots:  # Jinja2's own name for the template.
            raise BadTemplate('"self" is undefined')
        return Compiled(text, frozenset(roots), environment.compile_expression(text, undefined_to_none=False))
    except TemplateError as error:
        raise BadTemplate(f"{{{{ {_short(text)} }}}} is no expression: {_plain(error)}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        if isinstance(error, BadTemplate):
            raise
        raise BadTemplate(f"{{{{ {_short(text)} }}}} is no expression") from error


def _short(text: str) -> str:
    return quoted(text)[1:].removesuffix('"')


def _plain(error: Exception) -> str:
    text = re.sub(r" \(?at line \d+\)?$", "", str(error) or type(error).__name__)
    return quoted(text.replace("'", '"').partition("\n")[0], 300)[1:].removesuffix('"')


def _nearest(roots: Iterable[str], variables: Mapping[str, Any]) -> str | None:
    from .documents import nearest

    for name in sorted(roots):
        if name not in variables:
            return nearest(name, sorted(variables))
    return None


def _checked(value: Any) -> Any:
    """A value of limited size, and of a kind that the manifest has."""
    if isinstance(value, GeneratorType):
        value = limited(value)
    elif isinstance(value, range):
        value = limited(iter(value))
    if isinstance(value, str):
        if len(value) > TEXT_MAX:
            raise BadTemplate(f"a text longer than {TEXT_MAX:,} characters")
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise BadTemplate("a number beyond 64 bits")
    elif isinstance(value, list | tuple | dict) and len(value) > ITEMS_MAX:
        raise BadTemplate(f"more than {ITEMS_MAX:,} items")
    return value


def _join(values: Iterable[Any], separator: str = "") -> str:
    texts = [str(value) for value in limited(iter(values))]
    if sum(map(len, texts)) + len(texts) * len(separator) > TEXT_MAX:
        raise BadTemplate(f"a text longer than {TEXT_MAX:,} characters")
    return separator.join(texts)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    times = text.count(old)
    if len(text) + times * max(0, len(new) - len(old)) > TEXT_MAX:
        raise BadTemplate(f"a text longer than {TEXT_MAX:,} characters")
    return str(text).replace(old, new, count)


def _raw(value: Any) -> Any:
    if isinstance(value, list | tuple | GeneratorType):
        return [_raw(item) for item in value]
    return Raw(as_text(value, "raw"))


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Arithmetic is limited, and so is what a value answers to."""

        intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or (operator == "%" and isinstance(left, str)):
                raise BadTemplate(f"the operator {operator} is not part of expressions")
            if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
                times = left if isinstance(left, int) else right if isinstance(right, int) else 0
                size = len(right if isinstance(left, int) else left)
                if times > 0 and size * times > ITEMS_MAX:
                    raise BadTemplate(f"a repetition longer than {ITEMS_MAX:,}")
            return _checked(super().call_binop(context, operator, left, right))

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, Value) and attr in ATTRIBUTES | METHODS:
                return True
            return isinstance(obj, str) and attr in TEXT_METHODS

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, dict):
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
            if isinstance(obj, Named) and attribute in obj.names:
                return obj.names[attribute]
            if isinstance(obj, str) and not self.is_safe_attribute(obj, attribute, None):
                return self.unsafe_undefined(obj, attribute)
            return super().getattr(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(argument, str) and isinstance(obj, Named | str):
                return self.getattr(obj, argument)
            return super().getitem(obj, argument)

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            kind = "a text" if isinstance(obj, str) else "a list" if isinstance(obj, list | tuple) else "this value"
            return self.undefined(f"{kind} has no attribute {quoted(attribute)} here", exc=SecurityError)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, str) and getattr(__obj, "__name__", "") == "replace":
                return _replace(owner, *args, **kwargs)
            return _checked(super().call(__context, __obj, *args, **kwargs))

    environment = Sandbox(undefined=StrictUndefined, autoescape=False, cache_size=0)
    environment.globals = {"range": environment.globals["range"]}
    environment.filters = {name: environment.filters[name] for name in FILTERS}
    environment.filters |= {"join": _join, "replace": _replace, "raw": _raw}
    environment.tests = {name: test for name, test in environment.tests.items() if name in TESTS}
    return environment
