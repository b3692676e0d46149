"""Argilla: records in the form of `Record.to_dict()` and of a dataset's JSON export."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shfcas.data.messages import as_messages
from shfcas.feedback.annotation.schema import STRENGTHS, Item, Judgement
from shfcas.feedback.exchange.answers import Answer, check_among, check_name, check_text
from shfcas.feedback.exchange.label_studio import read_log
from shfcas.feedback.exchange.matching import Export, RunItems, on_side, user_id
from shfcas.feedback.exchange.reading import Problem, excerpt, parse_json
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
    """Returns a record. Metadata can hold only text and numbers, so the log is JSON text."""
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


def read(rows: Iterable[tuple[str, dict[str, Any]]], run_items: RunItems) -> Iterator[Answer]:
    """Yields the responses of an export, one answer per record and user; suggestions do not count."""
    for where, record in rows:
        with run_items.problems.at(where):
            fields, metadata = record.get("fields"), record.get("metadata")
            if not isinstance(fields, dict):
                raise Problem("fields: missing", AS_JSON)
            metadata = metadata if isinstance(metadata, dict) else {}
            if metadata.get("item") is None and record.get("id") in run_items.items:
                metadata = {**metadata, "item": record["id"]}
            answers = (fields.get("answer_a"), fields.get("answer_b"))
            item, left = run_items.locate(metadata, fields.get("prompt"), *answers)
            text = metadata.get("log")
            rows_of_log = (
                None if text is None else parse_json(check_text(text, "log in the metadata"), "log in the metadata")
            )
            log = yield from read_log(rows_of_log, item, where, run_items)
            for user, values in _by_user(record.get("responses")).items():
                at = f"{where}, user {excerpt(user)}"
                with run_items.problems.at(at):
                    yield Answer(_answer(values, run_items.annotator(user, log.values()), item, left), at)


def _by_user(responses: Any) -> dict[str, dict[str, Any]]:
    """Returns the values of each user, by question."""
    users: dict[str, dict[str, Any]] = {}
    if responses is None:
        return users
    if not isinstance(responses, dict):
        raise Problem(f"responses: expected an object, got {excerpt(responses)}", AS_JSON)
    for question in QUESTIONS:
        given = responses.get(question, [])
        if not isinstance(given, list):
            raise Problem(f"responses to {question}: expected a list, got {excerpt(given)}", AS_JSON)
        for response in given:
            user = response.get("user_id") if isinstance(response, dict) else None
            if not isinstance(user, str) or user == "None":
                raise Problem(f"response to {question}: expected a user_id, got {excerpt(response)}", AS_JSON)
            if question in users.setdefault(user, {}):
                raise Problem(f"response to {question}: user {excerpt(user)} has two", CORRECT)
            users[user][question] = response.get("value")
    return users


def _answer(values: dict[str, Any], annotator: str, item: Item, left: str) -> Judgement:
    if values.get("preference") is None:
        raise Problem("preference: missing beside a strength or a comment", CORRECT)
    label = check_among(values["preference"], (*LABELS, *OTHERS), "preference")
    strength = values.get("strength")
    if strength is not None:
        check_among(strength, STRENGTHS, "strength")
        if label not in LABELS:
            raise Problem(f"strength: expected none with the preference {label}, got {strength}", CORRECT)
    comment = values.get("comment")
    return Judgement(
        id="",
        item=item.id,
        annotator=check_name(annotator),
        choice=on_side(LABELS.get(label, label), left),
        left=left,
        strength=strength,
        comment="" if comment is None else check_text(comment, "comment"),
        page_version="argilla",
    )
