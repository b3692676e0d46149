"""Layouts of public data sets: rows of many kinds as rows with `prompt`, `chosen`, `rejected` and `completion`.

| rows | read as |
|---|---|
| `prompt`, `chosen`, `rejected`, `completion` (TRL) | as they are; other names through `prompt_column` and so on |
| `chosen` and `rejected` messages without a prompt (TRL's implicit prompt) | the shared turns are the prompt |
| `chosen` and `rejected` text of `Human:` and `Assistant:` turns (HH-RLHF) | messages, then as above |
| `response_0`, `response_1`, `better_response_id` (PKU-SafeRLHF) | a pair, with its safety labels |
| two responses and `preference_strength` or `overall_preference` (HelpSteer2, HelpSteer3) | a pair; 0 is a tie |
| `conversations` or `messages` (ShareGPT and others) | the turns before the last answer, and that answer |
| `instruction`, `input`, `output` (Alpaca) | a user turn and its answer |
"""

import dataclasses
import difflib
import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shfcas.data.messages import Message, Prompt, are_messages, as_messages, normalised, plain_completion, prompt_key
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

Row = dict[str, Any]

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
LIKELY = {
    "prompt": ("question", "instruction", "query", "problem", "input", "text", "context"),
    "chosen": ("chosen_response", "response_chosen", "preferred", "winner", "better", "accepted"),
    "rejected": ("rejected_response", "response_rejected", "dispreferred", "loser", "worse", "refused"),
    "completion": ("response", "output", "answer", "solution", "target", "chosen"),
}


@dataclass
class PromptColumn(Options):
    """Name of the column of prompts in the user's data."""

    prompt_column: str | None = option(None, "column of the prompts in your data (none: prompt, or a known layout)")

    def columns(self) -> dict[str, str]:
        """Returns the given names by what they hold."""
        names = [field.name for field in dataclasses.fields(self) if field.name.endswith("_column")]
        return {name.removesuffix("_column"): getattr(self, name) for name in names if getattr(self, name)}


@dataclass
class AnswerColumn(PromptColumn):
    """Names of the columns of demonstrations in the user's data."""

    completion_column: str | None = option(None, "column of the answers to learn (none: completion, or a known layout)")


@dataclass
class PairColumns(PromptColumn):
    """Names of the columns of preferences in the user's data."""

    chosen_column: str | None = option(
        None, "column of the better answers, or of the number (0 or 1) of the better of two responses (none: chosen)"
    )
    rejected_column: str | None = option(None, "column of the worse answers (none: rejected)")


@dataclass
class AllColumns(PairColumns, AnswerColumn):
    """Names of the columns in all of the user's data; a file without a named column is read by our names."""


Columns = Mapping[str, str]


def renamed(row: Row, columns: Columns | None) -> Row:
    """Returns a row with the user's columns under our names; a column that the row lacks changes nothing."""
    return {**row, **{name: row[column] for name, column in (columns or {}).items() if column in row}}


def prompt_row(row: Row, columns: Columns | None = None) -> Row:
    """Returns a row with a column `prompt` if its layout is known; otherwise the row."""
    row = renamed(row, columns)
    if row.get("prompt") is not None:
        return row
    turns = _turns(row)
    if turns is not None:
        return {**row, "prompt": turns[:-1] if turns[-1]["role"] == "assistant" and len(turns) > 1 else turns}
    if "instruction" in row:
        return {**row, "prompt": _instruction(row)}
    if "chosen" in row and "rejected" in row:
        chosen, rejected = (_sides(row[side]) for side in ("chosen", "rejected"))
        if isinstance(chosen, list) and isinstance(rejected, list):
            return {**row, "prompt": chosen[: shared_turns(chosen, rejected)] or row.get("prompt")}
    return row


def demonstration_row(row: Row, columns: Columns | None = None) -> Row:
    """Returns a row with columns `prompt` and `completion` if its layout is known; otherwise the row."""
    row = renamed(row, columns)
    turns = None if "completion" in row else _turns(row)
    if turns is not None and len(turns) > 1 and turns[-1]["role"] == "assistant":
        row = {**row, "prompt": row.get("prompt") or turns[:-1], "completion": turns[-1]["content"]}
    if "completion" not in row and "instruction" in row and "output" in row:
        row = {**row, "prompt": row.get("prompt") or _instruction(row), "completion": row["output"]}
    completion = normalised(row.get("completion"))
    if are_messages(completion) and len(completion) == 1 and completion[0]["role"] == "assistant":
        row = {**row, "completion": completion[0]["content"]}
    return prompt_row(row)


