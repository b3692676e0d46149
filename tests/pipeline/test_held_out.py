"""Prompts held out from reward training: `run`, `compare` and `train-reward` set the same ones apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.compare.config import CompareConfig
from shfcas.compare.work import RunWork
from shfcas.data.preferences import Preference, write_preferences
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.loop import Loop, State
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.utils.config import build
from tests.support import tiny

PROMPTS = [f"how was day {number}?" for number in range(40)]
ORIGINAL = [Preference(prompt, "a good day", "a bad day") for prompt in PROMPTS]
# New labels overrule half of the original pairs.
LABELS = [Preference(prompt, "a bad day", "a good day", source="gold", round=1) for prompt in PROMPTS[:20]]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Preference], list[Preference]]]:
    """The training and held-out pairs of each training, which is not carried out."""
    seen: list[tuple[list[Preference], list[Preference]]] = []

    def train(
        model: str, preferences: Sequence[Preference], *, held_out: Sequence[Preference], output: Path, **settings: Any
    ) -> dict[str, Any]:
        seen.append((list(preferences), list(held_out)))
        output.mkdir(parents=True)
        accuracy = {"mean": 1.0, "low": 1.0, "high": 1.0, "count": 1}
        counts = {"pairs": 0, "pairs_by_source": {}, "pairs_too_long": 0}
        return {**counts, "loss": [0.0], "best_step": None, "train": {"accuracy": accuracy}, "held_out": None}

    monkeypatch.setattr("shfcas.training.reward.train.train_member", train)
    return seen


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The original pairs and the labels of a round."""
    original, labels = tmp_path / "original.jsonl", tmp_path / "labels.jsonl"
    write_preferences(original, ORIGINAL)
    write_preferences(labels, LABELS)
    return original, labels


def values(folder: Path) -> dict[str, Any]:
    return {
        "policy": "p",
        "reward_model": "r",
        "gold": "tests.support.tiny:letter_reward",
        "prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(2)),
        "eval_prompts": tiny.write_lines(folder / "held_out.jsonl", tiny.held_out_prompts(2)),
        "seed": 3,
    }


def test_all_routes_hold_out_the_same_prompts(
    parts: list[tuple[list[Preference], list[Preference]]],
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, labels = files
    (tmp_path / "r").mkdir()  # a model that no one loads here
    (tmp_path / "r" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    state = State("p", "r", original)

    loop = Loop(RunDirectory(tmp_path / "run", {}, 3), build(RunConfig, values(tmp_path)))
    loop.refine(state, tmp_path / "conflicts.parquet", labels, "round-1")

    config = build(CompareConfig, {**values(tmp_path), "refine": "full", "reward": {"held_out": 0.1}})
    RunWork(tmp_path / "compared", config, state).train(LABELS, tmp_path / "model", work_dir=tmp_path / "work", seed=5)

    flags = {"model": "r", "preferences": f"{original},{labels}", "output": str(tmp_path / "reward"), "seed": "3"}
    assert main(["train-reward", *(text for key, value in flags.items() for text in (f"--{key}", value))]) == 0

    run, compared, command = parts
    assert run == compared == command
    trained, held_out = run
    assert len(held_out) == 4 and len(trained) == 36
    assert {p.prompt for p in trained}.isdisjoint(p.prompt for p in held_out)
    assert sum(p.source == "gold" for p in (*trained, *held_out)) == 20
