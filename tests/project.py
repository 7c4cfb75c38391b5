"""A real project in a scratch directory, built by the real command line: what most tests tell their story with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked

REQUIEM = (sys.executable, "-m", "requiem_build")
SOURCE = Path(__file__).resolve().parent.parent
READ_ONLY_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
CACHE = Path(tempfile.gettempdir()) / f"requiem-test-cache-{os.getuid()}"
"""Facts of this machine, which all projects share: hashing /usr/local once is enough for all tests."""


@dataclass(frozen=True)
class Ran:
    """How one command line ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    @property
    def states(self) -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.report["steps"]}

    @property
    def counts(self) -> dict[str, int]:
        return {name: count for name, count in self.report["counts"].items() if name != "total" and count}

    def step(self, name: str) -> dict[str, Any]:
        return next(step for step in self.report["steps"] if step["name"] == name)


class Project:
    """`root` is the workspace; each project has a home, a cache and a store of its own."""

    def __init__(self, base: Path, name: str = "work") -> None:
        self.base = base
        self.root = base / name
        self.root.mkdir(parents=True, exist_ok=True)
        self.home = base / "home"
        self.home.mkdir(exist_ok=True)

    def write(self, path: str, content: str | bytes, *, executable: bool = False) -> Path:
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
        if executable:
            full.chmod(0o755)
        return full

    def manifest(self, text: str, name: str = "work") -> None:
        self.write("requiem.toml", f'[project]\nname = "{name}"\n' + textwrap.dedent(text))

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "COVERAGE_PROCESS_START") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(CACHE),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "PYTHONPATH": str(SOURCE),
            **(extra or {}),
        }

    def start(self, *arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Options are those of Popen, `program`, and as root `read_only`, a directory that cannot be written."""
        if read_only := options.pop("read_only", ""):
            options["program"] = ("unshare", "-m", "sh", "-c", READ_ONLY_MOUNT, read_only, *REQUIEM)
        return subprocess.Popen(
            [*options.pop("program", REQUIEM), *arguments],
            cwd=options.pop("cwd", self.root),
            env=self.environment(env),
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 100, **options: Any) -> Ran:
        environment = self.environment(env)
        if options.keys() <= {"cwd", "read_only"} and forked.would_do(arguments, environment):
            cwd, read_only = str(options.get("cwd", self.root)), options.get("read_only", "")
            code, told, said = forked.run(arguments, cwd, environment, timeout_s, read_only)
            return Ran(code, told.decode(), said.decode())
        with self.start(*arguments, env=env, **options) as process:
            out, err = process.communicate(timeout=timeout_s)
        return Ran(process.returncode, out.decode(), err.decode())

    def build(self, *arguments: str, expect: int = 0, **options: Any) -> Ran:
        """`requiem build --json ...`, which must exit with `expect`."""
        ran = self.run("build", "--json", *arguments, **options)
        assert ran.code == expect, f"exit {ran.code}\n{ran.out}\n{ran.err}"
        assert "Traceback" not in ran.err, ran.err
        return ran

    def refuse(self, *arguments: str, expect: int = 2, **options: Any) -> Ran:
        """A command line that must be refused with `expect` and say so as every error does."""
        ran = self.run(*arguments, **options)
        assert ran.code == expect, f"exit {ran.code}\n{ran.out}\n{ran.err}"
        assert ran.err.splitlines()[0].startswith("error: "), ran.err
        assert "Traceback" not in ran.err, ran.err
        return ran
