"""Sign-ins: one per browser, kept in a private file of the run, each of which can be ended."""

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shfcas.utils.files import atomic_file

logger = logging.getLogger(__name__)

FILE = "sessions.json"
SECONDS = 30 * 24 * 3600.0
PER_PERSON = 20  # of more, the one that was used least recently ends
_PARTS = {
    "system": re.compile(r"iPhone|iPad|Android|Windows|Mac OS X|CrOS|Linux"),
    "browser": re.compile(r"Firefox|Edg|OPR|Chrome|Safari"),
}
_NAMES = {"Edg": "Edge", "OPR": "Opera", "Mac OS X": "macOS", "CrOS": "ChromeOS"}


@dataclass(frozen=True)
class Session:
    """A browser that is signed in.

    Attributes:
        id: public name of the session.
        name: the annotator.
        secret: hash of the cookie; the cookie itself is only in the browser.
        token: hash of the token that it was made with: a new token ends it.
        device: browser and system, as the browser names them.
        begin: time of the sign-in, seconds since 1970.
        used: time of the latest use.
    """

    id: str
    name: str
    secret: str
    token: str
    device: str
    begin: float
    used: float


class Sessions:
    """Sessions of a run. They survive a restart of the server, which alone writes the file.

    Args:
        folder: the run directory.
        clock: returns the time, seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = folder / FILE, clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}  # by secret
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            self._sessions = {row["secret"]: Session(**row) for row in rows}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s: cannot be read (%s); everybody signs in again", self._path, error.__class__.__name__)

    def begin(self, name: str, token: str, agent: str) -> str:
        """Begins a session and returns its cookie.

        Args:
            name: the annotator.
            token: the token that they signed in with.
            agent: how their browser names itself.
        """
        cookie, now = secrets.token_hex(32), self._clock()
        session = Session(secrets.token_hex(8), name, _hash(cookie), _hash(token), device_of(agent), now, now)
        with self._lock:
            self._sessions[session.secret] = session
            theirs = sorted((s for s in self._sessions.values() if s.name == name), key=lambda s: s.used)
            for old in theirs[:-PER_PERSON]:
                del self._sessions[old.secret]
            self._save()
        return cookie

    def find(self, cookie: str, tokens: dict[str, str]) -> Session | None:
        """Returns the session of a cookie, or None if there is none, it has expired or its token has changed."""
        now = self._clock()
        with self._lock:
            session = self._sessions.get(_hash(cookie))
            if session is None or not _is_valid(session, tokens, now):
                return None
            session = self._sessions[session.secret] = replace(session, used=now)  # written with the next change
            return session

    def of(self, name: str, tokens: dict[str, str]) -> list[Session]:
        """Returns the sessions of an annotator, latest use first."""
        with self._lock:
            theirs = [s for s in self._sessions.values() if s.name == name and _is_valid(s, tokens, self._clock())]
        return sorted(theirs, key=lambda s: s.used, reverse=True)

    def end(self, name: str, id: str) -> bool:
        """Ends a session of an annotator; returns False if there is none with this id."""
        with self._lock:
            ended = [s for s in self._sessions.values() if s.name == name and s.id == id]
            for session in ended:
                del self._sessions[session.secret]
            if ended:
                self._save()
            return bool(ended)

    def _save(self) -> None:
        now = self._clock()
        self._sessions = {secret: s for secret, s in self._sessions.items() if now < s.begin + SECONDS}
        with atomic_file(self._path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(json.dumps([asdict(s) for s in self._sessions.values()]), encoding="utf-8")


def csrf_of(cookie: str) -> str:
    """Returns the secret that the pages of a session send with each change."""
    return hmac.new(cookie.encode("utf-8", "replace"), b"csrf", hashlib.sha256).hexdigest()


def device_of(agent: str) -> str:
    """Returns browser and system from a User-Agent header; nothing else of it is kept.

    >>> device_of("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0.0.0 Safari/537.36")
    'Chrome on Linux'
    """
    found = {part: pattern.search(agent) for part, pattern in _PARTS.items()}
    system, browser = (_NAMES.get(match[0], match[0]) if match else "unknown" for match in found.values())
    if "Edg/" in agent or "OPR/" in agent:  # these name Chrome, too
        browser = "Edge" if "Edg/" in agent else "Opera"
    return f"{browser} on {system}"


def _is_valid(session: Session, tokens: dict[str, str], now: float) -> bool:
    token = tokens.get(session.name)
    return token is not None and session.token == _hash(token) and now < session.begin + SECONDS


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
