"""Answers to other tools and back: what goes out comes back."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shfcas.data.preferences import read_preferences
from shfcas.feedback.annotation.aggregation import preferences
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.exchange import ExchangeBaseConfig, export_answers, import_answers
from shfcas.feedback.exchange.matching import user_id
from shfcas.utils.errors import UserError
from tests.support.exchange_cases import CHAT, ITEMS, LOG, TEXTS, WHOLE, answer, exported, imported, item, new_store

NAMES = st.sampled_from(["ada", "ben", "Zoë Müller", "c@example.org", "5d0a1a5c-37c5-4e0c-9d5c-0f6f5b0f5c55"])


@pytest.mark.parametrize("format", WHOLE)
def test_the_log_comes_back_with_every_field_in_its_order(
    store: Store, fresh: Store, tmp_path: Path, format: str
) -> None:
    export_answers(store, tmp_path / "out.json", ExchangeBaseConfig(format))
    done = import_answers(fresh, [tmp_path / "out.json"], ExchangeBaseConfig(format))
    assert fresh.judgements() == store.judgements() == LOG
    assert done["new"] == len(LOG) and done["queues"] == 0
    again = import_answers(fresh, [tmp_path / "out.json"] * 2, ExchangeBaseConfig(format))
    assert again["new"] == 0 and fresh.judgements() == LOG
    assert import_answers(store, [tmp_path / "out.json"], ExchangeBaseConfig(format))["new"] == 0


def test_jsonl_brings_its_queue_into_a_run_without_one(store: Store, tmp_path: Path) -> None:
    rows = exported(store, tmp_path / "log.jsonl", "jsonl")
    with Store(tmp_path / "empty.sqlite") as empty:
        assert imported(empty, rows, tmp_path / "in.jsonl", "jsonl")["queues"] == 1
        assert empty.queues() == ["round-1"] and empty.seed("round-1") == 7
        assert [vars(i) | {"why": None} for i in empty.items("round-1")] == [vars(i) | {"why": None} for i in ITEMS]
        assert empty.judgements() == LOG


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
        export_answers(store, folder / "f.json", ExchangeBaseConfig(format))
        import_answers(other, [folder / "f.json"], ExchangeBaseConfig(format))
        assert other.judgements() == log
        assert import_answers(store, [folder / "f.json"], ExchangeBaseConfig(format))["new"] == 0


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
    path, people = tmp_path / "p.jsonl", HumanConfig(overlap=1)
    with new_store(tmp_path / "one.sqlite", [LOG[0], answer("x", 1, choice="second")]) as one:
        export_answers(one, path, ExchangeBaseConfig("trl"), people)
        wanted = preferences(ITEMS, one.judgements(), people)
    assert read_preferences(path) == wanted and [p.chosen for p in wanted] == ["yes", "\u202ec"]
    assert import_answers(fresh, [path], ExchangeBaseConfig("trl"), people)["new"] == 2
    assert preferences(ITEMS, fresh.judgements(), people) == wanted
    assert import_answers(fresh, [path], ExchangeBaseConfig("trl"), people)["new"] == 0


def test_a_trl_export_has_what_a_run_would_train_on_if_it_went_on_now(tmp_path: Path) -> None:
    people = HumanConfig(overlap=2)
    with new_store(tmp_path / "one.sqlite", [LOG[0], answer("x", 1, choice="second")]) as one:
        export_answers(one, tmp_path / "p.jsonl", ExchangeBaseConfig("trl"), people)
        trained_on = preferences(ITEMS, one.judgements(), people, only_settled=False)  # as HumanFeedback makes them
    assert len(trained_on) == 2 and read_preferences(tmp_path / "p.jsonl") == trained_on


def test_names_with_a_plus_stay_one_persons(fresh: Store, tmp_path: Path) -> None:
    names = ["50%2Bx", "ada+work@example.org", "ben"]
    with new_store(tmp_path / "one.sqlite", [answer(name, 0, name) for name in names]) as one:
        export_answers(one, tmp_path / "p.jsonl", ExchangeBaseConfig("trl"))
    import_answers(fresh, [tmp_path / "p.jsonl"], ExchangeBaseConfig("trl"))
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
    import_answers(fresh, [tmp_path / "p.parquet"], ExchangeBaseConfig("trl"))
    assert [j.strength for j in fresh.judgements()] == [None, "slightly", "clearly", "clearly"]
    assert [j.annotator for j in fresh.judgements()] == ["a+0", "a+1", "a+2", "a+3"]
    (tmp_path / "q.parquet").write_text("no")
    with pytest.raises(UserError, match=r"q\.parquet: not a readable Parquet file"):
        import_answers(fresh, [tmp_path / "q.parquet"], ExchangeBaseConfig("trl"))


@pytest.mark.parametrize("format", WHOLE)
def test_answers_outlive_another_selection_of_the_queue(tmp_path: Path, format: str) -> None:
    path = tmp_path / "answers"
    with new_store(tmp_path / "one.sqlite", LOG) as store, new_store(tmp_path / "two.sqlite") as again:
        rows = exported(store, path, format)
        kept = [dataclasses.replace(item, position=k) for k, item in enumerate(reversed(ITEMS[1:]))]
        again.add_queue(kept, seed=7)
        assert imported(again, rows, path, format)["new"] > 0  # also of the item that is no longer selected
        assert {j.item for j in again.judgements()} - {j.item for j in again.judgements("round-1")} == {ITEMS[0].id}
        rows, before = exported(again, path, format), again.judgements()
        assert imported(again, rows, path, format)["new"] == 0
        assert again.judgements() == before
