"""Small hosts in a directory: files, and the package database that lists them, for each kind of database."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Made:
    """A package to be: `files` path -> content, or `-> target` for a link."""

    name: str
    files: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()
    provides: Sequence[str] = ()
    version: str = "1.0"


def lay_out(root: Path, packages: Sequence[Made], *, merged: bool = True) -> None:
    """The files of the packages; with `merged`, /bin and its like are links into /usr."""
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if merged and not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        for path, content in package.files.items():
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_symlink() or place.exists():
                place.unlink()
            if content.startswith("-> "):
                place.symlink_to(content[3:])
                continue
            place.write_text(content)
            place.chmod(0o755 if "/bin/" in path else 0o644)
            os.utime(place, (1_600_000_000, 1_600_000_000))


def folders_of(files: Mapping[str, str]) -> list[str]:
    found: set[str] = set()
    for path in files:
        parts = path.split("/")
        found.update("/".join(parts[:depth]) for depth in range(2, len(parts)))
    return sorted(found)


def dpkg(root: Path, packages: Sequence[Made], diversions: str = "") -> None:
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/alternatives").mkdir(exist_ok=True)
    stanzas = []
    for each in packages:
        stanza = f"Package: {each.name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {each.version}\n"
        if each.needs:
            stanza += f"Depends: {', '.join(each.needs)}\n"
        if each.provides:
            stanza += f"Provides: {', '.join(each.provides)}\n"
        stanzas.append(stanza)
        (info / f"{each.name}.list").write_text("\n".join(["/.", *folders_of(each.files), *each.files]) + "\n")
        sums = [
            f"{hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()}  {path.lstrip('/')}\n"
            for path, content in each.files.items()
            if not content.startswith("-> ") and not path.startswith("/etc/")
        ]
        (info / f"{each.name}.md5sums").write_text("".join(sums))
    (root / "var/lib/dpkg/status").write_text("\n".join(stanzas))
    (root / "var/lib/dpkg/diversions").write_text(diversions)


def pacman(root: Path, packages: Sequence[Made]) -> None:
    for each in packages:
        folder = root / f"var/lib/pacman/local/{each.name}-{each.version}-1"
        folder.mkdir(parents=True)
        desc = {"NAME": [each.name], "VERSION": [f"{each.version}-1"], "ARCH": ["x86_64"]}
        desc |= {"DEPENDS": list(each.needs)} if each.needs else {}
        desc |= {"PROVIDES": list(each.provides)} if each.provides else {}
        (folder / "desc").write_text("".join(f"%{name}%\n" + "\n".join(v) + "\n\n" for name, v in desc.items()))
        listed = [*(f"{path.lstrip('/')}/" for path in folders_of(each.files)), *(p.lstrip("/") for p in each.files)]
        (folder / "files").write_text("%FILES%\n" + "\n".join(listed) + "\n\n%BACKUP%\netc/x.conf\tabc\n\n")
        lines = ["#mtree", "/set type=file uid=0 gid=0 mode=644", "./.PKGINFO time=1.0 sha256digest=" + "0" * 64]
        for path, content in each.files.items():
            if content.startswith("-> "):
                lines.append(f".{path} time=1.0 mode=777 type=link link={content[3:]}")
            else:
                lines.append(f".{path} time=1.0 size=1 sha256digest={hashlib.sha256(content.encode()).hexdigest()}")
        with gzip.open(folder / "mtree", "wt") as file:
            file.write("\n".join(lines) + "\n")


def apk(root: Path, packages: Sequence[Made]) -> None:
    (root / "lib/apk/db").mkdir(parents=True)
    stanzas = []
    for each in packages:
        lines = [f"C:Q1{'A' * 27}=", f"P:{each.name}", f"V:{each.version}-r0", "A:x86_64"]
        lines += [f"D:{' '.join(each.needs)}"] if each.needs else []
        lines += [f"p:{' '.join(each.provides)}"] if each.provides else []
        by_folder: dict[str, list[tuple[str, str]]] = {}
        for path, content in each.files.items():
            folder, _, name = path.rpartition("/")
            by_folder.setdefault(folder, []).append((name, content))
        for folder in sorted({*folders_of(each.files), *by_folder}):
            lines.append(f"F:{folder.lstrip('/')}")
            for name, content in by_folder.get(folder, ()):
                digest = hashlib.sha1(content.removeprefix("-> ").encode(), usedforsecurity=False).digest()
                lines += [f"R:{name}", "a:0:0:755", f"Z:Q1{base64.b64encode(digest).decode()}"]
        stanzas.append("\n".join(lines) + "\n")
    (root / "lib/apk/db/installed").write_text("\n".join(stanzas) + "\n")


def rpm(root: Path, packages: Sequence[Made], scratch: Path) -> None:
    """Made by rpmbuild and installed by rpm: the real database."""
    for each in packages:
        install = ["mkdir -p %{buildroot}"]
        for path, content in each.files.items():
            install.append(f"mkdir -p %{{buildroot}}{os.path.dirname(path)}")
            target = f"%{{buildroot}}{path}"
            made = f"ln -s '{content[3:]}'" if content.startswith("-> ") else f"printf '%s' '{content}' >"
            install.append(f"{made} {target}")
        tags = [f"Requires: {need}" for need in each.needs] + [f"Provides: {name}" for name in each.provides]
        head = f"Name: {each.name}\nVersion: {each.version}\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n"
        files = [f"{'%config ' if path.startswith('/etc/') else ''}{path}" for path in each.files]
        spec = scratch / f"{each.name}.spec"
        spec.write_text(
            head
            + "AutoReqProv: no\n"
            + "\n".join([*tags, "%description", "x", "%install", *install, "%files", *files])
            + "\n"
        )
        define = ["--define", f"_topdir {scratch}", "--define", "__os_install_post %{nil}"]
        subprocess.run(["rpmbuild", "-bb", "--quiet", *define, str(spec)], check=True, capture_output=True)
    found = sorted(map(str, (scratch / "RPMS/noarch").glob("*.rpm")))
    database = root / "var/lib/rpm"
    database.mkdir(parents=True)
    command = ["rpm", "--dbpath", str(database), "-i", "--justdb", "--nodeps", *found]
    subprocess.run(command, check=True, capture_output=True)


TOOLS = (
    Made("libc", {"/usr/lib/libc.so": "the C library"}, provides=("so:libc.so",)),
    Made("bash", {"/usr/bin/bash": "a shell"}, needs=("libc",)),
    Made("mawk", {"/usr/bin/mawk": "awk"}, needs=("libc",), provides=("awk",)),
    Made(
        "compiler",
        {"/usr/bin/compile": "compile", "/usr/bin/cc": "-> compile", "/usr/lib/compiler/one": "1", "/etc/cc.conf": "c"},
        needs=("libc", "assembler"),
    ),
    Made("assembler", {"/usr/bin/assemble": "assemble"}),
    Made("stranger", {"/usr/bin/htop": "htop", "/usr/lib/compiler/two": "2"}),
)


def can_make_rpms() -> bool:
    return shutil.which("rpmbuild") is not None
