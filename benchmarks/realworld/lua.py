"""Builds Debian's lua5.4 with Requiem and with Ninja, side by side, and demands what each edit may run.

usage: python benchmarks/realworld/lua.py [DIRECTORY]    (default: a new temporary one, kept)

Needs gcc, ninja-build, and a Debian that `apt-get update` has been run on. The source comes by `apt-get source`
with an apt state of its own, so the machine's lists stay as they are. Exits with 1 if anything is not as it must be.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFEST = Path(__file__).resolve().parent / "lua" / "requiem.toml"
PACKAGE = "lua5.4"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BUILT_AT_LEAST = 35
"""Objects: fewer would mean that the wrong thing was unpacked."""


@dataclass(frozen=True)
class Build:
    """`ran` names what was executed, in words that both tools share: `src/lapi.c`, `liblua.a`, `lua`, `check`."""

    ran: frozenset[str]
    wall_s: float


# The source


def fetch(folder: Path) -> Path:
    """The unpacked upstream source, of the release that this Debian has."""
    state, downloads = folder / "apt", folder / "source"
    for needed in ("lists/partial", "cache/archives/partial"):
        (state / needed).mkdir(parents=True, exist_ok=True)
    downloads.mkdir(exist_ok=True)
    (state / "sources.list").write_text(source_lines())
    options = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::Status": "/var/lib/dpkg/status",
        "Dir::Cache": state / "cache",
    }
    if os.geteuid() == 0:
        options["APT::Sandbox::User"] = "root"  # apt's own user cannot write into a folder of ours.
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    if not list(downloads.glob("*.orig.tar.*")):
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "source", "--download-only", PACKAGE], check=True, cwd=downloads)
    (archive,) = (path for path in downloads.glob("*.orig.tar.*") if not path.name.endswith(".asc"))
    unpacked = folder / "unpacked"
    unpacked.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xf", archive, "-C", unpacked, "--strip-components=1"], check=True)
    return unpacked


def source_lines() -> str:
    """`deb-src` for each place where this machine already gets Debian's packages."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    wanted = ["Created-By: Packages", "Origin: Debian", "Component: main"]
    found = subprocess.run(
        ["apt-get", "indextargets", "--format", form, *wanted], check=False, capture_output=True, text=True
    )
    lines = sorted(set(found.stdout.splitlines()))
    if not lines:
        sys.exit("error: apt knows no Debian archive here\n  hint: run `apt-get update` once")
    return "".join(f"deb-src [signed-by={KEYRING}] {line}\n" for line in lines)


# The two tools


class Requiem:
    name = "requiem"

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        shutil.copyfile(MANIFEST, checkout / "requiem.toml")

    def build(self) -> Build:
        begun = time.perf_counter()
        done = run([sys.executable, "-m", "requiem_build", "-C", str(self.checkout), "build", "--json"])
        wall_s = time.perf_counter() - begun
        steps = json.loads(done)["steps"]
        return Build(frozenset(self.word(step) for step in steps if step["state"] == "ran"), wall_s)

    @staticmethod
    def word(step: dict[str, object]) -> str:
        kind, _, instance = str(step["name"]).partition(":")
        return {"library": "liblua.a", "check": "check"}.get(kind, instance)


class Ninja:
    """The same commands from a build.ninja that is made from the same list of sources."""

    name = "ninja"

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        (checkout / "build.ninja").write_text(ninja_file(sorted(checkout.glob("src/*.c"))))

    def build(self) -> Build:
        begun = time.perf_counter()
        done = run(["ninja", "-C", str(self.checkout)], NINJA_STATUS="RAN ")
        wall_s = time.perf_counter() - begun
        return Build(frozenset(re.findall(r"^RAN (\S+)$", done, re.MULTILINE)), wall_s)

    def clean(self) -> None:
        run(["ninja", "-C", str(self.checkout), "-t", "clean"])


def ninja_file(sources: Sequence[Path]) -> str:
    cflags = "-O2 -Wall -Wextra -DLUA_COMPAT_5_3 -DLUA_USE_LINUX -Ioverride"
    lines = [
        "rule object\n  depfile = $out.d\n  deps = gcc\n  description = $in",
        f"  command = gcc {cflags} -MMD -MF $out.d -c $in -o $out",
        "rule library\n  command = rm -f $out && ar rcD $out $in\n  description = liblua.a",
        "rule program\n  command = gcc -o $out $in -Wl,-E -lm -ldl\n  description = $name",
        "rule check\n  command = build/lua -e 'print(1+1)' > $out\n  description = check",
    ]
    lines += [f"build build/{source.stem}.o: object src/{source.name}" for source in sources]
    core = " ".join(f"build/{source.stem}.o" for source in sources if source.stem not in ("lua", "luac"))
    lines += [f"build build/liblua.a: library {core}"]
    lines += [f"build build/{name}: program build/{name}.o build/liblua.a\n  name = {name}" for name in ("lua", "luac")]
    return "\n".join([*lines, "build build/check.txt: check build/lua", ""])