def preference_row(row: Row, columns: Columns | None = None) -> Row | None:
    """Returns a row with columns `chosen` and `rejected` if its layout is known, otherwise the row; None for a tie."""
    better = (columns or {}).get("chosen")
    row = renamed(row, columns)
    for one, other in (("response_0", "response_1"), ("response_1", "response_2"), ("response1", "response2")):
        place = _better_place(row, better)
        if one in row and other in row and place is not None:
            if place < 0:
                return None
            names = (one, other) if place == 0 else (other, one)
            safe = [row.get(f"is_{name}_safe") for name in names]
            labels = {"chosen_safe": safe[0], "rejected_safe": safe[1]} if None not in safe else {}
            prompt = row.get("prompt") or row.get("context")
            return {**row, **labels, "prompt": prompt, "chosen": row[names[0]], "rejected": row[names[1]]}
    turns = None if "prompt" in row else _turns(row)
    if turns is not None:
        row = {**row, "prompt": turns}
    if "prompt" not in row and "instruction" in row:
        row = {**row, "prompt": _instruction(row)}
    if row.get("prompt") is None and "chosen" in row and "rejected" in row:
        row = {**row, **{side: _sides(row[side]) for side in ("chosen", "rejected")}}
    return row


def _better_place(row: Row, column: str | None) -> int | None:
    """Returns which of two responses is better: 0, 1, or -1 for a tie; None if no column says so."""
    if column in row and str(row[column]) in ("0", "1"):
        return int(row[column])
    if isinstance(row.get("better_response_id"), int):
        return int(row["better_response_id"])
    for name in ("preference_strength", "overall_preference"):
        strength = row.get(name)
        if isinstance(strength, int | float) and "chosen" not in row:
            return -1 if strength == 0 else int(strength > 0)
    return None


def _turns(row: Row) -> list[Message] | None:
    """Returns the messages of a conversation, with its system prompt."""
    for name in ("messages", "conversations", "conversation"):
        turns = normalised(row.get(name))
        if are_messages(turns):
            system = row.get("system")
            return [{"role": "system", "content": system}, *turns] if isinstance(system, str) and system else turns
    return None


def _instruction(row: Row) -> list[Message]:
    parts = [part for part in (row["instruction"], row.get("input")) if isinstance(part, str) and part.strip()]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _sides(answer: Any) -> Any:
    """Returns messages for a text of `Human:` and `Assistant:` turns; anything else in its normal form."""
    if not isinstance(answer, str) or not HH_TURN.match(answer):
        return normalised(answer)
    pieces = HH_TURN.split(answer)[1:]
    return [
        {"role": HH_ROLES[role], "content": text.strip()} for role, text in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def shared_turns(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Returns the number of leading turns that two answers share; each keeps at least one turn."""
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    return count


def split_prompt(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Moves the turns that two answers share to the prompt; returns prompt, chosen and rejected.

    An answer of one assistant turn becomes its text. Any other answer (several turns, tool calls, a turn that only one
    side has) stays a list. Turns that repeat the prompt are dropped.
    """
    sides = [normalised(side) for side in (chosen, rejected)]
    if not any(isinstance(side, list) for side in sides):
        return prompt, *sides
    turns = [[{"role": "assistant", "content": side}] if isinstance(side, str) else side for side in sides]
    if not all(are_messages(side) for side in turns):
        return prompt, *sides
    before = [] if prompt is None else as_messages(prompt)
    turns = [_without_prompt(before, side) for side in turns]
    shared = shared_turns(*turns)
    if shared or prompt is None:
        prompt = [*before, *turns[0][:shared]] or None
    answers = [plain_completion(side[shared:]) for side in turns]
    if not all(isinstance(answer, str) for answer in answers):
        prompt = before if isinstance(prompt, str) else prompt
    return prompt, *answers


def _without_prompt(prompt: list[Message], turns: list[Message]) -> list[Message]:
    """Returns an answer without the prompt, or the last turns of it, that some data sets repeat before it."""
    for start in range(len(prompt)):
        count = len(prompt) - start
        if count < len(turns) and prompt_key(turns[:count]) == prompt_key(prompt[start:]):
            return turns[count:]
    return turns


def missing_column(name: str, row: Row, where: str) -> UserError:
    """Returns the error for a column that a row lacks: it lists the columns, and names the likely one."""
    columns = list(row)
    if {"completions", "instruction"} <= row.keys() or {"response", "helpfulness"} <= row.keys():
        remedy = "its answers are rated one by one; give a data set of pairs, such as its binarized version"
    else:
        likely = [c for c in LIKELY.get(name, ()) if c in columns] or difflib.get_close_matches(name, columns, 1)
        likely = likely or [c for c in columns if name in c.lower()]
        remedy = f"set {name}_column: {likely[0]}" if likely else f"set {name}_column to the one that holds it"
    return UserError(f"{where} has no column {name}; its columns are {', '.join(columns) or 'none'}: {remedy}")


def warn_of_prompts(prompts: Iterable[Prompt], where: str) -> None:
    """Warns of prompts that end in an assistant turn, and of prompts that occur more than once."""
    rows = list(prompts)
    answered = sum(not isinstance(prompt, str) and prompt[-1]["role"] == "assistant" for prompt in rows)
    if answered:
        _warn(f"{where}: {answered} of {len(rows)} prompts end in an assistant turn; the policy would add another")
    repeated = len(rows) - len({prompt_key(prompt) for prompt in rows})
    if repeated:
        _warn(f"{where}: {repeated} of {len(rows)} prompts occur earlier in it")


@functools.cache
def _warn(message: str) -> None:
    """Logs a warning once: a run reads its prompts several times."""
    logger.warning("%s", message)
