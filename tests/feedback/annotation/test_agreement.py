"""Agreement against numbers worked out by hand and against scikit-learn; too little data is None."""

import json
import random
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from shfcas.feedback.annotation.agreement import agreement_report, cohen_kappa, krippendorff_alpha
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import ANSWERED, Judgement
from tests.support.queues import judged, make_queue

ITEMS = make_queue(12)
LETTERS = {"f": "first", "s": "second", "t": "tie", "b": "both_bad"}


def answers(name: str, letters: str, **fields: Any) -> list[Judgement]:
    """A person's answers to the items in turn, a letter each; a dot is none."""
    pairs = zip(ITEMS, letters, strict=False)
    return [judged(item, name, LETTERS[letter], **fields) for item, letter in pairs if letter != "."]


def reported(*rows: list[Judgement], **settings: Any) -> dict[str, Any]:
    made = agreement_report([item.id for item in ITEMS], [j for row in rows for j in row], HumanConfig(**settings))
    json.dumps(made, allow_nan=False)  # JSON, and no NaN
    return made


def person(*rows: list[Judgement]) -> dict[str, Any]:
    return reported(*rows)["annotators"][0]


# kappa and alpha


def test_kappa_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    assert cohen_kappa([("a", "a"), ("b", "b")]) == 1.0
    assert cohen_kappa([("a", "b"), ("b", "a")]) == -1.0
    assert cohen_kappa([("a", "b")]) == 0.0


def test_kappa_is_scikit_learns() -> None:
    rng = random.Random(0)
    for count in (2, 3, 10, 200):
        pairs = [(rng.choice(ANSWERED), rng.choice(ANSWERED)) for _ in range(count - 2)]
        pairs += [("first", "second"), ("tie", "tie")]
        assert cohen_kappa(pairs) == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))


def test_kappa_of_too_little_is_none() -> None:
    assert cohen_kappa([]) is None
    assert cohen_kappa([("a", "a")] * 5) is None


def test_alpha_by_hand() -> None:
    # Pairable: ff ff fs ss ttt (11 values: 5 f, 3 s, 3 t); the coincidence matrix has f-f 4, f-s 1, s-s 2, t-t 3, so
    # 2 of 11 values disagree; by chance (5*6 + 3*8 + 3*8) / 10 = 7.8 of them would.
    labels = [["first", "first"], ["first", "first"], ["first", "second"], ["second", "second"], ["tie"] * 3]
    expected = 1 - 2 / 7.8
    assert krippendorff_alpha(labels) == pytest.approx(expected)
    assert krippendorff_alpha([*labels, ["both_bad"], []]) == pytest.approx(expected)  # nobody to agree with


@pytest.mark.parametrize("labels", [[], [["first"]], [["first"], ["tie"]], [["tie", "tie"], ["tie"] * 3]])
def test_alpha_of_too_little_is_none(labels: list[list[str]]) -> None:
    assert krippendorff_alpha(labels) is None


def test_alpha_of_complete_agreement_is_one() -> None:
    assert krippendorff_alpha([["first"] * 2, ["tie"] * 2]) == pytest.approx(1.0)


# the report


def test_an_empty_log_gives_an_empty_report() -> None:
    made = reported()
    assert made == {
        "annotators": [],
        "pairs": [],
        "alpha": None,
        "labels": dict.fromkeys((*ANSWERED, "skip", "flag"), 0),
        "states": {"open": 12, "preferred": 0, "tie": 0, "both_bad": 0, "flagged": 0, "skipped": 0},
        "progress": [],
    }
    assert agreement_report([], [], HumanConfig())["states"]["open"] == 0


def test_who_only_skipped_has_no_numbers() -> None:
    assert person([judged(ITEMS[0], "ada", "skip")]) == {
        "name": "ada",
        "answered": 0,
        "skipped": 1,
        "flagged": 0,
        "median_seconds": None,
        "answers_per_hour": None,
        "left_share": None,
        "tie_share": None,
        "informed": 0,
        "self_agreement": {"n": 0, "share": None, "kappa": None},
    }


