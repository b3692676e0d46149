"""Preferences in TRL's explicit-prompt format: what the answers come to, and labels from elsewhere as answers."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.aggregation import preferences, split_names
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Item, Judgement
from shfcas.feedback.exchange.answers import Answer, check_name
from shfcas.feedback.exchange.matching import ELSEWHERE, Book, Export, texts_key
from shfcas.feedback.exchange.reading import Problem, shown
from shfcas.feedback.exchange.writing import write_lines
from shfcas.utils.errors import UserError


def write(path: Path, export: Export) -> list[Path]:
    """Writes the preferences that a run would train on if it went on now; ties, skips and flags give none."""
    made = preferences(export.items, export.log, export.settings, only_settled=False)
    write_lines(path, (preference.to_row() for preference in made))
    return [path]


def read(rows: Iterable[tuple[str, dict[str, Any]]], book: Book) -> Iterator[Answer]:
    """One answer a row and annotator; names joined by + are those of several people who agreed."""
    for where, row in rows:
        with book.problems.at(where):
            try:
                preference = Preference.from_row(row, "the row")
            except (UserError, OverflowError, RecursionError) as error:
                raise Problem(" ".join(str(error).split())[:300], "see TRL's columns in docs/exchange.md") from None
            item, choice = _place(preference, book)
            name = preference.annotator or preference.source
            for annotator in split_names(name) if preference.source == "human" else [name]:
                made = Judgement(
                    id="",
                    item=item.id,
                    annotator=check_name(annotator),
                    choice=choice,
                    strength=_strength(preference.margin, book.settings),
                    page_version="trl",
                )
                yield Answer(made, where)


def _place(preference: Preference, book: Book) -> tuple[Item, str]:
    """The item that a preference is about, and which of its answers was chosen."""
    one, other = preference.chosen_index, preference.rejected_index
    by_place = bool(preference.prompt_id) and one >= 0 and other >= 0
    if by_place:
        found = book.by_answers(preference.prompt_id, one, other)
        what = f"answers {one} and {other} of prompt {shown(preference.prompt_id)}"
    else:
        found = book.by_texts(preference.prompt, preference.chosen, preference.rejected)
        what = "these two answers to this prompt"
    if not found:
        raise Problem(f"no queue of this run asks about {what}", ELSEWHERE)
    item = next((i for i in reversed(found) if i.round == preference.round), found[-1])
    if not by_place and item.first_text == item.second_text:
        raise Problem("both answers have the same text", "give prompt_id, chosen_index and rejected_index")
    first = one == item.first if by_place else preference.chosen == item.first_text
    pair = (item.first_text, item.second_text) if first else (item.second_text, item.first_text)
    key = texts_key(item.prompt, *pair)
    if key != texts_key(preference.prompt, *pair) or pair != (preference.chosen, preference.rejected):
        raise Problem(f"item {item.id} has other texts in this run", ELSEWHERE)
    return item, "first" if first else "second"


def _strength(margin: float | None, settings: HumanConfig) -> str | None:
    """The strength whose margin is nearest; the stronger one where both are as near."""
    if margin is None:
        return None
    return "slightly" if margin - settings.slightly < settings.clearly - margin else "clearly"
