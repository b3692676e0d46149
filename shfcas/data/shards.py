"""Candidate tables of any size: Parquet files, folders, globs and URLs, processed shard by shard."""

import fnmatch
import json
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from shfcas.data.candidates import check_lengths
from shfcas.data.reading import arrow_rows
from shfcas.utils.config import differences
from shfcas.utils.errors import UserError
from shfcas.utils.parquet import damaged, damages, open_parquet

Item = TypeVar("Item")
WILDCARDS = "*?["
BATCH_ROWS, SHARD_ROWS = 1 << 15, 1 << 19
MODELS = ("policy", "reference_logprobs", "base_logprobs", "reward_model", "policy_score_model")
SETTINGS = (
    "generator",
    "engine",
    "template",
    "policy_score",
    "principles",
    "cost_model",
)  # values under other settings differ


@dataclass(frozen=True)
class Shard:
    """Some consecutive row groups of one file.

    Attributes:
        name: name of the file, as given by the user.
        path: path in the file system.
        filesystem: file system of the file.
        row_groups: indices of the row groups.
        first_row: index of the first row in the file.
        rows: number of rows.
    """

    name: str
    path: str
    filesystem: fs.FileSystem
    row_groups: tuple[int, ...]
    first_row: int
    rows: int


def find_files(inputs: Sequence[str]) -> list[tuple[str, str, fs.FileSystem]]:
    """Returns name, path and file system of every matching Parquet file, sorted within each input.

    Args:
        inputs: files, folders (searched recursively, except hidden names), globs, and URLs of these for
            pyarrow (`s3://`, `gs://`) or an installed fsspec file system.

    Raises:
        UserError: an input does not exist, matches no file, or matches a file again.
    """
    found = []
    seen: dict[tuple[str, str], str] = {}
    for name in inputs:
        filesystem, path = _filesystem(name)
        prefix = name[: len(name) - len(path)] if name.endswith(path) else ""
        if any(c in path for c in WILDCARDS):
            folder = path[: min(path.index(c) for c in WILDCARDS if c in path)].rpartition("/")[0]
            below = (f.removeprefix("./") for f in _parquet_files(filesystem, folder or "."))
            files = [f for f in below if _matches(f, path)]
        else:
            info = filesystem.get_file_info(path)
            if info.type == fs.FileType.NotFound:
                raise UserError(f"{name} does not exist")
            files = [path] if info.type == fs.FileType.File else _parquet_files(filesystem, path)
        if not files:
            raise UserError(f"{name}: no Parquet file there")
        for file in files:
            place = str(Path(file).resolve()) if isinstance(filesystem, fs.LocalFileSystem) else file
            key = filesystem.type_name, place
            if key in seen:
                raise UserError(
                    f"{prefix + file}: expected once, got it from both {seen[key]} and {name}; name it once"
                )
            seen[key] = name
            found.append((prefix + file, file, filesystem))
    return found


