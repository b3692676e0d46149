"""Rewards for the answers of a table in memory, on an engine: a block of prompts is a task."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from shfcas.candidates import CandidateTable
from shfcas.engines import Engine, Tick
from shfcas.progress import progress
from shfcas.scoring import EnsembleScorer, load_scorer, score_block, with_rewards

BLOCK = 32  # prompts of a task, as many as `shfcas.scoring.score_rows` gives a scorer at once


def answer_rewards(
    engine: Engine, scorer: str, rows: Sequence[dict[str, Any]], cost_model: bool = False
) -> list[list[float]]:
    """What `shfcas.scoring.score_rows` returns, from workers that load the scorer by its name."""
    return _each(engine, scorer, rows, cost_model, members=False)[0]


def add_answer_rewards(
    engine: Engine, scorer: str, candidates: CandidateTable, cost_model: bool = False
) -> CandidateTable:
    """What `shfcas.scoring.add_rewards` returns, from workers that load the scorer by its name."""
    return with_rewards(candidates, _each(engine, scorer, candidates.rows(), cost_model, members=True))


def _each(
    engine: Engine, scorer: str, rows: Sequence[dict[str, Any]], cost_model: bool, members: bool
) -> list[list[list[float]]]:
    """The rewards of the scorer, or of each of its members."""
    tasks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    bar = progress(total=len(rows), desc="scoring")
    blocks = list(engine.map(partial(_BlockScorer, scorer, cost_model, members), tasks, bar.update))
    bar.close()
    return [[row for block in member for row in block] for member in zip(*blocks, strict=True)]


class _BlockScorer:
    """Scores a block of rows by one scorer, or by each member of an ensemble."""

    def __init__(self, name: str, cost_model: bool, members: bool) -> None:
        scorer = load_scorer(name, cost_model)
        self.scorers = scorer.members if members and isinstance(scorer, EnsembleScorer) else [scorer]

    def __call__(self, rows: Sequence[dict[str, Any]], tick: Tick) -> list[list[list[float]]]:
        rewards = [score_block(scorer, rows) for scorer in self.scorers]
        tick(len(rows))
        return rewards
