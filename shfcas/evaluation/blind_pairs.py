"""Blind comparison of two policies: pairs of their answers in random order, and the win rate that verdicts give."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.prompts import matching_rows
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.selection import Comparison
from shfcas.utils.seeds import derive_seed
from shfcas.utils.statistics import wilson_interval


def make_pairs(base: CandidateTable, policy: CandidateTable, count: int, seed: int) -> CandidateTable:
    """Pairs answers of a policy with answers of the base to the same prompts.

    Every prompt gets one pair before any gets a second one, so few pairs are spread over many prompts.

    Args:
        base: a table with answers of the base.
        policy: a table with answers of the policy.
        count: maximum number of pairs.
        seed: draws the prompts if not all fit, and the order within each pair.

    Returns:
        A row per drawn prompt: `prompt_id`, `prompt`, `completions` and `policy_first`. Answers 2k and 2k + 1 are pair
        k; `policy_first[k]` tells whether the policy's answer is the first of the two. Nothing else tells them apart.

    Raises:
        UserError: the tables have different prompts.
    """
    rows = policy.rows()
    before = matching_rows(rows, base.rows(), "the base's answers")
    order = sorted(range(len(rows)), key=lambda i: derive_seed(seed, "drawn", rows[i]["prompt_id"]))
    most = [min(len(rows[i]["completions"]), len(before[i]["completions"])) for i in range(len(rows))]
    places = [(k, i) for k in range(max(most)) for i in order if k < most[i]]
    taken = Counter(i for _, i in places[:count])
    made = []
    for i in sorted(taken):
        row = rows[i]
        completions: list[str] = []
        policy_first: list[bool] = []
        for k in range(taken[i]):
            first = derive_seed(seed, "order", row["prompt_id"], k, bits=1) == 1
            answers = row["completions"][k], before[i]["completions"][k]
            completions += answers if first else answers[::-1]
            policy_first.append(first)
        made.append({**_prompt(row), "completions": completions, "policy_first": policy_first})
    return CandidateTable.from_rows(made)


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("prompt_id", "prompt")}


def comparisons(pairs: CandidateTable) -> list[Comparison]:
    """Returns the pairs whose two answers differ; equal answers are a tie that nobody needs to be asked about."""
    return [Comparison(row["prompt_id"], 2 * k, 2 * k + 1) for row, k in _pairs(pairs) if not _identical(row, k)]


def win_rate(pairs: CandidateTable, chosen: Sequence[Comparison], ties: Sequence[Comparison]) -> dict[str, Any]:
    """Computes how often the policy's answer is preferred; ties count half.

    Args:
        pairs: the table of `make_pairs`.
        chosen: comparisons with a preferred answer, which is `first`.
        ties: comparisons whose answers are equally good, in either order.

    Returns:
        `win_rate` (mean, low, high, and the `count` of prompts): the mean over prompts of each prompt's mean, with the
        95 % Wilson interval of as many trials as prompts; None without an answer. `pairs`: all; of these `identical`
        are not asked and count as ties, and `asked`, of which `answered` are `wins`, `losses` or `ties`.
    """
    preferred = {_key(c): c.first for c in chosen}
    undecided = {_key(c) for c in ties}
    scores: dict[str, list[float]] = defaultdict(list)
    counts = dict.fromkeys(("identical", "wins", "losses", "ties"), 0)
    for row, k in _pairs(pairs):
        key = _key(Comparison(row["prompt_id"], 2 * k, 2 * k + 1))
        if _identical(row, k):
            result, score = "identical", 0.5
        elif key in preferred:
            won = (preferred[key] == 2 * k) == row["policy_first"][k]
            result, score = ("wins", 1.0) if won else ("losses", 0.0)
        elif key in undecided:
            result, score = "ties", 0.5
        else:
            continue
        counts[result] += 1
        scores[row["prompt_id"]].append(score)
    total = sum(1 for _ in _pairs(pairs))
    means = [sum(values) / len(values) for values in scores.values()]
    return {
        "win_rate": wilson_interval(sum(means), len(means)) if means else None,
        "pairs": total,
        "asked": total - counts["identical"],
        "answered": counts["wins"] + counts["losses"] + counts["ties"],
        **counts,
    }


def judged_win_rate(pairs: CandidateTable, source: HumanFeedback | JudgeFeedback, round: int) -> dict[str, Any]:
    """Asks a source of feedback about the pairs, and returns the win rate.

    Args:
        pairs: the table of `make_pairs`.
        source: people or a language model.
        round: the round to record.

    Returns:
        The values of `win_rate`.
    """
    preferences = source(comparisons(pairs), pairs, round)
    chosen = [Comparison(p.prompt_id, p.chosen_index, p.rejected_index) for p in preferences]
    return win_rate(pairs, chosen, source.ties)


def describe(result: dict[str, Any]) -> str:
    """Formats a win rate and its `judge`, human or judge, on one line."""
    rate, who = result["win_rate"], {"human": "people", "judge": "a language model"}[result["judge"]]
    value = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" if rate else "unknown"
    return (
        f"win rate {value}, by {who}: {result['answered']} of {result['asked']} pairs answered ({result['wins']} wins, "
        f"{result['losses']} losses, {result['ties']} ties); {result['identical']} pairs were identical and not asked"
    )


def _pairs(pairs: CandidateTable) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields each row with the number of each of its pairs."""
    for row in pairs.rows():
        for k in range(len(row["policy_first"])):
            yield row, k


def _identical(row: dict[str, Any], k: int) -> bool:
    return bool(row["completions"][2 * k] == row["completions"][2 * k + 1])


def _key(comparison: Comparison) -> tuple[str, frozenset[int]]:
    """The comparison whatever the order of its answers."""
    return comparison.prompt_id, frozenset((comparison.first, comparison.second))
