"""Finding Parquet files and cutting them into shards; reading ahead."""

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.conflicts.streaming import score_lines, score_table
from shfcas.data.candidates import LIST_COLUMNS, read_candidates
from shfcas.data.shards import TableRows, find_files, find_shards, prefetch, read_batches
from shfcas.selection import SelectionConfig, columns_to_read, select
from shfcas.utils.errors import UserError


def write(path: Path, start: int, rows: int, group: int = 3, kind: pa.DataType | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"n": pa.array(range(start, start + rows), type=kind or pa.int64())})
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def names(inputs: list[str], root: Path) -> list[str]:
    return [name.removeprefix(f"{root}/") for name, _, _ in find_files(inputs)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.parquet", "a.parquet", "sub/c.parquet", "sub/deep/d.parquet", ".hidden.parquet", "_x/e.parquet"):
        write(tmp_path / name, 0, 1)
    (tmp_path / "notes.txt").write_text("no table")
    return tmp_path


def test_files_folders_and_globs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names([f"{tree}/b.parquet"], tree) == ["b.parquet"]
    assert names([str(tree)], tree) == ["a.parquet", "b.parquet", "sub/c.parquet", "sub/deep/d.parquet"]
    assert names([f"{tree}/*.parquet"], tree) == ["a.parquet", "b.parquet"]
    assert names([f"{tree}/**/*.parquet"], tree) == ["a.parquet", "b.parquet", "sub/c.parquet", "sub/deep/d.parquet"]
    assert names([f"{tree}/sub/?.parquet", f"{tree}/a.parquet"], tree) == ["sub/c.parquet", "a.parquet"]
    monkeypatch.chdir(tree)
    assert names(["[ab].parquet"], tree) == ["a.parquet", "b.parquet"]
    assert names([f"file://{tree}/sub"], Path(f"file://{tree}")) == [
        f"file://{tree}/sub/c.parquet",
        f"file://{tree}/sub/deep/d.parquet",
    ]


def test_a_file_that_is_named_twice_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for inputs in (["a.parquet", "a.parquet"], ["*.parquet", f"{tree}/a.parquet"], ["sub", f"file://{tree}/sub/deep"]):
        with pytest.raises(
            UserError, match=rf"parquet: expected once, got it from both {re.escape(inputs[0])} and .*; name it once"
        ):
            find_files(inputs)


def test_urls_of_fsspec(tmp_path: Path) -> None:
    source = Path(write(tmp_path / "a.parquet", 0, 4))
    with fsspec.open("memory://tables/a.parquet", "wb") as file:
        file.write(source.read_bytes())
    (shard, _), _ = find_shards(["memory://tables"], 3)
    assert shard.name.startswith("memory://")
    assert [batch.column("n").to_pylist() for _, batch in read_batches(shard, 10)] == [[0, 1, 2]]


def test_what_is_not_there(tree: Path) -> None:
    for inputs, message in (
        ([f"{tree}/none"], "none does not exist"),
        ([f"{tree}/*.csv"], "no Parquet file there"),
        ([f"{tree}/notes.txt"], "notes.txt: not a readable Parquet file"),
        (["nowhere://x"], "nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            find_shards(inputs, 10)


def test_columns_must_be_alike(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.parquet", 0, 2), write(tmp_path / "b.parquet", 0, 2, kind=pa.float64())]
    with pytest.raises(
        UserError, match=r"b.parquet and .*a.parquet have different columns: n is double in the first and int64"
    ):
        find_shards(files, 10)


def made_by(path: Path, **about: object) -> str:
    table = pa.table({"n": [1]}).replace_schema_metadata({"shfcas": json.dumps(about)} if about else None)
    pq.write_table(table, path)
    return str(path)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"policy_score": "logprob"}, {"policy_score": "logprob_ratio"}, "policy_score: 'logprob' -> 'logprob_ratio'"),
        ({"policy": "a"}, {"policy": "b"}, "policy: 'a' -> 'b'"),
        ({"policy": "a", "policy_revision": "x"}, {"policy": "a", "policy_revision": "y"}, "policy: 'x' -> 'y'"),
        ({"reward_model": "a"}, {"reward_model": "b"}, "reward_model: 'a' -> 'b'"),
        ({"generator": {"name": "vllm"}}, {"generator": {"name": "openai"}}, "generator.name: 'vllm' -> 'openai'"),
        ({"policy": "a"}, {}, "policy: 'a' -> None"),
    ],
)
def test_tables_made_otherwise_are_not_mixed(tmp_path: Path, one: dict, other: dict, message: str) -> None:
    files = [made_by(tmp_path / "a.parquet", **one), made_by(tmp_path / "b.parquet", **other)]
    with pytest.raises(
        UserError, match=rf"a\.parquet and .*b\.parquet were made with different settings \({message}\); "
    ):
        find_shards(files, 10)


