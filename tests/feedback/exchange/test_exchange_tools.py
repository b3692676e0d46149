"""What annotators see in other tools, and what those tools write."""

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.aggregation import effective
from shfcas.feedback.annotation.schema import Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.exchange.matching import user_id
from tests.support.exchange_cases import (
    ITEMS,
    LOG,
    argilla_export,
    exported,
    imported,
    item,
    label_studio_export,
    new_store,
    refusal,
)


@pytest.mark.parametrize("format", ["label-studio", "argilla"])
def test_scores_are_shown_only_where_asked_for(fresh: Store, tmp_path: Path, format: str) -> None:
    plain = json.dumps(exported(fresh, tmp_path / "a.json", format))
    assert not any(word in plain for word in ("rewards", "pacs", "kendall", "logprobs", "nan", "NaN"))
    rows = exported(fresh, tmp_path / "b.json", format, with_scores=True)
    assert "kendall_distance" in json.dumps(rows)
    for missing in (None, float("nan")):
        one = dataclasses.replace(item(0), why={"pacs": [0.25, missing]})
        with new_store(tmp_path / f"{missing}.sqlite", items=[one]) as other:
            text = json.dumps(exported(other, tmp_path / "c.json", format, with_scores=True))
        assert "0.25" in text and text.count("pacs") == 1
    if format == "argilla":
        left = "left" if rows[4]["metadata"]["left"] == "first" else "right"
        assert rows[4]["metadata"][f"rewards_{left}"] == 6.0
    else:
        left = "left" if rows[4]["meta"]["left"] == "first" else "right"
        assert f"rewards_{left}: 6" in rows[4]["data"]["scores"]


def test_sides_are_drawn_by_a_seed_for_each_file(fresh: Store, tmp_path: Path) -> None:
    def sides(**options: Any) -> str:
        rows = exported(fresh, tmp_path / "t.json", "label-studio", **options)
        for row, made in zip(rows, ITEMS, strict=True):
            texts = (made.first_text, made.second_text)
            wanted = texts if row["meta"]["left"] == "first" else texts[::-1]
            assert (row["data"]["left"], row["data"]["right"]) == wanted
        return "".join(row["meta"]["left"][0] for row in rows)

    assert sides() == sides() == sides(side_seed=7)
    assert len({sides(side_seed=seed) for seed in range(20)}) > 5


def test_answers_can_stay_at_home(store: Store, tmp_path: Path) -> None:
    for row in exported(store, tmp_path / "t.json", "label-studio", answers=False):
        assert row["annotations"] == [] and "log" not in row["meta"]
    for row in exported(store, tmp_path / "t.json", "argilla", answers=False):
        assert row["responses"] == {} and "log" not in row["metadata"]
    assert {row["type"] for row in exported(store, tmp_path / "t.jsonl", "jsonl", answers=False)} == {"queue", "item"}


def test_the_labelling_configuration_names_what_the_tasks_have(store: Store, tmp_path: Path) -> None:
    for scores in (False, True):
        tasks = exported(store, tmp_path / "tasks.json", "label-studio", with_scores=scores)
        root = ET.parse(tmp_path / "tasks.xml").getroot()
        values = {e.get("value", "")[1:] for e in root.iter() if e.get("value", "").startswith("$")}
        assert values == set(tasks[0]["data"])
        names = [e.get("name") for e in root.iter() if e.get("name")]
        assert len(names) == len(set(names))
        controls = {e.get("name"): e.tag for e in root.iter() if e.get("toName")}
        assert controls == {"better": "Pairwise", "strength": "Choices", "other": "Choices", "comment": "TextArea"}
        aliases = {e.get("alias") for e in root.iter("Choice")}
        used = {
            a["value"]["choices"][0]
            for t in tasks
            for n in t["annotations"]
            for a in n["result"]
            if "choices" in a["value"]
        }
        assert used and used <= aliases == {"slightly", "clearly", "tie", "both_bad", "flag"}
        assert all("completed_by" not in n for t in tasks for n in t["annotations"])


def test_argilla_records_have_one_kind_of_prompt(store: Store, tmp_path: Path) -> None:
    records = exported(store, tmp_path / "r.json", "argilla")
    assert all(isinstance(r["fields"]["prompt"], list) for r in records)
    keys = {"id", "fields", "metadata", "suggestions", "responses", "vectors", "status", "_server_id"}
    assert set(records[0]) == keys
    with new_store(tmp_path / "texts.sqlite", [], [item(0), item(1, "why?")]) as texts:
        records = exported(texts, tmp_path / "r.json", "argilla")
        assert [r["fields"]["prompt"] for r in records] == ["how?", "why?"]


