"""Answers to and from other tools: what goes out comes back, and nothing that does not fit comes in."""

import dataclasses
import json
import logging
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shfcas.cli import main
from shfcas.errors import UserError
from shfcas.feedback.aggregation import effective, preferences
from shfcas.feedback.exchange import FORMATS, ExchangeOptions, export_answers, import_answers, reading
from shfcas.feedback.exchange.matching import user_id
from shfcas.feedback.schema import Item, Judgement, item_id
from shfcas.feedback.settings import HumanSettings
from shfcas.feedback.store import Store
from shfcas.preferences import read_preferences

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how?"}]
WHOLE = ("jsonl", "label-studio", "argilla")  # the formats that carry the log
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", "a\nb\r\nc", "\u2028\u2029\x85", "\u202eright to left\u202c", "\x00\x1b[31m", '"]}\\', "\U0001f600", "\ud800"]
)
NAMES = st.sampled_from(["ada", "ben", "Zoë Müller", "c@example.org", "5d0a1a5c-37c5-4e0c-9d5c-0f6f5b0f5c55"])


def item(position: int, prompt: Any = "how?", first: str = "yes", second: str = "no", queue: str = "round-1") -> Item:
    why = {"kendall_distance": 0.5, "rewards": [2.0 + position, 1.0], "pacs": [0.25, None]}
    key = (queue, f"p{position}", 0, 2)
    return Item(item_id(*key), queue, 1, position, f"p{position}", 0, 2, prompt, first, second, why)


ITEMS = [
    item(0),
    item(1, CHAT, "a\nb", "\u202ec"),
    item(2, "why?", "", "so"),
    item(3, "same?", "twice", "twice"),
    item(4),
]


def answer(id: str, place: int, annotator: str = "ada", choice: str = "first", **more: Any) -> Judgement:
    more = {"left": "second", "time": f"2025-01-31T12:00:0{place}.000+00:00", "page_version": "1"} | more
    return Judgement(id, ITEMS[place].id, annotator, choice, **more)


LOG = [
    answer("j0", 0, choice="first", strength="clearly", comment="better\n\u202e!", seconds=3.25),
    answer("j1", 1, choice="second", seconds=1.0),
    answer("j2", 1, choice="undo", undoes="j1"),
    answer("j3", 1, choice="tie"),
    answer("j4", 0, "ben", "second", left="first", strength="slightly"),
    answer("j5", 2, "ben", "skip"),
    answer("j6", 2, choice="both_bad", comment="\x00\x07"),
    answer("j7", 0, choice="second", left="first", repeat=True),
    answer("j8", 3, "ben", "flag", comment="rude"),
]


def new_store(path: Path, log: list[Judgement] = (), items: list[Item] = ITEMS) -> Store:
    store = Store(path)
    store.add_queue(items, seed=7)
    store.record_all(log)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "run").mkdir()
    with new_store(tmp_path / "run" / "feedback.sqlite", LOG) as opened:
        yield opened


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "fresh").mkdir()
    with new_store(tmp_path / "fresh" / "feedback.sqlite") as opened:
        yield opened


def exported(store: Store, path: Path, format: str, **options: Any) -> Any:
    export_answers(store, path, ExchangeOptions(format, **options))
    text = path.read_text(encoding="utf-8")
    lines = format in ("jsonl", "trl")
    return [json.loads(line) for line in text.split("\n") if line] if lines else json.loads(text)


def imported(store: Store, rows: Any, path: Path, format: str, **options: Any) -> dict[str, Any]:
    lines = format in ("jsonl", "trl")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return import_answers(store, [path], ExchangeOptions(format, **options))


def refusal(store: Store, rows: Any, path: Path, format: str, **options: Any) -> str:
    """The error of an import, after which the log is what it was."""
    before, queues = store.judgements(), store.queues()
    with pytest.raises(UserError) as caught:
        imported(store, rows, path, format, **options)
    assert store.judgements() == before and store.queues() == queues
    return str(caught.value)


# Round trips


