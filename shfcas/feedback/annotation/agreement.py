"""Agreement between annotators and with themselves, and their pace: the numbers of the dashboard."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from shfcas.feedback.annotation.aggregation import effective, verdicts_by_id, votes
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import ANSWERED, PREFERRED, Judgement
from shfcas.utils.errors import MissingExtra
from shfcas.utils.statistics import wilson_interval

MAX_SECONDS = 300.0  # an item that was open for longer was left alone in between
PROGRESS_POINTS = 200


def agreement_report(items: Sequence[str], judgements: Iterable[Judgement], settings: HumanConfig) -> dict[str, Any]:
    """Computes all numbers that the dashboard shows about the answers; too little data gives None, never NaN.

    Args:
        items: ids of a queue's items; judgements of other items are ignored.
        judgements: the log.
        settings: `overlap` and `aggregation`, on which the states of the items depend.

    Returns:
        A dictionary that can be written as JSON:

        - `annotators`: sorted by name, each with `name`; `answered`, `skipped` and `flagged` (numbers of items,
          without repeats); `informed` (undos after looking at why the item was asked); `median_seconds`;
          `answers_per_hour` (of time on the screen, at most 5 minutes per item);
          `left_share` (share of preferences for the left side: `mean`, `low`, `high`, `count`; without answers
          imported from TRL's format, which has no sides); `tie_share`; `self_agreement` over repeats: `n`, `share`,
          `kappa`.
        - `pairs`: any two annotators who answered the same items: `annotators`, `n`, `share`, `kappa` (Cohen 1960).
        - `alpha`: Krippendorff's alpha, nominal, over the four answers.
        - `labels`: counts of the four answers, of `skip` and of `flag`, without repeats.
        - `states`: counts of items that are `open`, `preferred`, `tie`, `both_bad`, `flagged`, `skipped`.
        - `progress`: `[time, answers until then]`, at most 200 points.

    Raises:
        MissingExtra: the package `krippendorff` is needed and not installed.
    """
    judgements = list(judgements)
    asked = set(items)
    counting = [j for j in effective(judgements, settings.exclude_informed) if j.item in asked]
    cast = votes(counting)
    by_annotator: dict[str, list[Judgement]] = defaultdict(list)
    for j in counting:
        by_annotator[j.annotator].append(j)
    states = Counter(verdict.state for verdict in verdicts_by_id(items, judgements, settings).values())
    given = Counter(j.choice for answers in cast.values() for j in answers.values())
    given.update(choice for _, _, choice in {(j.annotator, j.item, j.choice) for j in counting if _is_aside(j)})
    informed = Counter(j.annotator for j in judgements if j.item in asked and j.choice == "undo" and j.informed)
    return {
        "annotators": [
            _annotator(name, by_annotator[name], cast) | {"informed": informed[name]} for name in sorted(by_annotator)
        ],
        "pairs": _pairs(cast),
        "alpha": krippendorff_alpha([[j.choice for j in answers.values()] for answers in cast.values()]),
        "labels": {choice: given[choice] for choice in (*ANSWERED, "skip", "flag")},
        "states": {state: states[state] for state in ("open", "preferred", "tie", "both_bad", "flagged", "skipped")},
        "progress": _progress(cast),
    }


def _is_aside(j: Judgement) -> bool:
    return j.choice in ("skip", "flag") and not j.repeat


def _annotator(name: str, judged: list[Judgement], cast: dict[str, dict[str, Judgement]]) -> dict[str, Any]:
    answers = [j for j in judged if j.choice in ANSWERED]
    mine = {item: given[name] for item, given in cast.items() if name in given}
    sided = [j for j in answers if j.choice in PREFERRED and j.page_version != "trl"]  # a format without sides
    seconds = [j.seconds for j in answers if j.seconds is not None]
    active = math.fsum(min(s, MAX_SECONDS) for s in seconds)
    again = [(mine[j.item].choice, j.choice) for j in answers if j.repeat and j.item in mine]
    return {
        "name": name,
        "answered": len(mine),
        "skipped": len({j.item for j in judged if j.choice == "skip" and not j.repeat}),
        "flagged": len({j.item for j in judged if j.choice == "flag" and not j.repeat}),
        "median_seconds": statistics.median(seconds) if seconds else None,
        "answers_per_hour": 3600 * len(seconds) / active if active else None,
        "left_share": (wilson_interval(sum(j.choice == j.left for j in sided), len(sided)) if sided else None),
        "tie_share": sum(j.choice == "tie" for j in mine.values()) / len(mine) if mine else None,
        "self_agreement": _agreement(again),
    }


def _agreement(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    same = sum(one == other for one, other in pairs)
    return {"n": len(pairs), "share": same / len(pairs) if pairs else None, "kappa": cohen_kappa(pairs)}


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Computes the agreement of two series of labels beyond chance (Cohen 1960): 1 is complete, 0 is chance.

    Args:
        pairs: the two labels of each item.

    Returns:
        None without pairs, and if both series have the same single label.

    >>> cohen_kappa([("a", "a"), ("a", "a"), ("b", "b"), ("a", "b")])
    0.5
    """
    # scikit-learn's cohen_kappa_score gives the same values, to 4e-16. But it takes 1 ms per pair of annotators, this
    # 0.01 ms, and 50 annotators have 1,275 kappas. Importing it would cost the server 2.5 s and 114 MB.
    n = len(pairs)
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(ones[label] * others[label] for label in ones)  # times n squared
    if by_chance == n * n:  # also without pairs
        return None
    return (n * sum(one == other for one, other in pairs) - by_chance) / (n * n - by_chance)


def krippendorff_alpha(labels: Sequence[Sequence[str]]) -> float | None:
    """Computes Krippendorff's alpha for nominal labels, over all items with at least two answers.

    Args:
        labels: for each item, the annotators' answers, of `first`, `second`, `tie`, `both_bad`.

    Returns:
        1 for complete agreement, 0 for chance; None if no item has two answers or only one label occurs.

    Raises:
        MissingExtra: the package `krippendorff` is not installed.
    """
    counts = np.array([[given.count(label) for label in ANSWERED] for given in labels if len(given) > 1])
    if not len(counts) or (counts.sum(axis=0) > 0).sum() < 2:
        return None
    try:
        import krippendorff
    except ImportError:
        raise MissingExtra("krippendorff", "web") from None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def _pairs(cast: dict[str, dict[str, Judgement]]) -> list[dict[str, Any]]:
    shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for answers in cast.values():
        for one, other in combinations(sorted(answers), 2):
            shared[one, other].append((answers[one].choice, answers[other].choice))
    return [{"annotators": list(names), **_agreement(shared[names])} for names in sorted(shared)]


def _progress(cast: dict[str, dict[str, Judgement]]) -> list[list[Any]]:
    times = sorted(j.time for answers in cast.values() for j in answers.values())
    shown = {round(k) for k in np.linspace(1, len(times), min(len(times), PROGRESS_POINTS))}
    return [[times[count - 1], count] for count in sorted(shown)]
