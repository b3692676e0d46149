"""Routes of the page's script: sign-in, comparisons, answers, numbers."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from shfcas.feedback.web.bodies import Answer, Empty, SignIn, Undo
from shfcas.feedback.web.dependencies import SignedIn, State, Writer, sign_in_form
from shfcas.feedback.web.security import Refused, json_response

SESSION_SECONDS = 30 * 24 * 3600
MAX_HELD = 100  # comparisons that a browser may have open

router = APIRouter(prefix="/api")


@router.post("/sign-in", dependencies=[Depends(sign_in_form)])
def sign_in(body: SignIn, request: Request, state: State) -> Response:
    """Exchanges a token for a session cookie."""
    name = state.annotators.by_token(body.token) if isinstance(body.token, str) else None
    if name is None:
        # Only wrong tokens wait. Behind a proxy all requests come from one address, and a stranger there must not
        # lock out the annotators. Guessing a token is hopeless at any speed.
        address = request.client.host if request.client else ""
        state.failures.check(address)
        state.failures.failed(address)
        raise Refused(401, "unknown token; copy the whole sign-in link")
    response = json_response({"name": name, "csrf": state.annotators.csrf(name)})
    response.set_cookie(
        state.cookie,
        state.annotators.session(name),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=bool(state.settings.address and state.settings.address.startswith("https:")),
    )
    return response


@router.post("/sign-out")
def sign_out(body: Empty, name: Writer, state: State) -> Response:
    """Ends the session in this browser, and releases the annotator's open comparisons."""
    state.desk.leave(name)
    response = json_response({"name": None})
    response.delete_cookie(state.cookie, httponly=True, samesite="strict")
    return response


@router.get("/me")
def me(name: SignedIn, state: State) -> Response:
    """Returns the annotator, their CSRF token, the queue, and whether there are guidelines."""
    facts = {"name": name, "csrf": state.annotators.csrf(name), "queue": state.desk.queue()}
    return json_response(facts | {"guidelines": state.settings.guidelines is not None})


@router.get("/next")
def next_task(
    name: SignedIn, state: State, held: Annotated[list[str], Query(default_factory=list, max_length=MAX_HELD)]
) -> Response:
    """Returns the next comparison that is not among those held.

    The page checks name and run of the reply: the browser may have another session by now.
    """
    return json_response({"name": name, "run": state.cookie} | state.desk.next(name, held))


@router.post("/judgements")
def judge(body: Answer, name: Writer, state: State) -> Response:
    """Writes an answer into the log."""
    return json_response(state.desk.judge(name, body))


@router.post("/undo")
def undo(body: Undo, name: Writer, state: State) -> Response:
    """Withdraws an answer and returns its comparison."""
    return json_response(state.desk.undo(name, body))


@router.get("/dashboard")
def dashboard(name: SignedIn, state: State) -> Response:
    """Returns the numbers of the dashboard."""
    return json_response(state.desk.dashboard(name))
