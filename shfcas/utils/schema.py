"""JSON Schemas (draft 2020-12) of configurations, for editors that complete and check YAML."""

import types
import typing
from typing import Any

from shfcas.utils.config import Options
from shfcas.utils.flags import Key, keys_of

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema(config: Any, title: str) -> dict[str, Any]:
    """Returns the schema of a configuration's YAML file.

    An unknown key is refused in every section. No key is required, since a flag can give it too.

    Args:
        config: instance of the configuration; its values are the defaults.
        title: name of the schema.
    """
    return {"$schema": DRAFT, "title": title, **_section(config)}


def _section(config: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key.name: _property(key) for key in keys_of(config)},
        "additionalProperties": False,
    }


def _property(key: Key) -> dict[str, Any]:
    note = " (may change when a run is resumed)" if key.field.metadata.get("volatile") else ""
    about = {"description": f"{key.help}{note}"}
    if key.section is None:
        return about | _types(key) | {"default": key.value}
    # A section may be empty, which YAML reads as null; one that is off is null by default.
    off = {"default": None} if key.value is None else {}
    return about | _section(key.inside) | {"type": ["object", "null"]} | off


def _types(key: Key) -> dict[str, Any]:
    """Types, choices and bounds of a value; those of a list are about its items."""
    bounds = {BOUNDS[name]: limit for name, limit in key.field.metadata.items() if name in BOUNDS and limit is not None}
    union = isinstance(key.annotation, types.UnionType) or typing.get_origin(key.annotation) is typing.Union
    alternatives = typing.get_args(key.annotation) if union else (key.annotation,)
    names, items = [], {}
    for alternative in alternatives:
        if typing.get_origin(alternative) is list:
            names.append("array")
            item = typing.get_args(alternative)[0]
            if issubclass(item, Options):
                items = {"items": _section(item())}
                continue
            choices = {"enum": [*key.choices]} if key.choices else {}
            items = {"items": {"type": NAMES[item], **choices, **bounds}}
        else:
            names.append(NAMES[alternative])
    if "number" in names and "integer" in names:
        names.remove("integer")  # every integer is a number
    allowed = [*key.choices, None] if "null" in names else [*key.choices]
    kinds = {"type": names[0] if len(names) == 1 else names} | ({"enum": allowed} if key.choices and not items else {})
    return kinds | (items or bounds)
