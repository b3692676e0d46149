"""Blind pairs of two policies' answers, and the win rate that verdicts about them give."""

from typing import Any

import pytest

from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.blind_pairs import comparisons, describe, make_pairs, win_rate
from shfcas.evaluation.prompts import matching_rows
from shfcas.selection import Comparison
from shfcas.utils.errors import UserError

Rows = list[dict[str, Any]]


def rows(answers: str, prompts: int = 6, per_prompt: int = 3) -> Rows:
    return [
        {
            "prompt_id": f"p{i}",
            "prompt": f"question {i}",
            "completions": [f"{answers} {i} {k}" for k in range(per_prompt)],
        }
        for i in range(prompts)
    ]


def pairs(count: int, seed: int = 0, **shape: int) -> CandidateTable:
    return make_pairs(
        CandidateTable.from_rows(rows("base", **shape)), CandidateTable.from_rows(rows("new", **shape)), count, seed
    )


def new_answers(made: CandidateTable) -> set[tuple[str, int]]:
    return {
        (row["prompt_id"], place)
        for row in made.rows()
        for place, text in enumerate(row["completions"])
        if text.startswith("new")
    }


def test_each_pair_has_one_answer_of_each_policy_in_random_order() -> None:
    made = pairs(120, prompts=40)
    firsts = []
    for row in made.rows():
        assert len(row["completions"]) == 2 * len(row["policy_first"]) == 6
        for k, first in enumerate(row["policy_first"]):
            one, other = row["completions"][2 * k : 2 * k + 2]
            assert {one, other} == {f"base {row['prompt_id'][1:]} {k}", f"new {row['prompt_id'][1:]} {k}"}
            assert one.startswith("new") == first
            firsts.append(first)
    assert len(firsts) == 120
    assert 0.35 < sum(firsts) / len(firsts) < 0.65


@pytest.mark.parametrize(("count", "per_prompt"), [(4, {1}), (6, {1}), (8, {1, 2}), (18, {3}), (100, {3})])
def test_few_pairs_are_spread_over_many_prompts(count: int, per_prompt: set[int]) -> None:
    made = pairs(count)
    taken = [len(row["policy_first"]) for row in made.rows()]
    assert sum(taken) == min(count, 18) and set(taken) == per_prompt
    assert len(comparisons(made)) == sum(taken)


def test_the_seed_draws_prompts_and_order() -> None:
    first = pairs(3).rows()
    assert first == pairs(3).rows()
    assert any(pairs(3, seed=seed).rows() != first for seed in range(1, 4))


def test_nothing_else_tells_the_answers_apart() -> None:
    scored = [{**row, "rewards": [1.0, 2.0, 3.0], "gold": [1.0, 0.0, 0.0], "topic": "x"} for row in rows("new")]
    made = make_pairs(CandidateTable.from_rows(rows("base")), CandidateTable.from_rows(scored), 6, 0)
    assert set(made.table.column_names) == {"prompt_id", "prompt", "completions", "policy_first"}


def test_ties_count_half_and_unanswered_pairs_not_at_all() -> None:
    made = pairs(6, per_prompt=1)
    new = new_answers(made)
    places = {row["prompt_id"]: (2 * 0, 1) for row in made.rows()}
    chosen, ties = [], []
    for pid, verdict in zip(sorted(places), ("win", "win", "win", "loss", "tie", "none"), strict=True):
        mine = 0 if (pid, 0) in new else 1
        if verdict in ("win", "loss"):
            first = mine if verdict == "win" else 1 - mine
            chosen.append(Comparison(pid, first, 1 - first))
        elif verdict == "tie":
            ties.append(Comparison(pid, 1, 0))
    found = win_rate(made, chosen, ties)
    assert found["win_rate"]["mean"] == pytest.approx(3.5 / 5) and found["win_rate"]["count"] == 5
    assert found["win_rate"]["low"] < 0.7 < found["win_rate"]["high"] <= 1
    assert {k: found[k] for k in ("pairs", "asked", "answered", "wins", "losses", "ties", "identical")} == {
        "pairs": 6,
        "asked": 6,
        "answered": 5,
        "wins": 3,
        "losses": 1,
        "ties": 1,
        "identical": 0,
    }
    assert describe({"judge": "human", **found}).startswith("win rate 0.700 [")


def test_prompts_weigh_alike_however_many_pairs_they_have() -> None:
    made = pairs(4, prompts=3, per_prompt=2)  # one prompt has two pairs
    new = new_answers(made)
    chosen = []
    for row in made.rows():
        for k in range(len(row["policy_first"])):
            mine = 2 * k if (row["prompt_id"], 2 * k) in new else 2 * k + 1
            other = 4 * k + 1 - mine
            won = len(row["policy_first"]) == 1
            chosen.append(Comparison(row["prompt_id"], *((mine, other) if won else (other, mine))))
    assert win_rate(made, chosen, [])["win_rate"]["mean"] == pytest.approx(2 / 3)


def test_identical_answers_are_ties_that_nobody_is_asked_about() -> None:
    same = CandidateTable.from_rows(rows("same"))
    made = make_pairs(same, same, 6, 0)
    assert comparisons(made) == []
    found = win_rate(made, [], [])
    assert (found["win_rate"]["mean"], found["identical"], found["asked"], found["answered"]) == (0.5, 6, 0, 0)
    unanswered = win_rate(pairs(6), [], [])
    assert unanswered["win_rate"] is None and unanswered["asked"] == 6
    assert "win rate unknown" in describe({"judge": "judge", **unanswered})


def test_prompts_are_joined_by_id_and_text_in_any_order() -> None:
    before = [{**row, "prompt": [{"role": "user", "content": f" {row['prompt']}", "name": None}]} for row in rows("b")]
    found = matching_rows(rows("n"), before[::-1], "before")
    assert [row["prompt_id"] for row in found] == [row["prompt_id"] for row in rows("n")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda before: before[:-2],
            r"2 of 6 are not in it, and 0 of its 4 are not asked; first, .* 'p4' \('question 4'",
        ),
        (lambda before: [*before, {**before[0], "prompt_id": "extra"}], r"0 of 6 .* 1 of its 7 .*before has 'extra'"),
        (lambda before: [{**r, "prompt": "other"} if r["prompt_id"] == "p3" else r for r in before], r"1 of 6 .* 'p3'"),
        (lambda before: [{**row, "prompt_id": f"q{row['prompt_id']}"} for row in before], r"6 of 6 .* 6 of its 6"),
    ],
)
def test_other_prompts_are_refused_with_the_first(change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        matching_rows(rows("new"), change(rows("base")), "before")
    assert "\n" not in str(caught.value) and "evaluate both policies on the same prompts" in str(caught.value)
