"""Argilla: records as its `Record.to_dict()` makes them, and as its datasets export them to JSON."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shfcas.data.chat import as_messages
from shfcas.feedback.annotation.schema import STRENGTHS, Item, Judgement
from shfcas.feedback.exchange.answers import Answer, check_among, check_name, check_text
from shfcas.feedback.exchange.label_studio import read_log
from shfcas.feedback.exchange.matching import Book, Export, on_side, user_id
from shfcas.feedback.exchange.reading import Problem, json_value, shown
from shfcas.feedback.exchange.writing import json_text, write_array

LABELS = {"answer_a": "left", "answer_b": "right"}
OTHERS = ("tie", "both_bad", "skip", "flag")
QUESTIONS = ("preference", "strength", "comment")
CORRECT = "correct the response in Argilla and export again"
AS_JSON = "export with dataset.records.to_json(path)"


def write(path: Path, export: Export) -> list[Path]:
    """Writes the records as one JSON array."""
    logs, answers = export.logs(), export.answers()
    chat = any(not isinstance(item.prompt, str) for item in export.items)
    records = (_record(item, export, chat, logs.get(item.id, []), answers.get(item.id, [])) for item in export.items)
    write_array(path, records)
    return [path]


def _record(
    item: Item, export: Export, chat: bool, log: list[dict[str, Any]], answers: list[Judgement]
) -> dict[str, Any]:
    """A record. Metadata holds text and numbers only, so the log is JSON in a text."""
    left = export.left(item)
    pair = (item.first_text, item.second_text) if left == "first" else (item.second_text, item.first_text)
    metadata: dict[str, Any] = export.metadata(item)
    if log:
        metadata["log"] = json_text(log)
    if export.with_scores:
        metadata |= export.scores(item)
    responses: dict[str, list[dict[str, Any]]] = {}
    latest = {made.annotator: made for made in answers}
    for made in latest.values():
        side = on_side(made.choice, left)
        label = next((name for name, s in LABELS.items() if s == side), side)
        values = {"preference": label, "strength": made.strength, "comment": made.comment or None}
        for question, value in values.items():
            if value is not None:
                responses.setdefault(question, []).append({"value": value, "user_id": user_id(made.annotator)})
    return {
        "id": item.id,
        "fields": {
            "prompt": as_messages(item.prompt) if chat else item.prompt,
            "answer_a": pair[0],
            "answer_b": pair[1],
        },
        "metadata": metadata,
        "suggestions": {},
        "responses": responses,
        "vectors": {},
        "status": "pending",
        "_server_id": None,
    }


def read(rows: Iterable[tuple[str, dict[str, Any]]], book: Book) -> Iterator[Answer]:
    """The responses of an export, one answer a record and user; suggestions are nobody's answers."""
    for where, record in rows:
        with book.problems.at(where):
            fields, metadata = record.get("fields"), record.get("metadata")
            if not isinstance(fields, dict):
                raise Problem("no fields", AS_JSON)
            metadata = metadata if isinstance(metadata, dict) else {}
            if metadata.get("item") is None and record.get("id") in book.items:
                metadata = {**metadata, "item": record["id"]}
            answers = (fields.get("answer_a"), fields.get("answer_b"))
            item, left = book.place(metadata, fields.get("prompt"), *answers)
            text = metadata.get("log")
            rows_of_log = None if text is None else json_value(check_text(text, "the log"), "the metadata's log")
            log = yield from read_log(rows_of_log, item, where, book)
            for user, values in _by_user(record.get("responses")).items():
                at = f"{where}, user {shown(user)}"
                with book.problems.at(at):
                    yield Answer(_answer(values, book.name(user, log.values()), item, left), at)


def _by_user(responses: Any) -> dict[str, dict[str, Any]]:
    """The values of each user, by question."""
    users: dict[str, dict[str, Any]] = {}
    if responses is None:
        return users
    if not isinstance(responses, dict):
        raise Problem(f"responses is {shown(responses)}", AS_JSON)
    for question in QUESTIONS:
        given = responses.get(question, [])
        if not isinstance(given, list):
            raise Problem(f"the responses to {question} are {shown(given)}", AS_JSON)
        for response in given:
            user = response.get("user_id") if isinstance(response, dict) else None
            if not isinstance(user, str) or user == "None":
                raise Problem(f"a response to {question} without a user: {shown(response)}", AS_JSON)
            if question in users.setdefault(user, {}):
                raise Problem(f"user {shown(user)} responds to {question} twice", CORRECT)
            users[user][question] = response.get("value")
    return users


def _answer(values: dict[str, Any], annotator: str, item: Item, left: str) -> Judgement:
    if values.get("preference") is None:
        raise Problem("a strength or a comment, and no preference", CORRECT)
    label = check_among(values["preference"], (*LABELS, *OTHERS), "preference")
    strength = values.get("strength")
    if strength is not None:
        check_among(strength, STRENGTHS, "strength")
        if label not in LABELS:
            raise Problem(f"a strength ({strength}), and {label} as the preference", CORRECT)
    comment = values.get("comment")
    return Judgement(
        id="",
        item=item.id,
        annotator=check_name(annotator),
        choice=on_side(LABELS.get(label, label), left),
        left=left,
        strength=strength,
        comment="" if comment is None else check_text(comment, "the comment"),
        page_version="argilla",
    )
