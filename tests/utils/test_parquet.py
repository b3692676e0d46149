"""Damaged Parquet files: every changed byte of a page is noticed, and files of others are read as before."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.compare import tables
from shfcas.conflicts.columns import add_conflicts
from shfcas.conflicts.streaming import score_table
from shfcas.data.candidates import CandidateTable, read_candidates, write_candidates
from shfcas.data.reading import read_rows
from shfcas.data.shards import TableRows
from shfcas.feedback.exchange.reading import read_parquet_rows
from shfcas.training.export import write_prompts
from shfcas.utils.errors import UserError
from shfcas.utils.parquet import read_parquet, write_parquet

ROWS = [
    {
        "prompt_id": f"p{i}",
        "prompt": f"prompt {i}",
        "completions": [f"answer {i}.{k}" for k in range(3)],
        "logprobs": [-1.0 - i, -2.0, -3.0],
        "rewards": [0.25 * i, 1.5, -1.0],
    }
    for i in range(300)
]
RESULTS = [{"strategy": "a", "budget": 1, "seed": k, "metric": "m", "group": "", "value": k / 7} for k in range(300)]


def scored(path: Path) -> None:
    candidates = path.with_name("source.parquet")
    write_candidates(candidates, CandidateTable.from_rows(ROWS))
    score_table([str(candidates)], path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "candidates": lambda path: write_candidates(path, add_conflicts(CandidateTable.from_rows(ROWS))),
    "score": scored,
    "results": lambda path: tables.write_parquet(path, RESULTS),
    "export": lambda path: write_prompts("openrlhf", path, ROWS),
}
READERS: dict[str, Callable[[Path], Any]] = {
    "candidates": lambda path: read_candidates(path).rows(),
    "rows": read_rows,
    "shards": lambda path: list(TableRows([str(path)])),
    "exchange": lambda path: list(read_parquet_rows(path)),
    "table": lambda path: read_parquet(path).to_pylist(),
}


def pages(path: Path) -> range:
    """The bytes of a file between its mark and its footer."""
    content = path.read_bytes()
    return range(4, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))


def flip(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("writer", WRITERS)
def test_no_flipped_bit_changes_a_value(writer: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "t.parquet", random.Random(writer)
    WRITERS[writer](path)
    whole, content, noticed = read_parquet(path), path.read_bytes(), 0
    places = rng.sample(pages(path), 60)
    for position in places:
        flip(path, position, rng.randrange(8))
        try:
            assert read_parquet(path).equals(whole)  # a byte that nothing reads
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            noticed += 1
        path.write_bytes(content)
    assert noticed > 0.8 * len(places)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_a_damaged_page(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_candidates(path, CandidateTable.from_rows(ROWS))
    column = pq.read_metadata(path).row_group(0).column(4)  # rewards
    assert column.path_in_schema.startswith("rewards")
    whole = READERS[reader](path)
    assert len(whole) == 300
    flip(path, column.data_page_offset + column.total_compressed_size // 2, 3)
    with pytest.raises(UserError, match=r"t\.parquet: damaged.* \(wrong checksum of a page\); restore it from a copy"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_files_without_checksums_are_read(reader: str, compression: str, tmp_path: Path) -> None:
    pq.write_table(CandidateTable.from_rows(ROWS).table, tmp_path / "theirs.parquet", compression=compression)
    write_parquet(CandidateTable.from_rows(ROWS).table, tmp_path / "ours.parquet")
    theirs, ours = (READERS[reader](tmp_path / name) for name in ("theirs.parquet", "ours.parquet"))
    assert str(theirs).replace("theirs", "ours") == str(ours)


def test_a_damaged_part_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an earlier call is used again; what is in it is verified."""
    from shfcas.conflicts import streaming

    write_candidates(tmp_path / "c.parquet", CandidateTable.from_rows(ROWS))
    original = streaming._score_parts

    def damage_a_part(shards: Any, folder: Path, **values: Any) -> Any:
        summary = original(shards, folder, **values)
        part = folder / "part-00000.parquet"
        flip(part, len(pages(part)) // 2, 2)
        return summary

    monkeypatch.setattr(streaming, "_score_parts", damage_a_part)
    from shfcas.engines.local import LocalEngine

    with pytest.raises(UserError, match=r"part-00000\.parquet: damaged \(.*\); delete it and run the same command"):
        score_table([str(tmp_path / "c.parquet")], tmp_path / "out.parquet", engine=LocalEngine())
    assert not (tmp_path / "out.parquet").exists()


def test_any_damage_of_the_footer_is_one_line(tmp_path: Path) -> None:
    """No checksum covers the footer. What is read there is refused, or is some table; it never ends the process."""
    path, rng = tmp_path / "t.parquet", random.Random(0)
    write_parquet(pa.table({"prompt": ["a", "b"], "rewards": [[1.0], [2.0]]}), path)
    content, refused = path.read_bytes(), 0
    for position in rng.sample(range(pages(path).stop, len(content)), 100):
        flip(path, position, rng.randrange(8))
        try:
            read_parquet(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        path.write_bytes(content)
    assert refused
