"""Rounds that give fewer comparisons or labels than asked for are logged with their cause."""

from pathlib import Path
from typing import Any

import pytest

from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.loop import Loop
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.utils.config import build
from tests.support import judge_server, tiny


def constant(prompts: list, completions: list, **columns: object) -> list[float]:
    return [1.0] * len(completions)


@pytest.fixture
def values(tiny_models: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    return {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "gold": f"{__name__}:constant",
        "prompts": tiny.write_lines(tmp_path / "prompts.jsonl", tiny.prompts(4)),
        "eval_prompts": tiny.write_lines(tmp_path / "held_out.jsonl", tiny.held_out_prompts(2)),
        "preflight": None,
        "sampling": {"num_completions": 3, "max_new_tokens": 6},
        "selection": {"strategy": "random", "budget": 500},
    }


def label(values: dict[str, Any], path: Path) -> None:
    """One round up to its labels."""
    config = build(RunConfig, values)
    with RunDirectory(path, {}, 0) as directory:
        loop = Loop(directory, config)
        conflicts = loop.score(loop.prepare(), loop.sample(loop.prepare(), "round-1"), "round-1")
        loop.label(loop.select(conflicts, "round-1", config.selection), conflicts, "round-1", 1)


def test_a_small_queue_and_ties_of_gold(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label(values, tmp_path / "run")
    queue, ties = (record.message for record in caplog.records if record.levelname == "WARNING")
    count = queue.split()[0]
    assert queue.startswith(f"{count} of 500 comparisons: the table has no more pairs of different answers")
    assert ties.startswith(f"{count} of {count} answers were ties: gold gave both answers the same reward")
    caplog.clear()
    label({**values, "gold": "tests.support.tiny:letter_reward"}, tmp_path / "other")
    assert "were ties" not in caplog.text


def test_ties_of_a_judge(values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with judge_server.JudgeServer(lambda request: judge_server.said("TIE")) as server:
        label({**values, "feedback": "judge", "judge": {"model": "j", "base_url": server.url}}, tmp_path / "run")
    text = caplog.messages[-1]
    count = text.split()[0]
    assert text.startswith(
        f"{count} of {count} comparisons have no preferred answer: {count} ties, 0 depend on the order"
    )
    assert "sharpen judge.criterion" in text
