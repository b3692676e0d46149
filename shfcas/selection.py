"""Which answers a human is asked about: acquisition strategies, the label budget, the pairing of answers.

A strategy is a pure function of one row, which gives each comparison of its answers a priority; the budget takes the
first ones over all rows. So a table of any size is gone through in constant memory, and the order of its rows, or how
they are spread over files, does not matter.
"""

import difflib
import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np

from shfcas.config import option
from shfcas.errors import UserError
from shfcas.quantiles import Chunks, quantile
from shfcas.seeds import derive_seed

Row = dict[str, Any]
Bounds = dict[str, float]
CHUNK = 1 << 16
Priority = Any  # what compares: the least is asked first; unique among the comparisons of a table


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


def threshold(text: str | float, values: np.ndarray | Chunks) -> float:
    """A threshold given as a number, or as a quantile (`q0.9`) of the values: an array, or chunks of them."""
    text = str(text).strip()
    try:
        number = float(text.removeprefix("q"))
    except ValueError:
        raise UserError(f"threshold {text!r}: expected a number such as 0.5, or a quantile such as q0.5") from None
    if not text.startswith("q") and not math.isnan(number):
        return number
    if not 0 <= number <= 1:
        raise UserError(f"threshold {text!r}: expected a number, or a quantile between q0 and q1")
    chunks: Chunks = values if callable(values) else lambda: [values]
    found = quantile(chunks, number)
    return math.inf if math.isnan(found) else found


def is_usable(row: Row) -> bool:
    """Whether a prompt's conflict means something: not degenerate, no NaN, at least two answers."""
    return not row["degenerate"] and len(row["pacs"]) > 1 and all(map(math.isfinite, row["pacs"]))


class Strategy(NamedTuple):
    """How comparisons are chosen.

    Attributes:
        comparisons: a row's comparisons with their priorities, from the row, the bounds and the seed.
        bounds: thresholds by their names in `SelectionConfig`, each with the values of a row that a quantile is
            taken over, from the row and the bounds before it.
    """

    comparisons: Callable[[Row, Bounds, int], Iterable[tuple[Priority, Comparison]]]
    bounds: dict[str, Callable[[Row, Bounds], Iterable[float]]]


def opposed_pairs(row: Row, answers: list[int]) -> Iterator[Comparison]:
    """Pairs the answers of one prompt, most opposed PACS first, each answer once."""
    order = sorted(answers, key=lambda i: row["pacs"][i])
    while len(order) > 1:
        low, high = order.pop(0), order.pop()
        yield Comparison(row["prompt_id"], high, low)


def all_pairs(row: Row) -> Iterator[Comparison]:
    """Every pair of answers of one prompt."""
    for first, second in combinations(range(len(row["pacs"])), 2):
        yield Comparison(row["prompt_id"], first, second)


def shf_cas(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """The paper's two stages: prompts by Kendall distance, then their answers by abs(PACS) (arXiv 2512.09212).

    Prompts take turns in order of falling distance, so a budget covers many prompts before it returns to one.
    """
    if row["kendall_distance"] < bounds["kendall_threshold"]:
        return
    answers = [i for i, p in enumerate(row["pacs"]) if abs(p) >= bounds["pacs_threshold"]]
    for turn, comparison in enumerate(opposed_pairs(row, answers)):
        yield (turn, -row["kendall_distance"], -row["mean_abs_pacs"], row["prompt_id"]), comparison


def mean_pacs(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """The rule of the authors' script: every pair of a prompt whose mean abs(PACS) exceeds the threshold."""
    if row["mean_abs_pacs"] > bounds["mean_pacs_threshold"]:
        for number, comparison in enumerate(all_pairs(row)):
            yield (-row["mean_abs_pacs"], row["prompt_id"], number), comparison


def random_pairs(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs drawn uniformly, without replacement, from all pairs of the usable prompts: the baseline."""
    for number, comparison in enumerate(all_pairs(row)):
        yield (derive_seed("random pairs", seed, row["prompt_id"], number, bits=64), row["prompt_id"]), comparison


STRATEGIES: dict[str, Strategy] = {
    "shf_cas": Strategy(
        shf_cas,
        {
            "kendall_threshold": lambda row, bounds: (row["kendall_distance"],),
            "pacs_threshold": lambda row, bounds: (
                map(abs, row["pacs"]) if row["kendall_distance"] >= bounds["kendall_threshold"] else ()
            ),
        },
    ),
    "mean_pacs": Strategy(mean_pacs, {"mean_pacs_threshold": lambda row, bounds: (row["mean_abs_pacs"],)}),
    "random": Strategy(random_pairs, {}),
}


def select(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> list[Comparison]:
    """The comparisons to ask for, most wanted first, at most `config.budget` of them.

    Answers with the same text are never compared.

    Args:
        rows: one dictionary a prompt, with `prompt_id`, the conflict columns and, if texts are to be compared,
            `completions`. They are gone through once, and twice more for each threshold that is a quantile.
        config: strategy, budget and thresholds.
        seed: used where `config.seed` is None.

    Raises:
        UserError: nothing passes the thresholds.
    """
    strategy, seed = STRATEGIES[config.strategy], seed if config.seed is None else config.seed
    bounds: Bounds = {}
    for name, values in strategy.bounds.items():
        bounds[name] = threshold(getattr(config, name), _chunks(rows, values, bounds))
    seen = degenerate = 0

    def ranked() -> Iterator[tuple[Priority, Comparison]]:
        nonlocal seen, degenerate
        for row in rows:
            seen += 1
            if not is_usable(row):
                degenerate += 1
                continue
            texts = row.get("completions")
            for priority, c in strategy.comparisons(row, bounds, seed):
                if texts is None or texts[c.first] != texts[c.second]:
                    yield priority, c

    best = heapq.nsmallest(config.budget, ranked(), key=lambda pair: pair[0])
    if not best:
        raise UserError(
            f"strategy {config.strategy} selected nothing from {seen} prompts ({degenerate} of them degenerate: "
            "all rewards or all log-probabilities equal, or not a number); lower the thresholds"
        )
    return [comparison for _, comparison in best]


def _chunks(rows: Iterable[Row], values: Callable[[Row, Bounds], Iterable[float]], bounds: Bounds) -> Chunks:
    """The values of all usable rows, in arrays."""

    def chunks() -> Iterator[np.ndarray]:
        every = (value for row in rows if is_usable(row) for value in values(row, bounds))
        while len(chunk := np.fromiter(islice(every, CHUNK), float)):
            yield chunk

    return chunks
