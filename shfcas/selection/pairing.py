"""Pairing of a prompt's answers: four ways to pair them, and all pairs ranked by a score."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations

import numpy as np

from shfcas.selection.protocol import Comparison, Priority, Row
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

MOST_ANSWERS = 4096  # 8.4 million pairs


def opposed_pairs(row: Row, answers: list[int], seed: int = 0) -> Iterator[Comparison]:
    """Pairs the answers of one prompt, most opposed PACS first, each answer once."""
    order = sorted(answers, key=row["pacs"].__getitem__)
    for low, high in zip(order[: len(order) // 2], reversed(order), strict=False):
        yield Comparison(row["prompt_id"], high, low)


def adjacent_pairs(row: Row, answers: list[int], seed: int) -> Iterator[Comparison]:
    """Pairs neighbours in the order of PACS, each answer once, pairs with the largest abs(PACS) first.

    With an odd count, the answer with the smallest abs(PACS) stays unpaired.
    """
    pacs = row["pacs"]
    order = sorted(answers, key=pacs.__getitem__, reverse=True)
    if len(order) % 2:
        order.remove(min(order, key=lambda i: abs(pacs[i])))
    pairs = zip(order[::2], order[1::2], strict=True)
    for high, low in sorted(pairs, key=lambda pair: -abs(pacs[pair[0]]) - abs(pacs[pair[1]])):
        yield Comparison(row["prompt_id"], high, low)


def shuffled_pairs(row: Row, answers: list[int], seed: int) -> Iterator[Comparison]:
    """Pairs the answers of one prompt at random, each answer once; the same pairs for the same seed and prompt."""
    order = sorted(answers, key=lambda i: derive_seed("random pairing", seed, row["prompt_id"], i, bits=64))
    for one, other in zip(order[::2], order[1::2], strict=False):
        first, second = sorted((one, other), key=lambda i: -row["pacs"][i])
        yield Comparison(row["prompt_id"], first, second)


def crossed_pairs(row: Row, answers: list[int], seed: int) -> Iterator[Comparison]:
    """Yields every pair of these answers, most opposed PACS first."""
    pacs = row["pacs"]
    check_pairs(row, len(answers))
    pairs = combinations(sorted(answers, key=pacs.__getitem__, reverse=True), 2)
    for high, low in sorted(pairs, key=lambda pair: pacs[pair[1]] - pacs[pair[0]]):
        yield Comparison(row["prompt_id"], high, low)


PAIRINGS: dict[str, Callable[[Row, list[int], int], Iterator[Comparison]]] = {
    "extreme": opposed_pairs,
    "adjacent": adjacent_pairs,
    "random": shuffled_pairs,
    "all": crossed_pairs,
}


def check_pairs(row: Row, answers: int) -> None:
    """Refuses a prompt with so many answers that all of their pairs would fill the memory, or take hours.

    Raises:
        UserError: there are more than `MOST_ANSWERS`.
    """
    if answers > MOST_ANSWERS:
        raise UserError(
            f"prompt {row['prompt_id']!r}: expected at most {MOST_ANSWERS:,} answers where all of their pairs are "
            f"ranked, got {answers:,} with {answers * (answers - 1) // 2:,} pairs; use strategy shf_cas, kendall or "
            "pacs with pairing extreme, adjacent or random and without an audit, or keep fewer answers per prompt"
        )


def all_pairs(row: Row) -> Iterator[Comparison]:
    """Yields every pair of answers of one prompt."""
    check_pairs(row, len(row["pacs"]))
    for first, second in combinations(range(len(row["pacs"])), 2):
        yield Comparison(row["prompt_id"], first, second)


def pair_positions(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and second positions of all pairs of a prompt's answers, in the order of `all_pairs`."""
    check_pairs(row, len(row["pacs"]))
    return _positions(len(row["pacs"]))


@lru_cache(maxsize=64)
def _positions(answers: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(answers, 1)


def scored_pairs(row: Row, scores: np.ndarray, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Yields every pair of answers of one prompt, highest score first.

    Among equal scores, prompts take turns in a random order.

    Args:
        row: the prompt.
        scores: (C(N, 2),), one per pair, in the order of `all_pairs`.
        seed: seed of the order of equal scores.
    """
    prompt, chance = row["prompt_id"], derive_seed("ties", seed, row["prompt_id"], bits=64)
    firsts, seconds = pair_positions(row)
    order = np.argsort(-scores, kind="stable")
    before, turn = None, 0
    ranked = zip(scores[order].tolist(), firsts[order].tolist(), seconds[order].tolist(), strict=True)
    for score, first, second in ranked:
        turn = turn + 1 if score == before else 0
        before = score
        yield (-score, turn, chance, prompt), Comparison(prompt, first, second)


def sampled_pairs(
    row: Row,
    seed: int,
    name: str,
    *,
    rng: random.Random,
    first: Callable[[], int],
    second: Callable[[], int],
    tries: int,
) -> Iterator[tuple[Priority, Comparison]]:
    """Yields as many pairs of sampled answers as there are answers, without repeated pairs.

    Prompts take turns in a random order. All random numbers depend only on the seed and the prompt.

    Args:
        row: the prompt.
        seed: seed of the order of prompts.
        name: name of the strategy, for the seeds.
        rng: random numbers of this prompt.
        first: samples the first answer.
        second: samples the second answer, again until it differs from the first.
        tries: how often at most; then the second answer is a random one.
    """
    prompt, answers = row["prompt_id"], len(row["pacs"])
    chance = derive_seed(f"{name} prompts", seed, prompt, bits=64)
    seen: set[frozenset[int]] = set()
    for _ in range(answers):
        one = other = first()
        for _ in range(tries):
            other = second()
            if other != one:
                break
        if other == one:
            other = (one + 1 + rng.randrange(answers - 1)) % answers
        pair = frozenset((one, other))
        if pair not in seen:
            yield (len(seen), chance, prompt), Comparison(prompt, one, other)
            seen.add(pair)
