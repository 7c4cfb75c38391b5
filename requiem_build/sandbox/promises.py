"""What the level `process` promises on which system, and what it cannot: for records, `doctor` and refusals.

Data and words only; it imports nothing of any system, so that it can be asked everywhere.
"""

from __future__ import annotations

from ..core.errors import SandboxUnavailable

NOT_ON_POSIX = (
    "files outside the inputs are hidden",
    "files of the host are read-only",
    "a limit of what is written to /tmp by name",
    "network is closed",
    "pid, uid and host name are constant",
)
NOT_ON_WINDOWS = (
    "files outside the inputs are hidden",
    "files of the host are read-only",
    "limits of open_files, file_size and tmp",
    "network is closed",
    "pid, user and host name are constant",
    "a step is asked to end before it is killed",
    "the registry is the same each time",
)
_NAMES = {"darwin": "macOS", "win32": "Windows"}


def system_name(platform: str) -> str:
    return _NAMES.get(platform, platform)


def no_strict(platform: str) -> SandboxUnavailable:
    """Why `strict` cannot be had on a system that is not Linux, and the way out."""
    return SandboxUnavailable(
        f"the level strict cannot be had on {system_name(platform)}",
        facts=[
            ("reason", "it rests on namespaces, Landlock and seccomp, which only Linux has"),
            ("process cannot promise", "; ".join(NOT_ON_WINDOWS if platform == "win32" else NOT_ON_POSIX)),
        ],
        hint="run with --sandbox process, which promises less, or build in a Linux virtual machine",
    )
