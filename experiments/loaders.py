"""Load public preference and safety data in their published formats, from a path that the user gives.

| format | columns | rows become |
|---|---|---|
| HH-RLHF | `.jsonl` or `.jsonl.gz` with `chosen` and `rejected` | preferences |
| PKU-SafeRLHF | `.jsonl(.gz)` or `.parquet` with `prompt`, `response_0`, `response_1` | preferences, safety labels |
| DiaSafety | `.json` with `context`, `response`, `category`, `label` | exchanges |
| PandaLM | `.json` with `instruction`, `input`, `response1`, `response2`, `annotator1` to `annotator3` | comparisons |
| UltraFeedback | `.jsonl` or `.parquet` with `prompt`, `chosen` and `rejected` (messages or text) | preferences |

experiments/README.md has the sources of the data.
"""

import gzip
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.preferences import Preference
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing, parse_jsonl, read_json, read_jsonl
from shfcas.utils.parquet import read_parquet

ANSWER = "\n\nAssistant:"
QUESTION = "\n\nHuman:"


@dataclass(frozen=True)
class Exchange:
    """An utterance, a system's answer, and whether the answer was safe.

    Attributes:
        context: the utterance.
        response: the answer.
        category: the kind of harm.
        safe: whether people found the answer safe.
    """

    context: str
    response: str
    category: str
    safe: bool


@dataclass(frozen=True)
class Compared:
    """Two answers to an instruction, labelled by several people.

    Attributes:
        prompt: the instruction with its input.
        answers: the two answers.
        systems: the systems that wrote them.
        votes: the vote of each annotator: 1 for the first, 2 for the second, 0 for neither.
    """

    prompt: str
    answers: tuple[str, str]
    systems: tuple[str, str]
    votes: tuple[int, ...]

    @property
    def majority(self) -> int:
        """The vote of more than half of the annotators; 0 without a majority."""
        vote, count = Counter(self.votes).most_common(1)[0]
        return vote if 2 * count > len(self.votes) else 0


def hh_rlhf(path: str | Path) -> list[Preference]:
    """Read pairs of dialogues that differ in the last answer only; skip pairs with different prompts."""
    found = []
    for index, row in enumerate(_rows(path)):
        chosen, rejected = (_text(row, name, path, index) for name in ("chosen", "rejected"))
        prompt, split, answer = chosen.rpartition(ANSWER)
        other, _, worse = rejected.rpartition(ANSWER)
        if not split:
            raise UserError(f"{path}: row {index}, chosen: no {ANSWER.strip()!r} in it")
        if prompt == other:
            found.append(_preference(prompt.strip(), answer.strip(), worse.strip()))
    return found


def hh_first_questions(path: str | Path, most_words: int) -> list[str]:
    """Read the first turns of dialogues, each once, of at most `most_words` words, in the order of the file."""
    found = {}
    for index, row in enumerate(_rows(path)):
        _, _, rest = _text(row, "chosen", path, index).partition(QUESTION)
        question = " ".join(rest.partition(ANSWER)[0].split())
        if 3 <= len(question.split()) <= most_words:
            found[question] = None
    return list(found)


def pku_saferlhf(path: str | Path, by: str = "better") -> list[Preference]:
    """Read pairs with safety labels; `by` names the label that counts: `better` (helpful) or `safer`."""
    column = f"{by}_response_id"
    found = []
    for index, row in enumerate(_rows(path)):
        if row.get(column) not in (0, 1):
            raise UserError(f"{path}: row {index}, {column}: expected 0 or 1, got {row.get(column)!r}")
        best = row[column]
        prompt, *answers = (_text(row, name, path, index) for name in ("prompt", "response_0", "response_1"))
        safe = [row.get(f"is_response_{i}_safe") for i in (0, 1)]
        found.append(_preference(prompt, answers[best], answers[1 - best], safe[best], safe[1 - best]))
    return found


def diasafety(path: str | Path) -> list[Exchange]:
    """Read exchanges with a safety label and a category of harm."""
    found = []
    for index, row in enumerate(_rows(path)):
        label = row.get("label")
        if label not in ("Safe", "Unsafe"):
            raise UserError(f"{path}: row {index}, label: expected Safe or Unsafe, got {label!r}")
        context, category = (_text(row, name, path, index) for name in ("context", "category"))
        response = _text(row, "response", path, index, empty=True)  # an answer may be empty
        found.append(Exchange(context.strip(), response.strip(), category, label == "Safe"))
    return found


def pandalm(path: str | Path) -> list[Compared]:
    """Read comparisons of two systems' answers with the votes of all annotators."""
    found = []
    for index, row in enumerate(_rows(path)):
        names = ("instruction", "input", "response1", "response2", "cmp_key")
        # For a model that answered True or 7, the file has that value and not its text.
        row = {name: str(value) if isinstance(value, bool | int | float) else value for name, value in row.items()}
        instruction, given, one, other, key = (_text(row, name, path, index, empty=True) for name in names)
        marks = [row[name] for name in sorted(row) if name.startswith("annotator")]
        votes = tuple(int(mark) for mark in marks if mark in ("0", "1", "2"))
        if not votes or len(votes) < len(marks):
            raise UserError(f"{path}: row {index}: expected votes of 0, 1 or 2 in annotator1 and so on, got {marks}")
        systems = tuple(key.split("_", 1))
        if len(systems) != 2:
            raise UserError(f"{path}: row {index}, cmp_key: expected two names joined by _, got {key!r}")
        prompt = "\n\n".join(part.strip() for part in (instruction, given) if part.strip())
        found.append(Compared(prompt, (one.strip(), other.strip()), systems, votes))
    return found


def ultrafeedback(path: str | Path) -> list[Preference]:
    """Read binarised pairs; `chosen` and `rejected` are the whole conversation as messages, or text."""
    found = []
    for index, row in enumerate(_rows(path)):
        prompt = _text(row, "prompt", path, index)
        answers = [_last_answer(row.get(name), f"{path}: row {index}, {name}") for name in ("chosen", "rejected")]
        found.append(_preference(prompt, *answers))
    return found


def _last_answer(value: Any, where: str) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, or messages that end with the answer")
    return value


def _preference(
    prompt: str, chosen: str, rejected: str, chosen_safe: bool | None = None, rejected_safe: bool | None = None
) -> Preference:
    """Return a preference with a prompt id that is a hash of the prompt's text."""
    key = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    return Preference(
        prompt, chosen, rejected, prompt_id=key, chosen_safe=chosen_safe, rejected_safe=rejected_safe, source="original"
    )


def _rows(path: str | Path) -> list[dict[str, Any]]:
    path = existing(path)
    if path.suffix == ".parquet":
        return read_parquet(path).to_pylist()
    if path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise UserError(f"{path}: expected a list of rows")
        return rows
    if path.suffix == ".gz":
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                return list(parse_jsonl(lines, str(path)))
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: not a gzip file ({error})") from error
    return read_jsonl(path)


def _text(row: dict[str, Any], name: str, path: str | Path, index: int, empty: bool = False) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise UserError(f"{path}: row {index}, {name}: expected text, got {value!r}")
    return value
