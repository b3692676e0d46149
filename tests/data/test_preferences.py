"""Preferences: TRL's format in and out, and merging in order of trust."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.data.preferences import Preference, merge, read_preferences, write_preferences
from shfcas.utils.errors import UserError

CHAT = [{"role": "user", "content": "how?"}]


def pair(chosen: str, rejected: str, prompt: object = "how?", **provenance: object) -> Preference:
    return Preference(prompt, chosen, rejected, **provenance)


def test_text_is_written_as_trl_reads_it() -> None:
    row = pair("good", "bad", margin=0.5, prompt_id="p1", chosen_index=3, source="gold", round=2).to_row()
    assert (row["prompt"], row["chosen"], row["rejected"], row["margin"]) == ("how?", "good", "bad", 0.5)
    assert (row["prompt_id"], row["chosen_index"], row["rejected_index"]) == ("p1", 3, -1)
    assert (row["source"], row["annotator"], row["round"]) == ("gold", "", 2)


def test_messages_are_written_as_trl_reads_them() -> None:
    row = pair("good", "bad", CHAT).to_row()
    assert row["prompt"] == CHAT
    assert row["chosen"] == [{"role": "assistant", "content": "good"}]
    assert row["rejected"] == [{"role": "assistant", "content": "bad"}]
    assert "margin" not in row


@pytest.mark.parametrize("prompt", ["how?", CHAT], ids=["text", "messages"])
def test_what_is_written_comes_back(tmp_path: Path, prompt: object) -> None:
    made = [
        pair("good", "bad", prompt, source="human", annotator="ann", round=1),
        pair("", "\u2028 odd\r\n", prompt, margin=2.0),
    ]
    write_preferences(tmp_path / "p.jsonl", made)
    assert read_preferences(tmp_path / "p.jsonl") == made


def test_trl_data_from_elsewhere_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": CHAT, "chosen": [*CHAT, {"role": "assistant", "content": "good"}], "rejected": "bad", "id": 7}]
    (tmp_path / "p.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert read_preferences(tmp_path / "p.jsonl") == [pair("good", "bad", CHAT)]
    texts = [{"prompt": "how?", "chosen": "good", "rejected": "bad", "extra": 1.0}]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "p.parquet")
    assert read_preferences(tmp_path / "p.parquet") == [pair("good", "bad")]


def test_preferences_come_from_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pairs_here.py").write_text(
        "from shfcas.data.preferences import Preference\n"
        "def rows():\n    return [{'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}, Preference('p', 'c', 'd')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert read_preferences("my_pairs_here:rows") == [pair("a", "b", "p"), pair("c", "d", "p")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "row 1, chosen: expected text or a list with an assistant message"),
        ({"rejected": CHAT}, "row 1, rejected: expected text or a list with an assistant message"),
        ({"prompt": ""}, "row 1: the prompt is empty"),
        ({"source": "oracle"}, "row 1, source: 'oracle' is not one of human, gold, judge, original"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, change: dict, message: str) -> None:
    good = {"prompt": "how?", "chosen": "a", "rejected": "b"}
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in (good, {**good, **change})))
    with pytest.raises(UserError, match=message) as caught:
        read_preferences(file)
    assert str(caught.value).startswith(str(file))


def test_files_that_are_not_there_or_no_table_are_named(tmp_path: Path) -> None:
    for name in ("none.parquet", "none.jsonl"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            read_preferences(tmp_path / name)
    (tmp_path / "p.parquet").write_text("not parquet")
    with pytest.raises(UserError, match=r"p\.parquet: not a readable Parquet file"):
        read_preferences(tmp_path / "p.parquet")


@pytest.mark.parametrize("missing", ["prompt", "chosen", "rejected"])
def test_a_missing_column_is_named(missing: str) -> None:
    row = {name: "x" for name in ("prompt", "chosen", "rejected") if name != missing}
    with pytest.raises(UserError, match=f"row 4 has no column {missing}; its columns are"):
        Preference.from_row(row, "row 4")


def test_a_new_label_overrules_an_old_one_about_the_same_answers() -> None:
    old, other, new = pair("a", "b"), pair("c", "d"), pair("b", "a", source="human", round=1)
    assert merge([old, other], [new]) == [new, other]
    assert merge([new], [old]) == [old]


def test_the_same_answers_of_another_prompt_are_another_pair() -> None:
    groups = [pair("a", "b")], [pair("b", "a", "why?")], [pair("b", "a", [*CHAT, *CHAT])]
    assert merge(*groups) == [p for group in groups for p in group]


def test_text_and_message_of_a_prompt_are_one_prompt() -> None:
    old, new = pair("a", "b"), pair("b", "a", [{**CHAT[0], "name": None, "tool_calls": []}])
    assert merge([old], [new]) == [new]


def test_messages_are_the_same_whatever_the_order_of_their_keys() -> None:
    old, new = pair("a", "b", CHAT), pair("b", "a", [dict(reversed(CHAT[0].items()))])
    assert merge([old], [new]) == [new]


def test_one_group_keeps_each_distinct_judgement_once() -> None:
    one, two = pair("a", "b", annotator="ann"), pair("b", "a", annotator="bob")
    assert merge([one, two, pair("a", "b", annotator="cat")]) == [one, two]
    assert merge([one, two], [pair("a", "b", source="gold")]) == [pair("a", "b", source="gold")]


def test_merging_nothing_gives_nothing_and_changes_no_group() -> None:
    old, new = [pair("a", "b"), pair("a", "b")], [pair("b", "a")]
    merge(old, new)
    assert (len(old), len(new)) == (2, 1)
    assert merge() == merge([], []) == []


def test_null_is_as_good_as_not_there() -> None:
    row = {"prompt": "how?", "chosen": "a", "rejected": "b"}
    nothing = dict.fromkeys(("margin", "source", "annotator", "round", "prompt_id", "chosen_index", "chosen_safe"))
    assert Preference.from_row({**row, **nothing}) == Preference.from_row(row) == pair("a", "b")


def test_numbers_come_back_as_what_they_are() -> None:
    row = {"prompt": "how?", "chosen": "a", "rejected": "b", "margin": 1, "round": 2.0, "prompt_id": 7}
    made = Preference.from_row(row)  # a table with a gap in it turns whole numbers into floats
    assert (made.margin, made.round, made.prompt_id) == (1.0, 2, "7")
    assert isinstance(made.margin, float) and isinstance(made.round, int)


def test_safety_is_kept_where_it_was_given(tmp_path: Path) -> None:
    made = [pair("a", "b", chosen_safe=True, rejected_safe=False), pair("c", "d", rejected_safe=False), pair("e", "f")]
    write_preferences(tmp_path / "p.jsonl", made)
    assert read_preferences(tmp_path / "p.jsonl") == made
    assert "chosen_safe" not in made[1].to_row() and made[1].to_row()["rejected_safe"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": "big"}, "row 3, margin: expected a number of at least 0 .how much better., or null, got 'big'"),
        ({"margin": -1.0}, "row 3, margin: expected a number of at least 0"),
        ({"margin": float("nan")}, "row 3, margin: expected a number"),
        ({"margin": True}, "row 3, margin: expected a number"),
        ({"round": 1.5}, "row 3, round: expected a whole number, got 1.5"),
        ({"round": "first"}, "row 3, round: expected a whole number, got 'first'"),
        ({"round": -1}, "row 3, round: expected 0 .before the first round. or the number of a round, got -1"),
        ({"chosen_index": "x"}, "row 3, chosen_index: expected a whole number"),
        ({"chosen_safe": "yes"}, "row 3, chosen_safe: expected true or false, or null if unknown, got 'yes'"),
        ({"rejected_safe": 1}, "row 3, rejected_safe: expected true or false"),
    ],
)
def test_what_is_of_the_wrong_kind_is_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preference.from_row({"prompt": "how?", "chosen": "a", "rejected": "b", **change}, "row 3")
