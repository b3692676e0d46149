"""Routes of the page's script: sign-in, comparisons, answers, numbers."""

from contextlib import suppress
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from shfcas.feedback.annotation.store import StoreError
from shfcas.feedback.web.annotators import STRONG_BITS, strength
from shfcas.feedback.web.bodies import Answer, Empty, Ended, Look, SignIn, Undo
from shfcas.feedback.web.dependencies import Changer, Observer, SignedIn, State, Writer, note_signed_in, sign_in_form
from shfcas.feedback.web.security import Refused, json_response
from shfcas.feedback.web.sessions import SECONDS, csrf_of

MAX_HELD = 100  # comparisons that a browser may have open

router = APIRouter(prefix="/api")


@router.post("/sign-in", dependencies=[Depends(sign_in_form)])
def sign_in(body: SignIn, request: Request, state: State) -> Response:
    """Exchanges a token for a session cookie."""
    token = body.token if isinstance(body.token, str) else ""
    # Many wrong tokens in all make hand-chosen ones wait. Those made here cannot be guessed at any speed and never
    # wait: a stranger must not lock out annotators who share the address of a proxy with them.
    if strength(token[:128]) < STRONG_BITS:
        state.failures.check_all()
    name = state.annotators.by_token(token)
    if name is None:
        address = request.client.host if request.client else ""
        state.failures.check(address)
        state.failures.failed(address)
        raise Refused(401, "unknown token; copy the whole sign-in link")
    note_signed_in(request, name)
    cookie = state.sessions.begin(name, token, request.headers.get("user-agent", ""))
    response = json_response({"name": name, "csrf": csrf_of(cookie)})
    response.set_cookie(
        state.cookie,
        cookie,
        max_age=int(SECONDS),
        path=f"{state.settings.root}/",
        httponly=True,
        samesite="strict",
        secure=bool(state.settings.address and state.settings.address.startswith("https:")),
    )
    return response


@router.post("/sign-out")
async def sign_out(body: Empty, visit: Changer, state: State) -> Response:
    """Ends the session of this browser on the server, too; the last one releases the open comparisons."""
    await _end(state, visit.name, visit.session)
    response = json_response({"name": None})
    response.delete_cookie(state.cookie, path=f"{state.settings.root}/", httponly=True, samesite="strict")
    return response


@router.get("/sessions")
async def sessions(visit: Observer, state: State) -> Response:
    """Returns the browsers in which the person is signed in, the latest used first."""
    found = state.sessions.of(visit.name, state.annotators.tokens())
    facts = ({"id": s.id, "device": s.device, "begin": s.begin, "used": s.used} for s in found)
    return json_response({"sessions": [each | {"here": each["id"] == visit.session} for each in facts]})


@router.post("/sessions/end")
async def end_session(body: Ended, visit: Changer, state: State) -> Response:
    """Ends the session of another browser of the same person."""
    await _end(state, visit.name, body.session)
    return json_response({"ended": body.session})


async def _end(state: State, name: str, session: str) -> None:
    await run_sync(state.sessions.end, name, session)
    if not state.sessions.of(name, state.annotators.tokens()):
        with suppress(StoreError):  # the session has ended in any case, and the leases end by themselves
            await state.write(state.desk.leave, name)


@router.get("/me")
def me(visit: Observer, state: State) -> Response:
    """Returns the person, their CSRF token, the queue, and whether there are guidelines."""
    facts = {"name": visit.name, "csrf": visit.csrf, "observes": visit.observes, "queue": state.desk.queue()}
    return json_response(facts | {"guidelines": state.settings.guidelines is not None})


@router.get("/next")
async def next_task(
    name: SignedIn, state: State, held: Annotated[tuple[str, ...], Query(max_length=MAX_HELD)] = ()
) -> Response:
    """Returns the next comparison that is not among those held.

    The page checks name and run of the reply: the browser may have another session by now.
    """
    task = await state.write(state.desk.next, name, held)
    return json_response({"name": name, "run": state.cookie} | task)


@router.post("/judgements")
async def judge(body: Answer, name: Writer, state: State) -> Response:
    """Writes an answer into the log."""
    return json_response(await state.write(state.desk.judge, name, body))


@router.post("/why")
async def why(body: Look, name: Writer, state: State) -> Response:
    """Returns why an answered comparison was asked; the log keeps that the annotator has looked."""
    return json_response(await state.write(state.desk.why, name, body))


@router.post("/undo")
async def undo(body: Undo, name: Writer, state: State) -> Response:
    """Withdraws an answer and returns its comparison."""
    return json_response(await state.write(state.desk.undo, name, body))


@router.get("/dashboard")
def dashboard(visit: Observer, state: State) -> Response:
    """Returns the numbers of the dashboard."""
    return json_response(state.desk.dashboard(visit.name))
