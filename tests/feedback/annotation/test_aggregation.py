"""What several answers come to, against hand-made cases and a plain oracle."""

import dataclasses
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.aggregation import (
    Verdict,
    effective,
    is_complete,
    preferences,
    verdicts,
    votes,
    weights,
)
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import ANSWERED, Judgement
from tests.support.queues import judged, make_queue

ITEMS = make_queue(8)
A, B, C, D, E, F, G, H = (item.id for item in ITEMS)
ONE = HumanConfig()
NONE = dict.fromkeys(ANSWERED, 0)


def verdict(*rows: Judgement, settings: HumanConfig = ONE) -> Verdict:
    """Of the first item."""
    return verdicts(ITEMS, rows, settings)[A]


def state(*choices: str, overlap: int = 1) -> tuple[str, str | None]:
    rows = [judged(A, f"person {k}", choice) for k, choice in enumerate(choices)]
    made = verdict(*rows, settings=HumanConfig(overlap=overlap))
    return made.state, made.choice


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([], ("open", None)),
        (["first"], ("preferred", "first")),
        (["second"], ("preferred", "second")),
        (["tie"], ("tie", None)),
        (["both_bad"], ("both_bad", None)),
        (["skip"], ("skipped", None)),
        (["flag"], ("flagged", None)),
        (["first", "first", "second"], ("preferred", "first")),
        (["first", "second"], ("tie", None)),
        (["first", "tie"], ("tie", None)),
        (["tie", "both_bad"], ("tie", None)),
        (["both_bad", "both_bad", "first"], ("both_bad", None)),
        (["first", "first", "second", "second", "tie"], ("tie", None)),
        (["first", "first", "second", "tie", "both_bad"], ("preferred", "first")),
        (["skip", "second", "skip"], ("preferred", "second")),
        (["first", "first", "flag"], ("flagged", None)),
        (["skip", "flag"], ("flagged", None)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_the_most_votes_win(choices: list[str], expected: tuple) -> None:
    assert state(*choices) == expected


def test_an_item_is_open_until_enough_people_answered_and_says_what_is_preferred_so_far() -> None:
    assert state("first", overlap=2) == ("open", "first")
    assert state("tie", overlap=2) == ("open", None)
    assert state("skip", "skip", overlap=2) == ("skipped", None)
    assert state("skip", "first", overlap=2) == ("open", "first")
    assert state("first", "second", overlap=3) == ("open", None)
    assert state("flag", overlap=3) == ("flagged", None)
    assert state("first", "first", overlap=2) == ("preferred", "first")


def test_a_verdict_tells_the_votes_and_who_gave_them() -> None:
    rows = [judged(A, name, choice) for name, choice in (("eve", "first"), ("ben", "second"), ("ada", "first"))]
    assert verdict(*rows) == Verdict(A, "preferred", "first", None, NONE | {"first": 2, "second": 1}, ("ada", "eve"))
    rows.append(judged(A, "dan", "second"))
    tie = Verdict(A, "tie", None, None, NONE | {"first": 2, "second": 2}, ("ada", "ben", "dan", "eve"))
    assert verdict(*rows) == tie
    flagged = Verdict(A, "flagged", None, None, tie.votes, ("ben", "gus"))
    assert verdict(*rows, judged(A, "gus", "flag"), judged(A, "ben", "flag")) == flagged


def test_the_margin_is_the_mean_strength_of_those_who_chose_the_winner() -> None:
    settings = HumanConfig(slightly=0.25, clearly=2.0)
    rows = [
        judged(A, "ada", "first", strength="slightly"),
        judged(A, "ben", "first", strength="clearly"),
        judged(A, "eve", "first"),
        judged(A, "dan", "second", strength="clearly"),
    ]
    assert verdict(*rows, settings=settings).margin == 1.125
    assert verdict(*rows[2:3], settings=settings).margin is None
    assert verdict(*rows[2:], settings=settings).margin is None


def test_repeats_do_not_vote() -> None:
    rows = [judged(A, "ada", "first"), judged(A, "ada", "second", repeat=True), judged(A, "ben", "tie", repeat=True)]
    assert verdict(*rows).votes == NONE | {"first": 1}


def test_undone_judgements_do_not_count_and_neither_do_undos() -> None:
    first, flag = judged(A, "ada", "first"), judged(A, "ben", "flag")
    rows = [first, judged(A, "ada", "undo", undoes=first.id), judged(A, "ada", "second")]
    assert effective(rows) == rows[2:]
    assert verdict(*rows).choice == "second"
    assert verdict(*rows, flag).state == "flagged"
    assert verdict(*rows, flag, judged(A, "ben", "undo", undoes=flag.id)).state == "preferred"
    assert effective([]) == []


def test_of_two_answers_of_one_person_the_later_counts() -> None:
    early = judged(A, "ada", "first", time="2025-01-01T00:00:00.000+00:00")
    late = judged(A, "ada", "second", time="2025-01-01T00:00:01.000+00:00")
    for rows in ((early, late), (late, early)):
        assert verdict(*rows).votes == NONE | {"second": 1}


def test_answers_about_other_items_are_ignored() -> None:
    assert list(verdicts(ITEMS[:2], [judged(C, "ada", "first"), judged("gone", "ada", "flag")], ONE)) == [A, B]
    assert preferences(ITEMS[:2], [judged(C, "ada", "first")], ONE) == []


def test_preferences_have_the_texts_and_where_they_come_from() -> None:
    rows = [
        judged(B, "eve", "second", strength="clearly"),
        judged(B, "ada", "second"),
        judged(A, "ada", "first"),
        judged(A, "eve", "first", strength="slightly"),
        *(judged(C, name, "tie") for name in ("ada", "eve")),
        *(judged(D, name, "both_bad") for name in ("ada", "eve")),
        *(judged(E, name, choice) for name, choice in (("ada", "first"), ("eve", "second"))),
        *(judged(F, name, choice) for name, choice in (("ada", "first"), ("ben", "first"), ("eve", "flag"))),
        judged(G, "ada", "skip"),
        judged(H, "ada", "first"),
    ]
    settled = [
        Preference(
            prompt="question 0",
            chosen="yes to 0",
            rejected="no to 0",
            margin=0.5,
            prompt_id="p0",
            chosen_index=0,
            rejected_index=2,
            source="human",
            annotator="ada+eve",
            round=1,
        ),
        Preference(
            prompt=[{"role": "user", "content": "question 1"}],
            chosen="no to 1",
            rejected="yes to 1",
            margin=1.0,
            prompt_id="p1",
            chosen_index=2,
            rejected_index=0,
            source="human",
            annotator="ada+eve",
            round=1,
        ),
    ]
    settings = HumanConfig(overlap=2)
    assert preferences(ITEMS, rows, settings) == settled
    so_far = preferences(ITEMS, rows, settings, only_settled=False)
    assert so_far[:2] == settled
    assert [(p.prompt_id, p.chosen, p.annotator) for p in so_far[2:]] == [("p7", "yes to 7", "ada")]


def test_a_queue_is_complete_when_no_item_needs_an_answer() -> None:
    two = HumanConfig(overlap=2)
    items = ITEMS[:3]
    rows = [judged(A, "ada", "first"), judged(A, "ben", "tie"), judged(B, "ada", "flag"), judged(C, "ada", "tie")]
    assert not is_complete(items, rows, two)
    assert is_complete(items, rows, ONE)
    assert not is_complete(items, [*rows, judged(C, "ben", "skip")], two)
    assert not is_complete(items, [*rows, judged(C, "ada", "first", repeat=True)], two)
    last = judged(C, "ben", "both_bad")
    assert is_complete(items, [*rows, last], two)
    assert not is_complete(items, [*rows, last, judged(C, "ben", "undo", undoes=last.id)], two)
    assert not is_complete(ITEMS, [*rows, last], two)
    assert is_complete([], [], two)


# weights


def by_person(answers: dict[str, str]) -> list[Judgement]:
    """Each person's answers to the items in turn, a letter each; a dot is none."""
    letters = {"f": "first", "s": "second", "t": "tie", "b": "both_bad"}
    return [
        judged(item, name, letters[letter])
        for name, given in answers.items()
        for item, letter in zip(ITEMS, given, strict=False)
        if letter != "."
    ]


def test_weights_by_hand() -> None:
    rows = by_person({"ada": "ffffffff", "ben": "fffffff.", "eve": "fffss.ss", "dan": "....ffff"})
    # ada, item by item: of the others agree 2/2 2/2 2/2 1/2 2/3 2/2 2/3 1/2
    means = {
        "ada": (1 + 1 + 1 + 1 / 2 + 2 / 3 + 1 + 2 / 3 + 1 / 2) / 8,
        "ben": (1 + 1 + 1 + 1 / 2 + 2 / 3 + 1 + 2 / 3) / 7,
        "eve": 3 / 7,
    }
    average = sum(means.values()) / 3
    expected = {name: mean / average for name, mean in means.items()} | {"dan": 1.0}  # dan shares 4 items, too few
    assert weights(votes(rows)) == pytest.approx(expected)


def test_weights_stay_within_their_bounds() -> None:
    odd = by_person({"ada": "ffffffff", "ben": "ffffffff", "eve": "ssssssss"})
    assert weights(votes(odd)) == pytest.approx({"ada": 1.5, "ben": 1.5, "eve": 0.25})
    nobody_agrees = by_person({"ada": "ffffffff", "eve": "ssssssss"})
    assert weights(votes(nobody_agrees)) == {"ada": 1.0, "eve": 1.0}
    elsewhere = [
        judged(f"other {k}", name, choice) for k in range(5) for name, choice in zip("qrst", ANSWERED, strict=True)
    ]
    agreeing = by_person({"ada": "fffff...", "ben": "fffff..."})
    # of six people two agree always and four never: 1 / (2 / 6) would be 3
    expected = dict.fromkeys(("ada", "ben"), 2.0) | dict.fromkeys("qrst", 0.25)
    assert weights(votes(agreeing + elsewhere)) == expected
    assert weights({}) == {}


def test_weighted_votes_overrule_a_majority_of_people_who_agree_with_nobody() -> None:
    good = {name: "fsfsfsf" for name in ("ada", "ben", "eve")}
    bad = {"gus": "sfbtbff", "hal": "btsbsts", "ian": "tbtfttb", "joe": "bftftbt"}
    rows = by_person(good | bad)
    last = [judged(H, name, "first") for name in good] + [judged(H, name, "second") for name in bad]
    majority = verdicts(ITEMS, rows + last, HumanConfig())
    weighted = verdicts(ITEMS, rows + last, HumanConfig(aggregation="weighted"))
    assert (majority[H].choice, weighted[H].choice) == ("second", "first")
    assert weighted[H].votes == majority[H].votes == NONE | {"first": 3, "second": 4}
    assert weighted[H].annotators == ("ada", "ben", "eve")


def test_equal_weights_are_a_tie_but_for_rounding() -> None:
    rows = by_person({"ada": "ffffffff", "ben": "sfffffff", "eve": "fsffffff", "dan": "ssffffff"})
    settings = HumanConfig(aggregation="weighted")
    made = verdicts(ITEMS, rows, settings)
    assert made[A].state == made[B].state == "tie"


# against an oracle

NAMES = ("ada", "ben", "eve", "dan")


@st.composite
def logs(draw: st.DrawFn) -> list[Judgement]:
    """Up to 40 judgements as the store would take them: repeats, changed minds, and undos of one's own."""
    log: list[Judgement] = []
    for k in range(draw(st.integers(0, 40))):
        own = [j for j in effective(log) if j.choice != "undo"]
        if own and draw(st.integers(0, 4)) == 0:
            target = draw(st.sampled_from(own))
            log.append(judged(target.item, target.annotator, "undo", id=f"j{k}", undoes=target.id))
            continue
        choice = draw(st.sampled_from([*ANSWERED, "first", "first", "skip", "flag"]))
        log.append(
            judged(
                draw(st.sampled_from([A, B, C])),
                draw(st.sampled_from(NAMES)),
                choice,
                id=f"j{k}",
                strength=draw(st.sampled_from([None, "slightly", "clearly"]))
                if choice in ("first", "second")
                else None,
                repeat=draw(st.integers(0, 5)) == 0,
                time=f"2025-01-01T00:{draw(st.integers(0, 59)):02}:00.000+00:00",
            )
        )
    return log


SETTINGS = st.builds(HumanConfig, overlap=st.integers(1, 3), aggregation=st.sampled_from(["majority", "weighted"]))


def plain_verdict(item: str, log: list[Judgement], overlap: int) -> tuple[str, str | None, Fraction | None, set[str]]:
    """State, choice, margin and winner's people by the rules alone, without weights."""
    counted = [j for j in log if j.choice != "undo" and not any(u.undoes == j.id for u in log)]
    about = [j for j in counted if j.item == item]
    last = {}
    for j in sorted(about, key=lambda j: (j.time, j.id)):
        if j.choice in ("first", "second", "tie", "both_bad") and not j.repeat:
            last[j.annotator] = j
    if any(j.choice == "flag" for j in about):
        return "flagged", None, None, {j.annotator for j in about if j.choice == "flag"}
    if not last:
        return ("skipped" if any(j.choice == "skip" for j in about) else "open"), None, None, set()
    given = [j.choice for j in last.values()]
    most = max(given.count(choice) for choice in given)
    top = {choice for choice in given if given.count(choice) == most}
    outcome = top.pop() if len(top) == 1 else "tie"
    waits = len(last) < overlap
    if outcome in ("tie", "both_bad"):
        return ("open" if waits else outcome), None, None, set(last)
    chose = {name: j for name, j in last.items() if j.choice == outcome}
    said = [{"slightly": Fraction(1, 2), "clearly": Fraction(1)}[j.strength] for j in chose.values() if j.strength]
    margin = sum(said, Fraction(0)) / len(said) if said else None
    return ("open" if waits else "preferred"), outcome, margin, set(chose)


@given(logs(), st.integers(1, 3))
def test_verdicts_are_what_the_rules_say(log: list[Judgement], overlap: int) -> None:
    for id, made in verdicts(ITEMS[:3], log, HumanConfig(overlap=overlap)).items():
        expected = plain_verdict(id, log, overlap)
        assert (made.state, made.choice, set(made.annotators)) == (*expected[:2], expected[3])
        assert made.margin == (None if expected[2] is None else pytest.approx(float(expected[2])))


@given(logs(), SETTINGS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(log: list[Judgement], settings: HumanConfig, rng: random.Random) -> None:
    shuffled = list(log)
    rng.shuffle(shuffled)
    assert verdicts(ITEMS, shuffled, settings) == verdicts(ITEMS, log, settings)
    assert preferences(ITEMS, shuffled, settings) == preferences(ITEMS, log, settings)


@given(logs(), SETTINGS, st.permutations(NAMES))
def test_the_names_of_people_do_not_matter(log: list[Judgement], settings: HumanConfig, others: list[str]) -> None:
    renamed = dict(zip(NAMES, others, strict=True))
    made = verdicts(ITEMS, [dataclasses.replace(j, annotator=renamed[j.annotator]) for j in log], settings)
    for id, before in verdicts(ITEMS, log, settings).items():
        people = tuple(sorted(renamed[name] for name in before.annotators))
        assert made[id] == dataclasses.replace(before, annotators=people)


@given(logs(), SETTINGS)
def test_which_answer_is_called_first_does_not_matter(log: list[Judgement], settings: HumanConfig) -> None:
    swap = {"first": "second", "second": "first"}
    swapped = [dataclasses.replace(j, choice=swap.get(j.choice, j.choice), left=swap[j.left]) for j in log]
    made = verdicts(ITEMS, swapped, settings)
    for id, before in verdicts(ITEMS, log, settings).items():
        counts = before.votes | {"first": before.votes["second"], "second": before.votes["first"]}
        choice = swap.get(before.choice)
        assert made[id] == dataclasses.replace(before, choice=choice, votes=counts)


@given(logs(), SETTINGS)
def test_undoing_everything_leaves_nothing(log: list[Judgement], settings: HumanConfig) -> None:
    undos = [judged(j.item, j.annotator, "undo", undoes=j.id) for j in effective(log)]
    assert effective(log + undos) == []
    assert {v.state for v in verdicts(ITEMS, log + undos, settings).values()} == {"open"}


@given(logs(), SETTINGS)
def test_completeness_and_preferences_follow_from_the_verdicts(log: list[Judgement], settings: HumanConfig) -> None:
    items = ITEMS[:3]
    made = verdicts(items, log, settings)
    assert is_complete(items, log, settings) == all(v.state not in ("open", "skipped") for v in made.values())
    settled = [v for v in made.values() if v.state == "preferred"]
    assert [p.annotator.split("+") for p in preferences(items, log, settings)] == [list(v.annotators) for v in settled]
    texts = {(item.first_text, item.second_text) for item in items}
    for p in preferences(items, log, settings, only_settled=False):
        assert (p.chosen, p.rejected) in texts or (p.rejected, p.chosen) in texts
