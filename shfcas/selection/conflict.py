"""Strategies based on the conflict of policy and reward model, and the random baseline."""

from collections.abc import Iterable, Iterator

from shfcas.selection.false_discovery import disagrees
from shfcas.selection.pairing import PAIRINGS, all_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row
from shfcas.utils.seeds import derive_seed


def shf_cas(row: Row, bounds: Bounds, seed: int, pairing: str = "extreme") -> Iterator[tuple[Priority, Comparison]]:
    """Selects prompts by Kendall distance, then their answers by abs(PACS): the two stages of arXiv 2512.09212.

    Prompts take turns in order of decreasing distance, so a budget covers many prompts before it returns to one.
    """
    if not disagrees(row, bounds):
        return
    least = bounds["pacs_threshold"]
    answers = [i for i, p in enumerate(row["pacs"]) if abs(p) >= least]
    for turn, comparison in enumerate(PAIRINGS[pairing](row, answers, seed)):
        yield (turn, -row["kendall_distance"], -row["mean_abs_pacs"], row["prompt_id"]), comparison


def kendall(row: Row, bounds: Bounds, seed: int, pairing: str = "extreme") -> Iterator[tuple[Priority, Comparison]]:
    """Selects prompts by Kendall distance, with all their answers: only the first stage of the paper."""
    return shf_cas(row, {**bounds, "pacs_threshold": 0.0}, seed, pairing)


def pacs(row: Row, bounds: Bounds, seed: int, pairing: str = "extreme") -> Iterator[tuple[Priority, Comparison]]:
    """Selects answers of any prompt by abs(PACS): only the second stage of the paper.

    Pairs with the largest sum of both abs(PACS) come first, over all prompts.
    """
    values, least = row["pacs"], bounds["pacs_threshold"]
    answers = [i for i, p in enumerate(values) if abs(p) >= least]
    for number, c in enumerate(PAIRINGS[pairing](row, answers, seed)):
        yield (-abs(values[c.first]) - abs(values[c.second]), row["prompt_id"], number), c


def mean_pacs(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Selects every pair of a prompt whose mean abs(PACS) exceeds the threshold: the rule of the authors' script."""
    if row["mean_abs_pacs"] > bounds["mean_pacs_threshold"]:
        for number, comparison in enumerate(all_pairs(row)):
            yield (-row["mean_abs_pacs"], row["prompt_id"], number), comparison


def random_pairs(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Samples pairs uniformly, without replacement, from all pairs of the usable prompts: the baseline."""
    for number, comparison in enumerate(all_pairs(row)):
        yield (derive_seed("random pairs", seed, row["prompt_id"], number, bits=64), row["prompt_id"]), comparison


def kendall_of(row: Row, bounds: Bounds) -> Iterable[float]:
    """Returns the values for a quantile of Kendall distances: one per prompt."""
    return (row["kendall_distance"],)


def mean_pacs_of(row: Row, bounds: Bounds) -> Iterable[float]:
    """Returns the values for a quantile of mean abs(PACS): one per prompt."""
    return (row["mean_abs_pacs"],)


def pacs_of(row: Row, bounds: Bounds) -> Iterable[float]:
    """Returns the values for a quantile of abs(PACS): all answers."""
    return map(abs, row["pacs"])


def pacs_of_chosen(row: Row, bounds: Bounds) -> Iterable[float]:
    """Returns the values for a quantile of abs(PACS): answers of prompts that pass the Kendall threshold."""
    return map(abs, row["pacs"]) if disagrees(row, bounds) else ()
