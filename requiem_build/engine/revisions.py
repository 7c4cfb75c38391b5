"""What git says of the working tree against a revision. Paths are relative to the workspace's root."""

from __future__ import annotations

import os
import subprocess

from ..core.errors import EnvironmentFault, UsageError
from .affected import Edit

TIMEOUT_S = 120


def edit_since(root: str, revision: str) -> Edit:
    """All that differs between a revision and the files as they lie here: also renamed, deleted and untracked ones.

    What git ignores it does not know. Raises UsageError for no repository or no such revision.
    """
    commit = _commit(root, revision)
    # A rename is a deletion and an addition: its content may have changed, and its name has.
    words = _git(root, "diff", "--name-status", "--no-renames", "--relative", "-z", commit, "--", ".").split("\0")[:-1]
    states = dict(zip(words[1::2], words[0::2], strict=True))
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]
    added = [path for path, state in states.items() if state == "A"]
    deleted = {path for path, state in states.items() if state == "D"}
    again = deleted & set(untracked)  # Taken out of the index, and still there.
    changed = [path for path, state in states.items() if state not in "AD"]
    prefix = _git(root, "rev-parse", "--show-prefix").rstrip("\n")

    def before(path: str) -> bytes | None:
        done = _run(root, "show", f"{commit}:{prefix}{path}")
        return done.stdout if done.returncode == 0 else None

    return Edit(
        changed=(*changed, *sorted(again)),
        added=(*added, *(path for path in untracked if path not in again)),
        deleted=tuple(sorted(deleted - again)),
        before=before,
    )


def _commit(root: str, revision: str) -> str:
    done = _run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode == 0:
        return done.stdout.decode().strip()
    if _run(root, "rev-parse", "--git-dir").returncode:
        raise UsageError("the workspace is not in a git repository", facts=[("workspace", root)])
    raise UsageError(f'git knows no revision "{revision}"', hint="a branch, a tag, HEAD~3, or a commit's hash")


def _git(root: str, *arguments: str) -> str:
    done = _run(root, *arguments)
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace").strip()
        raise EnvironmentFault(f"git {arguments[0]} failed", facts=[("git says", message[:500])])
    return done.stdout.decode("utf-8", "surrogateescape")


def _run(root: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(
            command,
            check=False,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
    except OSError as error:
        raise EnvironmentFault("git cannot be run", facts=[("cause", error.strerror or str(error))]) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(f"git {arguments[0]} did not end within {TIMEOUT_S} s") from error
