"""The model of Dawid and Skene: each annotator's error rates, and the answers that are probably true."""

from collections.abc import Mapping

import numpy as np

MAX_STEPS = 100
TOLERANCE = 1e-5  # of the log-likelihood per item
SMALLEST = 1e-10  # probability that stands for 0


def dawid_skene(given: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Computes how probable each answer is to be the true one, for items that several annotators answered.

    Every item has one true answer. Every annotator has a table of error rates: how often they give an answer if the
    true one is another. Both are estimated together, by expectation maximisation, beginning with the shares of votes
    (Dawid and Skene 1979, Applied Statistics 28). One careful annotator can outvote two who guess. With few answers
    per annotator the error rates are uncertain; below about 20, prefer the majority.

    crowd-kit has the same algorithm. It is not used here because importing it costs 2.7 s and 240 MB, in the process
    that serves the page. A test compares 100 steps of both.

    Args:
        given: the answers, `{item: {annotator: answer}}`.

    Returns:
        `{item: {answer: probability}}`, for all answers that occur anywhere; the probabilities of an item sum to 1.

    >>> {a: round(p, 3) for a, p in dawid_skene({"1": {"ada": "x", "ben": "x"}, "2": {"ada": "y"}})["1"].items()}
    {'x': 1.0, 'y': 0.0}
    """
    answers = sorted({answer for choices in given.values() for answer in choices.values()})
    people = sorted({annotator for choices in given.values() for annotator in choices})
    if not answers:
        return {}
    counts = np.zeros((len(people), len(given), len(answers)))
    for i, choices in enumerate(given.values()):
        for annotator, answer in choices.items():
            counts[people.index(annotator), i, answers.index(answer)] = 1
    truth = counts.sum(axis=0)
    truth /= truth.sum(axis=1, keepdims=True)  # (items, true answers)
    before = -np.inf
    for _ in range(MAX_STEPS):
        prior = truth.mean(axis=0)
        rates = np.clip(np.einsum("it,pia->pta", truth, counts), SMALLEST, None)  # true answer, given answer
        rates /= rates.sum(axis=2, keepdims=True)
        joint = np.log(np.clip(prior, SMALLEST, None)) + np.einsum("pia,pta->it", counts, np.log(rates))
        highest = joint.max(axis=1, keepdims=True)
        weights = np.exp(joint - highest)
        likelihood = float((np.log(weights.sum(axis=1, keepdims=True)) + highest).mean())
        truth = weights / weights.sum(axis=1, keepdims=True)
        if likelihood - before < TOLERANCE:
            break
        before = likelihood
    return {item: dict(zip(answers, map(float, row), strict=True)) for item, row in zip(given, truth, strict=True)}
