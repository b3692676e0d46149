"""Writing rows one at a time into files that are complete or absent."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shfcas.utils.files import atomic_file, null_for_nan


def json_text(value: Any) -> str:
    """Returns readable JSON; escaped only if a text holds code points that UTF-8 cannot encode."""
    value = null_for_nan(value)
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines atomically."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json_text(row) + "\n" for row in rows)


def write_array(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON array atomically, one row per line."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        between = "[\n"
        for row in rows:
            stream.write(between + json_text(row))
            between = ",\n"
        stream.write("[]\n" if between == "[\n" else "\n]\n")
