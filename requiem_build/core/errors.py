"""Every way in which Requiem itself can be unable to go on, and whose fault that is.

A step that fails is not here: a failed step is a result.

    RequiemError
    +- UsageError           2    the user's words: command line, manifest, request
    |  +- ManifestError          a place in a manifest is wrong
    |  +- RequestError           a request, result or record is not what its schema says
    |  +- UnknownName            no such step, target, run or digest
    |  |  +- MissingObject         the store does not hold this digest
    |  +- SourceMissing          a file that a step needs is not there
    +- IntegrityError       3    bytes, digests or signatures do not agree
    |  +- CorruptObject          a stored object is not what its name says
    +- EnvironmentFault     4    this host: no space, no permission, no sandbox
    |  +- SandboxUnavailable     the asked-for protection cannot be had here
    |  +- NotBuiltYet            named in the design, not in this version
    +- Busy                 5    another process holds what we need
    +- Refused              6    a policy or quota says no
    +- RemoteFailed         7    a required remote did not answer
    +- Interrupted        130    a signal asked us to stop (128 + its number)
"""

from __future__ import annotations

from collections.abc import Iterable

Fact = tuple[str, str]


class RequiemError(Exception):
    """One line of what went wrong, aligned facts, and a hint; `exit_code` says whose fault it is."""

    exit_code = 70

    def __init__(self, what: str, *, facts: Iterable[Fact] = (), hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.facts: tuple[Fact, ...] = tuple(facts)
        self.hint = hint

    def as_json(self) -> dict[str, object]:
        """The `error` member of every `--json` answer."""
        return {
            "code": self.exit_code,
            "what": self.what,
            "facts": dict(self.facts),
            "hint": self.hint,
        }


class UsageError(RequiemError):
    exit_code = 2


class ManifestError(UsageError):
    """`facts` hold file, line, column and key; the line itself is shown under the label `line`."""


class RequestError(UsageError):
    pass


class UnknownName(UsageError):
    pass


class MissingObject(UnknownName):
    pass


class SourceMissing(UsageError):
    pass


class IntegrityError(RequiemError):
    exit_code = 3


class CorruptObject(IntegrityError):
    pass


class EnvironmentFault(RequiemError):
    exit_code = 4


class StoreRefused(EnvironmentFault):
    """This user may not write something in the store: another store would do."""


class SandboxUnavailable(EnvironmentFault):
    pass


class NotBuiltYet(EnvironmentFault):
    """`what` is the thing asked for, as the user wrote it."""

    def __init__(self, what: str, *, facts: Iterable[Fact] = (), hint: str | None = None) -> None:
        super().__init__(f"{what} is not built yet", facts=facts, hint=hint)


class Busy(RequiemError):
    exit_code = 5


class Refused(RequiemError):
    exit_code = 6


class RemoteFailed(RequiemError):
    exit_code = 7


class Interrupted(RequiemError):
    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + signal_number
