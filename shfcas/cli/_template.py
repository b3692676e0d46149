"""Commented YAML files to start from, written from the help texts of a configuration."""

import re
import textwrap
from collections.abc import Collection, Mapping
from typing import Any

from shfcas.utils.flags import keys_of

WIDTH = 110  # columns of a comment


def template(
    config: Any,
    chosen: Collection[str] | None = None,
    notes: Mapping[str, str] | None = None,
    optional: Mapping[str, str] | None = None,
) -> str:
    """Returns YAML with the values of a configuration; the comment above a key is its help text.

    A section that is off is written as comments. Removing the first `#` of its lines turns it on.

    Args:
        config: instance of the configuration.
        chosen: dotted names of the keys to write; None for all of them.
        notes: further comments by dotted name.
        optional: text of values by dotted name, for keys that are written as comments.
    """
    return "\n".join(_lines(config, "", chosen, notes or {}, optional or {})) + "\n"


def placeholders(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists the dotted names of the values that are still placeholders, such as `<POLICY>`."""
    names: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            names += placeholders(value, f"{prefix}{key}.")
        elif isinstance(value, str) and re.fullmatch("<[^<>]+>", value):
            names.append(f"{prefix}{key}")
    return names


def _lines(
    config: Any,
    prefix: str,
    chosen: Collection[str] | None,
    notes: Mapping[str, str],
    optional: Mapping[str, str],
) -> list[str]:
    """The lines of a section; on the top level, a blank line stands before and after each section."""
    indent, apart = "  " * prefix.count("."), False
    lines: list[str] = []
    for key in keys_of(config):
        name = f"{prefix}{key.name}"
        if key.section is None:
            mark, value = ("#", optional[name]) if name in optional else ("", _yaml(key.value))
            body = [f"{indent}{mark}{key.name}: {value}"] if chosen is None or name in chosen else []
        else:
            inside = _lines(key.inside, f"{name}.", chosen, notes, optional)
            body = [f"{indent}{key.name}:", *inside] if inside else []
        if not body:
            continue
        off = key.section is not None and key.value is None
        if lines and not prefix and (apart or key.section):
            lines.append("")
        choices = f" ({', '.join(key.choices)})" if key.choices else ""
        switch = "Off; remove the first # of each line below to turn it on." if off else ""
        for comment in (key.help + choices, notes.get(name, ""), switch):
            lines += _wrapped(comment, indent)
        lines += [f"#{line}" for line in body] if off else body
        apart = key.section is not None
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - len(indent) - 3, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}# {line}" for line in lines]


def _yaml(value: Any) -> str:
    """A value on one line, so that YAML reads the same value."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
