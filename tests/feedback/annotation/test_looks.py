"""Changes after looking at why a comparison was asked: marked in the log, and left out where that is asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shfcas.feedback.annotation.aggregation import effective, preferences, verdicts
from shfcas.feedback.annotation.agreement import agreement_report
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.exchange import ExchangeBaseConfig, export_answers, import_answers
from shfcas.utils.errors import UserError
from tests.support.queues import judged, make_queue

ITEMS = make_queue(3)


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[Store]:
    """Ada answers, looks and changes her answer; ben undoes blindly."""
    with Store(tmp_path / "feedback.sqlite") as store:
        store.add_queue(ITEMS, seed=1)
        store.record(judged(ITEMS[0], "ada", "first", id="blind"))
        assert store.look(of(store, "blind")).why == ITEMS[0].why
        store.record(judged(ITEMS[0], "ada", "undo", id="undo", undoes="blind"))
        store.record(judged(ITEMS[0], "ada", "second", id="informed"))
        store.record(judged(ITEMS[1], "ben", "first", id="ben"))
        store.record(judged(ITEMS[1], "ben", "undo", id="ben's undo", undoes="ben"))
        store.record(judged(ITEMS[1], "ben", "second", id="ben again"))
        yield store


def of(store: Store, id: str) -> Judgement:
    found = store.judgement(id)
    assert found
    return found


def test_the_log_marks_what_came_after_a_look(changed: Store) -> None:
    assert [j.id for j in changed.judgements() if j.informed] == ["undo", "informed"]
    changed.record(judged(ITEMS[0], "ben", "tie", id="other person"))
    changed.record(judged(ITEMS[1], "ada", "tie", id="other item"))
    assert [j.id for j in changed.judgements() if j.informed] == ["undo", "informed"]


def test_the_answer_before_counts_if_informed_ones_are_left_out(changed: Store) -> None:
    log = changed.judgements()
    assert [j.id for j in effective(log)] == ["informed", "ben again"]
    assert [j.id for j in effective(log, True)] == ["blind", "ben again"]
    for exclude, choice in ((False, "second"), (True, "first")):
        settings = HumanConfig(exclude_informed=exclude)
        assert verdicts(ITEMS, log, settings)[ITEMS[0].id].choice == choice
        assert preferences(ITEMS, log, settings)[0].chosen == getattr(ITEMS[0], f"{choice}_text")
        report = agreement_report([item.id for item in ITEMS], log, settings)
        assert [(row["name"], row["informed"]) for row in report["annotators"]] == [("ada", 1), ("ben", 0)]


def test_an_item_is_settled_for_the_run_when_it_is_for_the_page(changed: Store) -> None:
    """The page counts all answers; a verdict that waited for others would wait forever."""
    settings = HumanConfig(overlap=2, max_overlap=3, exclude_informed=True)
    changed.record(judged(ITEMS[0], "ben", "second"))
    verdict = verdicts(ITEMS, changed.judgements(), settings)[ITEMS[0].id]
    assert (verdict.state, verdict.votes["first"], verdict.votes["second"]) == ("tie", 1, 1)


def test_only_answers_that_count_can_be_looked_at(changed: Store) -> None:
    changed.record(judged(ITEMS[2], "ada", "skip", id="skip"))
    for id, message in (("skip", "only an answer tells"), ("undo", "only an answer"), ("blind", "was undone")):
        with pytest.raises(UserError, match=message):
            changed.look(of(changed, id))


def test_the_mark_survives_export_and_import(changed: Store, tmp_path: Path) -> None:
    export_answers(changed, tmp_path / "log.jsonl", ExchangeBaseConfig())
    with Store(tmp_path / "other.sqlite") as other:
        import_answers(other, [tmp_path / "log.jsonl"], ExchangeBaseConfig())
        assert other.judgements() == changed.judgements()
    import_answers(changed, [tmp_path / "log.jsonl"], ExchangeBaseConfig())  # and again, into the same


def test_the_preferences_of_an_export_leave_informed_changes_out(changed: Store, tmp_path: Path) -> None:
    for exclude, chosen in ((False, ITEMS[0].second_text), (True, ITEMS[0].first_text)):
        settings = HumanConfig(exclude_informed=exclude)
        path = tmp_path / f"{exclude}.jsonl"
        export_answers(changed, path, ExchangeBaseConfig(format="trl"), settings)
        first = path.read_text().splitlines()[0]
        assert f'"chosen": "{chosen}"' in first
