"""Label Studio: pairwise tasks, their labelling configuration, and the JSON export."""

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from shfcas.data.messages import as_messages
from shfcas.feedback.annotation.schema import STRENGTHS, Item, Judgement
from shfcas.feedback.exchange.answers import (
    Answer,
    answer_content,
    check_among,
    check_name,
    check_text,
    parse_judgement,
    parse_seconds,
    parse_time,
)
from shfcas.feedback.exchange.matching import Export, RunItems, on_side
from shfcas.feedback.exchange.reading import Problem, excerpt
from shfcas.feedback.exchange.writing import write_array
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_text

OTHERS = ("tie", "both_bad", "flag")
CONTROLS = ("better", "strength", "other", "comment")
AS_JSON = "export from Label Studio as JSON"
CORRECT = "correct the annotation in Label Studio and export again"
CONFIG = """\
<View>
  <Header value="Which answer is better?"/>
  <Paragraphs name="prompt" value="$prompt" nameKey="role" textKey="content" layout="dialogue"/>
  <Pairwise name="better" toName="left,right"/>
  <View style="display: flex; gap: 2em">
    <View style="flex: 1"><Text name="left" value="$left"/></View>
    <View style="flex: 1"><Text name="right" value="$right"/></View>
  </View>
  <Header size="5" value="By how much? (optional)"/>
  <Choices name="strength" toName="prompt" choice="single" showInline="true">
    <Choice value="Slightly better" alias="slightly"/>
    <Choice value="Clearly better" alias="clearly"/>
  </Choices>
  <Header size="5" value="If neither is better"/>
  <Choices name="other" toName="prompt" choice="single" showInline="true">
    <Choice value="Equally good" alias="tie"/>
    <Choice value="Both bad" alias="both_bad"/>
    <Choice value="Not to be asked" alias="flag"/>
  </Choices>
  <TextArea name="comment" toName="prompt" placeholder="Comment (optional)" maxSubmissions="1" editable="true"/>
</View>
"""
SCORES = '  <Header size="5" value="Scores"/>\n  <Text name="scores" value="$scores"/>\n'


def write(path: Path, export: Export) -> list[Path]:
    """Writes the tasks, and the labelling configuration as `.xml` beside them.

    Raises:
        UserError: the path ends in `.xml`, which is reserved for the configuration.
    """
    if path.suffix.lower() == ".xml":
        raise UserError(f"out: expected a name in .json, got {path.name}; .xml is the labelling configuration")
    logs, answers = export.logs(), export.answers()
    tasks = (_task(item, export, logs.get(item.id, []), answers.get(item.id, [])) for item in export.items)
    write_array(path, tasks)
    config = path.with_suffix(".xml")
    write_text(config, CONFIG.removesuffix("</View>\n") + SCORES + "</View>\n" if export.with_scores else CONFIG)
    return [path, config]


def _task(item: Item, export: Export, log: list[dict[str, Any]], answers: list[Judgement]) -> dict[str, Any]:
    left = export.left(item)
    pair = (item.first_text, item.second_text) if left == "first" else (item.second_text, item.first_text)
    data: dict[str, Any] = {"prompt": as_messages(item.prompt), "left": pair[0], "right": pair[1]}
    if export.with_scores:
        data["scores"] = "\n".join(f"{name}: {value:.4g}" for name, value in export.scores(item).items())
    meta: dict[str, Any] = export.metadata(item)
    if log:
        meta["log"] = log
    return {"data": data, "meta": meta, "annotations": [_annotation(made, left) for made in answers]}


def _annotation(made: Judgement, left: str) -> dict[str, Any]:
    """Returns an answer in Label Studio's form, without `completed_by`: it refuses users that it does not know."""
    side = on_side(made.choice, left)
    result = []
    if side in ("left", "right"):
        result.append(_result(made, "better", "better", "pairwise", {"selected": side}))
    else:
        result.append(_result(made, "other", "prompt", "choices", {"choices": [side]}))
    if made.strength is not None:
        result.append(_result(made, "strength", "prompt", "choices", {"choices": [made.strength]}))
    if made.comment:
        result.append(_result(made, "comment", "prompt", "textarea", {"text": [made.comment]}))
    return {"result": result, "was_cancelled": False, "lead_time": made.seconds}