def test_counts_leave_out_repeats_undos_and_other_queues() -> None:
    undone = judged(ITEMS[5], "ada", "first")
    made = reported(
        answers("ada", "fstb"),
        answers("ada", "f", repeat=True),
        [
            judged(ITEMS[8], "ada", "skip"),
            judged(ITEMS[9], "ada", "flag"),
            judged(ITEMS[0], "ada", "skip", repeat=True),
        ],
        [undone, judged(ITEMS[5], "ada", "undo", undoes=undone.id), judged("another queue's", "eve", "first")],
    )
    assert [a["name"] for a in made["annotators"]] == ["ada"]
    ada = made["annotators"][0]
    assert (ada["answered"], ada["skipped"], ada["flagged"], ada["tie_share"]) == (4, 1, 1, 0.25)
    assert made["labels"] == {"first": 1, "second": 1, "tie": 1, "both_bad": 1, "skip": 1, "flag": 1}
    assert made["states"] == {"open": 6, "preferred": 2, "tie": 1, "both_bad": 1, "flagged": 1, "skipped": 1}
    assert reported(answers("ada", "f"), overlap=2)["states"]["open"] == 12


def test_pace_is_of_the_time_that_items_were_looked_at() -> None:
    seconds = [2.0, 4.0, 100_000.0, None]  # the third was left open over night: 5 minutes of it count
    rows = [judged(item, "ada", "tie", seconds=s) for item, s in zip(ITEMS, seconds, strict=False)]
    assert person(rows)["median_seconds"] == 4.0
    assert person(rows)["answers_per_hour"] == pytest.approx(3 / 306 * 3600)
    assert person([judged(ITEMS[0], "ada", "tie", seconds=0.0)])["answers_per_hour"] is None


def test_the_left_share_is_of_answers_that_prefer_one() -> None:
    rows = [*answers("ada", "fffssstb", left="first"), *answers("ada", "........ssff", left="second")]
    share = person(rows)["left_share"]
    assert (share["mean"], share["count"]) == (0.5, 10)
    assert 0.2 < share["low"] < 0.3 < 0.7 < share["high"] < 0.8
    assert person(answers("ada", "ff", left="second"))["left_share"]["mean"] == 0.0
    assert person(answers("ada", "ff", left="first"))["left_share"]["mean"] == 1.0
    assert person(answers("ada", "tb"))["left_share"] is None
    imported = answers("ada", "ffff", page_version="trl")  # stored as if the first stood on the left
    assert person(imported)["left_share"] is None
    assert person([*imported, *answers("ada", "....s")])["left_share"]["mean"] == 0.0


def test_self_agreement_is_over_repeats() -> None:
    rows = answers("ada", "ffsst"), answers("ada", "fsss", repeat=True)
    # ff fs ss ss: observed 3/4, by chance (2 * 1 + 2 * 3) / 16 = 1/2
    assert person(*rows)["self_agreement"] == {"n": 4, "share": 0.75, "kappa": 0.5}
    assert person(answers("ada", "f"), answers("ada", ".s", repeat=True))["self_agreement"]["n"] == 0


def test_pairs_are_over_the_items_that_both_answered() -> None:
    made = reported(answers("eve", "ffss.f"), answers("ada", "fsssf."), answers("dan", "......t"))
    assert made["pairs"] == [{"annotators": ["ada", "eve"], "n": 4, "share": 0.75, "kappa": 0.5}]
    # as alpha: 8 values, 3 f and 5 s, of which 2 disagree; by chance 2 * 3 * 5 / 7
    assert made["alpha"] == pytest.approx(1 - 2 / (30 / 7))
    alike = reported(answers("eve", "fff"), answers("ada", "fff"))
    assert alike["pairs"] == [{"annotators": ["ada", "eve"], "n": 3, "share": 1.0, "kappa": None}]
    assert alike["alpha"] is None


def test_progress_is_cumulative_and_not_too_long() -> None:
    times = [f"2025-01-01T00:00:{second:02}.000+00:00" for second in (5, 1, 3)]
    rows = [judged(item, "ada", "tie", time=time) for item, time in zip(ITEMS, times, strict=False)]
    again = judged(ITEMS[0], "ada", "tie", time="2025-01-01T00:00:09.000+00:00", repeat=True)
    assert reported(rows, [again])["progress"] == [[times[1], 1], [times[2], 2], [times[0], 3]]
    many = make_queue(1000)
    log = [judged(item, "ada", "tie", time=f"2025-01-01T{k // 60:02}:{k % 60:02}") for k, item in enumerate(many)]
    points = agreement_report([item.id for item in many], log, HumanConfig())["progress"]
    assert len(points) == 200
    assert (points[0], points[-1]) == ([log[0].time, 1], [log[-1].time, 1000])
    assert points == sorted(points, key=lambda point: point[1])
