"""The candidate table: what is written comes back, and what is malformed is named by file, row and column."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shfcas.data.candidates import CandidateTable, concatenate, read_candidates, read_prompts, write_candidates
from shfcas.data.shards import find_shards
from shfcas.utils.errors import UserError

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how?"}]


def row(prompt_id: str = "a", n: int = 3, prompt: Any = "how?", **columns: Any) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "prompt": prompt,
        "completions": [f"answer {i}" for i in range(n)],
        "logprobs": [-1.0 - i for i in range(n)],
        "num_tokens": [2 + i for i in range(n)],
        "finished": [i % 2 == 0 for i in range(n)],
        **columns,
    }


@pytest.mark.parametrize("prompt", ["how?", CHAT], ids=["text", "messages"])
def test_what_is_written_comes_back(tmp_path: Path, prompt: Any) -> None:
    rows = [row("a", 3, prompt, topic="food", weight=1.5), row("b", 1, prompt, topic="trains", weight=2.0)]
    made = CandidateTable.from_rows(rows, {"policy": "tiny", "sampling": {"n": 3}})
    write_candidates(tmp_path / "c.parquet", made)
    read = read_candidates(tmp_path / "c.parquet")
    assert read.rows() == rows
    assert read.metadata == {"policy": "tiny", "sampling": {"n": 3}}
    assert read.table.schema.field("logprobs").type == pa.list_(pa.float64())
    assert read.table.schema.field("num_tokens").type == pa.list_(pa.int32())
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"]


def test_a_written_table_can_be_shared_among_workers(tmp_path: Path) -> None:
    write_candidates(tmp_path / "c.parquet", CandidateTable.from_rows([row(f"p{i}", 1) for i in range(2100)]))
    shards, _ = find_shards([str(tmp_path / "c.parquet")], rows=1000)
    assert [shard.rows for shard in shards] == [1024, 1024, 52]


def test_columns_and_metadata_are_added_without_touching_the_old_table() -> None:
    old = CandidateTable.from_rows([row("a", topic="food")], {"policy": "tiny"})
    new = old.with_columns(rewards=[[1, 2, 3]], kendall_distance=[0.5]).with_metadata(reward="r")
    assert new.column("rewards") == [[1.0, 2.0, 3.0]]
    assert new.column("topic") == ["food"]
    assert new.metadata == {"policy": "tiny", "reward": "r"}
    assert "rewards" not in old
    assert new.with_columns(rewards=[[4, 5, 6]]).column("rewards") == [[4.0, 5.0, 6.0]]


def test_ragged_rows_have_flat_values_and_offsets() -> None:
    table = CandidateTable.from_rows([row("a", 3), row("b", 1), row("c", 2)])
    assert table.offsets().tolist() == [0, 3, 4, 6]
    assert table.values("logprobs").tolist() == [-1.0, -2.0, -3.0, -1.0, -1.0, -2.0]
    assert table.values("num_tokens").dtype == torch.float64
    assert table.split(table.values("num_tokens")) == [[2, 3, 4], [2], [2, 3]]
    assert table.split("abcdef") == [["a", "b", "c"], ["d"], ["e", "f"]]


def test_tables_are_joined_in_order_and_their_values_stay_aligned() -> None:
    parts = [CandidateTable.from_rows([row(name, n)], {"policy": "tiny"}) for name, n in (("a", 2), ("b", 3))]
    joined = concatenate(parts)
    assert joined.column("prompt_id") == ["a", "b"]
    assert joined.values("logprobs").tolist() == [-1.0, -2.0, -1.0, -2.0, -3.0]
    assert joined.metadata == {"policy": "tiny"}


def test_joined_tables_need_not_have_the_same_further_columns() -> None:
    rows = [row("a", topic="food", weight=1), row("b"), row("c", topic=None, weight=1.5)]
    joined = concatenate([CandidateTable.from_rows([r]) for r in rows])
    assert joined.column("topic") == ["food", None, None]
    assert joined.column("weight") == [1.0, None, 1.5]


def test_narrower_number_types_of_other_writers_are_widened(tmp_path: Path) -> None:
    table = CandidateTable.from_rows([row()]).table
    narrow = table.set_column(
        table.column_names.index("logprobs"), "logprobs", table["logprobs"].cast(pa.list_(pa.float32()))
    )
    pq.write_table(narrow, tmp_path / "c.parquet")
    assert read_candidates(tmp_path / "c.parquet").values("logprobs").tolist() == [-1.0, -2.0, -3.0]


def test_files_without_our_metadata_are_read(tmp_path: Path) -> None:
    pq.write_table(CandidateTable.from_rows([row()]).table, tmp_path / "c.parquet")
    assert read_candidates(tmp_path / "c.parquet").metadata == {}


MALFORMED = {
    "empty completions": ([row("a"), row("b", 0)], "row 1, column completions: no completion for prompt 'b'"),
    "no completions": ([row("a", completions=None)], "row 0, column completions: no completion"),
    "duplicate id": ([row("a"), row("b"), row("a")], "row 2, column prompt_id: 'a' occurs twice"),
    "empty id": ([row("")], "row 0, column prompt_id: empty"),
    "short list": ([row("a", logprobs=[-1.0])], "row 0, column logprobs: 1 values for 3 completions"),
    "long list": ([row("a", rewards=[1.0] * 4)], "row 0, column rewards: 4 values for 3 completions"),
    "null list": ([row("a"), row("b", finished=None)], "row 1, column finished: null values for 3 completions"),
    "null value": ([row("a", logprobs=[-1.0, None, -1.0])], "row 0, column logprobs: a value is null"),
    "null completion": ([row("a", completions=["x", None, "y"])], "row 0, column completions: a value is null"),
    "empty prompt": ([row("a", prompt=" ")], "row 0, column prompt: the prompt is empty"),
    "empty messages": (
        [row("a", prompt=CHAT), row("b", prompt=[])],
        "row 1, column prompt: expected a prompt that is text or",
    ),
}


@pytest.mark.parametrize(("rows", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_named_by_file_row_and_column(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CandidateTable.from_rows(rows)
    names = list(dict.fromkeys(name for r in rows for name in r))
    file = tmp_path / "bad.parquet"
    pq.write_table(pa.table({name: [r.get(name) for r in rows] for name in names}), file)
    with pytest.raises(UserError, match=message) as caught:
        read_candidates(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("column", "values"),
    [("logprobs", [["much", "more", "most"]]), ("completions", [1]), ("prompt_id", [["a"]])],
)
def test_a_column_of_the_wrong_type_is_named(tmp_path: Path, column: str, values: list) -> None:
    file = tmp_path / "bad.parquet"
    rows = pa.table({name: [value] for name, value in row().items() if name != column})
    pq.write_table(rows.append_column(column, pa.array(values)), file)
    with pytest.raises(UserError, match=rf"bad\.parquet: column {column} has type .*, expected"):
        read_candidates(file)
    with pytest.raises(UserError, match=f"column {column}: "):
        CandidateTable.from_rows([row(**{column: values[0]})])


def test_files_that_are_no_tables_are_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    with pytest.raises(UserError, match=r"bad\.parquet does not exist"):
        read_candidates(file)
    for content in (b"", b"not parquet at all"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.parquet: not a readable Parquet file"):
            read_candidates(file)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    write_candidates(file, CandidateTable.from_rows([row()]))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"bad\.parquet: not a readable Parquet file"):
        read_candidates(file)


def test_a_missing_column_names_the_command_that_makes_it(tmp_path: Path) -> None:
    table = CandidateTable.from_rows([row()])
    with pytest.raises(UserError, match="no column rewards; shfcas score --reward_model MODEL adds it"):
        table.values("rewards")
    with pytest.raises(UserError, match="no column topic; it has prompt_id, prompt"):
        table.column("topic")
    pq.write_table(pa.table({"prompt_id": ["a"], "prompt": ["how?"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="no column completions; shfcas sample adds it"):
        read_candidates(tmp_path / "c.parquet")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_keeps_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.parquet"
    write_candidates(file, CandidateTable.from_rows([row("old")]))
    partial = tmp_path / ".c.parquet.partial"
    partial.symlink_to("/dev/full")
    monkeypatch.setattr("shfcas.utils.files.temporary", lambda path: partial)
    with pytest.raises(UserError, match="no space left on the disk while writing"):
        write_candidates(file, CandidateTable.from_rows([row(f"p{i}") for i in range(1000)]))
    assert read_candidates(file).column("prompt_id") == ["old"]


def test_prompts_come_from_json_lines_json_and_parquet(tmp_path: Path) -> None:
    rows = [{"prompt_id": "a", "prompt": "how?", "topic": "food"}, {"prompt_id": "b", "prompt": "why?", "topic": "x"}]
    (tmp_path / "p.jsonl").write_text('{"prompt_id": "a", "prompt": "how?", "topic": "food"}\n' * 1)
    assert read_prompts(tmp_path / "p.jsonl") == rows[:1]
    (tmp_path / "p.json").write_text('[{"prompt": "how?"}, {"prompt": "why?", "prompt_id": "b"}]')
    assert [r["prompt_id"] for r in read_prompts(tmp_path / "p.json")] == ["p000000", "b"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == rows


def test_ids_are_text_whatever_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(
        '[{"prompt": "a", "prompt_id": 7}, {"prompt": "b", "prompt_id": null}, {"prompt": "c", "prompt_id": ""}]'
    )
    assert [r["prompt_id"] for r in read_prompts(tmp_path / "p.json")] == ["7", "p000001", "p000002"]


def test_prompts_that_are_no_table_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("not parquet")
    with pytest.raises(UserError, match=r"p\.parquet: not a readable Parquet file"):
        read_prompts(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"none\.parquet does not exist"):
        read_prompts(tmp_path / "none.parquet")


def test_prompts_come_from_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_prompts_here.py").write_text("def rows():\n    return [{'prompt': 'how?'}]\nvalue = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_prompts("my_prompts_here:rows") == [{"prompt": "how?", "prompt_id": "p000000"}]
    with pytest.raises(UserError, match="the module my_prompts_here has no function row"):
        read_prompts("my_prompts_here:row")
    with pytest.raises(UserError, match="my_prompts_here:value is not callable"):
        read_prompts("my_prompts_here:value")
    with pytest.raises(UserError, match="cannot import my_prompts_there"):
        read_prompts("my_prompts_there:rows")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no prompts in it"),
        ('[{"prompt": "how?"}, {"question": "why?"}]', "row 1 has no column prompt"),
        ('["how?"]', "row 0 is not a JSON object"),
        ('[{"prompt": ""}]', "row 0: the prompt is empty"),
        ('[{"prompt": [{"role": "user"}]}]', "row 0: expected a prompt that is text or"),
        ('[{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}]', "row 1: some prompts are text and some"),
        ('[{"prompt": "a", "prompt_id": "x"}, {"prompt": "b", "prompt_id": "x"}]', "1 prompt_id values occur more"),
    ],
)
def test_malformed_prompts_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(file)
    assert str(caught.value).startswith(f"{file}: ")
