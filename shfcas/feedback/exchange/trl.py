"""Preferences in TRL's explicit-prompt format: export of preferences, import of labels as answers."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.aggregation import preferences, split_names
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Item, Judgement
from shfcas.feedback.exchange.answers import Answer, check_name
from shfcas.feedback.exchange.matching import OTHER_RUN, Export, RunItems, texts_key
from shfcas.feedback.exchange.reading import Problem, excerpt
from shfcas.feedback.exchange.writing import write_lines
from shfcas.utils.errors import UserError


def write(path: Path, export: Export) -> list[Path]:
    """Writes the preferences that a run would train on now; ties, skips and flags give none."""
    made = preferences(export.items, export.log, export.settings, only_settled=False)
    write_lines(path, (preference.to_row() for preference in made))
    return [path]


def read(rows: Iterable[tuple[str, dict[str, Any]]], run_items: RunItems) -> Iterator[Answer]:
    """Yields one answer per row and annotator; names joined by + are annotators who agreed."""
    for where, row in rows:
        with run_items.problems.at(where):
            try:
                preference = Preference.from_row(row, "the row")
            except (UserError, OverflowError, RecursionError) as error:
                raise Problem(" ".join(str(error).split())[:300], "see TRL's columns in docs/exchange.md") from None
            item, choice = _place(preference, run_items)
            name = preference.annotator or preference.source
            for annotator in split_names(name) if preference.source == "human" else [name]:
                made = Judgement(
                    id="",
                    item=item.id,
                    annotator=check_name(annotator),
                    choice=choice,
                    strength=_strength(preference.margin, run_items.settings),
                    page_version="trl",
                )
                yield Answer(made, where)


def _place(preference: Preference, run_items: RunItems) -> tuple[Item, str]:
    """Returns the item of a preference, and the chosen answer."""
    one, other = preference.chosen_index, preference.rejected_index
    by_place = bool(preference.prompt_id) and one >= 0 and other >= 0
    if by_place:
        items = run_items.by_answers(preference.prompt_id, one, other)
        pair = f"answers {one} and {other} of prompt {excerpt(preference.prompt_id)}"
    else:
        items = run_items.by_texts(preference.prompt, preference.chosen, preference.rejected)
        pair = "these two answers to this prompt"
    if not items:
        raise Problem(f"no queue of this run asks about {pair}", OTHER_RUN)
    item = next((i for i in reversed(items) if i.round == preference.round), items[-1])
    if not by_place and item.first_text == item.second_text:
        raise Problem("both answers have the same text", "give prompt_id, chosen_index and rejected_index")
    first = one == item.first if by_place else preference.chosen == item.first_text
    texts = (item.first_text, item.second_text) if first else (item.second_text, item.first_text)
    key = texts_key(item.prompt, *texts)
    if key != texts_key(preference.prompt, *texts) or texts != (preference.chosen, preference.rejected):
        raise Problem(f"item {item.id} has other texts in this run", OTHER_RUN)
    return item, "first" if first else "second"


def _strength(margin: float | None, settings: HumanConfig) -> str | None:
    """Returns the strength with the nearest margin; the stronger one if both are equally near."""
    if margin is None:
        return None
    return "slightly" if margin - settings.slightly < settings.clearly - margin else "clearly"
