"""Questions with known answers, asked in between to measure how well annotators answer."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shfcas.data.messages import Completion, plain_completion
from shfcas.data.preferences import read_preferences
from shfcas.feedback.annotation.aggregation import effective, votes
from shfcas.feedback.annotation.schema import KNOWN, Item, Judgement, item_id
from shfcas.feedback.annotation.store import Store
from shfcas.utils.errors import UserError
from shfcas.utils.statistics import wilson_interval


def add_known_answers(store: Store, path: str | Path) -> int:
    """Adds the preferences of a file as questions; the chosen answer is the known one. A file may be added again.

    They are in a queue of their own, so they change no preference and no agreement.

    Returns:
        The number of questions.

    Raises:
        UserError: the file is missing, malformed, or has no preference.
    """
    items: dict[str, Item] = {}
    for preference in read_preferences(path):
        texts = [preference.prompt, preference.chosen, preference.rejected]
        prompt_id = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
        items[prompt_id] = Item(
            id=item_id(KNOWN, prompt_id, 0, 1),
            queue=KNOWN,
            round=0,
            position=items[prompt_id].position if prompt_id in items else len(items),
            prompt_id=prompt_id,
            first=0,
            second=1,
            prompt=preference.prompt,
            first_text=_text(preference.chosen),
            second_text=_text(preference.rejected),
        )
    if not items:
        raise UserError(f"known_answers: {path} has no preferences; write some with prompt, chosen and rejected")
    store.add_queue(list(items.values()), seed=0)
    return len(items)


def _text(answer: Completion) -> str:
    text = plain_completion(answer)
    if not isinstance(text, str):
        raise UserError("known_answers: expected answers of one message; leave out those of several")
    return text


def known_report(judgements: Iterable[Judgement]) -> dict[str, Any]:
    """Computes how often each annotator gave the known answer.

    Args:
        judgements: the log of these questions. Ties count as wrong, skips and flags not at all.

    Returns:
        For each annotator who answered one: `mean`, `low`, `high` (Wilson, 95 %) and `count`.
    """
    counts: dict[str, list[bool]] = {}
    for answers in votes(effective(judgements)).values():
        for annotator, j in answers.items():
            counts.setdefault(annotator, []).append(j.choice == "first")
    return {name: wilson_interval(sum(right), len(right)) for name, right in sorted(counts.items())}