@pytest.mark.parametrize("format", WHOLE)
def test_the_log_comes_back_with_every_field_in_its_order(
    store: Store, fresh: Store, tmp_path: Path, format: str
) -> None:
    export_answers(store, tmp_path / "out.json", ExchangeOptions(format))
    done = import_answers(fresh, [tmp_path / "out.json"], ExchangeOptions(format))
    assert fresh.judgements() == store.judgements() == LOG
    assert done["new"] == len(LOG) and done["queues"] == 0
    again = import_answers(fresh, [tmp_path / "out.json"] * 2, ExchangeOptions(format))
    assert again["new"] == 0 and fresh.judgements() == LOG
    assert import_answers(store, [tmp_path / "out.json"], ExchangeOptions(format))["new"] == 0


def test_jsonl_brings_its_queue_into_a_run_without_one(store: Store, tmp_path: Path) -> None:
    rows = exported(store, tmp_path / "log.jsonl", "jsonl")
    with Store(tmp_path / "empty.sqlite") as empty:
        assert imported(empty, rows, tmp_path / "in.jsonl", "jsonl")["queues"] == 1
        assert empty.queues() == ["round-1"] and empty.seed("round-1") == 7
        assert [vars(i) | {"why": None} for i in empty.items("round-1")] == [vars(i) | {"why": None} for i in ITEMS]
        assert empty.judgements() == LOG


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_texts_and_answers_come_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("exchange")
    prompts = st.just("p").flatmap(lambda p: TEXTS.map(lambda t: p + t)) | st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS}),
        min_size=1,
        max_size=3,
    )
    made = data.draw(st.lists(st.tuples(prompts, TEXTS, TEXTS), min_size=1, max_size=4))
    items = [item(position, *texts) for position, texts in enumerate(made)]
    log: list[Judgement] = []
    for number in range(data.draw(st.integers(0, 6))):
        choice = data.draw(st.sampled_from(["first", "second", "tie", "both_bad", "skip", "flag"]))
        strengths = st.sampled_from([None, "slightly", "clearly"]) if choice in ("first", "second") else st.none()
        log.append(
            Judgement(
                f"id-{number}",
                data.draw(st.sampled_from(items)).id,
                data.draw(NAMES),
                choice,
                data.draw(st.sampled_from(["first", "second"])),
                data.draw(strengths),
                data.draw(TEXTS),
                data.draw(st.none() | st.floats(0, 1e6)),
                data.draw(st.booleans()),
                time="2025-01-31T12:00:00.000+00:00",
            )
        )
        if data.draw(st.booleans()):
            last = log[-1]
            undo = Judgement(f"undo-{number}", last.item, last.annotator, "undo", undoes=last.id, time=last.time)
            log.append(undo)
    format = data.draw(st.sampled_from(WHOLE))
    with new_store(folder / "a.sqlite", log, items) as store, new_store(folder / "b.sqlite", [], items) as other:
        export_answers(store, folder / "f.json", ExchangeOptions(format))
        import_answers(other, [folder / "f.json"], ExchangeOptions(format))
        assert other.judgements() == log
        assert import_answers(store, [folder / "f.json"], ExchangeOptions(format))["new"] == 0


@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    format=st.sampled_from(["label-studio", "argilla"]),
    seed=st.integers(0, 99),
)
def test_answers_made_on_either_side_mean_the_same_answer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, format: str, seed: int
) -> None:
    """Each person elsewhere prefers one known text; whatever the sides were, that is what is recorded."""
    folder = tmp_path_factory.mktemp("sides")
    wanted = {i.id: data.draw(st.sampled_from(["first", "second"])) for i in ITEMS if i.first_text != i.second_text}
    with new_store(folder / "a.sqlite") as store:
        rows = exported(store, folder / "f.json", format, side_seed=seed)
        for row in rows:
            found = next(i for i in ITEMS if i.id == (row["meta"] if "meta" in row else row["metadata"])["item"])
            if found.id not in wanted:
                continue
            text = getattr(found, f"{wanted[found.id]}_text")
            if format == "argilla":
                label = "answer_a" if row["fields"]["answer_a"] == text else "answer_b"
                row["responses"] = {"preference": [{"value": label, "user_id": user_id("x")}]}
            else:
                side = "left" if row["data"]["left"] == text else "right"
                result = [{"from_name": "better", "type": "pairwise", "value": {"selected": side}}]
                row["annotations"] = [{"result": result, "completed_by": 3, "was_cancelled": False}]
        assert imported(store, rows, folder / "f.json", format)["new"] == len(wanted)
        assert {j.item: j.choice for j in store.judgements()} == wanted


