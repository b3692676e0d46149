"""Candidate table: one row per prompt, list columns for its N answers; Parquet on disk.

| column | type | meaning |
|---|---|---|
| `prompt_id` | string | unique |
| `prompt` | string, or list<struct<role, content>> | text or chat messages |
| `completions` | list<string> | N answers |
| `logprobs` | list<double> | sum of the response tokens' log-probabilities at temperature 1 |
| `num_tokens` | list<int32> | response tokens, including the end token |
| `completion_ids` | list<list<int32>> | optional: the sampled tokens of each answer, including the end token |
| `finished` | list<bool> | whether the answer ended with an end token |
| `reference_logprobs` | list<double> | optional: the same sum under a reference model |
| `base_logprobs` | list<double> | optional: the same sum under the policy before the first round, for the KL |
| `engine_logprobs` | list<double> | optional: the same sum reported by the generator, only for diagnosis |
| `same_tokens` | list<bool> | optional: whether tokenising the text again gives the sampled tokens |
| `rewards` | list<double> | proxy reward, higher is better |
| `reward_variances` | list<double> | optional: variance of an ensemble's members per answer, at least 0 |
| `member_rewards` | list<list<double>> | optional: rewards of an ensemble's members per answer |
| `pacs` | list<double> | conflict of each answer |
| `kendall_distance`, `kendall_tau_b`, `mean_abs_pacs` | double | conflict of the prompt |
| `degenerate` | bool | all rewards, or all policy scores, are equal |

Other columns (a topic, a source) are kept.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from shfcas.data.formats import Columns, missing_column, prompt_row, warn_of_prompts
from shfcas.data.messages import check_prompt
from shfcas.data.reading import arrow_rows, arrow_values, read_rows
from shfcas.utils.errors import UserError
from shfcas.utils.files import atomic_file, without_lone_surrogates
from shfcas.utils.parquet import read_parquet, write_parquet

LIST_COLUMNS = {
    "completions": pa.list_(pa.string()),
    "logprobs": pa.list_(pa.float64()),
    "num_tokens": pa.list_(pa.int32()),
    "completion_ids": pa.list_(pa.list_(pa.int32())),
    "finished": pa.list_(pa.bool_()),
    "reference_logprobs": pa.list_(pa.float64()),
    "base_logprobs": pa.list_(pa.float64()),
    "engine_logprobs": pa.list_(pa.float64()),
    "same_tokens": pa.list_(pa.bool_()),
    "rewards": pa.list_(pa.float64()),
    "reward_variances": pa.list_(pa.float64()),
    "member_rewards": pa.list_(pa.list_(pa.float64())),
    "pacs": pa.list_(pa.float64()),
}
SCALAR_COLUMNS = {
    "prompt_id": pa.string(),
    "kendall_distance": pa.float64(),
    "kendall_tau_b": pa.float64(),
    "mean_abs_pacs": pa.float64(),
    "degenerate": pa.bool_(),
}
COLUMNS = {**LIST_COLUMNS, **SCALAR_COLUMNS}
CONTRAST_PREFIX = "contrast_"  # of further lists of numbers per answer
GROUP_ROWS = 1024  # rows of a Parquet row group; shards never split a row group


@dataclass(frozen=True)
class CandidateTable:
    """Prompts with their sampled answers.

    Attributes:
        table: the Arrow table in the schema above.
        metadata: provenance (models, sampling parameters, seeds), stored in the file.
    """

    table: pa.Table
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, rows: Sequence[dict[str, Any]], metadata: dict[str, Any] | None = None) -> "CandidateTable":
        """Builds and checks a table from one dictionary per prompt."""
        return cls(pa.table(arrow_columns(rows)), metadata or {}).checked("candidate table")

    def __len__(self) -> int:
        return self.table.num_rows

    def __contains__(self, column: str) -> bool:
        return column in self.table.column_names

    def column(self, name: str) -> list[Any]:
        """Returns a column as Python values."""
        self.require(name)
        return arrow_values(self.table.column(name))

    def rows(self) -> list[dict[str, Any]]:
        """Returns the table as one dictionary per prompt."""
        return arrow_rows(self.table)

    def batch(self) -> pa.RecordBatch:
        """Returns the table as one Arrow batch."""
        columns = {name: self.table.column(name).combine_chunks() for name in self.table.column_names}
        return pa.RecordBatch.from_pydict(columns)

    def values(self, name: str) -> torch.Tensor:
        """Returns the flat values of a list column, float64, shape (T,)."""
        self.require(name)
        flat = self.table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(flat.astype("float64"))

    def offsets(self) -> torch.Tensor:
        """Returns the offsets of each prompt's answers in the flat values, int64, shape (B + 1,)."""
        lengths = torch.tensor([len(c) for c in self.column("completions")], dtype=torch.int64)
        return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    def split(self, flat: torch.Tensor | Sequence[Any]) -> list[list[Any]]:
        """Splits flat values, one per answer, into one list per prompt."""
        values = flat.tolist() if isinstance(flat, torch.Tensor) else list(flat)
        bounds = self.offsets().tolist()
        return [values[a:b] for a, b in pairwise(bounds)]

    def with_columns(self, **columns: Any) -> "CandidateTable":
        """Returns a table with these columns added or replaced."""
        table = self.table
        for name, values in columns.items():
            array = pa.array(values, type=COLUMNS.get(name))
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, array)
            else:
                table = table.append_column(name, array)
        return CandidateTable(table, self.metadata)

    def with_metadata(self, **metadata: Any) -> "CandidateTable":
        """Returns a table with these metadata entries added or replaced."""
        return CandidateTable(self.table, {**self.metadata, **metadata})

    def require(self, *names: str) -> None:
        """Checks that the columns exist; the error names the command that adds a missing one."""
        makers = {
            "rewards": "shfcas score --reward_model MODEL",
            "pacs": "shfcas score",
            "completions": "shfcas sample",
            "reference_logprobs": "shfcas sample --reference MODEL",
        }
        for name in names:
            if name not in self.table.column_names:
                maker = makers.get(name)
                hint = f"; {maker} adds it" if maker else f"; it has {', '.join(self.table.column_names)}"
                raise UserError(f"the candidate table has no column {name}{hint}")

    def checked(self, where: str) -> "CandidateTable":
        """Returns the table with columns cast to the schema; raises UserError naming a malformed row and column."""
        self.require("prompt_id", "prompt", "completions")
        table = self.table
        for name in table.column_names:
            expected = COLUMNS.get(name)
            if expected is not None and table.schema.field(name).type != expected:
                try:
                    cast = table.column(name).cast(expected)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise UserError(
                        f"{where}: column {name} has type {table.schema.field(name).type}, expected {expected}"
                    ) from error
                table = table.set_column(table.column_names.index(name), name, cast)
        check_lengths(table, where)
        lists = [name for name in LIST_COLUMNS if name in table.column_names]
        seen: set[str] = set()
        for index, row in enumerate(arrow_rows(table.select(["prompt_id", "prompt", *lists]))):
            here = f"{where}: row {index}"
            if not row["prompt_id"]:
                raise UserError(f"{here}, column prompt_id: empty")
            if row["prompt_id"] in seen:
                raise UserError(f"{here}, column prompt_id: {row['prompt_id']!r} occurs twice")
            seen.add(row["prompt_id"])
            check_prompt(row["prompt"], f"{here}, column prompt")
            if not row["completions"]:
                raise UserError(f"{here}, column completions: no completion for prompt {row['prompt_id']!r}")
            for name in lists:
                if row[name] is None:
                    raise UserError(f"{here}, column {name}: null values for {len(row['completions'])} completions")
                if any(value is None for value in row[name]):
                    raise UserError(f"{here}, column {name}: a value is null")
                if name == "reward_variances" and not all(value >= 0 for value in row[name]):
                    raise UserError(f"{here}, column {name}: a variance is negative or not a number")
                if name == "member_rewards" and len({len(value) for value in row[name]}) > 1:
                    raise UserError(f"{here}, column {name}: the answers have different numbers of rewards")
        return CandidateTable(table, self.metadata)


