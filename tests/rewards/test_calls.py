"""Reward functions as people write them for TRL: any subset of its arguments, coroutines, None, and mistakes."""

import asyncio
import functools
import inspect
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shfcas.cli import main
from shfcas.rewards.calls import call_reward
from shfcas.rewards.scorers import EnsembleScorer, negated
from shfcas.rewards.shaping import CentredReward
from shfcas.rewards.table import score_rows
from shfcas.training.ppo.rewards import evaluate_callable
from shfcas.utils.errors import UserError
from tests.support import tiny

ROWS = [
    {"prompt_id": "a", "prompt": "how?", "completions": ["x", "xxx"], "topic": "food"},
    {"prompt_id": "b", "prompt": "why?", "completions": ["xx", ""], "topic": "film"},
]
LENGTHS = [[1.0, 3.0], [2.0, 0.0]]


def lengths(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


async def waiting(prompts: list, completions: list, **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return lengths(completions)


class Waiting:
    async def __call__(self, completions: list) -> list[float]:
        return await waiting([], completions)


class OneLoop:
    """Keeps something that belongs to an event loop, as clients of HTTP libraries do."""

    loop: Any = None

    async def __call__(self, completions: list, **columns: Any) -> list[float]:
        self.loop = self.loop or asyncio.get_running_loop()
        assert self.loop is asyncio.get_running_loop()
        return lengths(completions)


def all_of_trl(
    prompts: list, completions: list, completion_ids: Any, trainer_state: Any, log_extra: Any, log_metric: Any
) -> list[float]:
    assert completion_ids is None and trainer_state is None and len(prompts) == len(completions)
    log_extra("length", lengths(completions))
    log_metric("mean", 1.0)
    return lengths(completions)


def with_defaults(completions: list, trainer_state: Any = "unset", *, log_metric: Any = "unset") -> list[float]:
    assert trainer_state == log_metric == "unset"
    return lengths(completions)


def of_a_column(topic: list[str], completions: list) -> list[float]:
    assert topic[0] == "food"
    return lengths(completions)


def decorated(function: Callable) -> Callable:
    @functools.wraps(function)
    def inner(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return inner


WRITTEN = {
    "async": waiting,
    "async object": Waiting(),
    "one loop": OneLoop(),
    "all of TRL's arguments": all_of_trl,
    "defaults": with_defaults,
    "a column": of_a_column,
    "decorated": decorated(all_of_trl),
    "partial": functools.partial(of_a_column),
    "plain function that returns a coroutine": lambda completions: waiting([], completions),
    "tensor": lambda completions: torch.tensor(lengths(completions)),
    "array": lambda completions: np.array(lengths(completions), dtype=np.float32),
    "generator": lambda completions: (len(text) for text in completions),
    "scalars": lambda completions: [np.float64(len(text)) for text in completions],
    "tensors": lambda completions: [torch.tensor(float(len(text))) for text in completions],
    "fractions": lambda completions: tuple(Fraction(len(text)) for text in completions),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_function_is_called_with_what_it_names(name: str) -> None:
    function = WRITTEN[name]
    assert score_rows(function, ROWS, block=1 if "column" not in name and name != "partial" else 2) == LENGTHS
    assert score_rows(negated(function), ROWS) == [[-r for r in row] for row in LENGTHS]
    assert score_rows(EnsembleScorer([function, function]), ROWS) == LENGTHS
    centred = CentredReward(function, ROWS)
    assert score_rows(centred, ROWS) == [[-1.0, 1.0], [1.0, -1.0]]
    arguments = {"prompts": ["how?"], "completions": ["xx"], "topic": ["food"]}
    assert evaluate_callable(name, function, 1, arguments).tolist() == [2.0]


def test_a_coroutine_runs_where_a_loop_runs_already() -> None:
    async def notebook() -> list[list[float]]:
        return score_rows(waiting, ROWS)

    assert asyncio.run(notebook()) == LENGTHS


def test_token_ids_reach_the_function_where_the_table_has_them() -> None:
    rows = [{**row, "completion_ids": [[1] * len(text) for text in row["completions"]]} for row in ROWS]
    assert score_rows(lambda completion_ids: [len(ids) for ids in completion_ids], rows) == LENGTHS


def test_trls_own_arguments_reach_only_functions_that_name_them() -> None:
    given = {"prompts": ["p"], "completions": ["c"], "trainer_state": "state"}
    assert call_reward(lambda trainer_state: [len(trainer_state)], 1, given) == [5.0]
    assert call_reward(lambda **columns: [len(columns)], 1, given) == [2.0]
    assert call_reward(negated(lambda trainer_state: [len(trainer_state)]), 1, given) == [-5.0]


def test_none_is_kept_until_a_number_is_needed() -> None:
    def sometimes(completions: list) -> list[float | None]:
        return [None, *lengths(completions)[1:]]

    arguments = {"prompts": ["p"] * 2, "completions": ["a", "bb"]}
    for scorer, last in ((sometimes, 2.0), (negated(sometimes), -2.0), (EnsembleScorer([sometimes, waiting]), 2.0)):
        assert call_reward(scorer, 2, arguments) == [None, last]
        assert evaluate_callable("r", scorer, 2, arguments).isnan().tolist() == [True, False]
        with pytest.raises(UserError, match=r"answer 0 of prompt 'a' is not a number but None .*sometimes \("):
            score_rows(scorer, ROWS)


def crash(completions: list) -> list[float]:
    wrong = completions[len(completions)]
    return [wrong]


async def crash_later(completions: list) -> list[float]:
    await asyncio.sleep(0)
    return crash(completions)


def a_line_of(function: Callable, text: str) -> int:
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


MISTAKES: dict[str, tuple[Callable, str]] = {
    "crash": (crash, rf"test_calls:crash \(.*test_calls.py:{a_line_of(crash, 'wrong =')}\) failed: IndexError: list"),
    "async crash": (crash_later, rf"crash_later \(.*py:{a_line_of(crash, 'wrong =')}\) failed: IndexError"),
    "missing column": (
        lambda completions, subject: [],
        "missing 1 required .*'subject'; fix the function",
    ),
    "text": (lambda completions: "good", "expected a list of numbers, one per answer, got str"),
    "numerals": (lambda completions: ["1.0"] * 4, "expected a number for answer 0, got '1.0'"),
    "dictionary": (lambda completions: {"a": 1.0}, "expected a list of numbers, one per answer, got dict"),
    "number": (lambda completions: 1.0, "expected a list of numbers, one per answer, got float"),
    "nothing": (lambda completions: None, "expected a list of numbers, one per answer, got NoneType"),
    "pairs": (lambda completions: torch.zeros(4, 2), r"expected a number for answer 0, got \[0.0, 0.0\]"),
    "scalar tensor": (lambda completions: torch.tensor(1.0), "expected a list of numbers, one per answer, got Tensor"),
    "complex": (lambda completions: [1j] * 4, "expected a number for answer 0, got 1j"),
    "few": (lambda completions: [1.0], "expected 4 rewards, one per answer, got 1"),
    "infinity": (lambda completions: [float("inf")] * 4, "is not a number but -?inf"),
    "class": (Waiting, "expected a list of numbers, one per answer, got Waiting"),
    "lines": (lambda completions: [f"a{chr(10)}b"] * 4, r"got 'a\\nb'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_function_is_one_line_that_names_it(name: str) -> None:
    function, message = MISTAKES[name]
    for scorer in (function, negated(function), EnsembleScorer([waiting, function])):
        with pytest.raises(UserError, match=message) as caught:
            score_rows(scorer, ROWS)
        text = str(caught.value)
        assert "\n" not in text and "test_calls" in text and ".py:" in text


def test_an_error_in_our_own_scorers_is_not_the_users() -> None:
    with pytest.raises(ZeroDivisionError):
        call_reward(ours, 1, {})


def ours(**columns: Any) -> list[float]:
    return [1 / 0]


ours.__module__ = "shfcas.rewards.scorers"


def test_the_traceback_is_shown_with_verbose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_lines(tmp_path / "rows.jsonl", ROWS)
    command = ["feedback", "--input", "rows.parquet", "--queue", "queue.jsonl", "--gold", f"{__name__}:crash"]
    from shfcas.data.candidates import CandidateTable, write_candidates

    write_candidates(tmp_path / "rows.parquet", CandidateTable.from_rows(ROWS))
    tiny.write_lines(tmp_path / "queue.jsonl", [{"prompt_id": "a", "first": 0, "second": 1}])
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shfcas feedback: ") and "crash (" in line and "IndexError" in line
    assert main([*command, "--verbose"]) == 1
    *traceback, last = capsys.readouterr().err.splitlines()
    assert last == line and "Traceback (most recent call last):" in traceback
    assert any("wrong = completions[len(completions)]" in text for text in traceback)


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shfcas.rewards.scorers import load_scorer

    monkeypatch.syspath_prepend(tmp_path)
    for name, text, message in (
        ("broken_syntax", "def reward(:", r"SyntaxError.*broken_syntax.py:1\)"),
        ("broken_name", "a = 1\nb = c\n", r"NameError: name 'c' is not defined, .*broken_name.py:2\)"),
        ("broken_import", "import there_is_no_such", "No module named 'there_is_no_such'"),
        ("broken_attribute", "import math\nmath.none", r"AttributeError: .*broken_attribute.py:2\)"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(UserError, match=f"{name}:reward: cannot import {name} .*{message}"):
            load_scorer(f"{name}:reward")
