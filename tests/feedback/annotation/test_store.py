"""The log of judgements: nothing that was acknowledged is lost, whatever happens; nothing is changed."""

import contextlib
import dataclasses
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.schema import Judgement
from shfcas.feedback.annotation.store import Store, StoreError
from shfcas.utils.errors import UserError
from tests.support.queues import judged, make_queue

ITEMS = make_queue(5)


def choices(store: Store) -> list[tuple[str, str]]:
    return [(j.id, j.choice) for j in store.judgements()]


# queues and items


def test_a_queue_comes_back_as_it_was_given(store: Store) -> None:
    assert store.items("round-1") == ITEMS
    assert store.item(ITEMS[3].id) == ITEMS[3]
    assert store.seed("round-1") == 3


def test_queues_are_told_oldest_first_and_keep_their_own_judgements(store: Store) -> None:
    later = make_queue(2, "round-0")
    store.add_queue(list(reversed(later)), seed=-(2**80))
    assert store.queues() == ["round-1", "round-0"]
    assert store.seed("round-0") == -(2**80)
    assert store.items("round-0") == later
    one, other = judged(later[0], "ada", "tie"), judged(ITEMS[0], "ada", "tie")
    store.record_all([one, other])
    assert [j.id for j in store.judgements("round-0")] == [one.id]
    assert [j.id for j in store.judgements("round-1")] == [other.id]
    assert [j.id for j in store.judgements()] == [one.id, other.id]


def test_the_same_queue_again_changes_nothing(store: Store) -> None:
    store.record(judged(ITEMS[0], "ada", "tie"))
    store.add_queue(ITEMS, seed=3)
    assert store.items("round-1") == ITEMS
    assert len(store.judgements()) == 1


def test_no_items_are_no_queue(store: Store) -> None:
    store.add_queue([], seed=3)
    assert store.queues() == ["round-1"]


def test_a_queue_that_is_selected_again_keeps_the_judgements_of_equal_comparisons(store: Store) -> None:
    made = [judged(item, "ada", "first") for item in ITEMS]
    store.record_all(made)
    moved = [dataclasses.replace(item, position=k) for k, item in enumerate((ITEMS[3], *make_queue(7)[5:], ITEMS[0]))]
    assert store.add_queue(moved, seed=4) == 2
    assert store.seed("round-1") == 3  # or the sides that people see again would differ
    assert store.items("round-1") == moved
    assert store.item_ids("round-1") == [item.id for item in moved]
    assert {j.item for j in store.judgements("round-1")} == {ITEMS[0].id, ITEMS[3].id}
    assert len(store.judgements()) == 5
    assert store.deselected("round-1") == [ITEMS[1], ITEMS[2], ITEMS[4]]
    assert store.item(ITEMS[1].id) == ITEMS[1]
    assert [store.is_selected(item.id) for item in ITEMS] == [True, False, False, True, False]
    late = judged(ITEMS[1], "ben", "tie")  # by an annotator who had it open
    assert store.record(late)
    assert late.id not in {j.id for j in store.judgements("round-1")}
    assert store.add_queue(ITEMS, seed=3) == 0  # the change is taken back
    assert store.items("round-1") == ITEMS
    assert {j.id for j in store.judgements("round-1")} == {*(j.id for j in made), late.id}
    assert store.rows("SELECT people, flagged FROM standing ORDER BY position") == [
        (1, 0),
        (2, 0),
        (1, 0),
        (1, 0),
        (1, 0),
    ]


def test_equal_texts_are_the_same_comparison_wherever_and_on_whatever_side_they_are(store: Store) -> None:
    store.record(judged(ITEMS[0], "ada", "first"))
    why = {"pacs": [-1.5, 0.25], "kendall_distance": 2.0}
    swapped = dataclasses.replace(
        ITEMS[0], id="other", first=5, second=1, first_text="no to 0", second_text="yes to 0", why=why
    )
    assert store.add_queue([swapped], seed=3) == 0
    expected = dataclasses.replace(ITEMS[0], first=1, second=5, why={"pacs": [0.25, -1.5], "kendall_distance": 2.0})
    assert store.items("round-1") == [expected]
    assert [(j.item, j.choice) for j in store.judgements("round-1")] == [(ITEMS[0].id, "first")]


