"""One cell of a comparison: ask what one strategy asks within one budget, refine the reward model, measure it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from shfcas.compare.answers import AnswerSet
from shfcas.compare.heads import Head, HeadFit
from shfcas.selection import Comparison, SelectionConfig, select
from shfcas.utils.errors import NothingSelected, UserError
from shfcas.utils.seeds import derive_seed

NONE = "none"  # the arm without new labels: the same refinement on the earlier pairs alone
BLIND, ELSEWHERE = "(blind spot)", "(elsewhere)"


class Cell(NamedTuple):
    """What is run once: a strategy, a number of comparisons, and the number of a seed."""

    strategy: str
    budget: int
    seed: int

    def __str__(self) -> str:
        """The cell as errors name it."""
        return f"strategy {self.strategy}, budget {self.budget}, seed {self.seed}"


class Label(NamedTuple):
    """One judged comparison: the position of the prompt, and of two answers among all answers of the pool."""

    prompt: int
    chosen: int
    rejected: int


# Rewards of the held-out answers, from the labels and the seed of the training.
Refine = Callable[[Sequence[Label], int], np.ndarray]


@dataclass(frozen=True)
class Bench:
    """What all cells share.

    Attributes:
        pool: the answers that may be asked about.
        held_out: answers to other prompts, that everything is measured on.
        refine: the reward model after some labels.
        group_by: a column of the prompts; accuracies are measured for each of its values too.
        blind: values of that column where the proxy is known to be wrong.
        pool_share: the share of the pool's prompts that each seed draws, without replacement.
        label_noise: the share of labels that are turned round, drawn for each pair and seed.
        seed: the seed of everything.
    """

    pool: AnswerSet
    held_out: AnswerSet
    refine: Refine
    group_by: str | None = None
    blind: Sequence[str] = ()
    pool_share: float = 0.8
    label_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses shares that are none."""
        if not 0 < self.pool_share <= 1:
            raise UserError(f"pool_share: expected a share above 0, at most 1, got {self.pool_share}")
        if not 0 <= self.label_noise <= 0.5:
            raise UserError(f"label_noise: expected a share of 0 to 0.5, got {self.label_noise}")

    def drawn(self, number: int) -> np.ndarray:
        """Positions of the prompts that are the pool of one seed, rising."""
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
        new_pair_weight: the weight of a new pair, where an earlier one has 1.
    """

    pool: np.ndarray
    held_out: np.ndarray
    fit: HeadFit
    new_pair_weight: float = 1.0

    def __call__(self, labels: Sequence[Label], seed: int) -> np.ndarray:
        """Rewards of the held-out answers; the optimum is unique, so the seed does not matter."""
        return self.head(labels)(self.held_out)

    def head(self, labels: Sequence[Label]) -> Head:
        """The refined head."""
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
    """A bench for answers made elsewhere, on which a cell takes milliseconds.

    Args:
        pool: answers with features.
        held_out: answers to other prompts, with the same features.
        earlier: the pairs that the proxy was trained on: features of the chosen answers less those of the rejected,
            shape (n, D); n may be 0.
        head: the proxy's weights, which refinement starts from, shape (D,); None: zeros.
        l2: how strongly the weights are held there.
        new_pair_weight: the weight of a new pair, where an earlier one has 1.
        margins: of the earlier pairs, shape (n,).
        options: further attributes of `Bench`.
    """
    if pool.features is None or held_out.features is None:
        raise UserError("a head needs features: give them to both answer sets")
    if pool.features.shape[1] != held_out.features.shape[1]:
        raise UserError(f"features: {pool.features.shape[1]} in the pool, {held_out.features.shape[1]} held out")
    fit = HeadFit(pool.features, earlier, centre=head, l2=l2, margins=margins)
    return Bench(pool, held_out, RefineHead(pool.features, held_out.features, fit, new_pair_weight), **options)


def run_cell(bench: Bench, cell: Cell, selection: SelectionConfig) -> dict[str, Any]:
    """Runs one cell.

    Args:
        bench: what all cells share.
        cell: which one; the strategy `none` asks nothing.
        selection: thresholds and other settings; strategy and budget are the cell's, unless the strategy of the
            cell is a name of the caller's own for these settings.

    Returns:
        The cell's `strategy`, `budget`, `seed`, the `seconds` it took, and its `metrics`, each with `metric`, `group`
        (empty: all prompts) and `value`; docs/compare.md says what each means.

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
    """The comparisons of one cell; none where nothing passes the thresholds."""
    rows = [bench.pool.rows[i] for i in drawn]
    try:
        return select(rows, replace(selection, budget=cell.budget), derive_seed(bench.seed, "draw", cell.seed))
    except NothingSelected:
        return []
    except UserError as error:
        raise UserError(f"{cell}: {error}") from error


def judge(bench: Bench, queue: Sequence[Comparison], seed: int = 0) -> list[Label]:
    """The gold reward's answers; equal gold is a tie and gives none, and equal texts are judged once."""
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
    """What the refined rewards of the held-out answers are worth."""
    held_out = bench.held_out
    if not np.isfinite(rewards).all():
        raise UserError("the refined reward model's scores are not numbers; lower its learning rate")
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
    """What was asked, how many answers there were, and how many of them the proxy did not know."""
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
