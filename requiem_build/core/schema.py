"""The table of keys -> the JSON Schema (draft 2020-12) of a manifest. `schemas/manifest.schema.json` is its output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import keys
from .keys import Key


def manifest_schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://requiem.build/schemas/manifest.schema.json",
        "title": "requiem.toml",
        "description": "What a project's steps are. The reference is docs/manifest.md.",
        "type": "object",
        "additionalProperties": False,
        "required": ["project"],
        "properties": {name: {"description": says, **_TABLES[name]} for name, says in keys.TABLES.items()},
        "$defs": {
            "step": _object(keys.STEP, "The keys of a step, of [defaults], of a template and of a profile's defaults."),
            "vars": {
                "title": "Variables",
                "type": "object",
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            },
        },
    }


def manifest_schema_text() -> str:
    return json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n"


def _object(table: Mapping[str, Key], description: str, *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "description": description, "additionalProperties": False}
    if required:
        found["required"] = list(required)
    found["properties"] = {name: _property(name, key) for name, key in table.items()}
    return found


def _property(name: str, key: Key) -> dict[str, Any]:
    later = " Not built yet." if key.later else ""
    default = f" Default: {key.default}." if key.default else ""
    return {"title": name, "description": f"{key.says}{default}{later}", **key.kind.schema}


def _by_name(inner: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": inner}


_STEP = {"$ref": "#/$defs/step"}
_VARS = {"$ref": "#/$defs/vars"}
_TABLES: dict[str, dict[str, Any]] = {
    "project": _object(keys.PROJECT, keys.TABLES["project"], required=("name",)),
    "vars": _VARS,
    "defaults": _STEP,
    "templates": _by_name(_STEP),
    "profiles": _by_name(
        {"type": "object", "additionalProperties": False, "properties": {"defaults": _STEP, "vars": _VARS}}
    ),
    "steps": _by_name(_STEP),
    "roots": _by_name(_object(keys.ROOT, "A read-only tree.", required=("path",))),
    "pools": _by_name({"description": keys.POOL.says, **keys.POOL.kind.schema}),
    "store": _object(keys.STORE, keys.TABLES["store"]),
}
