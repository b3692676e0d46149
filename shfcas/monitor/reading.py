"""Rollouts in files: candidate tables, logged completions, and the log of the reward server."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shfcas.data.messages import completion_text, prompt_key
from shfcas.data.reading import arrow_rows
from shfcas.monitor.measures import Answer
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing, read_jsonl
from shfcas.utils.parquet import read_parquet

# Names of the same value in files of several trainers, the first that a row has.
PROMPT = ("prompt_id", "prompt", "input")
COMPLETION = ("completion", "output", "response")
REWARD = ("reward", "score", "scores")
STEP = ("rollout", "step")
LOGPROB = ("logprob", "logprobs")
REFERENCE = ("reference_logprob", "reference_logprobs", "ref_logprob")
LENGTH = ("num_tokens", "length")
SUFFIXES = (".jsonl", ".parquet")

Row = Mapping[str, Any]


def read_rollouts(paths: Sequence[str | Path], reward: str | None = None, size: int = 256) -> Iterator[list[Answer]]:
    """Yields the answers of each rollout.

    Rows with a `rollout` or `step` belong to the rollout of that number. Otherwise each file is a rollout, and a single
    file is cut into rollouts of equal size.

    Args:
        paths: files of JSON lines or Parquet, or folders of them, in the order of the rollouts.
        reward: column of the reward; None takes `reward` or `score`.
        size: answers of a rollout in a single file whose rows name none.

    Raises:
        UserError: a file cannot be read, or its rows have no reward or no answer.
    """
    files = [file for path in paths for file in _files(existing(path))]
    step: Any = None
    pending: list[Answer] = []
    for file in files:
        rows = arrow_rows(read_parquet(file)) if file.suffix == ".parquet" else read_jsonl(file)
        for number, row in enumerate(rows):
            numbered = _first(row, STEP)
            own = ("step", numbered) if numbered is not None else ("file", file) if len(files) > 1 else None
            full = own is None and len(pending) >= size
            if pending and (own != step or full):
                yield pending
                pending = []
            step = own
            pending += _answers(row, reward, f"{file}: row {number}")
    if pending:
        yield pending


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not found:
            raise UserError(f"{path}: expected files of {' or '.join(SUFFIXES)}, got none")
        return found
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected {' or '.join(SUFFIXES)}; name another file")
    return [path]


def _answers(row: Row, reward: str | None, where: str) -> list[Answer]:
    """Returns the answers of a row: all of a prompt's, or one."""
    if isinstance(row.get("completions"), list):
        names = {"completion": "completions", "reward": reward or "rewards", "logprob": "logprobs"}
        names |= {"num_tokens": "num_tokens", "reference_logprob": "reference_logprobs"}
        if row.get("base_logprobs") is not None:
            names["reference_logprob"] = "base_logprobs"
        columns = {name: row[column] for name, column in names.items() if row.get(column) is not None}
        if "reward" not in columns:
            raise UserError(f"{where}: expected {names['reward']}, got none; score the table first: shfcas score")
        each = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [_answer({**one, "prompt_id": row["prompt_id"]}, None, where) for one in each]
    return [_answer(row, reward, where)]


def _answer(row: Row, reward: str | None, where: str) -> Answer:
    value = row.get(reward) if reward else _first(row, REWARD)
    if value is None and reward is None and not any(name in row for name in REWARD):
        raise UserError(
            f"{where}: expected a reward ({', '.join(REWARD)}), got {', '.join(row)}; name it with --reward"
        )
    completion, prompt = _first(row, COMPLETION), _first(row, PROMPT)
    length = _first(row, LENGTH)
    if length is None:
        if completion is None:
            raise UserError(f"{where}: expected a completion ({', '.join(COMPLETION)}), got {', '.join(row)}")
        length = len(completion_text(completion))
    logprob, reference, kl = _first(row, LOGPROB), _first(row, REFERENCE), row.get("kl")
    if kl is None and logprob is not None and reference is not None:
        kl = logprob - reference
    key = prompt if isinstance(prompt, str) and "prompt_id" in row else prompt_key(prompt or "")
    return Answer(key, math.nan if value is None else float(value), float(length), logprob, kl)


def _first(row: Row, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
