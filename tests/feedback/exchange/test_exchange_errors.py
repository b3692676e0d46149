"""Nothing that does not fit comes in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shfcas.feedback.annotation.store import Store
from shfcas.feedback.exchange import FORMATS, ExchangeBaseConfig, import_answers, reading
from shfcas.utils.errors import UserError
from tests.support.exchange_cases import (
    ITEMS,
    TEXTS,
    WHOLE,
    answer,
    argilla_export,
    exported,
    imported,
    item,
    label_studio_export,
    new_store,
    refusal,
)


def broken(rows: Any, change: Any, *keys: Any) -> Any:
    """Rows with one value changed, or taken away for `...`."""
    rows = json.loads(json.dumps(rows))
    target = rows
    for key in keys[:-1]:
        target = target[key]
    if change is ...:
        del target[keys[-1]]
    else:
        target[keys[-1]] = change
    return rows


LS_ERRORS = [
    (0, (), "expected a JSON object, got 0"),
    (..., ("data",), "data: missing; export from Label Studio as JSON .not JSON_MIN"),
    ("x", ("annotations",), "annotations: expected a list, got 'x'"),
    ("nothing", ("meta", "item"), "item 'nothing' is in no queue of this run; import it into the run that"),
    ([1], ("meta", "item"), r"item \[1\] is in no queue of this run"),
    ("0" * 16, ("meta", "digest"), "has other texts in this run"),
    ({"left": "first"}, ("meta",), "left: first, but the answers are on the opposite sides"),
    ("up", ("meta", "left"), "left: expected first or second, got 'up'"),
    ("x", ("meta", "log"), "log in the metadata: expected a list, got 'x'"),
    ([1], ("meta", "log"), "log 0: expected a judgement, got 1"),
    (1, ("annotations", 0), "annotation 0: expected an annotation, got 1"),
    (..., ("annotations", 0, "result"), "expected an annotation"),
    ([1], ("annotations", 0, "result"), "expected a result, got 1"),
    (
        [],
        ("annotations", 0, "result"),
        "annotation 0: better: missing, no answer is marked; correct the",
    ),
    ("up", ("annotations", 0, "result", 0, "value", "selected"), "selected: expected one of left, right, got 'up'"),
    (
        ["huge"],
        ("annotations", 0, "result", 1, "value", "choices"),
        "strength: expected one of .*, got 'huge'",
    ),
    (["clearly"] * 2, ("annotations", 0, "result", 1, "value", "choices"), "strength: expected one choice"),
    (
        "other",
        ("annotations", 0, "result", 1, "from_name"),
        "other: expected one of tie, .*, got 'clearly'",
    ),
    ("better", ("annotations", 0, "result", 1, "from_name"), "better: expected one result, got two"),
    ([2], ("annotations", 0, "result", 2, "value", "text"), r"comment: expected text, got \[2\]"),
    (None, ("annotations", 0, "completed_by"), "completed_by: expected a user, got None"),
    (True, ("annotations", 0, "completed_by"), "completed_by: expected a user, got True"),
    (
        "a\x1b[2J",
        ("annotations", 0, "completed_by", "email"),
        r"expected printable characters, got 'a\\x1b\[2J'",
    ),
    ("a\u202eb", ("annotations", 0, "completed_by", "email"), "expected printable characters"),
    ("a" * 201, ("annotations", 0, "completed_by", "email"), "annotator: expected at most 200 characters, got 201"),
    ([7], ("annotations", 0, "completed_by", "email"), r"annotator: expected text, got \[7\]"),
    (-1, ("annotations", 0, "lead_time"), "lead_time: expected a number of at least 0, or null, got -1"),
    (True, ("annotations", 0, "lead_time"), "lead_time: expected a number of at least 0, or null, got True"),
    ("yesterday", ("annotations", 0, "created_at"), "created_at: expected ISO 8601 such as .*, got 'yesterday'"),
    (9, ("annotations", 0, "created_at"), "created_at: expected ISO 8601 such as .*, got 9"),
]


@pytest.mark.parametrize(("change", "keys", "message"), LS_ERRORS, ids=str)
def test_what_is_wrong_in_a_label_studio_export_is_named(
    fresh: Store, tmp_path: Path, change: Any, keys: tuple, message: str
) -> None:
    tasks = label_studio_export(exported(fresh, tmp_path / "t.json", "label-studio"))
    if keys == ("meta",):
        change = {"left": "second" if tasks[0]["meta"]["left"] == "first" else "first"}
        message = message.replace("first", change["left"])
    found = refusal(fresh, broken(tasks, change, 0, *keys), tmp_path / "answers.json", "label-studio")
    assert found.startswith("1 problem, so nothing was imported\n")
    assert re.search(message, found), found
    assert "answers.json: row 0" in found


ARGILLA_ERRORS = [
    (..., ("fields",), "fields: missing; export with dataset.records.to_json"),
    ([], ("responses",), r"responses: expected an object, got \[\]"),
    ({}, ("responses", "preference"), r"responses to preference: expected a list, got \{\}"),
    (3, ("responses", "preference", 0), "response to preference: expected a user_id, got 3"),
    ("None", ("responses", "preference", 0, "user_id"), "response to preference: expected a user_id"),
    (
        "better",
        ("responses", "preference", 0, "value"),
        "preference: expected one of answer_a, .*, got 'better'",
    ),
    ([], ("responses", "preference"), "preference: missing beside a strength or a comment"),
    ("very", ("responses", "strength", 0, "value"), "strength: expected one of slightly, clearly, got 'very'"),
    ("flag", ("responses", "preference", 0, "value"), "strength: expected none with the preference flag, got slightly"),
    (5, ("responses", "comment", 0, "value"), "comment: expected text, got 5"),
    ("[[", ("metadata", "log"), "log in the metadata is not valid JSON"),
    ("[" * 100000, ("metadata", "log"), r"log in the metadata is not valid JSON \(nested too deeply\)"),
    ("nothing", ("metadata", "item"), "item 'nothing' is in no queue"),
    ("other", ("fields", "answer_a"), "has other texts"),
]


@pytest.mark.parametrize(("change", "keys", "message"), ARGILLA_ERRORS, ids=lambda v: str(v)[:40])
def test_what_is_wrong_in_an_argilla_export_is_named(
    fresh: Store, tmp_path: Path, change: Any, keys: tuple, message: str
) -> None:
    records = argilla_export(exported(fresh, tmp_path / "r.json", "argilla"))
    if keys == ("fields", "answer_a"):
        records[0]["metadata"] = {}
    found = refusal(fresh, broken(records, change, 0, *keys), tmp_path / "a.json", "argilla")
    assert re.search(message, found) and "a.json: row 0" in found, found


JSONL_ERRORS = [
    (0, "event", "type", "type: expected one of queue, item, judgement, got 'event'"),
    (0, "../../etc", "queue", "queue: expected a name such as round-1, got '../../etc'"),
    (0, "x", "seed", "seed: expected a whole number, got 'x'"),
    (0, 6, "items", "queue round-1: expected 6 items"),
    (1, ..., "why", "expected an item with id, queue"),
    (1, 3, "first_text", "first_text: expected text, got 3"),
    (1, 1.5, "first", "first: expected a whole number of at least 0, got 1.5"),
    (1, "round-2", "queue", "queue: expected 'round-1', as in the line above, got 'round-2'"),
    (1, [{"role": "user"}], "prompt", "expected a prompt that is text or a non-empty list"),
    (1, [], "why", r"why: .*, got \[\]"),
    (1, {"rewards": [1, 2, 3]}, "why", "why: expected finite numbers, or one for each answer"),
    (1, {"pacs": [0.25, float("nan")]}, "why", "why: expected finite numbers"),
    (1, {"kendall_distance": float("inf")}, "why", "why: expected finite numbers"),
    (1, {"kendall_distance": -(10**400)}, "why", "why: expected finite numbers"),
    (1, [{"role": "user", "content": "x", "more": [1]}], "prompt", "prompt: expected messages of text only"),
    (6, "nothing", "item", "item 'nothing' is in no queue"),
    (6, ..., "annotator", "annotator: missing"),
    (6, "better", "choice", "choice: expected one of first, .*, got 'better'"),
    (6, ["first"], "choice", "choice: expected one of"),
    (6, "up", "left", "left: expected one of first, second, got 'up'"),
    (6, "very", "strength", "strength: expected one of slightly, clearly, got 'very'"),
    (6, "tie", "choice", "strength: expected none with the choice tie, got clearly"),
    (6, "no", "repeat", "repeat: expected true or false, got 'no'"),
    (6, "j1", "undoes", "undoes: expected an id with the choice undo"),
    (6, float("nan"), "seconds", "seconds: .*, got nan"),
    (6, 10**400, "seconds", "seconds: .*, got 1000000000"),
    (6, "9999", "time", "time: expected ISO 8601 .*, got '9999'"),
    (6, ..., "id", "id: missing in a row of a log"),
    (6, 1, "score", "unknown field 'score'"),
    (6, 4, "comment", "comment: expected text, got 4"),
    (6, "", "annotator", "annotator: expected a name, got ''"),
    (8, "j9", "undoes", "undoes: expected an earlier judgement of the same annotator and item, got 'j9'"),
    (8, "j0", "undoes", "undoes: expected an earlier judgement of the same annotator and item, got 'j0'"),
    (8, "ben", "annotator", "undoes: expected an earlier judgement of the same annotator and item, got 'j1'"),
    (9, "j1", "id", "judgement 'j1' exists with other content"),
]


@pytest.mark.parametrize(("line", "change", "key", "message"), JSONL_ERRORS, ids=lambda v: str(v)[:30])
def test_what_is_wrong_in_a_log_is_named(
    store: Store, tmp_path: Path, line: int, change: Any, key: str, message: str
) -> None:
    rows = exported(store, tmp_path / "log.jsonl", "jsonl")
    with Store(tmp_path / "empty.sqlite") as empty:
        found = refusal(empty, broken(rows, change, line, key), tmp_path / "in.jsonl", "jsonl")
    assert re.search(message, found), found
    assert f"in.jsonl: line {line + 1}:" in found or key == "items", found


def test_an_undo_is_undone_once(store: Store, tmp_path: Path) -> None:
    rows = exported(store, tmp_path / "log.jsonl", "jsonl")
    rows.append({**rows[8], "id": "again"})
    rows.append({**rows[8], "id": "undo of undo", "undoes": "j2"})
    with Store(tmp_path / "empty.sqlite") as empty:
        found = refusal(empty, rows, tmp_path / "in.jsonl", "jsonl")
    assert "undoes: 'j1' is undone, or an undo" in found and "undoes: 'j2' is undone, or an undo" in found


TRL_ROW = {
    "prompt": "how?",
    "chosen": "yes",
    "rejected": "no",
    "prompt_id": "p0",
    "chosen_index": 0,
    "rejected_index": 2,
}


TRL_ERRORS = [
    ({"prompt": None}, "the row: expected a prompt that is text or a non-empty list"),
    ({"rejected": 3}, "the row, rejected: expected text"),
    ({"chosen_index": 1}, "no queue of this run asks about answers 1 and 2 of prompt 'p0'"),
    ({"prompt_id": "p\x1b"}, r"prompt 'p\\x1b'"),
    ({"prompt_id": None, "chosen": "maybe"}, "no queue of this run asks about these two answers to this prompt"),
    ({"chosen": "no", "rejected": "yes"}, "has other texts in this run"),
    ({"prompt": "who?"}, "has other texts in this run"),
    ({"prompt": "same?", "chosen": "twice", "rejected": "twice", "prompt_id": ""}, "both answers have the same text"),
    ({"margin": -1}, "the row, margin: expected a number of at least 0"),
    ({"margin": float("inf")}, "the row, margin"),
    ({"source": "human", "annotator": "ada++ben"}, "annotator: expected a name, got ''"),
    ({"annotator": "a\nb"}, "expected printable characters"),
    ({"margin": "x" * 10000}, "^.{,600}$"),
    ({"prompt": [{"role": [1], "content": "x"}], "prompt_id": ""}, "the row: expected a prompt that is text"),
]


@pytest.mark.parametrize(("change", "message"), TRL_ERRORS, ids=str)
def test_what_is_wrong_in_preferences_is_named(fresh: Store, tmp_path: Path, change: dict, message: str) -> None:
    found = refusal(fresh, [TRL_ROW, TRL_ROW | change], tmp_path / "p.jsonl", "trl")
    assert re.search(message, found, re.DOTALL) and "p.jsonl: line 2: " in found, found


@pytest.mark.parametrize("format", WHOLE)
def test_another_run_with_the_same_ids_is_told_apart_by_its_texts(store: Store, tmp_path: Path, format: str) -> None:
    rows = exported(store, tmp_path / "f.json", format)
    others = [item(i.position, i.prompt, i.first_text + "!", i.second_text) for i in ITEMS]
    with new_store(tmp_path / "other.sqlite", [], others) as other:
        found = refusal(other, rows, tmp_path / "f.json", format)
    assert found.count("import it into the run that it was exported from") == len(ITEMS)


def test_two_different_answers_of_one_person_are_a_problem_and_the_same_twice_are_one(
    fresh: Store, tmp_path: Path
) -> None:
    assert imported(fresh, [TRL_ROW, TRL_ROW], tmp_path / "p.jsonl", "trl")["new"] == 1
    with new_store(tmp_path / "other.sqlite") as other:
        found = refusal(other, [TRL_ROW, TRL_ROW | {"margin": 1.0}], tmp_path / "p.jsonl", "trl")
    assert "line 2: 'original' gives item" in found and "p.jsonl: line 1; keep one of them" in found


def test_all_problems_are_counted_and_the_first_are_shown(fresh: Store, tmp_path: Path) -> None:
    found = refusal(fresh, [TRL_ROW, *[TRL_ROW | {"prompt_id": f"x{n}"} for n in range(30)]], tmp_path / "p", "trl")
    lines = found.split("\n")
    assert lines[0] == "30 problems, so nothing was imported" and lines[-1] == "  and 10 more"
    assert len(lines) == 22 and lines[1].startswith(f"  {tmp_path / 'p'}: line 2: ")


def test_one_bad_file_keeps_the_good_one_out(fresh: Store, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(TRL_ROW))
    bad.write_text('{"prompt": \n[1]\n\n"x"\n')
    with pytest.raises(UserError, match="3 problems") as caught:
        import_answers(fresh, [good, bad], ExchangeBaseConfig("trl"))
    assert "bad.jsonl: line 1: the line is not valid JSON" in str(caught.value)
    assert "bad.jsonl: line 2: expected a JSON object, got [1]" in str(caught.value) and not fresh.judgements()
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        import_answers(fresh, [tmp_path / "none.jsonl"], ExchangeBaseConfig("trl"))
    with pytest.raises(UserError, match="cannot be read"):
        import_answers(fresh, [tmp_path], ExchangeBaseConfig("trl"))


@pytest.mark.parametrize("block", [1, 7, 65536])
def test_arrays_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(reading, "BLOCK", block)
    wanted = [{"a": [1, {"b": ']},[{\\" '}]}, {}, {"c": "\u2028é" * 30}]
    problems = reading.Problems()
    for indent in (None, 2):
        (tmp_path / "f").write_text("\ufeff \n" + json.dumps(wanted, indent=indent, ensure_ascii=False) + "\n")
        assert [row for _, row in reading.read_rows(tmp_path / "f", problems)] == wanted
    (tmp_path / "f").write_text(" [ ] ")
    assert not list(reading.read_rows(tmp_path / "f", problems))
    problems.check()


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ('[{"a": 1}, {"b": 2}', 2, "row 2: not valid JSON"),
        ('[{"a": 1}, {"b": ', 1, "row 1: not valid JSON"),
        ("[12, 34]", 0, "row 0: expected a JSON object, got 12"),
        ("[" * 200000, 0, "nested too deeply"),
        ('[{"a": ' + "9" * 5000 + "}]", 0, "row 0: not valid JSON"),
        ("{" * 10, 0, "line 1: the line is not valid JSON"),
        ('[{"a": "' + "x" * 3000, 0, "row 0: not valid JSON, or larger than 1000 characters"),
        ('{"a": "' + "x" * 3000, 0, "line 1: expected at most 1000 characters, got more"),
        ('[{"a": "\udcff"}]', 0, "not UTF-8 text"),
    ],
    ids=lambda v: str(v)[:20].encode("ascii", "replace").decode(),
)
def test_hostile_files_end_in_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, rows: int, message: str
) -> None:
    if "1000" in message:
        monkeypatch.setattr(reading, "MAX_ROW", 1000)
        monkeypatch.setattr(reading, "BLOCK", 100)
    (tmp_path / "f").write_bytes(text.encode("utf-8", "surrogateescape"))
    problems = reading.Problems()
    assert len(list(reading.read_rows(tmp_path / "f", problems))) == rows
    with pytest.raises(UserError, match=message):
        problems.check()


def paths(value: Any, keys: tuple = ()) -> Iterator[tuple]:
    """Where every value in a value from JSON stands."""
    if keys:
        yield keys
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(part, (*keys, key))


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | TEXTS
    | st.sampled_from(["first", "ada"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("format", FORMATS)
def test_whatever_stands_in_a_file_an_import_ends_well(store: Store, tmp_path: Path, format: str) -> None:
    """Any value replaced by any other: the log is as before, or has something more, and no other error comes."""
    store.record(answer("j9", 4))
    rows = exported(store, tmp_path / "f.json", format)
    if format == "argilla":
        rows = argilla_export(rows)
    elif format == "label-studio":
        rows = label_studio_export(rows)
    places = list(paths(rows))

    @given(st.sampled_from(places), ODD)
    def check(keys: tuple, value: Any) -> None:
        before = store.judgements()
        try:
            imported(store, broken(rows, value, *keys), tmp_path / "f.json", format, replace=True)
        except UserError as error:
            assert store.judgements() == before
            assert all(c.isprintable() or c == "\n" for c in str(error))
        assert store.judgements()[: len(before)] == before

    check()


def test_deeply_nested_values_end_in_a_problem(fresh: Store, tmp_path: Path) -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    task = exported(fresh, tmp_path / "t.json", "label-studio")[0]
    for key in ("data", "annotations"):
        refusal(fresh, [{**task, key: deep}], tmp_path / "t.json", "label-studio")
    refusal(
        fresh, [{**task, "meta": {}, "data": {**task["data"], "prompt": deep}}], tmp_path / "t.json", "label-studio"
    )
    for key in ("prompt", "chosen", "annotator", "margin"):
        refusal(fresh, [TRL_ROW | {key: deep}], tmp_path / "p.jsonl", "trl")


def test_text_in_parquet_that_is_no_text_is_a_problem(fresh: Store, tmp_path: Path) -> None:
    broken_text = pa.array([b"\xff"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"prompt": broken_text}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: not a readable Parquet file"):
        import_answers(fresh, [tmp_path / "p.parquet"], ExchangeBaseConfig("trl"))


def test_white_space_that_a_tool_changed_is_no_other_answer(store: Store, tmp_path: Path) -> None:
    tasks = exported(store, tmp_path / "t.json", "label-studio")
    comment = tasks[0]["annotations"][0]["result"][2]["value"]
    assert comment == {"text": ["better\n\u202e!"]}
    comment["text"] = ["better ", "\u202e!"]
    assert imported(store, tasks, tmp_path / "t.json", "label-studio")["new"] == 0


def test_the_errors_of_files_do_not_bring_control_characters_to_the_terminal(fresh: Store, tmp_path: Path) -> None:
    row = TRL_ROW | {"prompt_id": "\x1b]0;x\x07", "annotator": "\u202e"}
    found = refusal(fresh, [row, TRL_ROW | {"annotator": "\x9b2J"}], tmp_path / "p.jsonl", "trl")
    assert all(c.isprintable() or c == "\n" for c in found)
