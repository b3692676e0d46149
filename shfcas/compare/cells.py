"""One cell of a comparison: select with one strategy and budget, label, refine the reward model, measure it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from shfcas.compare.answers import AnswerSet
from shfcas.compare.heads import Head, HeadFit
from shfcas.selection import Comparison, SelectionConfig, select
from shfcas.utils.config import check_fields, option
from shfcas.utils.errors import NothingSelected, UserError
from shfcas.utils.seeds import derive_seed

NONE = "none"  # the arm without new labels: the same refinement on only the earlier pairs
BLIND, ELSEWHERE = "(blind spot)", "(elsewhere)"


class Cell(NamedTuple):
    """One run: a strategy, a number of comparisons, and a seed number."""

    strategy: str
    budget: int
    seed: int

    def __str__(self) -> str:
        """Returns the name of the cell for errors."""
        return f"strategy {self.strategy}, budget {self.budget}, seed {self.seed}"


class Label(NamedTuple):
    """One labelled comparison: position of the prompt, and positions of two answers in all answers of the pool."""

    prompt: int
    chosen: int
    rejected: int


# Function from labels and training seed to the rewards of the held-out answers.
Refine = Callable[[Sequence[Label], int], np.ndarray]


@dataclass(frozen=True)
class Bench:
    """Data and settings shared by all cells.

    Attributes:
        pool: answers to select from.
        held_out: answers to other prompts, for all measurements.
        refine: refinement of the reward model with labels.
        group_by: a column of the prompts; accuracies are also measured for each of its values.
        blind: values of that column where the proxy is known to be wrong.
        pool_share: fraction of the pool's prompts that each seed samples, without replacement.
        label_noise: fraction of flipped labels, sampled per pair and seed.
        seed: base seed of all random numbers.
    """

    pool: AnswerSet
    held_out: AnswerSet
    refine: Refine
    group_by: str | None = None
    blind: Sequence[str] = ()
    pool_share: float = option(
        0.8, "share of the prompts that each seed draws for its pool, without replacement", gt=0, le=1
    )
    label_noise: float = option(
        0.0, "share of the gold labels that are flipped, as annotators make mistakes", ge=0, le=0.5
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def drawn(self, number: int) -> np.ndarray:
        """Returns the positions of the prompts in the pool of one seed, ascending."""
        count = max(1, round(self.pool_share * len(self.pool)))
        rng = np.random.default_rng(derive_seed(self.seed, "pool", number))
        return np.sort(rng.choice(len(self.pool), count, replace=False))


@dataclass(frozen=True)
class RefineHead:
    """Refinement of a linear head on frozen features, in milliseconds.

    Attributes:
        pool: features of the pool's answers, shape (T, D).
        held_out: features of the held-out answers.
        fit: fits heads to the earlier pairs and the new ones.
        new_pair_weight: weight of a new pair; an earlier pair has weight 1.
    """

    pool: np.ndarray
    held_out: np.ndarray
    fit: HeadFit
    new_pair_weight: float = 1.0

    def __call__(self, labels: Sequence[Label], seed: int) -> np.ndarray:
        """Returns the rewards of the held-out answers; the optimum is unique, so the seed does not matter."""
        return self.head(labels)(self.held_out)

    def head(self, labels: Sequence[Label]) -> Head:
        """Returns the refined head."""
        chosen, rejected = [x.chosen for x in labels], [x.rejected for x in labels]
        return self.fit(self.pool[chosen] - self.pool[rejected], self.new_pair_weight)


def head_bench(
    pool: AnswerSet,
    held_out: AnswerSet,
    *,
    earlier: np.ndarray,
    head: np.ndarray | None = None,
    l2: float = 10.0,
    new_pair_weight: float = 1.0,
    margins: np.ndarray | None = None,
    **options: Any,
) -> Bench:
    """Returns a bench for the user's own answers, with cells that take milliseconds.

    Args:
        pool: answers with features.
        held_out: answers to other prompts, with the same features.
        earlier: training pairs of the proxy: features of the chosen answers minus features of the rejected answers,
            shape (n, D); n may be 0.
        head: the proxy's weights, from which refinement starts, shape (D,); None: zeros.
        l2: strength of the regularisation towards these weights.
        new_pair_weight: weight of a new pair; an earlier pair has weight 1.
        margins: margins of the earlier pairs, shape (n,).
        options: other attributes of `Bench`.
    """
    if pool.features is None or held_out.features is None:
        raise UserError("features: expected features in both answer sets, got None; a head needs them")
    if pool.features.shape[1] != held_out.features.shape[1]:
        raise UserError(
            f"features: expected the dimension of the pool, {pool.features.shape[1]}, in the held-out answers, "
            f"got {held_out.features.shape[1]}"
        )
    fit = HeadFit(pool.features, earlier, centre=head, l2=l2, margins=margins)
    return Bench(pool, held_out, RefineHead(pool.features, held_out.features, fit, new_pair_weight), **options)


def run_cell(bench: Bench, cell: Cell, selection: SelectionConfig) -> dict[str, Any]:
    """Runs one cell.

    Args:
        bench: data and settings shared by all cells.
        cell: the cell to run; the strategy `none` selects nothing.
        selection: the settings of the cell's strategy, its name included; only the budget is taken from the cell.

    Returns:
        The cell's `strategy`, `budget`, `seed`, its time in `seconds`, and its `metrics`, each with `metric`, `group`
        (empty: all prompts) and `value`; docs/compare.md describes the metrics.

    Raises:
        UserError: the strategy lacks a column; the message names the cell.
    """
    started = time.perf_counter()
    drawn = bench.drawn(cell.seed)
    queue = [] if cell.strategy == NONE else ask(bench, drawn, cell, selection)
    labels = judge(bench, queue, cell.seed)
    rewards = bench.refine(labels, derive_seed(bench.seed, "training", cell.seed))
    metrics = [*measure(bench, rewards), *account(bench, queue, labels)]
    seconds = round(time.perf_counter() - started, 4)
    return {**cell._asdict(), "seconds": seconds, "metrics": metrics}


def ask(bench: Bench, drawn: np.ndarray, cell: Cell, selection: SelectionConfig) -> list[Comparison]:
    """Selects the comparisons of one cell; none if nothing passes the thresholds."""
    rows = [bench.pool.rows[i] for i in drawn]
    try:
        return select(rows, replace(selection, budget=cell.budget), derive_seed(bench.seed, "draw", cell.seed))
    except NothingSelected:
        return []
    except UserError as error:
        raise UserError(f"{cell}: {error}") from error


def judge(bench: Bench, queue: Sequence[Comparison], seed: int = 0) -> list[Label]:
    """Labels comparisons with the gold reward; equal gold rewards give no label, and equal texts are labelled once."""
    pool, labels = bench.pool, []
    positions = {row["prompt_id"]: i for i, row in enumerate(pool.rows)}
    seen = set()
    for c in queue:
        prompt = positions[c.prompt_id]
        texts = pool.rows[prompt]["completions"]
        key = (prompt, frozenset((texts[c.first], texts[c.second])))
        first, second = (int(pool.offsets[prompt]) + i for i in (c.first, c.second))
        if pool.gold[first] == pool.gold[second] or key in seen:
            continue
        seen.add(key)
        first_wins = bool(pool.gold[first] > pool.gold[second])
        if bench.label_noise:
            pair = sorted((c.first, c.second))
            draw = derive_seed(bench.seed, "label noise", seed, c.prompt_id, *pair, bits=53) / 2**53
            first_wins ^= draw < bench.label_noise
        labels.append(Label(prompt, first, second) if first_wins else Label(prompt, second, first))
    return labels


def measure(bench: Bench, rewards: np.ndarray) -> list[dict[str, Any]]:
    """Measures the refined rewards of the held-out answers."""
    held_out = bench.held_out
    if not np.isfinite(rewards).all():
        raise UserError("the refined reward model's scores are not finite; lower its learning rate")
    accuracy = held_out.pair_accuracy(rewards)
    best = held_out.best_gold(rewards)
    found = [_metric("pair_accuracy", accuracy), _metric("best_of_n_gold", best)]
    groups = held_out.groups(bench.group_by)
    if bench.group_by:
        parts = {name: groups == name for name in sorted(set(groups))}
        if bench.blind:
            blind = np.isin(groups, list(bench.blind))
            parts = {BLIND: blind, ELSEWHERE: ~blind} | parts
        for name, inside in parts.items():
            found.append(_metric("pair_accuracy", accuracy[inside], name))
            found.append(_metric("best_of_n_gold", best[inside], name))
    found += [{"metric": name, "group": "", "value": value} for name, value in held_out.conflict(rewards).items()]
    return found


def account(bench: Bench, queue: Sequence[Comparison], labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Counts comparisons and labels, and measures the fraction of labels that contradict the proxy."""
    pool = bench.pool
    found = {"comparisons": float(len(queue)), "labels": float(len(labels))}
    if labels:
        difference = np.array([pool.rewards[x.chosen] - pool.rewards[x.rejected] for x in labels])
        found["errors_found"] = float(((difference < 0) + 0.5 * (difference == 0)).mean())
        if bench.blind and bench.group_by:
            groups = pool.groups(bench.group_by)
            found["blind_share"] = float(np.isin(groups[[x.prompt for x in labels]], list(bench.blind)).mean())
    return [{"metric": name, "group": "", "value": value} for name, value in found.items()]


def _metric(name: str, values: np.ndarray, group: str = "") -> dict[str, Any]:
    known = values[~np.isnan(values)]
    return {"metric": name, "group": group, "value": float(known.mean()) if len(known) else math.nan}
