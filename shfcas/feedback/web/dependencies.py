"""Dependencies of the routes: the page's state, the person of a request, the checks before a change."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from anyio.to_thread import run_sync
from fastapi import Depends, Request

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import StoreError
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.desk import Desk
from shfcas.feedback.web.security import FailedSignIns, Refused
from shfcas.feedback.web.sessions import Sessions, csrf_of

WRITE_SECONDS = 2.0  # how long a request waits for others that write
WRITERS = 8  # threads that may wait for others that write; all other threads serve reads and pages

Result = TypeVar("Result")


@dataclass(frozen=True)
class PageState:
    """Objects that the routes of one run share.

    Attributes:
        folder: the run directory.
        desk: source of comparisons, destination of answers.
        annotators: people who can sign in.
        sessions: browsers that are signed in.
        settings: host, address and guidelines.
        cookie: name of the session cookie. It also names the run: browsers share cookies between all ports of a
            machine, and several runs may have a page there.
        failures: failed sign-ins by address.
        writers: threads that may write.
    """

    folder: Path
    desk: Desk
    annotators: Annotators
    sessions: Sessions
    settings: HumanConfig
    cookie: str
    failures: FailedSignIns
    writers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(WRITERS))

    async def write(self, work: Callable[..., Result], *values: object) -> Result:
        """Runs something that writes, in a thread of those that may.

        Raises:
            StoreError: others wrote for two seconds, here or in another process.
        """
        end = time.monotonic() + WRITE_SECONDS
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self.writers.acquire()
        except TimeoutError:
            raise StoreError("other answers are being written for too long; try again") from None
        try:
            return await run_sync(lambda: self.desk.within(end - time.monotonic(), work, *values))
        finally:
            self.writers.release()


async def page_state(request: Request) -> PageState:
    """Returns the state that `make_app` stored in the application."""
    state: PageState = request.app.state.page
    return state


State = Annotated[PageState, Depends(page_state)]


@dataclass(frozen=True)
class Visit:
    """A person at the page.

    Attributes:
        name: of the person.
        csrf: the secret that their own page sends with each change.
        session: id of the session, or empty if a proxy signed them in.
        observes: True if they only see the dashboard.
    """

    name: str
    csrf: str
    session: str
    observes: bool


async def visitor(request: Request, state: State) -> Visit | None:
    """Returns who sends the request, or None without a session. It looks at memory only, so it never waits."""
    entries = state.annotators.entries()
    name = _named_by_proxy(request, state.settings)
    if name is not None:
        if name not in entries:
            raise Refused(403, "you are signed in elsewhere, but are no annotator here", "unknown")
        key = entries[name].token.encode()
        visit = Visit(name, hmac.new(key, b"csrf", hashlib.sha256).hexdigest(), "", entries[name].observes)
    else:
        cookie = request.cookies.get(state.cookie, "")
        session = state.sessions.find(cookie, {name: entry.token for name, entry in entries.items()})
        if session is None:
            return None
        visit = Visit(session.name, csrf_of(cookie), session.id, entries[session.name].observes)
    note_signed_in(request, visit.name)
    return visit


def note_signed_in(request: Request, name: str) -> None:
    """Notes whose connection it is, so that it is not among those of strangers, which are dropped when many come."""
    connection = getattr(request.state, "connection", None)
    if connection is not None:
        connection.signed_in(name)


def _named_by_proxy(request: Request, settings: HumanConfig) -> str | None:
    """Returns the name in the header of a trusted proxy; from anywhere else the header means nothing."""
    if settings.user_header is None or not request.client or request.client.host not in settings.user_header_from:
        return None
    names = request.headers.getlist(settings.user_header)
    if len(names) > 1:
        raise Refused(400, "the name of the annotator was given twice")
    return names[0].strip() if names and names[0].strip() else None


Visitor = Annotated[Visit | None, Depends(visitor)]


async def observer(visit: Visitor) -> Visit:
    """Returns who sends the request.

    Raises:
        Refused: there is no session.
    """
    if visit is None:
        raise Refused(401, "sign in first", "session")
    return visit


Observer = Annotated[Visit, Depends(observer)]


async def annotator(visit: Observer) -> str:
    """Returns the name of the annotator who sends the request.

    Raises:
        Refused: there is no session, or it is of an observer.
    """
    if visit.observes:
        raise Refused(403, "you are an observer: you see the dashboard and cannot answer", "observer")
    return visit.name


SignedIn = Annotated[str, Depends(annotator)]


async def changer(request: Request, visit: Observer) -> Visit:
    """Returns who changes something from a page of their own.

    Raises:
        Refused: the CSRF token belongs to another session, or the body is not JSON.
    """
    token = request.headers.get("x-csrf-token", "")
    if not hmac.compare_digest(token.encode("utf-8", "replace"), visit.csrf.encode()):
        raise Refused(403, "this page belongs to another sign-in; load it again", "csrf")
    _check_json(request)
    return visit


Changer = Annotated[Visit, Depends(changer)]


async def writer(visit: Changer) -> str:
    """Returns the name of the annotator who changes something from a page of their own."""
    return await annotator(visit)


Writer = Annotated[str, Depends(writer)]


async def sign_in_form(request: Request) -> None:
    """Checks that a sign-in comes from a script of the page: the forms of other sites cannot set a header.

    Raises:
        Refused: there is no CSRF header, or the body is not JSON.
    """
    if "x-csrf-token" not in request.headers:
        raise Refused(403, "only the page itself may sign in", "csrf")
    _check_json(request)


def _check_json(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected a body of type application/json")
