"""Aggregation of several annotators' answers: from the log to verdicts and preferences."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.dawid_skene import dawid_skene
from shfcas.feedback.annotation.schema import ANSWERED, PREFERRED, Item, Judgement

MIN_SHARED = 5  # an annotator who shares fewer items with others has weight 1
MIN_WEIGHT, MAX_WEIGHT = 0.25, 2.0


@dataclass(frozen=True)
class Verdict:
    """Aggregated answer to one item.

    Attributes:
        item: the item's id.
        state: `preferred`, `tie` or `both_bad` after enough answers (`overlap`, or up to `max_overlap` where annotators
            disagree); `flagged` after one flag; `skipped` if all who saw it skipped it; otherwise `open`.
        choice: the preferred answer, `first` or `second`; for an open item, the preferred one so far. None if neither
            is preferred, and for a flagged item.
        margin: mean margin over the annotators who chose the preferred answer; None without a strength.
        votes: number of annotators who gave each of the four answers.
        annotators: sorted names of those who chose the preferred answer. If neither is preferred, of those who
            answered; for a flagged item, of those who flagged it.
    """

    item: str
    state: str
    choice: str | None
    margin: float | None
    votes: dict[str, int]
    annotators: tuple[str, ...]


def effective(judgements: Iterable[Judgement], exclude_informed: bool = False) -> list[Judgement]:
    """Returns the judgements that count, in the same order: no undos, and no undone judgements.

    Args:
        judgements: the log.
        exclude_informed: ignore undos and answers of annotators who had looked at why the item was asked. The answer
            before counts. A flag counts in any case.
    """
    judgements = [j for j in judgements if not (exclude_informed and j.informed and j.choice != "flag")]
    undone = {j.undoes for j in judgements if j.choice == "undo"}
    return [j for j in judgements if j.choice != "undo" and j.id not in undone]


def votes(judgements: Iterable[Judgement]) -> dict[str, dict[str, Judgement]]:
    """Returns each annotator's answer to each item, `{item: {annotator: judgement}}`.

    Skips, flags and repeats are no votes. If an annotator answered an item several times, for example in two tabs,
    the latest answer counts.

    Args:
        judgements: effective judgements.
    """
    cast: dict[str, dict[str, Judgement]] = defaultdict(dict)
    for j in judgements:
        if j.choice in ANSWERED and not j.repeat:
            before = cast[j.item].get(j.annotator)
            if before is None or (before.time, before.id) < (j.time, j.id):
                cast[j.item][j.annotator] = j
    return dict(cast)


def weights(cast: dict[str, dict[str, Judgement]]) -> dict[str, float]:
    """Returns the weight of each annotator's vote, from their agreement with the others.

    An annotator's agreement on an item is the share of the other annotators who gave the same of the four answers.
    Their agreement is the mean over the items that they share with others. The weight is this agreement divided by
    the mean agreement of all annotators who have one, clipped to [0.25, 2]. This is one pass: votes count equally
    while agreements are computed.

    An annotator who shares fewer than 5 items with others has weight 1, the average. If nobody agrees with anybody,
    all weights are 1.

    Args:
        cast: the result of `votes`.
    """
    agreements: dict[str, list[float]] = defaultdict(list)
    people = {annotator for answers in cast.values() for annotator in answers}
    for answers in cast.values():
        if len(answers) > 1:
            same = Counter(j.choice for j in answers.values())
            for annotator, j in answers.items():
                agreements[annotator].append((same[j.choice] - 1) / (len(answers) - 1))
    # fsum: the result does not depend on the order of the items, not even in the last digit.
    means = {a: math.fsum(shares) / len(shares) for a, shares in agreements.items() if len(shares) >= MIN_SHARED}
    average = math.fsum(means.values()) / len(means) if means else 0.0
    if not average:
        return dict.fromkeys(people, 1.0)
    return {a: min(MAX_WEIGHT, max(MIN_WEIGHT, means[a] / average)) if a in means else 1.0 for a in people}


def verdicts(items: Sequence[Item], judgements: Iterable[Judgement], settings: HumanConfig) -> dict[str, Verdict]:
    """Aggregates the answers to each item.

    The answer with the most votes wins; equal numbers of votes are a tie. With `aggregation = weighted`, votes have
    the weights of `weights`. With `dawid_skene`, the answer that is most probable under that model wins. Answers to
    other items are ignored.

    Args:
        items: the items of a queue.
        judgements: the log, undos included; the order of other rows does not matter.
        settings: `overlap`, `max_overlap`, `aggregation`, `exclude_informed`, `slightly`, `clearly`.

    Returns:
        A verdict per item, by id, in the order of the items.
    """
    return verdicts_by_id([item.id for item in items], judgements, settings)


def verdicts_by_id(items: Sequence[str], judgements: Iterable[Judgement], settings: HumanConfig) -> dict[str, Verdict]:
    """Aggregates the answers to items of which only the ids are known; see `verdicts`.

    Args:
        items: ids of the items.
        judgements: the log, undos included.
        settings: as for `verdicts`.
    """
    judgements = list(judgements)
    counting = effective(judgements)
    given = votes(counting)  # whether an item needs more answers depends on all of them, as on the page
    cast = votes(effective(judgements, True)) if settings.exclude_informed else given
    outcomes = _outcomes(cast, settings.aggregation)
    flagged: dict[str, set[str]] = defaultdict(set)
    skipped = set()
    for j in counting:
        if j.choice == "flag":
            flagged[j.item].add(j.annotator)
        elif j.choice == "skip":
            skipped.add(j.item)
    made = {}
    for id in items:
        if id in flagged or id not in given:
            made[id] = _unanswered(id, cast.get(id, {}), flagged.get(id), id in skipped)
        else:
            most = max(Counter(j.choice for j in given[id].values()).values())
            is_open = settings.missing(len(given[id]), most) > 0
            made[id] = _verdict(id, cast.get(id, {}), outcomes.get(id, "tie"), is_open, settings)
    return made


def _unanswered(item: str, answers: dict[str, Judgement], flagged: set[str] | None, skipped: bool) -> Verdict:
    counts = Counter(j.choice for j in answers.values())
    state = "flagged" if flagged else "skipped" if skipped else "open"
    return Verdict(item, state, None, None, {c: counts[c] for c in ANSWERED}, tuple(sorted(flagged or ())))


def _verdict(item: str, answers: dict[str, Judgement], outcome: str, is_open: bool, settings: HumanConfig) -> Verdict:
    counts = Counter(j.choice for j in answers.values())
    shown = {choice: counts[choice] for choice in ANSWERED}
    state = "open" if is_open else "preferred" if outcome in PREFERRED else outcome
    if outcome not in PREFERRED:
        return Verdict(item, state, None, None, shown, tuple(sorted(answers)))
    chose = sorted(annotator for annotator, j in answers.items() if j.choice == outcome)
    strength = {"slightly": settings.slightly, "clearly": settings.clearly}
    margins = [strength[given] for annotator in chose if (given := answers[annotator].strength) is not None]
    margin = math.fsum(margins) / len(margins) if margins else None
    return Verdict(item, state, outcome, margin, shown, tuple(chose))


def _outcomes(cast: dict[str, dict[str, Judgement]], aggregation: str) -> dict[str, str]:
    """Returns the answer with the most weight for each item; a tie if several have it, up to rounding."""
    given = {item: {annotator: j.choice for annotator, j in answers.items()} for item, answers in cast.items()}
    if aggregation == "dawid_skene":
        shares = dawid_skene(given)
    else:
        weight = weights(cast) if aggregation == "weighted" else {}
        shares = {
            item: {
                choice: math.fsum(weight.get(annotator, 1.0) for annotator, c in choices.items() if c == choice)
                for choice in ANSWERED
            }
            for item, choices in given.items()
        }
    outcomes = {}
    for item, share in shares.items():
        most = max(share.values())
        best = [choice for choice, value in share.items() if math.isclose(value, most, rel_tol=1e-9)]
        outcomes[item] = best[0] if len(best) == 1 else "tie"
    return outcomes


def preferences(
    items: Sequence[Item], judgements: Iterable[Judgement], settings: HumanConfig, *, only_settled: bool = True
) -> list[Preference]:
    """Turns the answers into preferences, in the order of the items.

    Items whose verdict is a tie, both bad, flagged or skipped give no preference.

    Args:
        items: the items of a queue.
        judgements: the log.
        settings: as for `verdicts`.
        only_settled: leave out items that need more answers; if False, the answers so far decide.
    """
    reached = verdicts(items, judgements, settings)
    made = []
    for item in items:
        verdict = reached[item.id]
        if verdict.choice is None or (only_settled and verdict.state == "open"):
            continue
        first = verdict.choice == "first"
        made.append(
            Preference(
                prompt=item.prompt,
                chosen=item.first_text if first else item.second_text,
                rejected=item.second_text if first else item.first_text,
                margin=verdict.margin,
                prompt_id=item.prompt_id,
                chosen_index=item.first if first else item.second,
                rejected_index=item.second if first else item.first,
                source="human",
                annotator=join_names(verdict.annotators),
                round=item.round,
            )
        )
    return made


def join_names(names: Iterable[str]) -> str:
    """Joins annotators' names by `+`; within a name, `+` becomes `%2B` and `%` becomes `%25`.

    >>> join_names(["ada", "ben+work@example.org"])
    'ada+ben%2Bwork@example.org'
    """
    return "+".join(name.replace("%", "%25").replace("+", "%2B") for name in names)


def split_names(annotator: str) -> list[str]:
    """Splits names that `join_names` joined.

    >>> split_names("ada+ben%2Bwork@example.org")
    ['ada', 'ben+work@example.org']
    """
    return [name.replace("%2B", "+").replace("%25", "%") for name in annotator.split("+")]


def is_complete(items: Sequence[Item], judgements: Iterable[Judgement], settings: HumanConfig) -> bool:
    """Checks that no item needs another answer: each is flagged, or has enough answers.

    A skipped item still waits for an annotator who does not skip it.
    """
    return all(v.state not in ("open", "skipped") for v in verdicts(items, judgements, settings).values())
