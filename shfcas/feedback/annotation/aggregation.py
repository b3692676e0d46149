"""From the log to preferences: what the answers of several people about an item come to."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import ANSWERED, PREFERRED, Item, Judgement

LEAST_SHARED = 5  # items shared with others, below which a person's weight is 1
LEAST_WEIGHT, GREATEST_WEIGHT = 0.25, 2.0


@dataclass(frozen=True)
class Verdict:
    """What the answers about one item come to.

    Attributes:
        item: its id.
        state: `preferred`, `tie` or `both_bad`, once as many people answered as are asked; `flagged`, if anybody
            flagged it; `skipped`, if all who saw it skipped it; otherwise `open`.
        choice: the preferred answer, `first` or `second`; while the item is open, the one preferred so far. None
            where neither is, and for a flagged item.
        margin: mean over those who chose it of how much better it is; None where nobody said.
        votes: how many people gave each of the four answers.
        annotators: who chose the preferred answer; where neither is preferred, who answered; of a flagged item, who
            flagged it. Sorted.
    """

    item: str
    state: str
    choice: str | None
    margin: float | None
    votes: dict[str, int]
    annotators: tuple[str, ...]


def effective(judgements: Iterable[Judgement]) -> list[Judgement]:
    """The judgements that count: without undos and without what they undo, in the same order."""
    judgements = list(judgements)
    undone = {j.undoes for j in judgements if j.choice == "undo"}
    return [j for j in judgements if j.choice != "undo" and j.id not in undone]


def votes(judgements: Iterable[Judgement]) -> dict[str, dict[str, Judgement]]:
    """Each person's answer to each item, `{item: {annotator: judgement}}`.

    Skips, flags and repeats are no votes. Of several answers of one person to one item, as two open pages can give,
    the latest counts.

    Args:
        judgements: effective ones.
    """
    cast: dict[str, dict[str, Judgement]] = defaultdict(dict)
    for j in judgements:
        if j.choice in ANSWERED and not j.repeat:
            before = cast[j.item].get(j.annotator)
            if before is None or (before.time, before.id) < (j.time, j.id):
                cast[j.item][j.annotator] = j
    return dict(cast)


def weights(cast: dict[str, dict[str, Judgement]]) -> dict[str, float]:
    """How much each person's vote weighs, by their agreement with the others.

    On each item that a person shares with others, the share of the others who gave the same of the four answers; a
    person's agreement is its mean over these items. The weight is that agreement divided by the mean agreement of all
    who can be weighed, kept within 0.25 and 2, in one pass (the others are not weighed meanwhile). Who shares fewer
    than 5 items with others weighs 1, as an average person does; so does everybody where nobody agrees at all.

    Args:
        cast: from `votes`.
    """
    agreements: dict[str, list[float]] = defaultdict(list)
    people = {annotator for answers in cast.values() for annotator in answers}
    for answers in cast.values():
        if len(answers) > 1:
            same = Counter(j.choice for j in answers.values())
            for annotator, j in answers.items():
                agreements[annotator].append((same[j.choice] - 1) / (len(answers) - 1))
    # fsum: the order of the items does not matter, not even in the last digit
    means = {a: math.fsum(shares) / len(shares) for a, shares in agreements.items() if len(shares) >= LEAST_SHARED}
    average = math.fsum(means.values()) / len(means) if means else 0.0
    if not average:
        return dict.fromkeys(people, 1.0)
    return {a: min(GREATEST_WEIGHT, max(LEAST_WEIGHT, means[a] / average)) if a in means else 1.0 for a in people}


def verdicts(items: Sequence[Item], judgements: Iterable[Judgement], settings: HumanConfig) -> dict[str, Verdict]:
    """What the answers about each item come to.

    The answer with the most votes wins; where several have the most, it is a tie. With `aggregation = weighted`, votes
    count by the weights of `weights`. Answers about other items are ignored.

    Args:
        items: of a queue.
        judgements: the log, undos included; apart from these its order does not matter.
        settings: `overlap`, `aggregation`, `slightly`, `clearly`.

    Returns:
        A verdict for each item, by id, in the order of the items.
    """
    return verdicts_by_id([item.id for item in items], judgements, settings)


def verdicts_by_id(items: Sequence[str], judgements: Iterable[Judgement], settings: HumanConfig) -> dict[str, Verdict]:
    """As `verdicts`, of items whose ids are enough.

    Args:
        items: ids.
        judgements: the log, undos included.
        settings: as for `verdicts`.
    """
    counting = effective(judgements)
    cast = votes(counting)
    weight = weights(cast) if settings.aggregation == "weighted" else {}
    flagged: dict[str, set[str]] = defaultdict(set)
    skipped = set()
    for j in counting:
        if j.choice == "flag":
            flagged[j.item].add(j.annotator)
        elif j.choice == "skip":
            skipped.add(j.item)
    return {id: _verdict(id, cast.get(id, {}), flagged.get(id), id in skipped, weight, settings) for id in items}


def _verdict(
    item: str,
    answers: dict[str, Judgement],
    flagged: set[str] | None,
    skipped: bool,
    weight: dict[str, float],
    settings: HumanConfig,
) -> Verdict:
    counts = Counter(j.choice for j in answers.values())
    shown = {choice: counts[choice] for choice in ANSWERED}
    if flagged:
        return Verdict(item, "flagged", None, None, shown, tuple(sorted(flagged)))
    if not answers:
        return Verdict(item, "skipped" if skipped else "open", None, None, shown, ())
    outcome = _winner(answers, weight)
    state = "open" if len(answers) < settings.overlap else "preferred" if outcome in PREFERRED else outcome
    if outcome not in PREFERRED:
        return Verdict(item, state, None, None, shown, tuple(sorted(answers)))
    chose = sorted(annotator for annotator, j in answers.items() if j.choice == outcome)
    strength = {"slightly": settings.slightly, "clearly": settings.clearly}
    margins = [strength[said] for annotator in chose if (said := answers[annotator].strength) is not None]
    margin = math.fsum(margins) / len(margins) if margins else None
    return Verdict(item, state, outcome, margin, shown, tuple(chose))


def _winner(answers: dict[str, Judgement], weight: dict[str, float]) -> str:
    """The answer with the most weight; a tie where several have it, but for rounding."""
    sums = {
        choice: math.fsum(weight.get(annotator, 1.0) for annotator, j in answers.items() if j.choice == choice)
        for choice in ANSWERED
    }
    most = max(sums.values())
    best = [choice for choice, total in sums.items() if math.isclose(total, most, rel_tol=1e-9)]
    return best[0] if len(best) == 1 else "tie"


def preferences(
    items: Sequence[Item], judgements: Iterable[Judgement], settings: HumanConfig, *, only_settled: bool = True
) -> list[Preference]:
    """The preferences that the answers come to, in the order of the items.

    Ties, both bad, flagged and skipped items give none.

    Args:
        items: of a queue.
        judgements: the log.
        settings: as for `verdicts`.
        only_settled: leave out items that fewer people answered than are asked; without it, those count who did.
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
                annotator=joined(verdict.annotators),
                round=item.round,
            )
        )
    return made


def joined(names: Iterable[str]) -> str:
    """Names of several people as one, joined by `+`; in a name, `+` and `%` are written `%2B` and `%25`.

    >>> joined(["ada", "ben+work@example.org"])
    'ada+ben%2Bwork@example.org'
    """
    return "+".join(name.replace("%", "%25").replace("+", "%2B") for name in names)


def names_of(annotator: str) -> list[str]:
    """The names that `joined` joined.

    >>> names_of("ada+ben%2Bwork@example.org")
    ['ada', 'ben+work@example.org']
    """
    return [name.replace("%2B", "+").replace("%25", "%") for name in annotator.split("+")]


def is_complete(items: Sequence[Item], judgements: Iterable[Judgement], settings: HumanConfig) -> bool:
    """Whether no item needs an answer any more: each is flagged or answered by as many people as are asked.

    A skipped item waits for somebody who does not skip it.
    """
    return all(v.state not in ("open", "skipped") for v in verdicts(items, judgements, settings).values())
