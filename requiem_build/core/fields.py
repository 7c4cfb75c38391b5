"""Classes of named values: the standard library's `dataclass`, but each class costs its import next to nothing.

Creating one takes the library about a millisecond, and a build creates nearly a hundred, most of which it never
uses. So here a class gets its `__init__` when its first instance is made, and shares all else. What is not offered
here (`order`, `kw_only`) is left to the library. Type checkers see the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace

    __all__ = ["dataclass", "field", "replace"]
else:

    def dataclass(cls: type | None = None, **options: bool) -> Any:
        """As `dataclasses.dataclass`."""
        if options.keys() - {"frozen", "slots", "eq"}:
            return lambda made: _by_the_library(made, options)
        return (lambda made: _process(made, **options)) if cls is None else _process(cls, **options)

    def field(*, default: Any = None, default_factory: Callable[[], Any] | None = None, init: bool = True) -> Any:
        """A default that each instance makes anew; without `init`, one that no caller can give."""
        return _Made(default_factory or (lambda: default), init)

    def replace(value: Any, /, **changes: Any) -> Any:
        """A copy with some fields changed."""
        for name in value.__match_args__:
            if name not in changes:
                changes[name] = getattr(value, name)
        return value.__class__(**changes)


def _by_the_library(cls: Any, options: Mapping[str, bool]) -> Any:
    import dataclasses

    for name, default in list(cls.__dict__.items()):
        if isinstance(default, _Made):
            setattr(cls, name, dataclasses.field(default_factory=default.make, init=default.init))
    return dataclasses.dataclass(cls, **options)


_NONE: Any = object()
_OWN = "__requiem_fields__"


class _Made:
    """A default that is made anew for each instance."""

    __slots__ = ("init", "make")

    def __init__(self, make: Callable[[], Any], init: bool) -> None:
        self.make = make
        self.init = init


class _LibraryFields:
    """`__dataclass_fields__`, for `dataclasses.fields` and its like: made by the library itself, if anybody asks."""

    def __get__(self, instance: object, owner: type) -> Mapping[str, Any]:
        import dataclasses

        def spec(name: str, default: Any) -> tuple[str, Any, Any]:
            if default is _NONE:
                return name, Any, dataclasses.field()
            if isinstance(default, _Made):
                return name, Any, dataclasses.field(default_factory=default.make, init=default.init)
            return name, Any, dataclasses.field(default=default)

        known: dict[str, Any] = getattr(owner, _OWN)
        twin: Any = dataclasses.make_dataclass("Twin", [spec(*item) for item in known.items()], unsafe_hash=True)
        return dict(twin.__dataclass_fields__)


def _process(cls: Any, *, frozen: bool = False, slots: bool = False, eq: bool = True) -> Any:
    known: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        known.update(base.__dict__.get(_OWN, {}))
    for name, kind in cls.__annotations__.items():
        if not str(kind).startswith("ClassVar"):
            known[name] = cls.__dict__.get(name, _NONE)
    names = tuple(known)
    added = {name: method for name, method in _methods(names, frozen=frozen, eq=eq).items() if name not in cls.__dict__}
    given = tuple(name for name, default in known.items() if not isinstance(default, _Made) or default.init)
    added |= {_OWN: known, "__match_args__": given, "__dataclass_fields__": _LibraryFields()}
    made = _with_slots(cls, names, added) if slots else cls
    if not slots:
        for name, value in added.items():
            setattr(made, name, value)
        for name, default in known.items():
            if isinstance(default, _Made) and name in cls.__dict__:
                delattr(made, name)
    if "__init__" not in cls.__dict__:
        made.__init__ = _first_init(made, known, frozen=frozen)
    return made


def _with_slots(cls: Any, names: tuple[str, ...], added: Mapping[str, Any]) -> Any:
    """Slots cannot be given to a class that is there already: the same class once more."""
    body = {**cls.__dict__, **added}
    for name in (*names, "__dict__", "__weakref__"):
        body.pop(name, None)
    inherited = {name for base in cls.__mro__[1:] for name in base.__dict__.get("__slots__", ())}
    body["__slots__"] = tuple(name for name in names if name not in inherited)
    made = type(cls)(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    return made


def _methods(names: tuple[str, ...], *, frozen: bool, eq: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"__repr__": _repr}
    if eq:
        values: Callable[[Any], Any] = attrgetter(*names) if names else lambda _: ()

        def __eq__(self: Any, other: Any) -> Any:
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        def __hash__(self: Any) -> int:
            return hash(values(self))

        found |= {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}
    if frozen:
        found |= {"__setattr__": _refuse, "__delattr__": _refuse, "__getstate__": _state, "__setstate__": _set_state}
    return found


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in getattr(self, _OWN))
    return f"{self.__class__.__qualname__}({shown})"


def _refuse(self: Any, name: str, value: object = None) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot change the field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, name) for name in getattr(self, _OWN)]


def _set_state(self: Any, state: list[Any]) -> None:
    for name, value in zip(getattr(self, _OWN), state, strict=True):
        object.__setattr__(self, name, value)


def _first_init(cls: Any, known: Mapping[str, Any], *, frozen: bool) -> Any:
    """An `__init__` that puts the real one in its place when it is first called."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        real = cls.__init__ = _compile(cls, known, frozen=frozen)
        real(self, *args, **kwargs)

    return __init__


def _compile(cls: Any, known: Mapping[str, Any], *, frozen: bool) -> Any:
    """Names of fields are identifiers: Python has parsed them as annotations."""
    names: dict[str, Any] = {"_MADE": _NONE, "_set": object.__setattr__}
    parameters, lines = [], []
    for name, default in known.items():
        value = name
        if default is _NONE:
            parameters.append(name)
        elif isinstance(default, _Made):
            names[f"_make_{name}"] = default.make
            value = f"_make_{name}()"
            if default.init:
                parameters.append(f"{name}=_MADE")
                value += f" if {name} is _MADE else {name}"
        else:
            names[f"_default_{name}"] = default
            parameters.append(f"{name}=_default_{name}")
        slot = getattr(getattr(cls, name, None), "__set__", None)
        if not frozen:
            lines.append(f"self.{name} = {value}")
        elif slot is not None:
            names[f"_set_{name}"] = slot  # A slot's own setter is quicker than a look for it by name.
            lines.append(f"_set_{name}(self, {value})")
        else:
            lines.append(f"_set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    body = "\n ".join(lines or ["pass"])
    exec(f"def __init__(self, {', '.join(parameters)}):\n {body}", names)
    made = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made
