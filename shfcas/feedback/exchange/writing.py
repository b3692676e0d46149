"""Rows into files that are complete or absent, written one at a time."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shfcas.utils.files import atomic_file


def json_text(value: Any) -> str:
    """JSON as people read it; escaped where a text holds what UTF-8 cannot."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines, atomically."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json_text(row) + "\n" for row in rows)


def write_array(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON array with a row a line, atomically."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        between = "[\n"
        for row in rows:
            stream.write(between + json_text(row))
            between = ",\n"
        stream.write("[]\n" if between == "[\n" else "\n]\n")