def test_trl_has_what_the_answers_come_to_and_brings_it_back(store: Store, fresh: Store, tmp_path: Path) -> None:
    path, people = tmp_path / "p.jsonl", HumanSettings(overlap=1)
    with new_store(tmp_path / "one.sqlite", [LOG[0], answer("x", 1, choice="second")]) as one:
        export_answers(one, path, ExchangeOptions("trl"), people)
        wanted = preferences(ITEMS, one.judgements(), people)
    assert read_preferences(path) == wanted and [p.chosen for p in wanted] == ["yes", "\u202ec"]
    assert import_answers(fresh, [path], ExchangeOptions("trl"), people)["new"] == 2
    assert preferences(ITEMS, fresh.judgements(), people) == wanted
    assert import_answers(fresh, [path], ExchangeOptions("trl"), people)["new"] == 0


def test_a_trl_export_has_what_a_run_would_train_on_if_it_went_on_now(tmp_path: Path) -> None:
    people = HumanSettings(overlap=2)
    with new_store(tmp_path / "one.sqlite", [LOG[0], answer("x", 1, choice="second")]) as one:
        export_answers(one, tmp_path / "p.jsonl", ExchangeOptions("trl"), people)
        trained_on = preferences(ITEMS, one.judgements(), people, only_settled=False)  # as HumanFeedback makes them
    assert len(trained_on) == 2 and read_preferences(tmp_path / "p.jsonl") == trained_on


def test_names_with_a_plus_stay_one_persons(fresh: Store, tmp_path: Path) -> None:
    names = ["50%2Bx", "ada+work@example.org", "ben"]
    with new_store(tmp_path / "one.sqlite", [answer(name, 0, name) for name in names]) as one:
        export_answers(one, tmp_path / "p.jsonl", ExchangeOptions("trl"))
    import_answers(fresh, [tmp_path / "p.jsonl"], ExchangeOptions("trl"))
    assert [j.annotator for j in fresh.judgements()] == names


def test_a_preference_of_several_people_is_an_answer_of_each(fresh: Store, tmp_path: Path) -> None:
    row = {"prompt": "how?", "chosen": "no", "rejected": "yes", "source": "human", "annotator": "ada+ben", "round": 1}
    imported(fresh, [row | {"prompt_id": "p4", "chosen_index": 2, "rejected_index": 0}], tmp_path / "p", "trl")
    assert [(j.annotator, j.item, j.choice) for j in fresh.judgements()] == [
        ("ada", ITEMS[4].id, "second"),
        ("ben", ITEMS[4].id, "second"),
    ]


def test_trl_rows_without_ids_are_found_by_their_texts(fresh: Store, tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "a\nb"}]
    rows = [
        {"prompt": CHAT, "chosen": messages, "rejected": "\u202ec"},
        {"prompt": "why?", "chosen": "so", "rejected": ""},
    ]
    imported(fresh, rows, tmp_path / "p", "trl")
    assert [(j.item, j.choice, j.annotator) for j in fresh.judgements()] == [
        (ITEMS[1].id, "first", "original"),
        (ITEMS[2].id, "second", "original"),
    ]


