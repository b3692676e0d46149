"""Annotators of a run: names and tokens in a file of the run directory."""

import fcntl
import hmac
import itertools
import logging
import math
import os
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

FILE = "annotators.txt"
SOLE = "annotator"  # the name if no names were given
HEADER = (
    "# One annotator per line: name and token of the sign-in link; observers see the dashboard and have a third word, "
    "observer. Remove a line to revoke its link.\n"
)
OBSERVER = "observer"
MIN_BITS = 40.0  # of a token that was chosen by hand; see `strength`
STRONG_BITS = 64.0  # a token that nobody can guess at any speed; the tokens made here have about 100
_NAME = re.compile(r"[\w.@-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")


@dataclass(frozen=True)
class Entry:
    """Line of the file.

    Attributes:
        token: secret of the sign-in link.
        observes: True if the holder only sees the dashboard.
    """

    token: str
    observes: bool = False


def add_annotators(folder: str | Path, names: Sequence[str] = (), observers: Sequence[str] = ()) -> dict[str, str]:
    """Adds the names that are missing, each with a token of its own. A file without annotators gets `annotator`.

    Several processes may do so at once. Only the file's owner may read it.

    Args:
        folder: the run directory.
        names: annotators.
        observers: people who only see the dashboard.

    Returns:
        The tokens of all in the file, by name.

    Raises:
        UserError: a name is invalid or of both kinds, or a line of the file cannot be read.
    """
    for name in (*names, *observers):
        if not _NAME.fullmatch(name):
            raise UserError(f"annotators: expected names of up to 64 letters, digits and any of . _ - @, got {name!r}")
    path = Path(folder) / FILE
    with os.fdopen(_open(path), "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        known = _parse(text, path)
        has_annotators = any(not entry.observes for entry in known.values())
        wanted = dict.fromkeys(list(names) or ([] if has_annotators else [SOLE]), False)
        for name in observers:
            wanted.setdefault(name, True)
        for name in (*names, *observers):
            observes = name in observers
            if (name in known and known[name].observes != observes) or wanted[name] != observes:
                raise UserError(f"annotators: {name!r} cannot both answer and only observe; use another name")
        new = {n: Entry(secrets.token_hex(16), observes) for n, observes in wanted.items() if n not in known}
        if new:
            start = HEADER if not text else "" if text.endswith("\n") else "\n"
            lines = (f"{name} {e.token}{' ' + OBSERVER if e.observes else ''}\n" for name, e in new.items())
            file.write(start + "".join(lines))
            file.flush()
            os.fsync(file.fileno())
    return {name: entry.token for name, entry in (known | new).items()}


class Annotators:
    """Annotators of a run. A changed file is read again, so annotators come and go without a restart."""

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / FILE
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._entries: dict[str, Entry] = {}

    def entries(self) -> dict[str, Entry]:
        """Returns the lines by name. If the file cannot be read, the last ones stay and the log says why."""
        with self._lock:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._entries = _parse(self._path.read_text(encoding="utf-8"), self._path)
                except (OSError, UserError, UnicodeDecodeError) as error:
                    logger.error("%s; the last known annotators stay until the file can be read", error)
            return self._entries

    def tokens(self) -> dict[str, str]:
        """Returns the tokens of all in the file, by name."""
        return {name: entry.token for name, entry in self.entries().items()}

    def people(self) -> set[str]:
        """Returns the names of those who may answer."""
        return {name for name, entry in self.entries().items() if not entry.observes}

    def by_token(self, token: str) -> str | None:
        """Returns the name with this token, or None; takes the same time for both."""
        owner = None
        for name, known in self.tokens().items():
            if hmac.compare_digest(token.encode("utf-8", "replace"), known.encode()):
                owner = name
        return owner

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


def _parse(text: str, path: Path) -> dict[str, Entry]:
    people: dict[str, Entry] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        # The messages do not show the line: it may hold a token.
        known = len(fields) == 2 or (len(fields) == 3 and fields[2] == OBSERVER)
        if not known or not _NAME.fullmatch(fields[0]) or not _TOKEN.fullmatch(fields[1]):
            raise UserError(f"{path}: line {number}: expected a name and a token of at least 16 letters or digits")
        if strength(fields[1]) < MIN_BITS:
            raise UserError(
                f"{path}: line {number}: the token is easy to guess; delete the line and let "
                "shfcas annotate --annotators make one"
            )
        if fields[0] in people or fields[1] in {entry.token for entry in people.values()}:
            raise UserError(f"{path}: line {number} repeats a name or a token; give each annotator their own")
        people[fields[0]] = Entry(fields[1], len(fields) == 3)
    return people


def strength(token: str) -> float:
    """Estimates how many bits of a token cannot be guessed from the rest of it.

    Letters that repeat the one before, continue a sequence such as `abc` or `321`, or end a pair that occurred before
    add nothing. The others add the logarithm of the number of different letters.

    >>> [round(strength(token)) for token in ("a" * 32, "0123456789abcdef", "passwordpassword", "9f3c71e05ab8d264")]
    [0, 8, 22, 60]
    """
    pairs: set[str] = set()
    new = 1
    for before, letter in itertools.pairwise(token):
        if abs(ord(letter) - ord(before)) > 1 and before + letter not in pairs:
            new += 1
        pairs.add(before + letter)
    return new * math.log2(len(set(token))) if len(set(token)) > 1 else 0.0
