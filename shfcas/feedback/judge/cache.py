"""A file of a judge's replies, one JSON line each, so that no question is paid for twice."""

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shfcas.feedback.judge.prompt import EMPTY, VERDICTS
from shfcas.utils.config import fingerprint
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors, lock_file, parse_jsonl


@dataclass(frozen=True)
class Reply:
    """The judge's reply to one request.

    Attributes:
        key: the key of the request, see `request_key`.
        verdict: `A`, `B`, `TIE`, or None for a malformed reply.
        reason: the judge's reason; for a malformed reply, the error and the beginning of the reply.
        input_tokens: tokens sent, as the endpoint counts them; None if it does not count them.
        output_tokens: tokens received.
    """

    key: str
    verdict: str | None
    reason: str
    input_tokens: int | None
    output_tokens: int | None


def request_key(host: str, body: dict[str, Any]) -> str:
    """Returns the key of a request: equal for the same model, settings, texts and order at the same host."""
    return fingerprint([host, body])


class ReplyCache:
    """Replies by key, in an append-only file; a reply is on the disk when `add` returns.

    A line that a kill has cut off is dropped. Malformed replies are kept so that people can read them and their cost
    is counted, but the question is asked again, unless the reply was empty.

    Args:
        path: the file; it is created if it does not exist. One process at a time may have it open.

    Raises:
        UserError: another process has it open, it cannot be written, or it contains something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._guard = threading.Lock()
        with disk_errors(str(self.path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        try:
            lock_file(self._file, self.path)
            self.replies = self._read()
        except BaseException:
            self._file.close()
            raise
        self._verdicts: dict[str, Reply] = {}
        self._empty: dict[str, str] = {}
        for reply in self.replies:
            self._index(reply)

    def _read(self) -> list[Reply]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        try:
            lines = whole.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: not a file of a judge's replies; name another file") from None
        return [self._reply(row) for row in parse_jsonl(lines, str(self.path))]

    def _reply(self, row: dict[str, Any]) -> Reply:
        try:
            reply = Reply(**row)
        except TypeError:
            reply = None
        counts = (reply.input_tokens, reply.output_tokens) if reply else ()
        if (
            reply is None
            or not (isinstance(reply.key, str) and isinstance(reply.reason, str))
            or reply.verdict not in (None, *VERDICTS)
            or any(not (n is None or (isinstance(n, int) and n >= 0)) for n in counts)
        ):
            raise UserError(f"{self.path}: not a file of a judge's replies; name another file")
        return reply

    def get(self, key: str) -> Reply | None:
        """Returns the reply with a verdict to this request; None if there is none."""
        return self._verdicts.get(key)

    def empty(self, key: str) -> str | None:
        """Returns why a reply to this request was empty, possibly ""; None if there is no empty reply."""
        return self._empty.get(key)

    def add(self, reply: Reply) -> None:
        """Writes a reply to the disk.

        Raises:
            UserError: the disk is full.
        """
        line = json.dumps(asdict(reply)) + "\n"
        with self._guard, disk_errors(str(self.path)):
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.replies.append(reply)
            self._index(reply)

    def _index(self, reply: Reply) -> None:
        if reply.verdict is not None:
            self._verdicts[reply.key] = reply
        elif reply.reason.startswith(EMPTY):
            self._empty[reply.key] = reply.reason.partition(":")[0].removeprefix(EMPTY)

    def close(self) -> None:
        """Closes the file, and writes what `add` could not write to a full disk.

        Raises:
            UserError: the disk is still full.
        """
        with disk_errors(str(self.path)):
            self._file.close()

    def __enter__(self) -> "ReplyCache":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.close()
        except UserError:
            if kind is None:  # otherwise the first error is raised
                raise