def test_trl_is_read_from_parquet_and_margins_become_strengths(fresh: Store, tmp_path: Path) -> None:
    row = {
        "chosen": "yes",
        "rejected": "no",
        "prompt": "how?",
        "chosen_index": 0,
        "rejected_index": 2,
        "source": "gold",
    }
    margins = [None, 0.1, 0.75, 9.0]
    rows = [row | {"prompt_id": "p0", "annotator": f"a+{n}", "margin": m} for n, m in enumerate(margins)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    import_answers(fresh, [tmp_path / "p.parquet"], ExchangeOptions("trl"))
    assert [j.strength for j in fresh.judgements()] == [None, "slightly", "clearly", "clearly"]
    assert [j.annotator for j in fresh.judgements()] == ["a+0", "a+1", "a+2", "a+3"]
    (tmp_path / "q.parquet").write_text("no")
    with pytest.raises(UserError, match=r"q\.parquet: not a readable Parquet file"):
        import_answers(fresh, [tmp_path / "q.parquet"], ExchangeOptions("trl"))


# What annotators see


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


# As Label Studio 1.x and Argilla 2.x write them


def label_studio_export(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Label Studio makes of the first two tasks after people have answered."""
    common = {"ground_truth": False, "prediction": {}, "parent_prediction": None, "import_id": None, "project": 4}
    left = {"value": {"selected": "left"}, "from_name": "better", "to_name": "better", "type": "pairwise"}
    clearly = {"value": {"choices": ["clearly"]}, "from_name": "strength", "to_name": "prompt", "type": "choices"}
    comment = {
        "value": {"text": ["short", "and clear"]},
        "from_name": "comment",
        "to_name": "prompt",
        "type": "textarea",
    }
    bad = {"value": {"choices": ["both_bad"]}, "from_name": "other", "to_name": "prompt", "type": "choices"}
    ada = {"id": 2, "email": "ada@example.org", "first_name": "Ada", "last_name": ""}
    annotations = [
        {
            "id": 11,
            "completed_by": ada,
            "result": [{**r, "id": f"x{n}", "origin": "manual"} for n, r in enumerate((left, clearly, comment))],
            "was_cancelled": False,
            "created_at": "2024-05-06T09:08:09.123456+02:00",
            "updated_at": "2024-05-06T07:09:00Z",
            "lead_time": 12.5,
        },
        {
            "id": 12,
            "completed_by": 3,
            "result": [],
            "was_cancelled": True,
            "lead_time": 2,
            "created_at": "2024-05-06T08:00:00Z",
        },
        {"id": 13, "completed_by": 4, "result": [{**bad, "id": "y"}], "was_cancelled": False, "lead_time": None},
    ]
    outer = {"file_upload": "tasks.json", "drafts": [], "predictions": [], "project": 4, "total_annotations": 2}
    first = {
        **tasks[0],
        **outer,
        "id": 101,
        "inner_id": 1,
        "annotations": [{**a, **common, "task": 101} for a in annotations],
    }
    return [first, {**tasks[1], **outer, "id": 102, "inner_id": 2, "annotations": []}]


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


def argilla_export(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Argilla makes of the first two records after people have answered."""
    one, two = "0b5f6a0e-3f1c-4f53-8b07-6f0a2d3c1e11", "1c5f6a0e-3f1c-4f53-8b07-6f0a2d3c1e22"
    responses = {
        "preference": [{"value": "answer_b", "user_id": one}, {"value": "tie", "user_id": two}],
        "strength": [{"value": "slightly", "user_id": one}],
        "comment": [{"value": "hm", "user_id": two}],
    }
    server = "6a0e0b5f-3f1c-4f53-8b07-6f0a2d3c1e33"
    suggestion = {"preference": {"value": "answer_a", "score": 0.9, "agent": "model"}}
    first = {**records[0], "responses": responses, "suggestions": suggestion, "_server_id": server}
    return [first, {**records[1], "status": "pending"}]


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
    assert "user '1c5f6a0e" in message and "otherwise (tie); --replace true takes this answer instead" in message
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


# What does not fit


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
    (0, (), "0 is not a JSON object"),
    (..., ("data",), "no data; export from Label Studio as JSON .not JSON_MIN"),
    ("x", ("annotations",), "annotations is 'x'"),
    ("nothing", ("meta", "item"), "item 'nothing' is in no queue of this run; import it into the run that"),
    ([1], ("meta", "item"), r"item \[1\] is in no queue of this run"),
    ("0" * 16, ("meta", "digest"), "has other texts in this run"),
    ({"left": "first"}, ("meta",), "left is first, but the answers stand the other way round"),
    ("up", ("meta", "left"), "left is 'up', neither first nor second"),
    ("x", ("meta", "log"), "the metadata's log is 'x'"),
    ([1], ("meta", "log"), "log 0: 1 is not a judgement"),
    (1, ("annotations", 0), "annotation 0: 1 is no annotation"),
    (..., ("annotations", 0, "result"), "is no annotation"),
    ([1], ("annotations", 0, "result"), "1 is no result"),
    ([], ("annotations", 0, "result"), "annotation 0: no answer is marked; correct the annotation in Label Studio"),
    ("up", ("annotations", 0, "result", 0, "value", "selected"), "selected is 'up'; expected one of left, right"),
    (["huge"], ("annotations", 0, "result", 1, "value", "choices"), "strength is 'huge'; expected one of slightly"),
    (["clearly"] * 2, ("annotations", 0, "result", 1, "value", "choices"), "strength is"),
    ("other", ("annotations", 0, "result", 1, "from_name"), "other is 'clearly'; expected one of tie"),
    ("better", ("annotations", 0, "result", 1, "from_name"), "two results for better"),
    ([2], ("annotations", 0, "result", 2, "value", "text"), r"the comment is \[2\]; write text"),
    (None, ("annotations", 0, "completed_by"), "completed_by is None"),
    (True, ("annotations", 0, "completed_by"), "completed_by is True"),
    ("a\x1b[2J", ("annotations", 0, "completed_by", "email"), r"the annotator has control characters: 'a\\x1b\[2J'"),
    ("a\u202eb", ("annotations", 0, "completed_by", "email"), "control characters"),
    ("a" * 201, ("annotations", 0, "completed_by", "email"), "the annotator has 201 characters"),
    ([7], ("annotations", 0, "completed_by", "email"), r"the annotator is \[7\]"),
    (-1, ("annotations", 0, "lead_time"), "the time taken is -1; write seconds, or null"),
    (True, ("annotations", 0, "lead_time"), "the time taken is True"),
    ("yesterday", ("annotations", 0, "created_at"), "the time is 'yesterday'"),
    (9, ("annotations", 0, "created_at"), "the time is 9"),
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
    (..., ("fields",), "no fields; export with dataset.records.to_json"),
    ([], ("responses",), r"responses is \[\]"),
    ({}, ("responses", "preference"), r"the responses to preference are \{\}"),
    (3, ("responses", "preference", 0), "a response to preference without a user: 3"),
    ("None", ("responses", "preference", 0, "user_id"), "a response to preference without a user"),
    ("better", ("responses", "preference", 0, "value"), "preference is 'better'; expected one of answer_a, answer_b"),
    ([], ("responses", "preference"), "a strength or a comment, and no preference"),
    ("very", ("responses", "strength", 0, "value"), "strength is 'very'"),
    ("flag", ("responses", "preference", 0, "value"), r"a strength \(slightly\), and flag as the preference"),
    (5, ("responses", "comment", 0, "value"), "the comment is 5"),
    ("[[", ("metadata", "log"), "the metadata's log is not valid JSON"),
    ("[" * 100000, ("metadata", "log"), r"the metadata's log is not valid JSON \(nested too deeply\)"),
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
    (0, "event", "type", "type is 'event'; expected one of queue, item, judgement"),
    (0, "../../etc", "queue", "the queue is called '../../etc'"),
    (0, "x", "seed", "a queue needs its seed and its number of items, got 'x'"),
    (0, 6, "items", "the queue round-1 has 6 items"),
    (1, ..., "why", "an item needs id, queue"),
    (1, 3, "first_text", "first_text is 3; write text"),
    (1, 1.5, "first", "first is 1.5; expected a whole number"),
    (1, "p9", "prompt_id", "is not the id of its queue, prompt and answers"),
    (1, "round-2", "queue", "an item of the queue 'round-2' after the line of 'round-1'"),
    (1, [{"role": "user"}], "prompt", "a prompt is text or a non-empty list"),
    (1, [], "why", r"why is \[\]"),
    (1, {"rewards": [1, 2, 3]}, "why", "why is .*; expected finite numbers, or one for each answer"),
    (1, {"pacs": [0.25, float("nan")]}, "why", "why is .*; expected finite numbers"),
    (1, {"kendall_distance": float("inf")}, "why", "why is .*; expected finite numbers"),
    (1, {"kendall_distance": -(10**400)}, "why", "why is .*; expected finite numbers"),
    (1, [{"role": "user", "content": "x", "more": [1]}], "prompt", "a message of the prompt has more than text in it"),
    (6, "nothing", "item", "item 'nothing' is in no queue"),
    (6, ..., "annotator", "no annotator"),
    (6, "better", "choice", "choice is 'better'; expected one of first"),
    (6, ["first"], "choice", "choice is"),
    (6, "up", "left", "left is 'up'"),
    (6, "very", "strength", "strength is 'very'"),
    (6, "tie", "choice", r"a strength \(clearly\) with the choice tie"),
    (6, "no", "repeat", "repeat is 'no'"),
    (6, "j1", "undoes", "undoes and the choice undo belong together"),
    (6, float("nan"), "seconds", "the time taken is nan"),
    (6, 10**400, "seconds", "the time taken is 1000000000"),
    (6, "9999", "time", "the time is '9999'"),
    (6, ..., "id", "a judgement of a log without its id"),
    (6, 1, "score", "unknown field 'score'"),
    (6, 4, "comment", "comment is 4"),
    (6, "", "annotator", "the annotator is ''; give a name"),
    (8, "j9", "undoes", "undoes 'j9', which is no judgement of the same person and item before it"),
    (8, "j0", "undoes", "undoes 'j0', which is no judgement of the same person and item"),
    (8, "ben", "annotator", "undoes 'j1', which is no judgement of the same person"),
    (9, "j1", "id", "judgement 'j1' says something else there already"),
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
    assert "undoes 'j1', which is undone or an undo" in found and "undoes 'j2', which is undone or an undo" in found


TRL_ROW = {
    "prompt": "how?",
    "chosen": "yes",
    "rejected": "no",
    "prompt_id": "p0",
    "chosen_index": 0,
    "rejected_index": 2,
}
TRL_ERRORS = [
    ({"prompt": None}, "the row: a prompt is text or a non-empty list"),
    ({"rejected": 3}, "the row, rejected: expected text"),
    ({"chosen_index": 1}, "no queue of this run asks about answers 1 and 2 of prompt 'p0'"),
    ({"prompt_id": "p\x1b"}, r"prompt 'p\\x1b'"),
    ({"prompt_id": None, "chosen": "maybe"}, "no queue of this run asks about these two answers to this prompt"),
    ({"chosen": "no", "rejected": "yes"}, "has other texts in this run"),
    ({"prompt": "who?"}, "has other texts in this run"),
    ({"prompt": "same?", "chosen": "twice", "rejected": "twice", "prompt_id": ""}, "both answers have the same text"),
    ({"margin": -1}, "the row, margin: expected a number of at least 0"),
    ({"margin": float("inf")}, "the row, margin"),
    ({"source": "human", "annotator": "ada++ben"}, "the annotator is ''"),
    ({"annotator": "a\nb"}, "control characters"),
    ({"margin": "x" * 10000}, "^.{,600}$"),
    ({"prompt": [{"role": [1], "content": "x"}], "prompt_id": ""}, "the row: a prompt is text"),
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
    assert "line 2: 'original' answers item" in found and "p.jsonl: line 1; keep one of them" in found


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
        import_answers(fresh, [good, bad], ExchangeOptions("trl"))
    assert "bad.jsonl: line 1: the line is not valid JSON" in str(caught.value)
    assert "bad.jsonl: line 2: [1] is not a JSON object" in str(caught.value) and not fresh.judgements()
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        import_answers(fresh, [tmp_path / "none.jsonl"], ExchangeOptions("trl"))
    with pytest.raises(UserError, match="cannot be read"):
        import_answers(fresh, [tmp_path], ExchangeOptions("trl"))


@pytest.mark.parametrize("block", [1, 7, 65536])
def test_arrays_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(reading, "BLOCK", block)
    wanted = [{"a": [1, {"b": ']},[{\\" '}]}, {}, {"c": "\u2028é" * 30}]
    problems = reading.Problems()
    for indent in (None, 2):
        (tmp_path / "f").write_text("\ufeff \n" + json.dumps(wanted, indent=indent, ensure_ascii=False) + "\n")
        assert [row for _, row in reading.rows(tmp_path / "f", problems)] == wanted
    (tmp_path / "f").write_text(" [ ] ")
    assert not list(reading.rows(tmp_path / "f", problems))
    problems.check()


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ('[{"a": 1}, {"b": 2}', 2, "row 2: not valid JSON"),
        ('[{"a": 1}, {"b": ', 1, "row 1: not valid JSON"),
        ("[12, 34]", 0, "row 0: 12 is not a JSON object"),
        ("[" * 200000, 0, "nested too deeply"),
        ('[{"a": ' + "9" * 5000 + "}]", 0, "row 0: not valid JSON"),
        ("{" * 10, 0, "line 1: the line is not valid JSON"),
        ('[{"a": "' + "x" * 3000, 0, "row 0: not valid JSON, or larger than 1000 characters"),
        ('{"a": "' + "x" * 3000, 0, "line 1: longer than 1000 characters"),
        ('[{"a": "\udcff"}]', 0, "not UTF-8 text"),
    ],
    ids=lambda v: str(v)[:20].encode("ascii", "replace").decode(),
)
def test_hostile_files_end_in_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, rows: int, message: str
) -> None:
    if "1000" in message:
        monkeypatch.setattr(reading, "LARGEST_ROW", 1000)
        monkeypatch.setattr(reading, "BLOCK", 100)
    (tmp_path / "f").write_bytes(text.encode("utf-8", "surrogateescape"))
    problems = reading.Problems()
    assert len(list(reading.rows(tmp_path / "f", problems))) == rows
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

    @settings(max_examples=60, deadline=None, database=None)
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
        import_answers(fresh, [tmp_path / "p.parquet"], ExchangeOptions("trl"))


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


