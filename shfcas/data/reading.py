"""Rows of data as people have them: Parquet, JSON, JSON lines, CSV, data sets of the Hub, and Python functions."""

import io
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shfcas.utils.callables import is_callable_name, load_callable
from shfcas.utils.errors import UserError
from shfcas.utils.files import decoded, existing, parse_json, parse_jsonl, without_lone_surrogates
from shfcas.utils.parquet import read_parquet

Row = dict[str, Any]

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
HUB = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(:(?P<split>[^/]+))?")
TEXTS = ("prompt", "chosen", "rejected", "completion", "instruction", "input", "output", "response", "prompt_id")


def read_rows(source: str | Path, texts: Collection[str] = ()) -> list[Row]:
    """Reads all rows of a source, with null as None.

    Args:
        source: a file (`.parquet`, `.json`, `.jsonl`, `.csv`, the last three also with `.gz` or `.zst`), a data set of
            the Hub (`org/name`, `org/name/config`, `org/name:split`, `org/name@revision`), or `module:function`.
            A file with another suffix is read as JSON lines. A function returns dictionaries, or `Preference` records.
        texts: further columns of a CSV file that stay text, also where all of them are numbers.

    Raises:
        UserError: the source does not exist or cannot be read; the message names it, and the line where known.
    """
    name = str(source)
    if is_callable_name(name):
        rows = load_callable(name)()
        if not isinstance(rows, list):
            raise UserError(f"{name}: expected a function that returns a list of rows, got {type(rows).__name__}")
        return [_row_of(row, f"{name}: row {index}") for index, row in enumerate(rows)]
    if is_hub_name(name):
        return _hub_rows(name)
    path = existing(source)
    if path.is_dir():
        raise UserError(f"{path}: expected a file, got a folder; name a file in it")
    kind = _suffix(path)
    if kind == ".parquet":
        return arrow_rows(read_parquet(path))
    data = _content(path)
    if kind == ".csv":
        return _csv_rows(data, name, {*TEXTS, *texts})
    text = decoded(data, name)
    if text.lstrip()[:1] == "[":
        rows = parse_json(text, name)
        wrong = next((index for index, row in enumerate(rows) if not isinstance(row, dict)), None)
        if wrong is not None:
            raise UserError(f"{name}: row {wrong} is not a JSON object")
        return [_without_nan(row) for row in rows]
    return [_without_nan(row) for row in parse_jsonl(text.split("\n"), name)]


def is_hub_name(name: str) -> bool:
    """Returns whether a name can only be that of a data set on the Hub: no file, function or file suffix.

    >>> is_hub_name("trl-lib/ultrafeedback_binarized:train"), is_hub_name("data/prompts.jsonl")
    (True, False)
    """
    found = HUB.fullmatch(name)
    return found is not None and _suffix(Path(found["path"])) not in SUFFIXES and not Path(name).exists()


def _suffix(path: Path) -> str:
    """Returns the suffix of a file without that of its compression."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower()


def _content(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed."""
    import pyarrow as pa

    try:
        if path.suffix not in COMPRESSED:
            return path.read_bytes()
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, COMPRESSED[path.suffix]) as stream:
            return stream.read()
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason})") from error


def _row_of(row: Any, where: str) -> Row:
    """Returns what a function made as a row."""
    row = row.to_row() if hasattr(row, "to_row") else row
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a dictionary, got {type(row).__name__}")
    return without_lone_surrogates(row)


def _csv_rows(data: bytes, where: str, texts: set[str]) -> list[Row]:
    """Reads CSV with a header."""
    import pyarrow as pa
    from pyarrow import csv

    text = decoded(data, where)
    convert = csv.ConvertOptions(column_types={name: pa.string() for name in texts})
    try:
        table = csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=csv.ReadOptions(block_size=max(len(data), 1 << 10)),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=convert,
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"{where}: not a readable CSV file ({' '.join(str(error).split())})") from error
    return table.to_pylist()


def _hub_rows(name: str) -> list[Row]:
    found = HUB.fullmatch(name)
    assert found is not None
    import datasets

    try:
        data = datasets.load_dataset(
            found["path"], found["config"], split=found["split"] or "train", revision=found["revision"]
        )
    except Exception as error:  # of many kinds: no network, no such name, split, configuration or right
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{name}: no such file, and no data set that can be read from the Hub ({reason}); "
            "name a file, a data set as org/name:split, or one that was downloaded before"
        ) from error
    return list(data)


def arrow_rows(table: Any) -> list[Row]:
    """Returns the rows of an Arrow table or batch; JSON columns, as `datasets` writes mixed messages, are decoded."""
    rows = table.to_pylist()
    types = {field.name: field.type for field in table.schema if _has_json(field.type)}
    for row in rows:
        for name, kind in types.items():
            row[name] = _from_json(row[name], kind)
    return rows


def arrow_values(column: Any) -> list[Any]:
    """Returns the values of an Arrow column, see `arrow_rows`."""
    values = column.to_pylist()
    return [_from_json(value, column.type) for value in values] if _has_json(column.type) else values


def _has_json(kind: Any) -> bool:
    return str(kind.extension_name if hasattr(kind, "extension_name") else kind).find("arrow.json") >= 0


def _from_json(value: Any, kind: Any) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_from_json(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _from_json(value[field.name], field.type) for field in kind}
    return value


def _without_nan(row: Row) -> Row:
    """Returns a row with None for NaN, which pandas writes for a missing value."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
