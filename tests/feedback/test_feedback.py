"""Feedback from a gold reward, and the queue of questions on disk."""

from pathlib import Path

import pytest

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.feedback import read_queue
from shfcas.feedback.annotation.schema import make_items
from shfcas.feedback.gold import GoldFeedback
from shfcas.selection import Comparison
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_jsonl
from tests.support.tiny import letter_reward

CHAT = [{"role": "user", "content": "how?"}]
TABLE = CandidateTable.from_rows(
    [
        {"prompt_id": "a", "topic": "food", "prompt": CHAT, "completions": ["eee", "xxx", "yyy"]},
        {"prompt_id": "b", "topic": "film", "prompt": CHAT, "completions": ["e", "ee"]},
        {"prompt_id": "c", "topic": "cars", "prompt": CHAT, "completions": ["z", "zz"]},
    ]
)


def test_gold_prefers_the_higher_reward_whichever_comes_first() -> None:
    made = GoldFeedback(letter_reward, "letters")([Comparison("a", 1, 0), Comparison("b", 1, 0)], TABLE, round=2)
    provenance = {"prompt": CHAT, "source": "gold", "annotator": "letters", "round": 2}
    assert made == [
        Preference(chosen="eee", rejected="xxx", prompt_id="a", chosen_index=0, rejected_index=1, **provenance),
        Preference(chosen="ee", rejected="e", prompt_id="b", chosen_index=1, rejected_index=0, **provenance),
    ]


def test_a_tie_gives_no_preference() -> None:
    made = GoldFeedback(letter_reward)([Comparison("a", 1, 2), Comparison("a", 2, 0)], TABLE, round=1)
    assert [(p.chosen_index, p.rejected_index) for p in made] == [(0, 2)]


def test_gold_sees_the_prompts_in_question_alone_and_their_columns() -> None:
    seen = []

    def gold(prompts: list, completions: list, **columns: list) -> list[float]:
        seen.extend(zip(columns["prompt_id"], columns["topic"], (c[0]["content"] for c in completions), strict=True))
        assert prompts == [CHAT] * len(completions)
        return [float(len(text)) for _, _, text in seen]

    GoldFeedback(gold)([Comparison("b", 0, 1), Comparison("b", 1, 0)], TABLE, round=1)
    assert seen == [("b", "film", "e"), ("b", "film", "ee")]


def test_a_gold_reward_that_is_no_number_is_named() -> None:
    def broken(prompts: list, completions: list, **columns: list) -> list[float]:
        return [float("nan")] * len(completions)

    with pytest.raises(UserError, match="the reward of answer 0 of prompt 'b' is not a number"):
        GoldFeedback(broken)([Comparison("b", 0, 1)], TABLE, round=1)


def test_reasons_that_are_no_numbers_are_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    columns = {"pacs": [1.0, nan], "rewards": [0.0, 2.0], "logprobs": [-inf, -1.0]}
    row = {"prompt_id": "a", "prompt": "how?", "completions": ["x", "y"], "kendall_distance": nan} | columns
    (item,) = make_items([Comparison("a", 1, 0)], CandidateTable.from_rows([row]), "round-1", 1)
    assert item.why == {"rewards": [2.0, 0.0]}


def test_a_queue_comes_back_from_its_file(tmp_path: Path) -> None:
    queue = [Comparison("a", 1, 0), Comparison("b", 0, 1)]
    write_jsonl(tmp_path / "queue.jsonl", [vars(c) for c in queue])
    assert read_queue(tmp_path / "queue.jsonl") == queue
    (tmp_path / "queue.jsonl").write_text("")
    assert read_queue(tmp_path / "queue.jsonl") == []


@pytest.mark.parametrize(
    "line", ['{"prompt_id": "a", "first": 0}', '{"prompt_id": "a", "first": 0, "second": "x"}', '{"first": null}']
)
def test_a_malformed_queue_is_named_by_file_and_row(tmp_path: Path, line: str) -> None:
    file = tmp_path / "queue.jsonl"
    file.write_text('{"prompt_id": "a", "first": 0, "second": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"queue\.jsonl: row 1 needs prompt_id, first and second"):
        read_queue(file)


@pytest.mark.parametrize("comparison", [Comparison("nobody", 0, 1), Comparison("a", 0, 7), Comparison("a", -1, 0)])
def test_a_queue_about_another_table_is_refused(comparison: Comparison) -> None:
    with pytest.raises(UserError, match=f"the queue .* prompt '{comparison.prompt_id}', which"):
        GoldFeedback(letter_reward)([comparison], TABLE, round=1)
