"""A store that is used, damaged, collected and repaired in any order, beside sets of what must be there."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from requiem_build.core.digest import object_digest
from requiem_build.core.entries import File, make_tree
from requiem_build.core.errors import CorruptObject, MissingObject
from requiem_build.core.policy import Policy
from requiem_build.core.request import Request
from requiem_build.core.result import Captured, Record, Result, make_result
from requiem_build.store import gc, quarantine, reading
from requiem_build.store.audit import audit
from requiem_build.store.layout import Store

CONTENTS = [b"", b"a", b"b" * 5000, bytes(range(256)) * 80, *(b"small %d" % number for number in range(20))]
PACKED = CONTENTS[4:]
which = st.integers(0, 6).map(CONTENTS.__getitem__)
inputs = st.integers(0, 3)


def request_of(number: int) -> Request:
    platform = {"os": "linux", "arch": "x86_64"}
    return Request(
        command=("true", f"{number}"), env={}, inputs={}, outputs=("out", "dir/"), policy=Policy(), platform=platform
    )


class Care(RuleBasedStateMachine):
    """`pinned` must be there: put while the lease is held, and not harmed since. All else may have been collected."""

    @initialize()
    def open(self) -> None:
        reading.TRIES_S, quarantine.SETTLE_S = (0.0,), 0.0  # One process: no second look is needed.
        self.root = Path(tempfile.mkdtemp(prefix="requiem-care-"))
        self.store = Store(self.root / "cas")
        self.leases = ExitStack()
        self.held = False
        self.pinned: set[bytes] = set()
        self.harmed: set[str] = set()
        self.results: dict[int, Result] = {}

    def teardown(self) -> None:
        reading.TRIES_S, quarantine.SETTLE_S = (0.0, 0.002, 0.01), 0.01
        self.leases.close()
        shutil.rmtree(self.root)

    # As a build does

    @rule()
    def begin(self) -> None:
        if not self.held:
            self.leases.enter_context(self.store.lease())
            self.held = True

    @rule()
    def end(self) -> None:
        self.leases.close()
        self.held = False
        self.pinned = set()

    @rule(content=which, encoding=st.sampled_from(["identity", "zstd"]))
    def put(self, content: bytes, encoding: str) -> None:
        self._put(content, encoding)

    def _put(self, content: bytes, encoding: str = "identity") -> None:
        digest = self.store.objects.put(content, encoding=encoding)
        if digest in self.harmed and not self.store.objects.check(digest):
            self.store.objects.put(content, encoding=encoding)  # It seemed sane; the check found it out.
        self.harmed.discard(digest)
        if self.held:
            self.pinned.add(content)

    @rule()
    def put_packed(self) -> None:
        packing = self.store.objects.packing()
        for content in PACKED:
            packing.add(content)
        packing.close()
        for content in PACKED:
            self._put(content)

    @rule(content=which)
    def get(self, content: bytes) -> None:
        digest = object_digest(content)
        try:
            assert self.store.objects.get(digest) == content
            if self.held and digest not in self.harmed:
                self.pinned.add(content)
        except (MissingObject, CorruptObject):
            assert content not in self.pinned

    @rule(number=inputs, content=which)
    def publish(self, number: int, content: bytes) -> None:
        request = request_of(number)
        tree, text = make_tree({name: File(object_digest(name.encode()), 1) for name in "ab"})
        for each in (content, b"a", b"b", text, b""):
            self._put(each)
        file = File(object_digest(content), len(content))
        result = make_result(
            request,
            exit_code=0,
            termination="exited",
            stdout=Captured(),
            stderr=Captured(),
            outputs={"out": file, "dir/": tree},
        )
        record = Record(request.digest, result.digest, "2026-01-01T00:00:00Z", 1, "local", "host", "0", {})
        kept = self.store.records.publish(request, result, record)
        self.results[number] = kept.result

    # As those who look after the store do

    @rule(size_max=st.sampled_from([0, 20_000, 50_000, 1 << 30]), age_max_s=st.sampled_from([None, 0.0, 1e6]))
    def collect(self, size_max: int, age_max_s: float | None) -> None:
        said = gc.collect(self.store, gc.Bounds(size_max, age_max_s), dry_run=True)
        done = gc.collect(self.store, gc.Bounds(size_max, age_max_s))
        assert (said.freed, said.items, said.objects, said.packs) == (done.freed, done.items, done.objects, done.packs)
        assert done.kept <= size_max + done.pinned
        counted = self.store.growth.estimate()
        assert counted is not None and counted.size == done.kept
        if not self.held:
            for kept in self.store.records:
                assert self.store.missing(kept.result) == [] or self.harmed, "a record does not outlive its objects"

    @rule()
    def repair(self) -> None:
        before = audit(self.store, workers=1)
        repaired = audit(self.store, workers=1, repair=True)
        assert [damage.path for damage in before.damaged] == [damage.path for damage in repaired.damaged]
        after = audit(self.store, workers=1)
        assert after.ok and after.unanswerable == []
        self.harmed = set()
        for kept in self.store.records:
            assert self.store.missing(kept.result) == []

    # As those who mean harm do

    @precondition(lambda self: self.root.exists())
    @rule(chance=st.randoms(use_true_random=False), how=st.sampled_from(["delete", "flip", "cut"]))
    def harm(self, chance, how: str) -> None:
        files = sorted(path for path in (self.root / "cas/v2/objects").glob("*/*/*"))
        if not files:
            return
        path = chance.choice(files)
        digest = path.name.removesuffix(".meta")
        if how == "delete":
            path.unlink()
        elif path.stat().st_size:
            content = bytearray(path.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.chmod(0o644)
            path.write_bytes(content if how == "flip" else content[: chance.randrange(len(content))])
        self.harmed.add(digest)
        self.pinned = {content for content in self.pinned if object_digest(content) != digest}

    @rule()
    def delete_everything(self) -> None:
        shutil.rmtree(self.root / "cas")
        self.store = Store(self.root / "cas")
        self.leases = ExitStack()
        self.held, self.pinned, self.harmed = False, set(), set()

    @invariant()
    def what_is_pinned_is_there(self) -> None:
        if hasattr(self, "store"):
            for content in self.pinned:
                assert self.store.objects.has(object_digest(content))

    @invariant()
    def nothing_is_left_lying_about(self) -> None:
        if hasattr(self, "store"):
            assert os.listdir(self.root / "cas/v2/tmp") == []
            assert len(list((self.root / "cas").glob("v2/leases/*"))) == self.held


TestCare = Care.TestCase
TestCare.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
