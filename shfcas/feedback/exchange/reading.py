"""Reading rows of imported files one at a time, and collecting all problems for one error."""

import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from shfcas.data.reading import arrow_rows
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing
from shfcas.utils.parquet import damaged, damages, open_parquet

MAX_SHOWN = 20  # problems that an error lists
BLOCK = 1 << 16
MAX_ROW = 1 << 26  # characters


class Problem(Exception):
    """Problem with a row.

    Args:
        message: the problem, in one line.
        remedy: what to do about it.
    """

    def __init__(self, message: str, remedy: str = "correct the row") -> None:
        super().__init__(f"{message}; {remedy}")


class Problems:
    """Collection of an import's problems: the first ones as text, and the number of all."""

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[str] = []

    def add(self, where: str, problem: Problem) -> None:
        """Adds a problem with its file and row."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(f"{where}: {problem}")

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Adds the problem that ends the block, if one does."""
        try:
            yield
        except Problem as problem:
            self.add(where, problem)

    def check(self) -> None:
        """Checks that there are no problems.

        Raises:
            UserError: there are; the message lists them.
        """
        if self.count:
            more = [f"and {self.count - len(self.shown)} more"] if self.count > len(self.shown) else []
            count = "1 problem" if self.count == 1 else f"{self.count} problems"
            raise UserError("\n  ".join([f"{count}, so nothing was imported", *self.shown, *more]))


def excerpt(value: Any) -> str:
    """Formats a value from a file for an error: short, with control characters escaped."""
    return reprlib.repr(value)


def parse_json(text: str, field: str) -> Any:
    """Parses JSON text.

    Raises:
        Problem: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{field} is not valid JSON ({_reason(error)})", "export the file again") from None


def read_rows(path: str | Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a JSON array or of JSON lines, each with its place; keeps one row in memory.

    Rows that cannot be read are added to `problems`. Rows of an array count from 0, lines from 1.
    """
    path = existing(path)
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            while (character := stream.read(1)).isspace():
                pass
            stream.seek(0)
            values = _array(stream, str(path), problems) if character == "[" else _lines(stream, str(path), problems)
            for where, row in values:
                if isinstance(row, dict):
                    yield where, row
                else:
                    problems.add(where, Problem(f"expected a JSON object, got {excerpt(row)}", "check --format"))
    except UnicodeDecodeError as error:
        problems.add(str(path), Problem(f"not UTF-8 text ({error.reason})", "save it as UTF-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_parquet_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a Parquet file, each with its place, from 0."""
    path = existing(path)
    number = 0
    try:
        with open_parquet(path) as file:
            for batch in file.iter_batches(1000):
                for row in arrow_rows(batch):
                    yield f"{path}: row {number}", row
                    number += 1
    except damages() as error:
        raise damaged(str(path), error) from error


def _lines(stream: TextIO, name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    number = 0
    while line := stream.readline(MAX_ROW):
        number += 1
        where = f"{name}: line {number}"
        if len(line) == MAX_ROW:
            problems.add(where, Problem(f"expected at most {MAX_ROW} characters, got more", "remove this row"))
            return
        if line.strip():
            with problems.at(where):
                yield where, parse_json(line, "the line")


def _array(stream: TextIO, name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """Yields the elements of one array, and reads no more than the next element needs."""
    decoder = json.JSONDecoder()
    at, buffer = _skip(stream, "", 0, " \t\r\n")
    at, index = at + 1, 0  # after the bracket
    while True:
        at, buffer = _skip(stream, buffer, at, " \t\r\n" + ("," if index else ""))
        where = f"{name}: row {index}"
        if buffer[at : at + 1] == "]":
            return
        while True:
            try:
                value, end = decoder.raw_decode(buffer, at)
                if end < len(buffer) or isinstance(value, dict):  # a number may continue in the next block
                    break
                error: Exception = ValueError("the array does not end")
            except (ValueError, RecursionError) as caught:
                error = caught
            buffer, at = buffer[at:], 0
            more = "" if len(buffer) > MAX_ROW else stream.read(max(BLOCK, len(buffer)))
            if not more or isinstance(error, RecursionError):
                message = f"not valid JSON, or larger than {MAX_ROW} characters ({_reason(error)})"
                problems.add(where, Problem(message, "export the file again; the rest was not read"))
                return
            buffer += more
        yield where, value
        at, index = end, index + 1


def _skip(stream: TextIO, buffer: str, at: int, characters: str) -> tuple[int, str]:
    while True:
        while at < len(buffer) and buffer[at] in characters:
            at += 1
        if at < len(buffer) or not (more := stream.read(BLOCK)):
            return at, buffer
        buffer, at = more, 0


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(": line")[0]