# The command


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Iterator[Any]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["feedback", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_exports_and_imports(store: Store, fresh: Store, tmp_path: Path, command: Any, format: str) -> None:
    run, out = tmp_path / "run", tmp_path / "out" / "answers.json"
    store.record(answer("j9", 4))
    code, printed, error = command("export", run, "--format", format, "--out", out)
    assert (code, error) == (0, "") and f"output: {out}" in printed
    code, printed, error = command("import", tmp_path / "fresh", "--format", format, out)
    assert (code, error) == (0, "") and f"new: {len(fresh.judgements())}" in printed
    assert fresh.judgements()


def test_the_command_uses_the_settings_of_the_run(store: Store, tmp_path: Path, command: Any) -> None:
    (tmp_path / "run" / "config.yaml").write_text("human: {overlap: 1, clearly: 4.0}\n")
    store.record(Judgement("one", ITEMS[4].id, "ada", "first", strength="clearly"))
    assert command("export", tmp_path / "run", "--format", "trl", "--out", tmp_path / "p.jsonl")[0] == 0
    assert {p.prompt_id: p.margin for p in read_preferences(tmp_path / "p.jsonl")}["p4"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["exprot", "run"], 2, "expected export RUN --out FILE, or import RUN FILE"),
        (["import", "run"], 2, "expected export RUN"),
        (["export", "run"], 2, "missing: out"),
        (["export", "run", "--out", "x", "--format", "csv"], 2, "format: unknown choice 'csv'"),
        (["export", "nowhere", "--out", "x"], 1, "nowhere is no run directory"),
        (["export", "empty", "--out", "x"], 1, "empty has no feedback.sqlite"),
        (["export", "run", "--out", "x.xml", "--format", "label-studio"], 1, "x.xml is the name of the labelling"),
        (["import", "empty", "x", "--format", "trl"], 1, "empty has no feedback.sqlite"),
        (["export", "run", "--out", "x", "--run_queue", "round-9"], 1, "no queue round-9; it has round-1"),
        ([], 2, "missing: gold"),
        (["--gold", "x", "--out", "y"], 2, "out is for export RUN; output names the preferences"),
    ],
)
def test_mistakes_are_one_line(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Any,
    arguments: list,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    got, printed, error = command(*arguments)
    assert (got, printed) == (code, "") and message in error and error.count("\n") == 1
    assert not (tmp_path / "empty" / "feedback.sqlite").exists()


def test_the_commands_of_the_page_do_what_it_says(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    """One after another; what comes back from another tool is what went there."""
    page = (Path(__file__).parents[1] / "docs" / "exchange.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("shfcas ")]
    assert {words[words.index("--format") + 1] for words in lines} == set(FORMATS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename("runs/mine")
    (tmp_path / "runs" / "copy").mkdir()
    exported = ""
    for words in lines:
        if words[2] == "export":
            exported = words[words.index("--out") + 1]
        for name in words[4:] if words[2] == "import" else ():
            if name.endswith((".json", ".jsonl")) and not Path(name).exists():
                Path(name).write_bytes(Path(exported).read_bytes())
        code, _, error = command(*words[2:])
        assert (words[:2], code, error) == (["shfcas", "feedback"], 0, ""), words
        assert Path(exported).exists()


def test_a_run_without_a_queue_says_so(tmp_path: Path) -> None:
    with (
        Store(tmp_path / "empty.sqlite") as empty,
        pytest.raises(UserError, match="the run has no queue at all; it has"),
    ):
        export_answers(empty, tmp_path / "x", ExchangeOptions())
