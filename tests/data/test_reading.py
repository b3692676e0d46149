"""Files, data sets of the Hub and functions, all read as the same rows."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.data.candidates import CandidateTable, read_candidates, read_prompts, write_candidates
from shfcas.data.preferences import read_preferences, write_preferences
from shfcas.data.reading import is_hub_name, read_rows
from shfcas.training.sft import read_demonstrations
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json, read_jsonl, read_numbers, to_json, write_json, write_jsonl

ROWS = [{"prompt": "how was “the soup”?", "topic": "food"}, {"prompt": "42", "topic": None}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def csv_text() -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["prompt", "topic"])
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


FILES = {
    "plain.jsonl": LINES.encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "windows.jsonl": LINES.replace("\n", "\r\n").encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "array.json": json.dumps(ROWS, indent=2).encode(),
    "array.jsonl": json.dumps(ROWS).encode(),
    "lines.json": b"\xef\xbb\xbf" + LINES.encode(),
    "nan.jsonl": LINES.replace("null", "NaN").encode(),
    "small.jsonl.gz": gzip.compress(LINES.encode()),
    "small.jsonl.zst": zstd(LINES.encode()),
    "small.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "noend": LINES.encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert read_rows(tmp_path / name) == ROWS


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_keeps_texts_that_look_like_numbers(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(mark + csv_text().encode())
    assert [row["prompt"] for row in read_rows(tmp_path / "p.csv")] == [row["prompt"] for row in ROWS]
    (tmp_path / "n.csv").write_text("question\n007\n")
    assert read_prompts(tmp_path / "n.csv", {"prompt": "question"})[0]["prompt"] == "007"
    (tmp_path / "q.csv").write_text('prompt,chosen,rejected,margin\n"a\n""b""",1,2,0.5\nc,d,e,\n')
    pairs = read_preferences(tmp_path / "q.csv")
    assert [(p.prompt, p.chosen, p.rejected, p.margin) for p in pairs] == [
        ('a\n"b"', "1", "2", 0.5),
        ("c", "d", "e", None),
    ]


def test_parquet_and_functions_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    functions = (f"rows():\n    return {ROWS!r}", "one():\n    return 3", "none():\n    return [3]")
    (tmp_path / "my_rows_here.py").write_text("".join(f"def {function}\n\n\n" for function in functions))
    monkeypatch.syspath_prepend(tmp_path)
    assert read_rows(tmp_path / "p.parquet") == read_rows("my_rows_here:rows") == ROWS
    with pytest.raises(UserError, match="my_rows_here:one: expected a function that returns a list of rows, got int"):
        read_rows("my_rows_here:one")
    with pytest.raises(UserError, match="my_rows_here:none: row 0: expected a dictionary, got int"):
        read_prompts("my_rows_here:none")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("bad.jsonl", b'{"prompt": "a"}\n{"prompt"', "bad.jsonl: line 2 is not valid JSON"),
        ("bad.json", b'[{"prompt": "a"}, 3]', "bad.json: row 1 is not a JSON object"),
        ("bad.jsonl", "straße".encode("latin-1"), r"bad.jsonl: not UTF-8 text \(byte 4\); save it as UTF-8"),
        ("bad.jsonl.gz", b"not compressed", "bad.jsonl.gz: cannot be read"),
        ("bad.jsonl.zst", zstd(LINES.encode())[:20], "bad.jsonl.zst: cannot be read"),
        ("bad.csv", b"prompt,topic\na,b,c\n", "bad.csv: not a readable CSV file"),
        ("bad.parquet", b"PAR1", "bad.parquet: not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read_rows(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="expected a file, got a folder"):
        read_rows(tmp_path)


# The Hub


def test_a_name_of_the_hub_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts").write_text(LINES)
    hub = ["org/name", "org/name:train", "org/name@v1.0", "org/name@main:test", "org/name/config:train[:10]"]
    assert all(map(is_hub_name, hub))
    assert not any(
        map(is_hub_name, ["data/prompts", "data/prompts.jsonl", "data/p.csv.gz", "prompts", "my.module:rows"])
    )
    with pytest.raises(UserError, match=r"data/none\.jsonl does not exist"):
        read_rows("data/none.jsonl")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("org/name", ("org/name", None, "train", None)),
        ("org/name:test_prefs", ("org/name", None, "test_prefs", None)),
        ("org/name@4f1c", ("org/name", None, "train", "4f1c")),
        ("org/name/extra@main:test", ("org/name", "extra", "test", "main")),
    ],
)
def test_the_hub_is_asked_for_name_split_and_revision(
    name: str, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def load(path: str, config: str | None = None, *, split: str, revision: str | None) -> datasets.Dataset:
        seen.append((path, config, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows(name) == ROWS and seen == [asked]


def test_without_the_hub_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^nobody/nothing:train: no such file, and no data set .* name a file"
    ) as error:
        read_prompts("nobody/nothing:train")
    assert "\n" not in str(error.value)


# Columns of JSON

ASKED = [{"role": "user", "content": "how was the soup?"}]
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"x": "a"}}}]}
MIXED = [
    {
        "prompt": ASKED,
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    },
    {
        "prompt": [*ASKED, CALLED, {"role": "tool", "name": "look", "content": "late"}],
        "chosen": "yes",
        "rejected": "no",
    },
]


