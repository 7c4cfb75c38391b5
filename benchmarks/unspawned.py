"""Builds a project as `requiem build` does, but every command is taken as run: its outputs hold their own names.

usage: python benchmarks/unspawned.py DIRECTORY

What is left behind (store, records, `.requiem/`) is exactly what a build leaves. For benchmarks of what comes after a
build of 100,000 steps, which would itself take far longer than all that is measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from requiem_build.core.entries import Entry, File
from requiem_build.core.policy import Limits
from requiem_build.core.request import Request
from requiem_build.core.result import Captured, make_result
from requiem_build.engine.build import build
from requiem_build.engine.options import Options
from requiem_build.executors.base import Ran
from requiem_build.executors.local import LocalExecutor


def execute(self: Any, request: Request, offered: Mapping[str, Entry], limits: Limits) -> Ran:
    outputs: dict[str, Entry] = {}
    for path in request.outputs:
        content = f"{path}\n".encode()
        outputs[path] = File(self.blobs.put(content), len(content), False)
    nothing = Captured(self.blobs.put_cold(b""), 0, False)
    result = make_result(request, exit_code=0, termination="exited", stdout=nothing, stderr=nothing, outputs=outputs)
    return Ran(request, result, protection={"unspawned": True})


def main() -> int:
    LocalExecutor.execute = execute  # type: ignore[method-assign]
    report = build(Options(os.path.realpath(sys.argv[1]), os.environ, jobs=1), lambda _: None)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
