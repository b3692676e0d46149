"""Rows of files from elsewhere, read one at a time, and all the problems in them said at once."""

import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from shfcas.utils.errors import UserError
from shfcas.utils.files import existing

SHOWN = 20
BLOCK = 1 << 16
LARGEST_ROW = 1 << 26


class Problem(Exception):
    """What is wrong with a row, and what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")


class Problems:
    """Collects the problems of an import: the first ones as text, and the number of all."""

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[str] = []

    def add(self, where: str, problem: Problem) -> None:
        """Notes a problem, with its file and row."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {problem}")

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Notes the problem that ends the block, if one does."""
        try:
            yield
        except Problem as problem:
            self.add(where, problem)

    def check(self) -> None:
        """Raises a UserError with all problems, if there are any."""
        if self.count:
            more = [f"and {self.count - len(self.shown)} more"] if self.count > len(self.shown) else []
            found = "1 problem" if self.count == 1 else f"{self.count} problems"
            raise UserError("\n  ".join([f"{found}, so nothing was imported", *self.shown, *more]))


def shown(value: Any) -> str:
    """A value from a file as an error shows it: short, and with control characters escaped."""
    return reprlib.repr(value)


def json_value(text: str, what: str) -> Any:
    """The value that JSON text stands for.

    Raises:
        Problem: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{what} is not valid JSON ({_reason(error)})", "export the file again") from None


def rows(path: str | Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array or of JSON lines, each with where it stands, in memory for one row.

    What cannot be read is noted in `problems`. Rows of an array count from 0, lines from 1.
    """
    path = existing(path)
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            while (character := stream.read(1)).isspace():
                pass
            stream.seek(0)
            found = _array(stream, str(path), problems) if character == "[" else _lines(stream, str(path), problems)
            for where, row in found:
                if isinstance(row, dict):
                    yield where, row
                else:
                    problems.add(where, Problem(f"{shown(row)} is not a JSON object", "choose the file's own --format"))
    except UnicodeDecodeError as error:
        problems.add(str(path), Problem(f"not UTF-8 text ({error.reason})", "save it as UTF-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def parquet_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, each with where it stands, from 0."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = existing(path)
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error


def _lines(stream: TextIO, name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    number = 0
    while line := stream.readline(LARGEST_ROW):
        number += 1
        where = f"{name}: line {number}"
        if len(line) == LARGEST_ROW:
            problems.add(where, Problem(f"longer than {LARGEST_ROW} characters", "take this row out"))
            return
        if line.strip():
            with problems.at(where):
                yield where, json_value(line, "the line")


def _array(stream: TextIO, name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """The elements of one array: as much is read as the next element needs."""
    decoder = json.JSONDecoder()
    at, buffer = _skip(stream, "", 0, " \t\r\n")
    at, index = at + 1, 0  # behind the bracket
    while True:
        at, buffer = _skip(stream, buffer, at, " \t\r\n" + ("," if index else ""))
        where = f"{name}: row {index}"
        if buffer[at : at + 1] == "]":
            return
        while True:
            try:
                value, end = decoder.raw_decode(buffer, at)
                if end < len(buffer) or isinstance(value, dict):  # a number may go on in the next block
                    break
                error: Exception = ValueError("the array does not end")
            except (ValueError, RecursionError) as caught:
                error = caught
            buffer, at = buffer[at:], 0
            more = "" if len(buffer) > LARGEST_ROW else stream.read(max(BLOCK, len(buffer)))
            if not more or isinstance(error, RecursionError):
                what = f"not valid JSON, or larger than {LARGEST_ROW} characters ({_reason(error)})"
                problems.add(where, Problem(what, "export the file again; what follows was not read"))
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