def test_other_texts_at_the_same_positions_are_another_comparison(store: Store) -> None:
    store.record(judged(ITEMS[4], "ada", "first"))
    other = dataclasses.replace(ITEMS[4], first_text="other")
    for _ in range(2):
        store.add_queue([*ITEMS[:4], other], seed=3)
        (*_, item) = store.items("round-1")
        assert item == dataclasses.replace(other, id=item.id) and item.id != ITEMS[4].id
        assert store.judgements("round-1") == []
    assert store.rows("SELECT count(*) FROM items") == [(6,)]


def test_of_several_comparisons_with_equal_texts_the_judged_one_is_kept(store: Store) -> None:
    twins = [dataclasses.replace(ITEMS[0], id=f"twin {k}", first=k, position=k, queue="round-2") for k in range(3)]
    store.add_queue(twins, seed=0)
    store.record(judged(twins[2], "ada", "first"))
    assert store.add_queue(twins[:1], seed=0) == 0
    assert store.items("round-2") == [dataclasses.replace(twins[0], id=twins[2].id)]
    assert len(store.judgements("round-2")) == 1
    assert store.add_queue(twins, seed=0) == 0
    assert {item.id for item in store.items("round-2")} == {twin.id for twin in twins}


FORMER = Path(__file__).with_name("layout_2.sql")  # written by the version before this layout: 4 items, 7 judgements
TO_LAYOUT_1 = """
DROP INDEX stands;
ALTER TABLE standing DROP COLUMN position;
ALTER TABLE standing DROP COLUMN place;
CREATE INDEX stands ON standing (queue, flagged, people, item);
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("change", ["", TO_LAYOUT_1], ids=["layout 2", "layout 1"])
def test_a_file_of_a_former_layout_is_updated(tmp_path: Path, change: str) -> None:
    path, items = tmp_path / "old.sqlite", make_queue(4)
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(FORMER.read_text(encoding="utf-8") + change)
    with pytest.raises(StoreError, match=r"expected layout 3, got .; shfcas annotate updates the file"):
        Store(path, read_only=True)
    with Store(path) as store:
        assert store.items("round-1") == items
        log = store.judgements("round-1")
        assert [j.id for j in log] == ["answer-1", "answer-2", "answer-3", "undo-3", "answer-4", "answer-5", "answer-6"]
        assert log[1] == dataclasses.replace(log[1], choice="second", strength="clearly", comment="für", informed=False)
        standing = "SELECT people, leading, flagged FROM standing ORDER BY position"
        assert store.rows(standing) == [(2, 1, 0), (0, 0, 0), (0, 0, 1), (2, 2, 0)]
        store.record(judged(items[0], "cleo", "first"))
        store.look(log[5])
        store.record(judged(items[3], "ada", "undo", undoes="answer-5", id="undo-5"))
        assert store.judgements()[-1].informed
        assert store.rows(standing) == [(3, 2, 0), (0, 0, 0), (0, 0, 1), (1, 1, 0)]
        assert store.add_queue(items[:2], seed=3) == 0
        assert store.rows(standing) == [(3, 2, 0), (0, 0, 0)]
        assert store.add_queue(items, seed=3) == 0  # counted again from the log
        assert store.rows(standing) == [(3, 2, 0), (0, 0, 0), (0, 0, 1), (1, 1, 0)]
    with Store(path, read_only=True) as again:
        assert len(again.judgements()) == 9
        made = [sql for (sql,) in again.rows("SELECT name FROM sqlite_master ORDER BY name")]
    with Store(tmp_path / "new.sqlite") as new:
        assert [sql for (sql,) in new.rows("SELECT name FROM sqlite_master ORDER BY name")] == made


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*make_queue(2, "round-2"), ITEMS[0]], "items: expected one queue, got 'round-2' and others"),
        ([make_queue(1, "round-2")[0]] * 2, "asks the same comparison twice"),
        ([dataclasses.replace(item, position=0) for item in make_queue(2, "round-2")], "the same comparison twice"),
        ([dataclasses.replace(ITEMS[0], queue="round-2")], "has item '.*' in another queue"),
        ([dataclasses.replace(ITEMS[0], queue="round-2\n", id="new")], "queue: expected printable text"),
    ],
)
def test_a_queue_that_is_none_is_refused_whole(store: Store, items: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        store.add_queue(items, seed=0)
    assert store.queues() == ["round-1"]
    assert store.rows("SELECT count(*) FROM items") == [(len(ITEMS),)]


def test_what_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(UserError, match="has no queue 'round-7'; it has round-1"):
        store.items("round-7")
    with pytest.raises(UserError, match="has no queue 'round-7'"):
        store.seed("round-7")
    with pytest.raises(UserError, match="has no item 'nothing'; reload"):
        store.item("nothing")
    assert store.judgement("nothing") is None


HOSTILE = "a\x00b \ud800 \U0001f600 \u202e \x1b[31m '); DROP TABLE items; --\r\n"


def test_hostile_texts_come_back_to_the_letter(tmp_path: Path) -> None:
    item = dataclasses.replace(ITEMS[0], first_text=HOSTILE, second_text="x" * 1_000_000, prompt_id=HOSTILE)
    judgement = judged(item, "José O'Neill", "flag", comment=HOSTILE, page_version="label-studio 1.x")
    with Store(tmp_path / "a.sqlite") as store:
        store.add_queue([item], seed=0)
        store.record(judgement)
    with Store(tmp_path / "a.sqlite") as store:
        assert store.items("round-1") == [item]
        assert store.judgements() == [dataclasses.replace(judgement, time=store.judgements()[0].time)]


# judgements


def test_a_judgement_comes_back_with_every_field_and_the_time(store: Store) -> None:
    given = Judgement("u-1", ITEMS[1].id, "ada", "second", "second", "clearly", "because", 2.5, True, None, "page 1")
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # times are kept in milliseconds
    assert store.record(given)
    kept = store.judgement("u-1")
    assert kept is not None
    assert before <= datetime.fromisoformat(kept.time) <= datetime.now(UTC)
    assert kept == dataclasses.replace(given, time=kept.time)
    assert store.judgements() == [kept]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2025-01-31T12:00:00Z", "2025-01-31T12:00:00.000+00:00"),
        ("2025-01-31T12:00:00", "2025-01-31T12:00:00.000+00:00"),
        ("2025-01-31T12:00:00.123456+02:00", "2025-01-31T10:00:00.123456+00:00"),
    ],
)
def test_times_are_kept_in_utc(store: Store, given: str, kept: str) -> None:
    judgement = judged(ITEMS[0], "ada", "tie", time=given)
    assert store.record(judgement)
    assert store.judgements()[0].time == kept
    assert not store.record(judgement)
    assert not store.record(dataclasses.replace(judgement, time=kept))


def test_the_same_judgement_again_is_written_once(store: Store) -> None:
    judgement = judged(ITEMS[0], "ada", "tie", seconds=3)
    assert store.record(judgement)
    assert not store.record(judgement)
    assert store.record_all([judgement, judged(ITEMS[1], "ada", "tie"), judgement]) == 1
    assert len(store.judgements()) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"choice": "first"},
        {"item": ITEMS[1].id},
        {"annotator": "ben"},
        {"left": "second"},
        {"comment": "x"},
        {"seconds": 1.0},
        {"repeat": True},
        {"page_version": "2"},
        {"time": "2020-01-01T00:00:00Z"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_id_with_other_content_is_refused(store: Store, change: dict) -> None:
    judgement = judged(ITEMS[0], "ada", "tie")
    store.record(judgement)
    with pytest.raises(UserError, match=f"judgement '{judgement.id}' exists with other content"):
        store.record(dataclasses.replace(judgement, **change))
    assert choices(store) == [(judgement.id, "tie")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": "nothing"}, "has no item 'nothing'; use the run that asked it"),
        ({"choice": "third"}, "choice: expected one of first, second, .*, got 'third'"),
        ({"choice": ["first"]}, "choice: expected one of"),
        ({"left": "third"}, "left: expected first or second, got 'third'"),
        ({"strength": "very"}, "strength: expected slightly, clearly or None, got 'very'"),
        ({"choice": "tie", "strength": "clearly"}, "strength: expected None with the choice tie; leave it out"),
        ({"seconds": float("nan")}, "seconds: expected a number of at least 0, or None, got nan"),
        ({"seconds": float("inf")}, "seconds: expected a number"),
        ({"seconds": -1}, "seconds: expected a number"),
        ({"seconds": "3"}, "seconds: expected a number"),
        ({"seconds": True}, "seconds: expected a number"),
        ({"repeat": 1}, "repeat: expected True or False, got 1"),
        ({"comment": None}, "comment: expected text, got None"),
        ({"page_version": None}, "page_version: expected text, got None"),
        ({"page_version": "\x1b"}, "page_version of judgement 'j': expected printable text"),
        ({"annotator": ""}, "annotator of a judgement: expected printable text, got ''"),
        ({"annotator": "a\ud800"}, "annotator of a judgement: expected printable text"),
        ({"id": ""}, "id of a judgement: expected printable text"),
        ({"id": 7}, "id of a judgement: expected printable text"),
        ({"time": "yesterday"}, "time: expected ISO 8601 .*, got 'yesterday'"),
        ({"time": None}, "time: expected ISO 8601"),
        ({"undoes": "j0"}, "undoes: expected the id of a judgement with the choice undo"),
        ({"choice": "undo"}, "undoes: expected the id of a judgement"),
        ({"choice": "undo", "undoes": "nothing"}, "there is no judgement 'nothing' to undo"),
    ],
)
def test_what_is_no_judgement_is_refused_and_nothing_of_its_batch_is_written(
    store: Store, change: dict, message: str
) -> None:
    good = judged(ITEMS[1], "ada", "first")
    bad = dataclasses.replace(judged(ITEMS[0], "ada", "first", id="j"), **change)
    with pytest.raises(UserError, match=message):
        store.record(bad)
    with pytest.raises(UserError, match=message):
        store.record_all([good, bad])
    assert store.judgements() == []


def test_only_ones_own_judgement_of_the_item_is_undone_and_once(store: Store) -> None:
    store.record(judged(ITEMS[0], "ada", "first", id="answer"))

    def undo(**fields: Any) -> Judgement:
        return judged(**{"item": ITEMS[0], "annotator": "ada", "choice": "undo", "undoes": "answer"} | fields)

    for other in (undo(annotator="ben"), undo(item=ITEMS[1])):
        with pytest.raises(UserError, match="'answer' is of another item or annotator"):
            store.record(other)
    first = undo(id="undo")
    assert store.record(first)
    assert not store.record(first)
    with pytest.raises(UserError, match="'answer' is already undone"):
        store.record(undo())
    with pytest.raises(UserError, match="'undo' is itself an undo"):
        store.record(undo(undoes="undo"))
    assert choices(store) == [("answer", "first"), ("undo", "undo")]


def test_a_judgement_and_its_undo_come_in_one_batch(store: Store) -> None:
    answer = judged(ITEMS[0], "ada", "first")
    undo = judged(ITEMS[0], "ada", "undo", undoes=answer.id)
    assert store.record_all([answer, undo]) == 2
    with pytest.raises(UserError, match="to undo"):
        store.record_all([judged(ITEMS[1], "ada", "undo", undoes="later"), judged(ITEMS[1], "ada", "tie", id="later")])


# the file


def test_nothing_in_the_log_can_be_changed_or_deleted(store: Store) -> None:
    store.record(judged(ITEMS[0], "ada", "first", id="answer"))
    before = store.judgements(), store.items("round-1"), store.queues()
    db = sqlite3.connect(store.path)
    for statement in (
        "UPDATE judgements SET choice = 'second'",
        "UPDATE judgements SET id = 'other'",
        "DELETE FROM judgements",
        "UPDATE items SET content = '{}'",
        "DELETE FROM items",
        "UPDATE queues SET seed = 7",
        "DELETE FROM queues",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="rows are added and never changed"):
            db.execute(statement)
    db.close()
    with pytest.raises(sqlite3.IntegrityError, match="never changed"), store.transaction() as writer:
        writer.execute("INSERT OR REPLACE INTO queues SELECT * FROM queues")
    assert (store.judgements(), store.items("round-1"), store.queues()) == before


def test_commits_wait_for_the_disk(store: Store) -> None:
    def synchronous() -> int:
        return store.rows("PRAGMA synchronous")[0][0]

    for _ in range(2):
        with store.transaction():
            assert synchronous() == 2  # FULL
            assert store.rows("PRAGMA journal_mode") == [("wal",)]
            assert store.rows("PRAGMA fullfsync") == [(1,)]
            with store.transaction(durable=False):
                assert synchronous() == 2  # a part of the whole
        with pytest.raises(KeyError), store.transaction(durable=False):
            assert synchronous() == 1  # NORMAL, for leases alone
            raise KeyError
