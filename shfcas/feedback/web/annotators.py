"""Annotators of a run: names and tokens in a file of the run directory."""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

FILE = "annotators.txt"
SOLE = "annotator"  # the name if no names were given
HEADER = "# One annotator per line: name and token of the sign-in link. Remove a line to revoke its link.\n"
_NAME = re.compile(r"[\w.@-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")


def add_annotators(folder: str | Path, names: Sequence[str] = ()) -> dict[str, str]:
    """Adds the names that are missing, each with a token of its own. A file without names gets `annotator`.

    Several processes may do so at once. Only the file's owner may read it.

    Returns:
        The tokens of all annotators in the file, by name.

    Raises:
        UserError: a name is invalid, or a line of the file cannot be read.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"annotators: expected names of up to 64 letters, digits and any of . _ - @, got {name!r}")
    path = Path(folder) / FILE
    with os.fdopen(_open(path), "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        known = _parse(text, path)
        wanted = list(names) or ([] if known else [SOLE])
        new = {name: secrets.token_hex(16) for name in wanted if name not in known}
        if new:
            start = HEADER if not text else "" if text.endswith("\n") else "\n"
            file.write(start + "".join(f"{name} {token}\n" for name, token in new.items()))
            file.flush()
            os.fsync(file.fileno())
    return known | new


class Annotators:
    """Annotators of a run. A changed file is read again, so annotators come and go without a restart."""

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / FILE
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._tokens: dict[str, str] = {}
        self._sessions: dict[str, str] = {}

    def tokens(self) -> dict[str, str]:
        """Returns the tokens by name. If the file cannot be read, the last ones stay and the log says why."""
        with self._lock:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._tokens = _parse(self._path.read_text(encoding="utf-8"), self._path)
                    self._sessions = {name: _derived(token, "session") for name, token in self._tokens.items()}
                except (OSError, UserError, UnicodeDecodeError) as error:
                    logger.error("%s; the last known annotators stay until the file can be read", error)
            return self._tokens

    def by_token(self, token: str) -> str | None:
        """Returns the annotator with this token, or None; takes the same time for both."""
        return _owner(token, self.tokens())

    def by_session(self, cookie: str) -> str | None:
        """Returns the annotator with this session cookie, or None; takes the same time for both."""
        self.tokens()
        return _owner(cookie, self._sessions)

    def session(self, name: str) -> str:
        """Returns the session cookie of an annotator. It is derived from the token, so a new token ends the session."""
        return _derived(self.tokens()[name], "session")

    def csrf(self, name: str) -> str:
        """Returns the secret that an annotator's own page sends with each change."""
        return _derived(self.tokens()[name], "csrf")

    def is_csrf(self, token: str, name: str) -> bool:
        """Checks that a CSRF token comes from a page of this annotator."""
        return _same(token, self.csrf(name))

    def _stamp_now(self) -> tuple[int, ...]:
        try:
            state = self._path.stat()
        except OSError:
            return (0,)
        return (state.st_ino, state.st_size, state.st_mtime_ns)


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from error
    return descriptor


def _parse(text: str, path: Path) -> dict[str, str]:
    people: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        # The messages do not show the line: it may hold a token.
        if len(fields) != 2 or not _NAME.fullmatch(fields[0]) or not _TOKEN.fullmatch(fields[1]):
            raise UserError(f"{path}: line {number}: expected a name and a token of at least 16 letters or digits")
        if fields[0] in people or fields[1] in people.values():
            raise UserError(f"{path}: line {number} repeats a name or a token; give each annotator their own")
        people[fields[0]] = fields[1]
    return people


def _derived(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def _owner(secret: str, secrets_by_name: dict[str, str]) -> str | None:
    owner = None
    for name, known in secrets_by_name.items():
        if _same(secret, known):
            owner = name
    return owner


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), known.encode())