def check_lengths(table: pa.Table | pa.RecordBatch, where: str, first_row: int = 0) -> None:
    """Compares the lengths of all lists per answer with the number of completions.

    Args:
        table: rows of a candidate table; without `completions`, nothing is compared.
        where: the table's name, for errors.
        first_row: index of the first row in the table.

    Raises:
        UserError: a row has another number of values than completions. Null is left to the reader of the column.
    """
    kinds = {field.name: field.type for field in table.schema if is_list(field.type)}
    if "completions" not in kinds:
        return
    answers = pc.list_value_length(table.column("completions"))
    for name in kinds:
        if name in LIST_COLUMNS or name.startswith(CONTRAST_PREFIX):
            lengths = pc.list_value_length(table.column(name))
            row = pc.index(pc.not_equal(lengths, answers), True).as_py()  # null is not True
            if row >= 0:
                here = f"{where}: row {first_row + row}, column {name}"
                raise UserError(f"{here}: {lengths[row]} values for {answers[row]} completions")


def is_list(kind: pa.DataType) -> bool:
    """Returns whether an Arrow type is one of the types of lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def arrow_columns(rows: Sequence[dict[str, Any]]) -> dict[str, pa.Array]:
    """Returns the union of the rows' columns, known ones with their schema types; missing values are null."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows], type=COLUMNS.get(name))
        except UnicodeEncodeError:
            values = without_lone_surrogates([row.get(name) for row in rows])
            columns[name] = pa.array(values, type=COLUMNS.get(name))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"column {name}: {error}") from error
    return columns


