"""Dependencies of the routes: the page's state, the annotator of a request, the checks before a change."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.desk import Desk
from shfcas.feedback.web.security import FailedSignIns, Refused


@dataclass(frozen=True)
class PageState:
    """Objects that the routes of one run share.

    Attributes:
        desk: source of comparisons, destination of answers.
        annotators: people who can sign in.
        settings: host, address and guidelines.
        cookie: name of the session cookie. It also names the run: browsers share cookies between all ports of a
            machine, and several runs may have a page there.
        failures: failed sign-ins by address.
    """

    desk: Desk
    annotators: Annotators
    settings: HumanConfig
    cookie: str
    failures: FailedSignIns


async def page_state(request: Request) -> PageState:
    """Returns the state that `make_app` stored in the application."""
    state: PageState = request.app.state.page
    return state


State = Annotated[PageState, Depends(page_state)]


def visitor(request: Request, state: State) -> str | None:
    """Returns the name of the annotator who sends the request, or None without a session."""
    return state.annotators.by_session(request.cookies.get(state.cookie, ""))


Visitor = Annotated[str | None, Depends(visitor)]


async def annotator(name: Visitor) -> str:
    """Returns the name of the annotator who sends the request.

    Raises:
        Refused: there is no session.
    """
    if name is None:
        raise Refused(401, "sign in first", "session")
    return name


SignedIn = Annotated[str, Depends(annotator)]


def writer(request: Request, name: SignedIn, state: State) -> str:
    """Returns the name of the annotator who changes something from a page of their own.

    Raises:
        Refused: the CSRF token belongs to another session, or the body is not JSON.
    """
    if not state.annotators.is_csrf(request.headers.get("x-csrf-token", ""), name):
        raise Refused(403, "this page belongs to another sign-in; load it again", "csrf")
    _check_json(request)
    return name


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