def _result(made: Judgement, control: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{made.id}:{control}", "from_name": control, "to_name": to, "type": kind, "value": value}


def read(rows: Iterable[tuple[str, dict[str, Any]]], run_items: RunItems) -> Iterator[Answer]:
    """Yields the answers of a JSON export. A cancelled annotation is a skip; drafts and predictions do not count."""
    for where, task in rows:
        with run_items.problems.at(where):
            data, meta = task.get("data"), task.get("meta")
            if not isinstance(data, dict):
                raise Problem("data: missing", f"{AS_JSON} (not JSON_MIN, CSV or TSV)")
            item, left = run_items.locate(meta, data.get("prompt"), data.get("left"), data.get("right"))
            log = yield from read_log(meta.get("log") if isinstance(meta, dict) else None, item, where, run_items)
            annotations = task.get("annotations", [])
            if not isinstance(annotations, list):
                raise Problem(f"annotations: expected a list, got {excerpt(annotations)}", AS_JSON)
            for index, annotation in enumerate(annotations):
                at = f"{where}, annotation {index}"
                with run_items.problems.at(at):
                    made = _answer(annotation, item, left, log)
                    if made is not None:
                        yield Answer(made, at)


def read_log(rows: Any, item: Item, where: str, run_items: RunItems) -> Generator[Answer, None, dict[str, Judgement]]:
    """Yields the judgements in the metadata of a row, and returns them by id."""
    log: dict[str, Judgement] = {}
    if rows is not None and not isinstance(rows, list):
        raise Problem(f"log in the metadata: expected a list, got {excerpt(rows)}", "export the queue again")
    for index, row in enumerate(rows or []):
        at = f"{where}, log {index}"
        with run_items.problems.at(at):
            made = parse_judgement(row)
            place = row.get("row")
            if isinstance(place, bool) or not isinstance(place, int):
                raise Problem(f"row: expected a whole number, got {excerpt(place)}", "export the queue again")
            if made.item != item.id:
                raise Problem(f"item: expected {item.id}, got {excerpt(made.item)}", "export the queue again")
            log[made.id] = made
            yield Answer(made, at, place)
    return log


def _answer(annotation: Any, item: Item, left: str, log: dict[str, Judgement]) -> Judgement | None:
    """Returns the judgement of an annotation; None if it only repeats one of the log."""
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise Problem(f"expected an annotation, got {excerpt(annotation)}", AS_JSON)
    values, ids = {}, set()
    for part in annotation["result"]:
        if not isinstance(part, dict) or not isinstance(part.get("value"), dict):
            raise Problem(f"expected a result, got {excerpt(part)}", AS_JSON)
        if part.get("from_name") in CONTROLS:
            if part["from_name"] in values:
                raise Problem(f"{part['from_name']}: expected one result, got two", CORRECT)
            values[part["from_name"]] = part["value"]
            ids.add(str(part.get("id")).rpartition(":")[0])
    if annotation.get("was_cancelled") is True:
        choice, strength, comment = "skip", None, ""
    else:
        choice, strength = _choice(values, left)
        comment = _comment(values.get("comment"))
    if any(answer_content(log[id]) == (choice, strength, comment.split()) for id in ids if id in log):
        return None
    return Judgement(
        id="",
        item=item.id,
        annotator=_annotator(annotation.get("completed_by")),
        choice=choice,
        left=left,
        strength=strength,
        comment=comment,
        seconds=parse_seconds(annotation.get("lead_time"), "lead_time"),
        page_version="label-studio",
        time=parse_time(annotation.get("created_at"), "created_at"),
    )


def _choice(values: dict[str, Any], left: str) -> tuple[str, str | None]:
    strength = _chosen(values["strength"], STRENGTHS, "strength") if "strength" in values else None
    if "other" in values:
        other = _chosen(values["other"], OTHERS, "other")
        if "better" in values or strength is not None:
            raise Problem(f"expected either {other}, or a better answer with its strength, got both", CORRECT)
        return other, None
    if "better" not in values:
        raise Problem("better: missing, no answer is marked", CORRECT)
    return on_side(check_among(values["better"].get("selected"), ("left", "right"), "selected"), left), strength


def _chosen(value: dict[str, Any], choices: tuple[str, ...], field: str) -> str:
    chosen = value.get("choices")
    if not isinstance(chosen, list) or len(chosen) != 1:
        raise Problem(f"{field}: expected one choice, got {excerpt(chosen)}", CORRECT)
    return check_among(chosen[0], choices, field)


def _comment(value: dict[str, Any] | None) -> str:
    text = [] if value is None else value.get("text")
    return check_text("\n".join(text) if isinstance(text, list) and _all_text(text) else text, "comment")


def _all_text(parts: list[Any]) -> bool:
    return all(isinstance(part, str) for part in parts)


def _annotator(user: Any) -> str:
    """Returns the user's e-mail address if the export has one, otherwise their number."""
    number = user.get("id") if isinstance(user, dict) else user
    if isinstance(user, dict) and user.get("email"):
        return check_name(user["email"])
    if isinstance(number, bool) or not isinstance(number, int):
        raise Problem(f"completed_by: expected a user, got {excerpt(user)}", "export with the users who answered")
    return f"label-studio-{number}"
