"""A further annotator only where the first ones disagree; and who is right, by the model of Dawid and Skene."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shfcas.feedback.annotation import dawid_skene as model
from shfcas.feedback.annotation.aggregation import is_complete, preferences, verdicts
from shfcas.feedback.annotation.assignment import Assignment
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.dawid_skene import dawid_skene
from shfcas.feedback.annotation.known import add_known_answers, known_report
from shfcas.feedback.annotation.schema import ANSWERED, KNOWN
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web.desk import Desk
from shfcas.utils.errors import UserError
from tests.support.queues import judged, make_queue

SETTINGS = HumanConfig(overlap=2, max_overlap=4, repeat_share=0.0)
ITEMS = make_queue(3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "feedback.sqlite") as store:
        store.add_queue(ITEMS, seed=1)
        yield store


def test_a_third_person_is_asked_only_where_two_disagree(store: Store) -> None:
    assignment = Assignment(store, "round-1", SETTINGS)
    for name, choices in (("ada", ("first", "first", "tie")), ("ben", ("first", "second", "tie"))):
        for choice in choices:
            task = assignment.next(name)
            assert task
            store.record(judged(task.item, name, choice))
        assert assignment.next(name) is None
    progress = assignment.progress("cleo")
    assert (progress.settled, progress.answers, progress.wanted, progress.mine_left) == (2, 6, 7, 1)
    task = assignment.next("cleo")
    assert task and task.item.id == ITEMS[1].id
    assert assignment.next("dan") is None  # one more at a time
    store.record(judged(task.item, "cleo", "tie"))
    task = assignment.next("dan")
    assert task and task.item.id == ITEMS[1].id  # three different answers
    assert not is_complete(ITEMS, store.judgements(), SETTINGS)
    store.record(judged(task.item, "dan", "first"))
    assert assignment.next("eva") is None  # 2 of 4 are no majority, but four are the most
    assert is_complete(ITEMS, store.judgements(), SETTINGS)
    assert assignment.progress().settled == 3
    assert [p.prompt_id for p in preferences(ITEMS, store.judgements(), SETTINGS)] == ["p0", "p1"]


@pytest.mark.parametrize("seed", range(8))
def test_page_and_verdicts_agree_on_what_is_settled(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    assignment = Assignment(store, "round-1", SETTINGS)
    given: list[tuple[str, str, str]] = []
    for number in range(40):
        if given and rng.random() < 0.3:
            id, name, item = given.pop(rng.randrange(len(given)))
            store.record(judged(item, name, "undo", undoes=id))
        else:
            name, item = rng.choice(["ada", "ben", "cleo", "dan"]), rng.choice(ITEMS).id  # also twice, as in two tabs
            id = f"answer-{number}"
            store.record(judged(item, name, rng.choice(ANSWERED), id=id))
            given.append((id, name, item))
        states = verdicts(ITEMS, store.judgements(), SETTINGS)
        assert assignment.progress().settled == sum(v.state != "open" for v in states.values())


def test_one_careful_annotator_outvotes_two_who_guess() -> None:
    rng = random.Random(0)
    truth = {str(k): rng.choice(["first", "second"]) for k in range(200)}
    given = {
        item: {
            "ada": right if rng.random() < 0.97 else "tie",
            "ben": right if rng.random() < 0.9 else "tie",
            "cleo": rng.choice(["first", "second"]),
            "dan": rng.choice(["first", "second"]),
        }
        for item, right in truth.items()
    }
    probable = dawid_skene(given)
    found = {item: max(shares, key=shares.__getitem__) for item, shares in probable.items()}
    assert sum(found[item] == truth[item] for item in truth) >= 190
    assert all(sum(shares.values()) == pytest.approx(1) for shares in probable.values())


def test_degenerate_answers_have_a_model_as_well() -> None:
    assert dawid_skene({}) == {}
    assert dawid_skene({"a": {"ada": "tie"}}) == {"a": {"tie": 1.0}}
    shares = dawid_skene({"a": {"ada": "first", "ben": "second"}})["a"]
    assert shares == {"first": pytest.approx(0.5), "second": pytest.approx(0.5)}


def test_the_order_of_items_and_annotators_does_not_matter() -> None:
    rng = random.Random(1)
    given = {str(k): {name: rng.choice(ANSWERED) for name in "abcde"} for k in range(40)}
    turned = {item: dict(reversed(answers.items())) for item, answers in reversed(given.items())}
    one, other = dawid_skene(given), dawid_skene(turned)
    assert all(one[item] == pytest.approx(other[item], abs=1e-6) for item in given)


@pytest.mark.system  # the import alone takes seconds
@pytest.mark.parametrize("seed", range(3))
def test_the_model_is_that_of_crowd_kit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "TOLERANCE", float("-inf"))  # neither stops early
    import pandas
    from crowdkit.aggregation import DawidSkene

    rng = random.Random(seed)
    rows = []
    for item in range(120):
        right = rng.choice(["first", "second", "tie"])
        for k, name in enumerate("abcd"):
            if rng.random() < 0.8:
                rows.append((str(item), name, right if rng.random() < 0.9 - 0.15 * k else rng.choice(ANSWERED)))
    given: dict[str, dict[str, str]] = {}
    for item, name, answer in rows:
        given.setdefault(item, {})[name] = answer
    table = pandas.DataFrame(rows, columns=["task", "worker", "label"])
    expected = DawidSkene(n_iter=model.MAX_STEPS, tol=float("-inf")).fit(table).probas_
    got = dawid_skene(given)
    assert all(
        got[item][answer] == pytest.approx(expected.loc[item, answer], abs=1e-8)
        for item in given
        for answer in ANSWERED
    )


def test_the_model_decides_the_verdicts(store: Store) -> None:
    for item in ITEMS:
        for name in ("ada", "ben"):
            store.record(judged(item, name, "first"))
    settings = HumanConfig(overlap=2, aggregation="dawid_skene")
    assert {v.choice for v in verdicts(ITEMS, store.judgements(), settings).values()} == {"first"}


KNOWN_FILE = (
    '{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}\n{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n'
)


def test_questions_with_known_answers_are_mixed_in_and_measured(store: Store, tmp_path: Path) -> None:
    (tmp_path / "known.jsonl").write_text(KNOWN_FILE)
    settings = HumanConfig(known_answers=str(tmp_path / "known.jsonl"), known_share=0.6, repeat_share=0.0, overlap=2)
    assert [add_known_answers(store, settings.known_answers or "") for _ in range(2)] == [2, 2]
    assert store.queues() == ["round-1"]
    desk = Desk(store, settings)
    asked: dict[str, list[str]] = {"ada": [], "ben": []}
    for name, items in asked.items():
        while shown := desk.next(name, [])["task"]:
            item = store.item(shown["id"])
            items.append(item.queue)
            assert set(shown) == {"id", "prompt", "left", "right", "repeat", "shown", "lease_expires"}
            left = "first" if shown["left"]["text"] == item.first_text else "second"
            store.record(judged(item, name, "first" if name == "ada" else "second", left=left))
            assert desk.next(name, [])["progress"]["mine"] == len(items)  # the counts do not tell which it was
    assert all(items.count("round-1") == 3 for items in asked.values())
    assert asked["ada"].count(KNOWN) + asked["ben"].count(KNOWN) >= 2
    report = desk.dashboard("ada")["report"]
    assert {name: share["mean"] for name, share in report["known"].items()} == {
        name: float(name == "ada") for name, items in asked.items() if KNOWN in items
    }
    assert known_report([]) == {}
    assert len(preferences(ITEMS, store.judgements(), settings)) == 0  # they disagree; known answers make none


def test_a_file_of_known_answers_has_some(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"known_answers: .*has no preferences"):
        add_known_answers(store, tmp_path / "empty.jsonl")
