"""The routes of the page: who may ask for what, and in which shape it comes and goes."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import StoreError
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.desk import Desk
from shfcas.feedback.web.guidelines import rendered
from shfcas.feedback.web.security import FailedSignIns, Guard, Refused, json_response, read_json
from shfcas.utils.errors import UserError

TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
SESSION_SECONDS = 30 * 24 * 3600


def make_app(folder: Path, desk: Desk, settings: HumanConfig) -> Guard:
    """The page of a run directory, as an ASGI application.

    Args:
        folder: the run directory, in which the annotators stand.
        desk: where comparisons come from and answers go.
        settings: host, address and guidelines.
    """
    silent: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=silent)
    people, failures = Annotators(folder), FailedSignIns()
    # Cookies are shared by all ports of a machine, on which there may be pages of several runs.
    cookie = "shfcas_" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    static, version = _static_files(), page_version()
    templates = Environment(
        loader=PackageLoader("shfcas.feedback.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )

    def signed_in(request: Request) -> str | None:
        return people.by_session(request.cookies.get(cookie, ""))

    def annotator(request: Request) -> str:
        name = signed_in(request)
        if name is None:
            raise Refused(401, "sign in first", "session")
        return name

    async def change(request: Request) -> tuple[str, dict[str, Any]]:
        """Who changes what; the token of their own page goes with it."""
        name = await run_in_threadpool(annotator, request)
        if not people.is_csrf(request.headers.get("x-csrf-token", ""), name):
            raise Refused(403, "this page belongs to another sign-in; load it again", "csrf")
        return name, await read_json(request)

    def page(template: str, name: str | None, **more: Any) -> Response:
        context = {
            "csrf": people.csrf(name) if name else "",
            "page_version": version,
            "run": cookie,  # what a browser keeps is kept for a run, too
            "signed_in": name,
            "queue": desk.queue(),
        }
        return HTMLResponse(templates.get_template(template).render(**context, **more))

    @app.get("/")
    def index(request: Request) -> Response:
        return page("index.html.j2", signed_in(request))

    @app.get("/dashboard")
    def dashboard(request: Request) -> Response:
        name = signed_in(request)
        return page("dashboard.html.j2", name) if name else RedirectResponse("/", 303)

    @app.get("/guidelines")
    def guidelines(request: Request) -> Response:
        name = signed_in(request)
        if not name:
            return RedirectResponse("/", 303)
        return page("guidelines.html.j2", name, html=rendered(settings.guidelines))

    @app.get("/static/{name}")
    async def static_file(name: str) -> Response:
        # A key among those read at the start, never a path.
        if name not in static:
            raise HTTPException(404)
        content, media_type = static[name]
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    @app.post("/api/sign-in")
    async def sign_in(request: Request) -> Response:
        if "x-csrf-token" not in request.headers:
            raise Refused(403, "only the page itself may sign in", "csrf")
        token = (await read_json(request)).get("token")
        name = people.by_token(token) if isinstance(token, str) else None
        if name is None:
            # Only wrong tokens have to wait: behind a proxy everybody comes from one address, and a stranger there
            # must not keep the others out. A right one is not to be found by trying, however fast.
            address = request.client.host if request.client else ""
            failures.check(address)
            failures.failed(address)
            raise Refused(401, "nobody has this token; copy the whole sign-in link")
        response = json_response({"name": name, "csrf": people.csrf(name)})
        response.set_cookie(
            cookie,
            people.session(name),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=bool(settings.address and settings.address.startswith("https:")),
        )
        return response

    @app.post("/api/sign-out")
    async def sign_out(request: Request) -> Response:
        name, _ = await change(request)
        await run_in_threadpool(desk.leave, name)
        response = json_response({"name": None})
        response.delete_cookie(cookie, httponly=True, samesite="strict")
        return response

    @app.get("/api/me")
    def me(request: Request) -> Response:
        name = annotator(request)
        facts = {"name": name, "csrf": people.csrf(name), "queue": desk.queue()}
        return json_response(facts | {"guidelines": settings.guidelines is not None})

    @app.get("/api/next")
    def next_task(request: Request) -> Response:
        name = annotator(request)
        # The page compares whom and which run it is of: the browser may have another session by now.
        facts = {"name": name, "run": cookie}
        return json_response(facts | desk.next(name, request.query_params.getlist("held")))

    @app.post("/api/judgements")
    async def judge(request: Request) -> Response:
        return json_response(await run_in_threadpool(desk.judge, *await change(request)))

    @app.post("/api/undo")
    async def undo(request: Request) -> Response:
        return json_response(await run_in_threadpool(desk.undo, *await change(request)))

    @app.get("/api/dashboard")
    def numbers(request: Request) -> Response:
        return json_response(desk.dashboard(annotator(request)))

    for kind, handler in HANDLERS.items():
        app.exception_handler(kind)(handler)
    return Guard(app, settings)


def page_version() -> str:
    """What changes with the page's files; noted with each answer."""
    digest = hashlib.sha256()
    for part in ("templates", "static"):
        for name, content in sorted(_files(part).items()):
            digest.update(f"{part}/{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _static_files() -> dict[str, tuple[bytes, str]]:
    """Content and type by name."""
    return {
        name: (content, TYPES[Path(name).suffix])
        for name, content in _files("static").items()
        if Path(name).suffix in TYPES and re.fullmatch(r"[\w.-]+", name)
    }


def _files(part: str) -> dict[str, bytes]:
    folder = files("shfcas.feedback.web") / part
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} if folder.is_dir() else {}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    return json_response({"error": "the server failed; its log says why"}, 500)  # Guard logs it


async def _wrong(request: Request, error: Exception) -> Response:
    # What the store cannot do now can be done later, and the page tries again; what is wrong stays wrong.
    return json_response({"error": str(error)}, 503 if isinstance(error, StoreError) else 400)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    Refused: _refused,
    HTTPException: _unknown,
    UserError: _wrong,
    Exception: _failed,
}
