"""Each published format, by small samples made by hand, and what is said about rows that are not in it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import loaders
from experiments.pools import pandalm_rows
from shfcas.utils.errors import UserError


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


TALK = "\n\nHuman: Hi, who  are you?\n\nAssistant: A machine.\n\nHuman: Prove it.\n\nAssistant:"


def test_hh_rlhf_splits_at_the_last_answer(tmp_path: Path) -> None:
    rows = [
        {"chosen": TALK + " Beep.", "rejected": TALK + " No."},
        {"chosen": "\n\nHuman: one\n\nAssistant: 1", "rejected": "\n\nHuman: two\n\nAssistant: 2"},
    ]
    path = lines(tmp_path / "hh.jsonl.gz", rows)
    (pair,) = loaders.hh_rlhf(path)
    assert pair.prompt.startswith("Human: Hi") and pair.prompt.endswith("Human: Prove it.")
    assert (pair.chosen, pair.rejected) == ("Beep.", "No.")
    assert loaders.hh_first_questions(path, 5) == ["Hi, who are you?"]  # "one" has fewer than three words
    assert loaders.hh_first_questions(path, 3) == []


def test_hh_rlhf_wants_an_answer(tmp_path: Path) -> None:
    path = lines(tmp_path / "hh.jsonl", [{"chosen": "no dialogue", "rejected": "neither"}])
    with pytest.raises(UserError, match=r"row 0, chosen: no 'Assistant:' in it"):
        loaders.hh_rlhf(path)


@pytest.mark.parametrize("name", ["pku.jsonl", "pku.parquet"])
def test_pku_saferlhf_by_either_judgement(tmp_path: Path, name: str) -> None:
    row = {
        "prompt": "How?",
        "response_0": "So.",
        "response_1": "I would rather not.",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "better_response_id": 0,
        "safer_response_id": 1,
    }
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        lines(path, [row])
    (helpful,), (safe,) = loaders.pku_saferlhf(path), loaders.pku_saferlhf(path, "safer")
    assert (helpful.chosen, helpful.chosen_safe, helpful.rejected_safe) == ("So.", False, True)
    assert (safe.chosen, safe.chosen_safe, safe.rejected_safe) == ("I would rather not.", True, False)
    assert helpful.prompt_id == safe.prompt_id
    with pytest.raises(UserError, match=r"row 0, nicer_response_id: expected 0 or 1, got None"):
        loaders.pku_saferlhf(path, "nicer")


def test_diasafety(tmp_path: Path) -> None:
    rows = [
        {"context": "I feel ill.", "response": " Me too ", "category": "Risk Ignorance", "label": "Unsafe"},
        {"context": "Hello", "response": "", "category": "Offending User", "label": "Safe"},
    ]
    path = tmp_path / "dia.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    first, second = loaders.diasafety(path)
    assert first == loaders.Exchange("I feel ill.", "Me too", "Risk Ignorance", False) and second.safe
    path.write_text(json.dumps([{**rows[0], "label": "unsafe"}]), encoding="utf-8")
    with pytest.raises(UserError, match=r"row 0, label: expected Safe or Unsafe, got 'unsafe'"):
        loaders.diasafety(path)


def panda(first: str, second: str, one: str | bool, other: str, *votes: int) -> dict[str, Any]:
    return {
        "instruction": "Sum up.",
        "input": "A long text.",
        "cmp_key": f"{first}_{second}",
        "response1": one,
        "response2": other,
        **{f"annotator{i}": vote for i, vote in enumerate(votes, start=1)},
    }


def test_pandalm_votes_and_shares(tmp_path: Path) -> None:
    rows = [
        panda("a-7b", "b-7b", "A", "B", 1, 1, 2),
        panda("a-7b", "c-7b", "A", "C", 0, 1, 2),
        panda("b-7b", "c-7b", "B", "C", 2, 2, 2),
    ]
    (tmp_path / "pandalm").mkdir()
    path = tmp_path / "pandalm" / "testset-v1.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    found = loaders.pandalm(path)
    assert [c.majority for c in found] == [1, 0, 2]
    assert found[0].prompt == "Sum up.\n\nA long text." and found[0].systems == ("a-7b", "b-7b")
    (row,) = pandalm_rows(tmp_path)
    assert row["completions"] == ["A", "B", "C"]
    assert row["gold"] == pytest.approx([3.5 / 6, 1 / 6, 4.5 / 6])  # half a win for each vote that there is none
    path.write_text(json.dumps([panda("a", "b", True, "B", 1, 1, 1)]), encoding="utf-8")
    assert loaders.pandalm(path)[0].answers == ("True", "B")
    path.write_text(json.dumps([panda("a", "b", "A", "B", 1, 3, 1)]), encoding="utf-8")
    with pytest.raises(UserError, match=r"row 0: expected votes of 0, 1 or 2"):
        loaders.pandalm(path)


def test_ultrafeedback_messages_and_text(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}]
    path = lines(tmp_path / "uf.jsonl", [{"prompt": "Q", "chosen": said, "rejected": "bad"}])
    (pair,) = loaders.ultrafeedback(path)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Q", "good", "bad")
    lines(path, [{"prompt": "Q", "chosen": [], "rejected": "bad"}])
    with pytest.raises(UserError, match=r"row 0, chosen: expected text, or messages"):
        loaders.ultrafeedback(path)


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(b'{"chosen": "a"}\n' * 99, mtime=0)[:20]], ids=["text", "cut"]
)
def test_a_broken_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hh.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"hh\.jsonl\.gz: not a gzip file"):
        loaders.hh_rlhf(path)
