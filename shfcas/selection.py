"""Which answers a human is asked about: acquisition strategies, the label budget, the pairing of answers.

A strategy is a pure function of the conflict columns. It returns comparisons in the order in which they are
worth asking; the budget cuts the list.
"""

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, zip_longest
from typing import Any

import numpy as np

from shfcas.config import option
from shfcas.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A question to an annotator: which of two answers of a prompt is better.

    Attributes:
        prompt_id: the prompt.
        first: position of one answer among the prompt's completions.
        second: position of the other.
    """

    prompt_id: str
    first: int
    second: int


@dataclass
class SelectionConfig:
    """Which comparisons to ask for."""

    strategy: str = option("shf_cas", "acquisition strategy: shf_cas, mean_pacs (the authors' script), random")
    budget: int = option(100, "label budget: the number of pairwise comparisons a human is asked for")
    kendall_threshold: str = option(
        "q0.5",
        "shf_cas: prompts need at least this Kendall-tau distance; a number, or a quantile such as q0.5",
    )
    pacs_threshold: str = option(
        "q0.5", "shf_cas: answers of those prompts need at least this abs(PACS); a number, or a quantile"
    )
    mean_pacs_threshold: str = option(
        "1.0", "mean_pacs: prompts need a mean abs(PACS) above this; a number, or a quantile"
    )
    seed: int | None = option(None, "seed of the random strategy and of ties (none: the run's seed)")

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            near = difflib.get_close_matches(self.strategy, STRATEGIES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"unknown strategy {self.strategy!r}, one of {', '.join(STRATEGIES)}{hint}")
        if self.budget < 1:
            raise UserError(f"budget: expected at least 1 comparison, got {self.budget}")
        for text in (self.kendall_threshold, self.pacs_threshold, self.mean_pacs_threshold):
            threshold(text, np.zeros(0))


def threshold(text: str | float, values: np.ndarray) -> float:
    """A threshold given as a number, or as a quantile of the values (`q0.9`)."""
    text = str(text).strip()
    try:
        number = float(text.removeprefix("q"))
    except ValueError:
        raise UserError(f"threshold {text!r}: expected a number such as 0.5, or a quantile such as q0.5") from None
    if not text.startswith("q") and not math.isnan(number):
        return number
    if not 0 <= number <= 1:
        raise UserError(f"threshold {text!r}: expected a number, or a quantile between q0 and q1")
    return float(np.quantile(values, number)) if len(values) else math.inf


def usable(rows: list[Row]) -> list[Row]:
    """The prompts whose conflict means something: not degenerate, no NaN, at least two answers."""
    return [
        row
        for row in rows
        if not row["degenerate"] and len(row["pacs"]) > 1 and all(math.isfinite(p) for p in row["pacs"])
    ]


def opposed_pairs(row: Row, answers: list[int]) -> Iterator[Comparison]:
    """Pairs the answers of one prompt, most opposed PACS first, each answer once."""
    order = sorted(answers, key=lambda i: row["pacs"][i])
    while len(order) > 1:
        low, high = order.pop(0), order.pop()
        yield Comparison(row["prompt_id"], high, low)


def shf_cas(rows: list[Row], config: SelectionConfig, rng: np.random.Generator) -> list[Comparison]:
    """The paper's two stages: prompts by Kendall distance, then their answers by abs(PACS) (arXiv 2512.09212).

    Prompts take turns in order of falling distance, so a budget covers many prompts before it returns to one.
    """
    rows = usable(rows)
    kendall = threshold(config.kendall_threshold, np.array([row["kendall_distance"] for row in rows]))
    prompts = [row for row in rows if row["kendall_distance"] >= kendall]
    pacs = threshold(config.pacs_threshold, np.array([abs(p) for row in prompts for p in row["pacs"]]))
    prompts.sort(key=lambda row: (-row["kendall_distance"], -row["mean_abs_pacs"], row["prompt_id"]))
    queues = [opposed_pairs(row, [i for i, p in enumerate(row["pacs"]) if abs(p) >= pacs]) for row in prompts]
    return [c for turn in zip_longest(*queues) for c in turn if c is not None]


def mean_pacs(rows: list[Row], config: SelectionConfig, rng: np.random.Generator) -> list[Comparison]:
    """The rule of the authors' script: every pair of a prompt whose mean abs(PACS) exceeds the threshold."""
    rows = usable(rows)
    bound = threshold(config.mean_pacs_threshold, np.array([row["mean_abs_pacs"] for row in rows]))
    prompts = [row for row in rows if row["mean_abs_pacs"] > bound]
    prompts.sort(key=lambda row: (-row["mean_abs_pacs"], row["prompt_id"]))
    return [
        Comparison(row["prompt_id"], first, second)
        for row in prompts
        for first, second in combinations(range(len(row["pacs"])), 2)
    ]


def random_pairs(rows: list[Row], config: SelectionConfig, rng: np.random.Generator) -> list[Comparison]:
    """Pairs drawn uniformly, without replacement, from all pairs of the usable prompts: the baseline."""
    pairs = [
        Comparison(row["prompt_id"], first, second)
        for row in usable(rows)
        for first, second in combinations(range(len(row["pacs"])), 2)
    ]
    return [pairs[i] for i in rng.permutation(len(pairs))]


AcquisitionStrategy = Callable[[list[Row], SelectionConfig, np.random.Generator], list[Comparison]]

STRATEGIES: dict[str, AcquisitionStrategy] = {
    "shf_cas": shf_cas,
    "mean_pacs": mean_pacs,
    "random": random_pairs,
}


def select(rows: list[Row], config: SelectionConfig, seed: int = 0) -> list[Comparison]:
    """The comparisons to ask for, most wanted first, at most `config.budget` of them.

    Answers with the same text are never compared.

    Args:
        rows: one dictionary a prompt, with `prompt_id`, `completions` and the conflict columns.
        config: strategy, budget and thresholds.
        seed: used where `config.seed` is None.

    Raises:
        UserError: nothing passes the thresholds.
    """
    rng = np.random.default_rng(config.seed if config.seed is not None else seed)
    texts = {row["prompt_id"]: row["completions"] for row in rows}
    comparisons = [
        c
        for c in STRATEGIES[config.strategy](rows, config, rng)
        if texts[c.prompt_id][c.first] != texts[c.prompt_id][c.second]
    ]
    if not comparisons:
        degenerate = len(rows) - len(usable(rows))
        raise UserError(
            f"strategy {config.strategy} selected nothing from {len(rows)} prompts ({degenerate} of them degenerate: "
            "all rewards or all log-probabilities equal, or not a number); lower the thresholds"
        )
    return comparisons[: config.budget]
