"""Who may answer: names and tokens in a file of the run directory."""

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
SOLE = "annotator"  # whoever answers, where nobody was named
HEADER = "# One person a line: a name and the token of the sign-in link. Without its line, a link no longer works.\n"
_NAME = re.compile(r"[\w.@-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")


def add_annotators(folder: str | Path, names: Sequence[str] = ()) -> dict[str, str]:
    """Adds the names that are not there yet, each with a token of its own; a file without anybody gets `annotator`.

    Several processes may do so at once. Only the owner of the file may read it.

    Returns:
        The tokens by name, of everybody in the file.

    Raises:
        UserError: a name cannot be one, or a line of the file cannot be read.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"annotators: {name!r} cannot be a name; use up to 64 letters, digits and any of . _ - @")
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
    """The people of a run; the file is read again when it has changed, so people come and go without a restart."""

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / FILE
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._tokens: dict[str, str] = {}
        self._sessions: dict[str, str] = {}

    def tokens(self) -> dict[str, str]:
        """The tokens by name. While the file cannot be read, those that it last held, and the log says why."""
        with self._lock:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._tokens = _parse(self._path.read_text(encoding="utf-8"), self._path)
                    self._sessions = {name: _derived(token, "session") for name, token in self._tokens.items()}
                except (OSError, UserError, UnicodeDecodeError) as error:
                    logger.error("%s; nothing changes until it can be read again", error)
            return self._tokens

    def by_token(self, token: str) -> str | None:
        """Whose token it is; takes as long whether it is anybody's or not."""
        return _owner(token, self.tokens())

    def by_session(self, cookie: str) -> str | None:
        """Whose cookie it is; takes as long whether it is anybody's or not."""
        self.tokens()
        return _owner(cookie, self._sessions)

    def session(self, name: str) -> str:
        """The cookie of a person: nothing has to be kept for it, and a new token ends it."""
        return _derived(self.tokens()[name], "session")

    def csrf(self, name: str) -> str:
        """What the person's own page sends with each change, and nobody else's can know."""
        return _derived(self.tokens()[name], "csrf")

    def is_csrf(self, token: str, name: str) -> bool:
        """Whether it came from a page of this person."""
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
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # The line itself may hold a token, so it is not shown.
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _TOKEN.fullmatch(words[1]):
            raise UserError(f"{path}: line {number} is not a name and a token of 16 letters or digits or more")
        if words[0] in people or words[1] in people.values():
            raise UserError(f"{path}: line {number} repeats a name or a token; each person needs their own")
        people[words[0]] = words[1]
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
