"""Strategies that ask where policy and reward model disagree, and the baseline that asks anywhere."""

from collections.abc import Iterable, Iterator

from shfcas.selection.false_discovery import disagrees
from shfcas.selection.pairing import PAIRINGS, all_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row
from shfcas.utils.seeds import derive_seed


def shf_cas(row: Row, bounds: Bounds, seed: int, pairing: str = "extreme") -> Iterator[tuple[Priority, Comparison]]:
    """The paper's two stages: prompts by Kendall distance, then their answers by abs(PACS) (arXiv 2512.09212).

    Prompts take turns in order of falling distance, so a budget covers many prompts before it returns to one.
    """
    if not disagrees(row, bounds):
        return
    least = bounds["pacs_threshold"]
    answers = [i for i, p in enumerate(row["pacs"]) if abs(p) >= least]
    for turn, comparison in enumerate(PAIRINGS[pairing](row, answers, seed)):
        yield (turn, -row["kendall_distance"], -row["mean_abs_pacs"], row["prompt_id"]), comparison


def kendall(row: Row, bounds: Bounds, seed: int, pairing: str = "extreme") -> Iterator[tuple[Priority, Comparison]]:
    """The first of the paper's stages alone: prompts by Kendall distance, with all their answers."""
    return shf_cas(row, {**bounds, "pacs_threshold": 0.0}, seed, pairing)


def pacs(row: Row, bounds: Bounds, seed: int, pairing: str = "extreme") -> Iterator[tuple[Priority, Comparison]]:
    """The second of the paper's stages alone: answers of any prompt by abs(PACS).

    The pairs with the greatest sum of both abs(PACS) come first, whichever prompts they belong to.
    """
    values, least = row["pacs"], bounds["pacs_threshold"]
    answers = [i for i, p in enumerate(values) if abs(p) >= least]
    for number, c in enumerate(PAIRINGS[pairing](row, answers, seed)):
        yield (-abs(values[c.first]) - abs(values[c.second]), row["prompt_id"], number), c


def mean_pacs(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """The rule of the authors' script: every pair of a prompt whose mean abs(PACS) exceeds the threshold."""
    if row["mean_abs_pacs"] > bounds["mean_pacs_threshold"]:
        for number, comparison in enumerate(all_pairs(row)):
            yield (-row["mean_abs_pacs"], row["prompt_id"], number), comparison


def random_pairs(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs drawn uniformly, without replacement, from all pairs of the usable prompts: the baseline."""
    for number, comparison in enumerate(all_pairs(row)):
        yield (derive_seed("random pairs", seed, row["prompt_id"], number, bits=64), row["prompt_id"]), comparison


def kendall_of(row: Row, bounds: Bounds) -> Iterable[float]:
    """What a quantile of Kendall distances is taken over: all prompts."""
    return (row["kendall_distance"],)


def mean_pacs_of(row: Row, bounds: Bounds) -> Iterable[float]:
    """What a quantile of mean abs(PACS) is taken over: all prompts."""
    return (row["mean_abs_pacs"],)


def pacs_of(row: Row, bounds: Bounds) -> Iterable[float]:
    """What a quantile of abs(PACS) is taken over: all answers."""
    return map(abs, row["pacs"])


def pacs_of_chosen(row: Row, bounds: Bounds) -> Iterable[float]:
    """What a quantile of abs(PACS) is taken over: the answers of the prompts that the Kendall distance chose."""
    return map(abs, row["pacs"]) if disagrees(row, bounds) else ()
