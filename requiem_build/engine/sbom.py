"""What a target is made of, as a CycloneDX bill of materials: sources, products between, tools and roots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..core import canonical
from ..core.digest import Digest, object_digest
from ..core.errors import RequiemError
from ..core.request import SYSTEM_ROOT
from ..sandbox.system import DPKG, lookup, package_of, parse_dpkg, system_digest
from ..store.layout import Store
from .lineage import BASE_PATH, Content, Lineage, Step

SPEC = "1.6"
_RELEASE = "/etc/os-release"


def bill(lineage: Lineage) -> dict[str, Any]:
    """The document as a JSON value, the same whenever it is made of the same records on the same system."""
    products = {content.path: content for content in lineage.outputs(tuple(lineage.links))}
    wanted = {content.path for content in lineage.outputs(lineage.targets)}
    packages = _Packages(lineage)
    components = _unique(
        [
            _component(content, packages)
            for content in (*lineage.read_set(), *(products[p] for p in products if p not in wanted))
        ]
    )
    top = {
        "bom-ref": "project",
        "components": [_component(products[path], packages) for path in sorted(wanted)],
        "name": lineage.project,
        "type": "application",
    }
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "components": components,
        "dependencies": _dependencies(lineage, products, {c["bom-ref"] for c in components}, wanted),
        "metadata": {
            "component": top,
            "timestamp": max(link.record.when for link in lineage.links.values()),
            "tools": {"components": [{"name": "requiem", "type": "application", "version": __version__}]},
        },
        "specVersion": SPEC,
        "version": 1,
    }
    document["serialNumber"] = _serial(document)
    return document


def _serial(document: dict[str, Any]) -> str:
    """A name that follows from the content (a UUID of version 8, RFC 9562)."""
    digits = object_digest(canonical.encode(document))
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"urn:uuid:{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def _reference(content: Content) -> str:
    kind = "source" if content.kind == "discovered" else content.kind
    return f"{kind}:{content.path}" + (f"@{content.digest[:16]}" if kind in ("tool", "root") else "")


def _component(content: Content, packages: _Packages) -> dict[str, Any]:
    kinds = {"tool": "application", "root": "platform"}
    found: dict[str, Any] = {
        "bom-ref": _reference(content),
        "name": content.path,
        "properties": [
            {"name": "requiem:kind", "value": content.kind},
            {"name": "requiem:digest", "value": str(content.digest)},
        ],
        "type": kinds.get(content.kind, "file"),
    }
    if content.sha256 is not None:
        found["hashes"] = [{"alg": "SHA-256", "content": content.sha256}]
    return {**found, **packages.identity(content)}


def _unique(components: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({component["bom-ref"]: component for component in components}.values())


def _dependencies(
    lineage: Lineage, products: dict[str, Content], known: set[str], wanted: set[str]
) -> list[dict[str, Any]]:
    edges: dict[str, set[str]] = {"project": {f"output:{path}" for path in wanted}}
    for link in lineage.links.values():
        needs = _needs(link, products) & (known | {f"output:{path}" for path in wanted})
        for content in lineage.outputs((link.name,)):
            edges.setdefault(f"output:{content.path}", set()).update(needs)
    return [{"dependsOn": sorted(edges[reference]), "ref": reference} for reference in sorted(edges)]


def _needs(link: Step, products: dict[str, Content]) -> set[str]:
    request = link.request
    paths = [*request.inputs, *(request.discovered or {})]
    needs = {f"output:{path}" if path in products else f"source:{path}" for path in paths}
    for path in paths:
        if path.endswith("/"):
            needs |= {f"output:{inner}" for inner in products if inner.startswith(path)}
    needs |= {f"tool:{name}@{digest[:16]}" for name, digest in request.tools.items()}
    return needs | {f"root:{path}@{digest[:16]}" for path, digest in request.roots.items()}


class _Packages:
    """Which package of the distribution a tool is from, while the system is still the one that was built with."""

    def __init__(self, lineage: Lineage) -> None:
        self._site = lineage.site
        requests = [link.request for link in lineage.links.values()]
        hosts = {r.roots.get(SYSTEM_ROOT) for r in requests if r.system_document is None}
        self._documents = {r.system_document for r in requests if r.system_document is not None}
        self._store = lineage.store
        self._valid = not hosts or hosts == {system_digest(lineage.site.cache_home)}
        self._versions: dict[str, tuple[str, str]] | None = None
        self._release = _release() if self._valid else {}

    def identity(self, content: Content) -> dict[str, str]:
        """Version and package URL of a tool, or those of the system for its root; else nothing."""
        if not self._valid:
            return {}
        if content.kind == "root" and content.path == SYSTEM_ROOT:
            return {"description": self._release["PRETTY_NAME"]} if "PRETTY_NAME" in self._release else {}
        if content.kind != "tool" or content.sha256 is None:
            return {}
        path = lookup(content.path, BASE_PATH.split(":"))
        package = package_of(path) if path is not None else None
        version = self._installed().get(package or "")
        if package is None or version is None:
            return {}
        vendor = quote(self._release.get("ID", "debian"))
        purl = f"pkg:deb/{vendor}/{quote(package, safe='')}@{quote(version[0], safe=':~')}?arch={version[1]}"
        return {"purl": purl, "version": version[0]}

    def _installed(self) -> dict[str, tuple[str, str]]:
        """Where steps saw packages only: those that they saw, if all agree."""
        if self._versions is None and self._documents:
            self._versions = _agreed(self._store, self._documents)
        elif self._versions is None:
            self._versions = {}
            status = f"{DPKG}/status"
            if os.path.exists(status):
                with open(status, "rb") as file:
                    for line in parse_dpkg(file.read()):
                        name, version, architecture = line.decode().split(" ")
                        self._versions[name] = (version, architecture)
        return self._versions


def _agreed(store: Store, documents: Iterable[Digest]) -> dict[str, tuple[str, str]]:
    """Version and architecture of each Debian package in these documents that have one of it each."""
    found: dict[str, set[tuple[str, str]]] = {}
    for digest in documents:
        with suppress(RequiemError, ValueError, LookupError, TypeError):
            document = json.loads(store.objects.get(digest))
            for name, version, architecture, *_ in document["packages"] if document["kind"] == "dpkg" else ():
                found.setdefault(name, set()).add((version, architecture))
    return {name: next(iter(versions)) for name, versions in found.items() if len(versions) == 1}


def _release() -> dict[str, str]:
    """os-release(5) as far as it names the distribution."""
    try:
        with open(_RELEASE, encoding="utf-8") as file:
            pairs = [line.strip().partition("=") for line in file if "=" in line]
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: value.strip("\"'") for name, _, value in pairs}