def _filesystem(name: str) -> tuple[fs.FileSystem, str]:
    if "://" not in name:
        return fs.LocalFileSystem(), name
    try:
        return fs.FileSystem.from_uri(name)
    except pa.ArrowInvalid:  # a scheme that pyarrow does not know
        pass
    except OSError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _parquet_files(filesystem: fs.FileSystem, folder: str) -> list[str]:
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    paths = [info.path for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    hidden = {p for p in paths if any(part.startswith((".", "_")) for part in p[len(folder) :].split("/"))}
    return sorted(p for p in paths if p.endswith(".parquet") and p not in hidden)


def _matches(path: str, pattern: str) -> bool:
    """Returns whether a path matches a glob, folder by folder; `**` matches any number of folders."""

    def match(parts: list[str], wanted: list[str]) -> bool:
        if not wanted:
            return not parts
        if wanted[0] == "**":
            return any(match(parts[i:], wanted[1:]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and match(parts[1:], wanted[1:])

    return match(path.removeprefix("./").split("/"), pattern.removeprefix("./").split("/"))


def find_shards(inputs: Sequence[str], rows: int) -> tuple[list[Shard], pa.Schema]:
    """Returns the shards of all files, and their common schema.

    Args:
        inputs: see `find_files`.
        rows: minimum rows per shard; a shard ends with the row group that reaches it.

    Raises:
        UserError: a file is missing or unreadable, or two files differ in columns, models or settings.
    """
    shards: list[Shard] = []
    schema = None
    for name, path, filesystem in find_files(inputs):
        with open_parquet(path, name, filesystem) as file:
            if schema is None:
                first, schema = name, file.schema_arrow
            elif not file.schema_arrow.equals(schema):
                raise UserError(f"{name} and {first} have different columns: {_difference(file.schema_arrow, schema)}")
            changed = differences(_made_by(schema), _made_by(file.schema_arrow))
            if changed:
                raise UserError(
                    f"{first} and {name} were made with different settings ({'; '.join(changed)}); process them in "
                    "separate commands, or make one again"
                )
            groups, begin, count = [], 0, 0
            for group in range(file.num_row_groups):
                groups.append(group)
                count += file.metadata.row_group(group).num_rows
                if count >= rows or (count and group == file.num_row_groups - 1):
                    shards.append(Shard(name, path, filesystem, tuple(groups), begin, count))
                    groups, begin, count = [], begin + count, 0
    if schema is None or not shards:
        raise UserError(f"{', '.join(inputs)}: the tables have no rows")
    return shards, schema


def _difference(schema: pa.Schema, other: pa.Schema) -> str:
    for name in dict.fromkeys([*schema.names, *other.names]):
        kinds = [str(s.field(name).type) if name in s.names else "missing" for s in (schema, other)]
        if kinds[0] != kinds[1]:
            return f"{name} is {kinds[0]} in the first and {kinds[1]} in the second"
    return "their order differs"


def _made_by(schema: pa.Schema) -> dict[str, Any]:
    """Returns the metadata that must agree for tables to be joined; a model with a revision may have any path."""
    about = _metadata(schema)
    models = {role: about.get(f"{role}_revision", about.get(role)) for role in MODELS}
    return models | {name: about.get(name) for name in SETTINGS}


def _metadata(schema: pa.Schema) -> dict[str, Any]:
    return json.loads((schema.metadata or {}).get(b"shfcas", b"{}"))


def read_batches(shard: Shard, rows: int, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields batches of at most `rows` rows, each with the index of its first row in the file.

    Raises:
        UserError: the file is damaged, or a row has another number of values than completions.
    """
    position = shard.first_row
    with open_parquet(shard.path, shard.name, shard.filesystem) as file:
        try:
            for batch in file.iter_batches(rows, row_groups=list(shard.row_groups), columns=columns):
                check_lengths(batch, shard.name, position)
                yield position, batch
                position += batch.num_rows
        except damages() as error:
            raise damaged(shard.name, error, f"at or after row {position}") from error


class ShardRows:
    """The rows of shards as dictionaries; every iteration reads the files again.

    Args:
        shards: shards to read.
        columns: columns to read; None reads all.
    """

    def __init__(self, shards: Sequence[Shard], columns: Sequence[str] | None = None) -> None:
        self.shards, self.columns = shards, columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields one dictionary per row."""
        for batch in prefetch(b for shard in self.shards for _, b in read_batches(shard, BATCH_ROWS, self.columns)):
            yield from arrow_rows(batch)


class TableRows(ShardRows):
    """The rows of tables of any size.

    Args:
        inputs: see `find_files`.
        columns: columns to read; None reads all.

    Raises:
        UserError: a file is missing or unreadable, or two have different columns.
    """

    def __init__(self, inputs: Sequence[str], columns: Sequence[str] | None = None) -> None:
        shards, self.schema = find_shards(inputs, SHARD_ROWS)
        super().__init__(shards, columns)

    @property
    def metadata(self) -> dict[str, Any]:
        """Returns the provenance of the first table, see `CandidateTable`; models and settings are those of all."""
        return _metadata(self.schema)


def prefetch(items: Iterable[Item], count: int = 1) -> Iterator[Item]:
    """Yields the items, which a background thread produces up to `count` ahead."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(count)
    stopped = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not stopped.is_set():
            try:
                return made.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end")
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
