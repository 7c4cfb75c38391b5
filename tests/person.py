"""Somebody with a home, keys and a checkout of his own, beside others with whom he shares a store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from project import Project

MANIFEST = """
    [steps.hello]
    command = "cat a.txt > b.txt"
    inputs = ["a.txt"]
    outputs = ["b.txt"]
"""


class Person(Project):
    """Somebody with a home and a checkout of his own, and one store that all share."""

    def __init__(self, base: Path, name: str) -> None:
        super().__init__(base / name)
        self.name = name
        self.shared = base / "cas"
        self.manifest(MANIFEST)
        self.write("a.txt", "hello\n")

    def environment(self, extra: Any = None) -> dict[str, str]:
        return {**super().environment(extra), "REQUIEM_CAS_DIR": str(self.shared)}

    def configure(self, text: str) -> None:
        self.write("../home/config/requiem/config.toml", text)

    def forget(self) -> None:
        shutil.rmtree(self.root / ".requiem", ignore_errors=True)
        (self.root / "b.txt").unlink(missing_ok=True)

    def key(self) -> Path:
        ran = self.run("keys", "export", "-o", "key.pem")
        assert ran.code == 0, ran.err
        return self.root / "key.pem"

    def trusts(self, *others: Person) -> None:
        for other in others:
            ran = self.run("keys", "trust", other.name, str(other.key()))
            assert ran.code == 0, ran.err

    def hello(self, *arguments: str) -> tuple[str, str]:
        step = self.build(*arguments).step("hello")
        return step["state"], step["reason"]