@pytest.mark.parametrize("whole", [True, False], ids=["column", "items"])
def test_json_columns_of_parquet_are_messages(whole: bool, tmp_path: Path) -> None:
    def column(name: str) -> pa.Array:
        values = [
            row[name] if isinstance(row[name], list) else [{"role": "assistant", "content": row[name]}] for row in MIXED
        ]
        if whole:
            return pa.array([json.dumps(value) for value in values], pa.string()).cast(pa.json_())
        items = pa.array([json.dumps(item) for value in values for item in value], pa.string()).cast(pa.json_())
        offsets = [0]
        for value in values:
            offsets.append(offsets[-1] + len(value))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)

    pq.write_table(pa.table({name: column(name) for name in ("prompt", "chosen", "rejected")}), tmp_path / "p.parquet")
    assert [row["prompt"] for row in read_prompts(tmp_path / "p.parquet")] == [row["prompt"] for row in MIXED]
    pairs = read_preferences(tmp_path / "p.parquet")
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        (MIXED[0]["prompt"], "good", "bad"),
        (MIXED[1]["prompt"], "yes", "no"),
    ]


def test_messages_as_text_are_messages(tmp_path: Path) -> None:
    """As a table of another program keeps them, in a column of text."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": json.dumps(ASKED)}) + "\n")
    assert read_prompts(tmp_path / "p.jsonl")[0]["prompt"] == ASKED
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": '[{"a": 1}] is a list'}) + "\n")
    assert read_prompts(tmp_path / "p.jsonl")[0]["prompt"] == '[{"a": 1}] is a list'


# What cannot be written


def test_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a \\ud83d b", "chosen": "c \\uDE00", "rejected": "d \\ud83d\\ude00"}\n'
    )
    (pair,) = read_preferences(tmp_path / "p.jsonl")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("a � b", "c �", "d \U0001f600")
    write_preferences(tmp_path / "q.jsonl", [pair])
    assert read_preferences(tmp_path / "q.jsonl") == [pair]
    write_jsonl(tmp_path / "r.jsonl", [{"text": "\ud83d"}])  # of a Python function, say
    assert read_jsonl(tmp_path / "r.jsonl") == [{"text": "�"}]
    table = CandidateTable.from_rows([{"prompt_id": "a", "prompt": "\udc00?", "completions": ["x \ud83d"]}])
    write_candidates(tmp_path / "t.parquet", table)
    assert read_candidates(tmp_path / "t.parquet").rows()[0]["prompt"] == "�?"


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    value = {"a": [float("nan"), 1.5], "b": {"c": float("-inf"), "d": None}, "e": "NaN", "f": True}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == {"a": [None, 1.5], "b": {"c": None, "d": None}, "e": "NaN", "f": True}
    assert str(read_numbers(tmp_path / "v.json")["a"]) == "[nan, 1.5]"
    assert to_json({"path": tmp_path}, default=str) == json.dumps({"path": str(tmp_path)})


def test_demonstrations_are_read_like_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "how?", "completion": "good"},
        {"prompt": "how?", "completion": [{"role": "assistant", "content": "bad"}]},
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert [row["completion"] for row in read_demonstrations(tmp_path / "d.json")] == ["good", "bad"]
