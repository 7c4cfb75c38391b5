"""A store beside a dictionary: whatever is put, read, torn, damaged and deleted, the store never gives wrong bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import CorruptObject, MissingObject
from requiem_build.store import quarantine, reading
from requiem_build.store.encoding import plain_meta
from requiem_build.store.layout import Store

CONTENTS = [b"", b"a", b"hello", b"again and " * 30, b"again or " * 300, bytes(range(256)) * 3]
which = st.sampled_from(CONTENTS)
halves = st.sampled_from(["", ".meta"])


class Model(RuleBasedStateMachine):
    """`good` are contents that must be there, `harmed` may be there or not; all others must not."""

    @initialize()
    def open(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="requiem-model-"))
        self.store = Store(self.root / "cas")
        self.good: set[bytes] = set()
        self.harmed: set[bytes] = set()
        self.packed: dict[str, set[bytes]] = {}
        reading.TRIES_S = (0.0,)  # One process: no second look is needed.
        quarantine.SETTLE_S = 0.0

    def teardown(self) -> None:
        reading.TRIES_S = (0.0, 0.002, 0.01)
        quarantine.SETTLE_S = 0.01
        shutil.rmtree(self.root)

    @rule(content=which, encoding=st.sampled_from(["identity", "zstd"]))
    def put(self, content: bytes, encoding: str) -> None:
        digest = self.store.objects.put(content, encoding=encoding)
        assert digest == object_digest(content)
        if content in self.harmed and not self.store.objects.check(digest):
            self.store.objects.put(content, encoding=encoding)  # It seemed sane; the check found it out.
        self.good.add(content)
        self.harmed.discard(content)

    @rule(content=which)
    def put_path(self, content: bytes) -> None:
        (self.root / "source").write_bytes(content)
        digest, size = self.store.objects.put_path(str(self.root / "source"))
        assert size == len(content)
        if content in self.harmed and not self.store.objects.check(digest):
            self.store.objects.put_path(str(self.root / "source"))
        self.good.add(content)
        self.harmed.discard(content)

    @rule(content=which, how=st.sampled_from(["get", "file", "copy", "check"]))
    def read(self, content: bytes, how: str) -> None:
        digest = object_digest(content)
        try:
            if how == "get":
                found = self.store.objects.get(digest)
            elif how == "file":
                found = Path(self.store.objects.file(digest)).read_bytes()
            elif how == "copy":
                with open(self.root / "out", "w+b") as out:
                    self.store.objects.copy_to(digest, out.fileno())
                found = (self.root / "out").read_bytes()
            else:
                found = content if self.store.objects.check(digest) else None
        except (MissingObject, CorruptObject):
            found = None
        if found is None:
            assert content not in self.good
        else:
            assert found == content
            assert content in self.good or content in self.harmed

    def _harm(self, content: bytes) -> None:
        if content in self.good:
            self.good.discard(content)
            self.harmed.add(content)

    @rule(content=which, half=halves)
    def delete(self, content: bytes, half: str) -> None:
        path = self.store.objects.path(object_digest(content)) + half
        if os.path.lexists(path):
            os.unlink(path)
            self._harm(content)

    @rule(content=which, half=halves, at=st.integers(0, 5000), mask=st.integers(1, 255))
    def flip(self, content: bytes, half: str, at: int, mask: int) -> None:
        path = Path(self.store.objects.path(object_digest(content)) + half)
        if path.exists() and path.stat().st_size:
            good = bytearray(path.read_bytes())
            good[at % len(good)] ^= mask
            path.chmod(0o644)
            path.write_bytes(good)
            self._harm(content)

    @rule(content=which, half=halves, share=st.floats(0, 1))
    def cut(self, content: bytes, half: str, share: float) -> None:
        path = Path(self.store.objects.path(object_digest(content)) + half)
        if path.exists():
            path.chmod(0o644)
            os.truncate(path, int(path.stat().st_size * share))
            self._harm(content)

    @rule(content=which, other=which, half=halves)
    def swap(self, content: bytes, other: bytes, half: str) -> None:
        path = Path(self.store.objects.path(object_digest(content)) + half)
        source = Path(self.store.objects.path(object_digest(other)) + half)
        if path.exists() and source.exists() and content != other:
            shutil.copyfile(source, self.root / "swapped")
            os.replace(self.root / "swapped", path)
            self._harm(content)

    @rule(content=which)
    def put_metadata_only(self, content: bytes) -> None:
        """What a put that was killed between its renames leaves."""
        path = Path(self.store.objects.path(object_digest(content)))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(f"{path}.meta").unlink(missing_ok=True)
            Path(f"{path}.meta").write_bytes(plain_meta(object_digest(content), len(content)))
            self._harm(content)

    @rule(contents=st.sets(which, min_size=1))
    def pack(self, contents: set[bytes]) -> None:
        name = self.store.objects.packs.write({object_digest(content): content for content in contents})
        self.packed[name] = contents
        self.good |= contents
        self.harmed -= contents

    @rule(number=st.integers(0, 9), at=st.integers(0, 5000), mask=st.integers(1, 255), cut=st.booleans())
    def harm_pack(self, number: int, at: int, mask: int, cut: bool) -> None:
        packs = sorted(self.store.root.glob("v2/packs/*"))
        if packs:
            path = packs[number % len(packs)]
            content = bytearray(path.read_bytes())
            path.chmod(0o644)
            if cut:
                del content[at % len(content) :]
            else:
                content[at % len(content)] ^= mask
            path.write_bytes(content)
            for harmed in self.packed.get(path.name, CONTENTS):  # Without a name we know, it was made by a mending.
                self._harm(harmed)

    @rule()
    def open_again(self) -> None:
        self.store = Store(self.root / "cas")

    @rule()
    def repair(self) -> None:
        damaged = list(self.store.objects.verify())
        assert damaged == list(self.store.objects.verify(repair=True))
        loose = {problem.digest for problem in damaged if problem.path.startswith("v2/objects")}
        unharmed = {object_digest(content) for content in self.good} - self._packed()
        assert not loose & unharmed
        assert list(self.store.objects.verify()) == []
        for content in list(self.harmed):
            if self.store.objects.check(object_digest(content)):
                self.good.add(content)  # The harm was undone or did not matter.
            self.harmed.discard(content)

    def _packed(self) -> set[str]:
        return {object_digest(content) for contents in self.packed.values() for content in contents}

    @invariant()
    def nothing_else_is_there(self) -> None:
        for content in CONTENTS:
            if content in self.good:
                assert self.store.objects.has(object_digest(content))
            elif content not in self.harmed:
                assert not self.store.objects.has(object_digest(content))
        assert os.listdir(self.store.root / "v2" / "tmp") == []


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