@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "by the texts"])
def test_a_label_studio_export_is_read(fresh: Store, tmp_path: Path, metadata: bool) -> None:
    rows = label_studio_export(exported(fresh, tmp_path / "t.json", "label-studio")[2:])
    left = rows[0]["meta"]["left"]
    if not metadata:
        rows[0]["meta"] = {}
    assert imported(fresh, rows, tmp_path / "answers.json", "label-studio")["new"] == 3
    made = fresh.judgements()
    assert [(j.annotator, j.choice, j.left) for j in made] == [
        ("ada@example.org", left, left),
        ("label-studio-3", "skip", left),
        ("label-studio-4", "both_bad", left),
    ]
    assert (made[0].strength, made[0].comment, made[0].seconds) == ("clearly", "short\nand clear", 12.5)
    assert made[0].time.startswith("2024-05-06T07:08:09.123456") and made[0].page_version == "label-studio"
    assert {j.item for j in made} == {ITEMS[2].id}
    assert imported(fresh, rows, tmp_path / "answers.json", "label-studio")["new"] == 0


@pytest.mark.parametrize("metadata", ["all", "id alone", "none"])
def test_an_argilla_export_is_read(fresh: Store, tmp_path: Path, metadata: str) -> None:
    rows = argilla_export(exported(fresh, tmp_path / "r.json", "argilla")[1:])
    right = "second" if rows[0]["metadata"]["left"] == "first" else "first"
    if metadata != "all":
        rows[0] |= {"metadata": {}, "id": rows[0]["id"] if metadata == "id alone" else "other"}
    assert imported(fresh, rows, tmp_path / "a.json", "argilla")["new"] == 2
    one, two = fresh.judgements()
    assert (one.annotator[:2], one.choice, one.strength, one.comment) == ("0b", right, "slightly", "")
    assert (two.annotator[:2], two.choice, two.strength, two.comment) == ("1c", "tie", None, "hm")
    assert one.item == two.item == ITEMS[1].id and one.page_version == "argilla"
    assert imported(fresh, rows, tmp_path / "a.json", "argilla")["new"] == 0


def test_new_answers_elsewhere_join_those_that_were_exported(store: Store, tmp_path: Path) -> None:
    tasks = exported(store, tmp_path / "t.json", "label-studio")
    for annotation in tasks[0]["annotations"]:
        annotation["completed_by"] = 1  # whoever imported them into Label Studio
    tie = {"from_name": "other", "to_name": "prompt", "type": "choices", "value": {"choices": ["tie"]}}
    tasks[4]["annotations"].append({"completed_by": 1, "result": [tie]})
    for task in tasks[1:4]:
        task["annotations"] = []
    assert imported(store, tasks, tmp_path / "t.json", "label-studio")["new"] == 1
    assert [(j.annotator, j.choice) for j in store.judgements()[len(LOG) :]] == [("label-studio-1", "tie")]
    records = exported(store, tmp_path / "r.json", "argilla")
    records[4]["responses"]["preference"] += [{"value": "flag", "user_id": user_id("ben")}]
    assert imported(store, records, tmp_path / "r.json", "argilla")["new"] == 1
    assert store.judgements()[-1].annotator == "ben" and store.judgements()[-1].choice == "flag"


def test_a_changed_answer_takes_the_place_of_the_old_one_if_told_so(fresh: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    first = argilla_export(exported(fresh, tmp_path / "r.json", "argilla"))
    second = json.loads(json.dumps(first))
    second[0]["responses"]["preference"][1]["value"] = "both_bad"
    imported(fresh, first, path, "argilla")
    message = refusal(fresh, second, path, "argilla")
    assert "user '1c5f6a0e" in message and "another answer (tie); use --replace true to replace it" in message
    for rows, choice in ((second, "both_bad"), (first, "tie"), (second, "both_bad")):
        assert imported(fresh, rows, path, "argilla", replace=True)["new"] == 2
        assert imported(fresh, rows, path, "argilla", replace=True)["new"] == 0
        assert [j.choice for j in effective(fresh.judgements()) if j.annotator.startswith("1c")] == [choice]
    assert imported(fresh, second, path, "argilla")["new"] == 0


def test_what_was_imported_and_undone_stays_undone(fresh: Store, tmp_path: Path) -> None:
    rows = argilla_export(exported(fresh, tmp_path / "r.json", "argilla"))
    imported(fresh, rows, tmp_path / "a.json", "argilla")
    gone = fresh.judgements()[0]
    fresh.record(Judgement("u", gone.item, gone.annotator, "undo", undoes=gone.id))
    assert imported(fresh, rows, tmp_path / "a.json", "argilla")["new"] == 0