def run(command: list[str], **environment: str) -> str:
    """What it says on stdout. Each checkout has a store of its own, whatever the caller has set."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("REQUIEM_")}
    env = {**own, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


# The story


class Story:
    """Every scene is played by both tools; Ninja's outputs and its choice of compiles judge Requiem's."""

    def __init__(self, requiem: Requiem, ninja: Ninja) -> None:
        self.requiem, self.ninja = requiem, ninja
        self.wrong: list[str] = []
        print(f"{'scene':44}{'requiem':>9}{'ninja':>8}{'requiem s':>12}{'ninja s':>10}")

    def scene(
        self,
        title: str,
        change: Callable[[Path], None],
        expect: Callable[[Build, Build], bool],
        *,
        clean: bool = False,
    ) -> None:
        """`clean`: Ninja's outputs are made anew before they judge, because it does not see this change."""
        change(self.requiem.checkout)
        change(self.ninja.checkout)
        ours, theirs = self.requiem.build(), self.ninja.build()
        if clean:
            self.ninja.clean()
            self.ninja.build()
        print(f"{title:44}{len(ours.ran):9}{len(theirs.ran):8}{ours.wall_s:12.2f}{theirs.wall_s:10.2f}")
        if not expect(ours, theirs):
            self.wrong.append(f"{title}: requiem ran {sorted(ours.ran)}, ninja {sorted(theirs.ran)}")
        self.same_bytes(title, self.ninja.checkout)

    def same_bytes(self, title: str, other: Path) -> None:
        ours, theirs = outputs(self.requiem.checkout), outputs(other)
        different = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
        if different or len(ours) < BUILT_AT_LEAST:
            self.wrong.append(f"{title}: {len(ours)} outputs, of which other bytes than in {other}: {different}")


def outputs(checkout: Path) -> dict[str, str]:
    """Digests of what was built. Dependency files and Ninja's own are no outputs."""
    files = [path for path in (checkout / "build").rglob("*") if path.suffix != ".d"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


def comment(file: str) -> Callable[[Path], None]:
    def change(checkout: Path) -> None:
        with open(checkout / file, "a", encoding="utf-8") as source:
            source.write("/* A comment. */\n")

    return change


def put_back(file: str, content: bytes) -> Callable[[Path], None]:
    def change(checkout: Path) -> None:
        (checkout / file).write_bytes(content)

    return change


def delete_outputs(checkout: Path) -> None:
    shutil.rmtree(checkout / "build")


def add(file: str, text: str) -> Callable[[Path], None]:
    def change(checkout: Path) -> None:
        (checkout / file).parent.mkdir(exist_ok=True)
        (checkout / file).write_text(text)

    return change


def remove(file: str) -> Callable[[Path], None]:
    return lambda checkout: (checkout / file).unlink()


def compiles(build: Build) -> set[str]:
    return {name for name in build.ran if name.endswith(".c")}


def main(folder: Path) -> int:
    source = fetch(folder)
    here, there, judge = (folder / name for name in ("here", "there with a longer name", "ninja"))
    for checkout in (here, there, judge):
        shutil.copytree(source, checkout)
    story = Story(Requiem(here), Ninja(judge))
    c_file, header = "src/lmathlib.c", "src/lobject.h"
    originals = {file: (source / file).read_bytes() for file in (c_file, header)}

    story.scene("first build", lambda _: None, lambda ours, theirs: ours.ran == theirs.ran)
    story.scene("second build", lambda _: None, lambda ours, _: not ours.ran)
    story.scene(f"comment in {c_file}", comment(c_file), lambda ours, theirs: ours.ran == {c_file} < theirs.ran)
    story.scene(f"{c_file} put back", put_back(c_file, originals[c_file]), lambda ours, _: not ours.ran)
    story.scene(
        f"comment in {header}",
        comment(header),
        lambda ours, theirs: ours.ran == compiles(theirs) and len(ours.ran) > 10,
    )
    story.scene(f"{header} put back", put_back(header, originals[header]), lambda ours, _: not ours.ran)
    story.scene("all outputs deleted", delete_outputs, lambda ours, _: not ours.ran)
    story.scene("a new header that nobody names", add("src/unrelated.h", "int u;\n"), lambda ours, _: not ours.ran)
    shadow = "override/stdlib.h"  # Found before the system's: lua.c and luac.c return EXIT_FAILURE.
    story.scene(
        f"a new {shadow} (ninja: stale)",
        add(shadow, "#include_next <stdlib.h>\n#undef EXIT_FAILURE\n#define EXIT_FAILURE 3\n"),
        lambda ours, theirs: {"src/lua.c", "src/luac.c", "lua", "luac"} <= ours.ran and not theirs.ran,
        clean=True,
    )
    story.scene(f"{shadow} removed", remove(shadow), lambda ours, _: not ours.ran, clean=True)

    elsewhere = Requiem(there).build()
    story.same_bytes("another directory, another store", there)
    says = (here / "build" / "check.txt").read_text()
    if says != "2\n" or len(elsewhere.ran) < BUILT_AT_LEAST:
        story.wrong.append(f"lua -e 'print(1+1)' said {says!r}; the other checkout ran {len(elsewhere.ran)}")
    print(f"\n{len(outputs(here))} outputs: the same bytes from both tools in every scene, and from two directories")
    print("\n".join(["", "NOT AS IT MUST BE", *story.wrong]) if story.wrong else "all as it must be")
    return 1 if story.wrong else 0


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="requiem-lua-"))
    place.mkdir(parents=True, exist_ok=True)
    print(f"in {place}")
    sys.exit(main(place))