def test_tables_of_one_model_that_lies_elsewhere_are_one(tmp_path: Path) -> None:
    one = {"policy": "/here", "policy_revision": "x", "seed": 0, "generation": {"repeatable": True}}
    other = {**one, "policy": "/there", "seed": 1, "generation": {"repeatable": False}}
    files = [made_by(tmp_path / "a.parquet", **one), made_by(tmp_path / "b.parquet", **other)]
    assert len(find_shards(files, 10)[0]) == 2


def test_a_table_without_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tables have no rows"):
        find_shards([write(tmp_path / "a.parquet", 0, 0)], 10)


def test_shards_end_with_row_groups_and_know_where_they_begin(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.parquet", 0, 10), write(tmp_path / "b.parquet", 10, 4)]
    shards, schema = find_shards(files, 5)
    assert [(s.row_groups, s.first_row, s.rows) for s in shards] == [((0, 1), 0, 6), ((2, 3), 6, 4), ((0, 1), 0, 4)]
    assert schema.names == ["n"]
    read = [(first, batch.column("n").to_pylist()) for s in shards for first, batch in read_batches(s, 4)]
    assert read == [(0, [0, 1, 2, 3]), (4, [4, 5]), (6, [6, 7, 8, 9]), (0, [10, 11, 12, 13])]


def test_ahead_keeps_order_and_makes_few_before_they_are_wanted() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    read = prefetch(items(), 2)
    assert next(read) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    assert list(read) == list(range(1, 10))


def test_ahead_passes_errors_on_and_stops_when_left() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    read = prefetch(broken())
    assert next(read) == 1
    with pytest.raises(KeyError, match="lost"):
        next(read)

    before = threading.active_count()
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()
    assert threading.active_count() <= before


PER_ANSWER = [name for name in LIST_COLUMNS if name != "completions"]
VALUES = {
    "num_tokens": 3,
    "finished": True,
    "same_tokens": True,
    "completion_ids": [1, 2],
    "member_rewards": [0.1, 0.2],
}


def uneven(tmp_path: Path, name: str) -> Path:
    """30 rows in groups of 10; row 17 has a value too few in one column."""
    columns: dict[str, Any] = {"prompt_id": [f"p{i}" for i in range(30)], "prompt": ["q"] * 30}
    columns["completions"] = [["a", "b", "c"]] * 30
    for column in {*PER_ANSWER, name}:
        columns[column] = [[VALUES.get(column, 0.5 * k) for k in range(3)] for _ in range(30)]
    columns |= {"kendall_distance": [0.7] * 30, "mean_abs_pacs": [1.0] * 30, "degenerate": [False] * 30}
    columns[name][17] = columns[name][17][:2]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=10)
    return tmp_path / "t.parquet"


@pytest.mark.parametrize("name", [*PER_ANSWER, "contrast_01234567"])
def test_a_list_that_is_shorter_than_its_completions_is_refused_wherever_tables_are_read(
    name: str, tmp_path: Path
) -> None:
    path = uneven(tmp_path, name)
    message = rf"row 17, column {name}: 2 values for 3 completions$"
    with pytest.raises(UserError, match=rf"t\.parquet: {message}"):
        list(TableRows([str(path)]))
    with pytest.raises(UserError, match=rf"t\.parquet: {message}"):
        read_candidates(path)
    if name not in ("pacs",):  # made by score, so not read
        with pytest.raises(UserError, match=rf"t\.parquet: {message}"):
            score_table([str(path)], tmp_path / "scored.parquet")
        rows = pq.read_table(path).to_pylist()
        with pytest.raises(UserError, match=f"stdin: {message}"):
            score_lines(map(json.dumps, rows), io.StringIO())


def test_rewards_and_logprobs_that_are_both_shorter_are_refused(tmp_path: Path) -> None:
    table = pq.read_table(uneven(tmp_path, "rewards"))
    short = table.set_column(
        table.column_names.index("logprobs"), "logprobs", [[[0.1 * k for k in range(2 + (i != 17))] for i in range(30)]]
    )
    pq.write_table(short.select(["prompt_id", "prompt", "completions", "rewards", "logprobs"]), tmp_path / "s.parquet")
    for columns in (None, ["prompt_id", "rewards"]):  # completions are compared even if they are not kept
        with pytest.raises(UserError, match=r"s\.parquet: row 17, column .*: 2 values for 3 completions"):
            score_table([str(tmp_path / "s.parquet")], tmp_path / "scored.parquet", columns=columns)
    assert not (tmp_path / "scored.parquet").exists()


def test_select_compares_pacs_with_completions(tmp_path: Path) -> None:
    path = uneven(tmp_path, "pacs")
    rows = TableRows([str(path)], columns_to_read(SelectionConfig(), pq.read_schema(path).names))
    with pytest.raises(UserError, match=r"row 17, column pacs: 2 values for 3 completions"):
        select(rows, SelectionConfig())
    with pytest.raises(UserError, match=r"prompt 'p17', column pacs: 2 values for 3 completions"):
        select(pq.read_table(path).to_pylist(), SelectionConfig())
