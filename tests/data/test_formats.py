"""Rows as public data sets have them, read as ours or refused with the mapping that would read them."""

import json
from pathlib import Path
from typing import Any

import pytest

from shfcas.data.candidates import read_prompts
from shfcas.data.formats import AllColumns
from shfcas.data.preferences import Preference, read_preferences
from shfcas.training.sft import read_demonstrations
from shfcas.utils.errors import UserError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


HOW, WHY = user("how was the soup?"), user("why?")
HH = "\n\nHuman: how was the soup?\n\nAssistant: fine\n\nHuman: why?\n\nAssistant:"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(path: Path, row: dict[str, Any], **columns: str) -> tuple[Any, Any, Any]:
    (found,) = read_preferences(write(path, row), columns)
    return found.prompt, found.chosen, found.rejected


PAIRS: dict[str, tuple[dict[str, Any], tuple[Any, Any, Any]]] = {
    "implicit prompt": (
        {"chosen": [HOW, said("good")], "rejected": [HOW, said("bad")]},
        ([HOW], "good", "bad"),
    ),
    "several shared turns": (
        {"chosen": [HOW, said("fine"), WHY, said("salt")], "rejected": [HOW, said("fine"), WHY, said("no")]},
        ([HOW, said("fine"), WHY], "salt", "no"),
    ),
    "the prompt again in the answers": (
        {"prompt": HOW["content"], "chosen": [HOW, said("good")], "rejected": [HOW, said("bad")], "score_chosen": 8},
        (HOW["content"], "good", "bad"),
    ),
    "the answers go on": (
        {"prompt": [HOW], "chosen": [said("fine"), WHY, said("salt")], "rejected": [said("fine"), WHY, said("no")]},
        ([HOW, said("fine"), WHY], "salt", "no"),
    ),
    "turns after the answers differ in nothing": (
        {"prompt": [HOW], "chosen": [said("good"), WHY, said("bye")], "rejected": [said("rude"), WHY, said("bye")]},
        ([HOW], [said("good"), WHY, said("bye")], [said("rude"), WHY, said("bye")]),
    ),
    "another question": (
        {"prompt": [HOW], "chosen": [said("a"), WHY, said("b")], "rejected": [said("a"), user("when?"), said("b")]},
        ([HOW, said("a")], [WHY, said("b")], [user("when?"), said("b")]),
    ),
    "Human and Assistant": (
        {"chosen": f"{HH} salt", "rejected": f"{HH} no"},
        ([HOW, said("fine"), WHY], "salt", "no"),
    ),
    "PKU-SafeRLHF": (
        {"prompt": "how?", "response_0": "bad", "response_1": "good", "better_response_id": 1, "safer_response_id": 0},
        ("how?", "good", "bad"),
    ),
    "HelpSteer2": (
        {"prompt": "how?", "response_1": "good", "response_2": "bad", "preference_strength": -2},
        ("how?", "good", "bad"),
    ),
    "HelpSteer3": (
        {"context": [HOW], "response1": "bad", "response2": "good", "overall_preference": 1},
        ([HOW], "good", "bad"),
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "how was the soup?"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        ([HOW], "good", "bad"),
    ),
    "instructions": (
        {"instruction": "how was the soup?", "input": "", "chosen": "good", "rejected": "bad"},
        ([HOW], "good", "bad"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_preferences_of_many_layouts(name: str, tmp_path: Path) -> None:
    row, expected = PAIRS[name]
    assert pair(tmp_path / "p.jsonl", row) == expected
    (found,) = read_preferences(tmp_path / "p.jsonl")
    assert Preference.from_row(found.to_row()) == found


def test_a_system_turn_of_one_side_stays_with_its_answer(tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    row = {"prompt": [HOW], "chosen": [system, HOW, said("good")], "rejected": [HOW, said("bad")]}
    prompt, chosen, rejected = pair(tmp_path / "p.jsonl", row)
    assert (prompt, rejected) == ([HOW], "bad") and chosen == [system, HOW, said("good")]


def test_tool_calls_are_kept_whole(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    row = {"prompt": [HOW], "chosen": [called], "rejected": [said("bad")]}
    prompt, chosen, rejected = pair(tmp_path / "p.jsonl", row)
    assert prompt == [HOW] and rejected == "bad" and chosen == [{**called, "content": ""}]


def test_the_safer_answer_may_be_the_chosen_one(tmp_path: Path) -> None:
    labels = {"is_response_0_safe": True, "is_response_1_safe": False}
    row = {**PAIRS["PKU-SafeRLHF"][0], **labels}
    assert pair(tmp_path / "p.jsonl", row, chosen="safer_response_id") == ("how?", "bad", "good")
    (found,) = read_preferences(tmp_path / "p.jsonl", {"chosen": "safer_response_id"})
    assert (found.chosen_safe, found.rejected_safe) == (True, False)


def test_ties_and_equal_answers_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tie = {"prompt": "how?", "response_1": "a", "response_2": "b", "preference_strength": 0}
    same = {"prompt": [HOW], "chosen": [said("bye ")], "rejected": "bye"}
    good = {"prompt": "how?", "chosen": "good", "rejected": "bad"}
    assert len(read_preferences(write(tmp_path / "p.jsonl", tie, good, same))) == 1
    assert "p.jsonl: 2 of 3 pairs are ties or twice the same answer, and left out" in caplog.text
    assert read_preferences(write(tmp_path / "p.jsonl", tie, same)) == []


PROMPTS: dict[str, tuple[dict[str, Any], Any]] = {
    "messages with their answer": ({"messages": [HOW, said("fine"), WHY, said("salt")]}, [HOW, said("fine"), WHY]),
    "ShareGPT": (
        {"conversations": [{"from": "system", "value": "be brief"}, {"from": "human", "value": "why?"}]},
        [{"role": "system", "content": "be brief"}, WHY],
    ),
    "Alpaca": ({"instruction": "add", "input": "1 2", "output": "3"}, [user("add\n\n1 2")]),
    "pairs without a prompt": (PAIRS["implicit prompt"][0], [HOW]),
    "Human and Assistant": (PAIRS["Human and Assistant"][0], [HOW, said("fine"), WHY]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_many_layouts(name: str, tmp_path: Path) -> None:
    row, prompt = PROMPTS[name]
    assert read_prompts(write(tmp_path / "p.jsonl", row))[0]["prompt"] == prompt


DEMONSTRATIONS: dict[str, tuple[dict[str, Any], tuple[Any, str]]] = {
    "messages": ({"messages": [HOW, said("fine"), WHY, said("salt")]}, ([HOW, said("fine"), WHY], "salt")),
    "ShareGPT": (
        {"system": "be brief", "conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "salt"}]},
        ([{"role": "system", "content": "be brief"}, WHY], "salt"),
    ),
    "Alpaca": ({"instruction": "why?", "input": "", "output": "salt"}, ([WHY], "salt")),
    "TRL": ({"prompt": [WHY], "completion": [said("salt")]}, ([WHY], "salt")),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_of_many_layouts(name: str, tmp_path: Path) -> None:
    row, expected = DEMONSTRATIONS[name]
    (found,) = read_demonstrations(write(tmp_path / "d.jsonl", row))
    assert (found["prompt"], found["completion"]) == expected


def test_columns_of_other_names_are_read_by_their_names(tmp_path: Path) -> None:
    names = AllColumns(prompt_column="question", chosen_column="yes", rejected_column="no", completion_column="answer")
    assert names.columns() == {"prompt": "question", "chosen": "yes", "rejected": "no", "completion": "answer"}
    row = {"question": "how?", "yes": "good", "no": "bad", "answer": "fine"}
    file = write(tmp_path / "p.jsonl", row)
    assert pair(file, row, **names.columns()) == ("how?", "good", "bad")
    assert read_demonstrations(file, names.columns())[0]["completion"] == "fine"
    assert read_prompts(file, {"prompt": "question"})[0]["prompt"] == "how?"
    assert read_prompts(write(file, {"prompt": "why?"}), {"prompt": "question"})[0]["prompt"] == "why?"


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (
            read_prompts,
            {"question": "how?"},
            "row 0 has no column prompt; its columns are question: set prompt_column: quest",
        ),
        (read_prompts, {"user_promt": "how?"}, "set prompt_column: user_promt"),
        (read_prompts, {"a": 1, "b": 2}, "its columns are a, b: set prompt_column to the one that holds it"),
        (read_preferences, {"prompt": "a", "winner": "b", "loser": "c"}, "set chosen_column: winner"),
        (
            read_preferences,
            {"prompt": "a", "chosen": "b", "rejected_answer": "c"},
            "set rejected_column: rejected_answer",
        ),
        (read_preferences, {"chosen": "b", "rejected": "c", "query": "a"}, "set prompt_column: query"),
        (
            read_preferences,
            {"prompt": "a", "response": "b", "helpfulness": 3},
            "rated one by one; give a data set of pairs",
        ),
        (read_preferences, {"instruction": "a", "completions": [{}]}, "rated one by one; give a data set of pairs"),
        (read_demonstrations, {"prompt": "a", "response": "b"}, "set completion_column: response"),
    ],
)
def test_a_missing_column_lists_the_others_and_names_the_likely_one(
    read: Any, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(write(tmp_path / "p.jsonl", row))
    assert "\n" not in str(error.value)


def test_prompts_that_end_in_an_answer_and_repeated_ones_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [[HOW], [HOW, said("fine")], [{**HOW, "name": None}], [WHY]]
    read_prompts(write(tmp_path / "said.jsonl", *({"prompt": prompt} for prompt in rows)))
    assert "1 of 4 prompts end in an assistant turn" in caplog.text
    assert "1 of 4 prompts occur earlier in it" in caplog.text