def write_candidates(path: str | Path, candidates: CandidateTable) -> None:
    """Writes the table as one Parquet file, atomically, with its metadata under the key `shfcas`."""
    metadata = {
        **(candidates.table.schema.metadata or {}),
        b"shfcas": json.dumps(candidates.metadata).encode(),
    }
    table = candidates.table.replace_schema_metadata(metadata)
    with atomic_file(path) as partial:
        write_parquet(table, partial, GROUP_ROWS)


def read_candidates(path: str | Path) -> CandidateTable:
    """Reads and checks a table; an error names the file, row and column."""
    table = read_parquet(path)
    metadata = (table.schema.metadata or {}).get(b"shfcas", b"{}")
    return CandidateTable(table, json.loads(metadata)).checked(str(path))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads only the metadata of a table; empty if the file is no Parquet table."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return {}
    return json.loads(metadata.get(b"shfcas", b"{}"))


def concatenate(tables: Iterable[CandidateTable]) -> CandidateTable:
    """Concatenates tables; an additional column is null where a table lacks it, and a list per answer is left out."""
    tables = list(tables)
    partial = [name for name in LIST_COLUMNS if len({name in table for table in tables}) > 1]
    parts = [t.table.drop_columns([name for name in partial if name in t]) for t in tables]
    arrow = pa.concat_tables(parts, promote_options="permissive")
    return CandidateTable(arrow, tables[0].metadata)


def read_prompts(path: str | Path, columns: Columns | None = None) -> list[dict[str, Any]]:
    """Reads prompts, and warns of those that end in an assistant turn or occur twice.

    A row has `prompt`, optionally `prompt_id`, and further columns; for other layouts see `shfcas.data.formats`. An id
    that is a number becomes text; rows without an id get `p` and their position.

    Args:
        path: see `shfcas.data.reading.read_rows`.
        columns: names of the columns in the user's data, by ours.
    """
    given = read_rows(path, (columns or {}).values())
    if not given:
        raise UserError(f"{path}: no prompts in it")
    rows = []
    for index, found in enumerate(given):
        where = f"{path}: row {index}"
        row = prompt_row(found, columns)
        if "prompt" not in row:
            raise missing_column("prompt", row, where)
        row["prompt"] = check_prompt(row["prompt"], where)
        rows.append(row)
        if isinstance(row["prompt"], str) != isinstance(rows[0]["prompt"], str):
            raise UserError(f"{where}: some prompts are text and some are messages; make them alike")
        own = row.get("prompt_id")
        row["prompt_id"] = f"p{index:06d}" if own in (None, "") else str(own)
    duplicates = len(rows) - len({row["prompt_id"] for row in rows})
    if duplicates:
        raise UserError(f"{path}: {duplicates} prompt_id values occur more than once")
    warn_of_prompts((row["prompt"] for row in rows), str(path))
    return rows
