"""What the store's tests share: a fresh store, values to publish, and ways to do harm."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from requiem_build.core.digest import Digest, object_digest
from requiem_build.core.entries import File
from requiem_build.core.policy import Policy
from requiem_build.core.request import Request
from requiem_build.core.result import Captured, Record, Result, make_result
from requiem_build.store.layout import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cas")


@pytest.fixture
def made() -> Callable[..., SimpleNamespace]:
    """A request, a result of it and the record that joins them; `text` is the output's content."""

    def make(name: str = "a", text: bytes = b"output") -> SimpleNamespace:
        request = Request(
            command=("cp", name, "out"),
            env={"PATH": "/usr/bin:/bin"},
            inputs={"result": {"digest": object_digest(name.encode()), "executable": False}, "z": {"symlink": "a"}},
            outputs=("out", "result"),
            policy=Policy(),
            platform={"os": "linux", "arch": "x86_64"},
        )
        file = File(object_digest(text), len(text))
        stdout = Captured(object_digest(b"said"), 4)
        result = make_result(
            request,
            exit_code=0,
            termination="exited",
            stdout=stdout,
            stderr=Captured(),
            outputs={"out": file, "result": file},
        )
        return SimpleNamespace(request=request, result=result, record=record_of(request, result), text=text)

    return make


def record_of(request: Request, result: Result) -> Record:
    return Record(
        request_digest=request.digest,
        result_digest=result.digest,
        when="2026-11-23T05:00:00Z",
        duration_ms=12,
        executor="local",
        host="builder-1",
        engine="0.1.0",
        protection={"namespaces": ["user"], "request": {"nested": 1}},
    )


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program against this checkout in a process of its own, optionally under another command."""

    def run(program: str, *args: str, under: tuple[str, ...] = (), **more: object) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{program}")
        command = [*under, sys.executable, "-B", str(path), *args]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, **more)

    return run


def needed(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run this test, but it needs {tool}")
        pytest.skip(f"NOT TESTED: needs {tool} (apt install {tool})")
    return path


@pytest.fixture
def strace() -> str:
    return needed("strace")


@pytest.fixture
def b3sum() -> str:
    """An independent judge of names."""
    return needed("b3sum")


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


@pytest.fixture
def below() -> Callable[[Path], list[str]]:
    return files_below


@pytest.fixture
def writable() -> Callable[[str | Path], Path]:
    """Makes one of the store's read-only files writable, as someone who means harm would."""

    def make(path: str | Path) -> Path:
        os.chmod(path, 0o644)
        return Path(path)

    return make


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts small file systems (as root) and unmounts them."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in reversed(mounted):
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def golden_signed() -> SimpleNamespace:
    """The golden signed record's bytes and the key, which everybody knows, that signed it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    secret = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    content = (ROOT / "tests/golden/record/signed.json").read_bytes()
    der = secret.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key_id = hashlib.sha256(der).hexdigest()
    return SimpleNamespace(content=content, key=SimpleNamespace(key_id=key_id, secret=secret))


def some_digest(text: str = "nothing has this") -> Digest:
    return object_digest(text.encode())
