"""The page as an ASGI application: routes, error handlers and guard put together."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import StoreError
from shfcas.feedback.web import api, pages
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.dependencies import PageState
from shfcas.feedback.web.desk import Desk
from shfcas.feedback.web.security import FailedSignIns, Guard, error_response, printable, without_paths
from shfcas.feedback.web.sessions import Sessions
from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1  # when to send again what could not be written


def make_app(folder: Path, desk: Desk, settings: HumanConfig) -> Guard:
    """Returns the page of a run directory.

    Args:
        folder: the run directory, which holds the file of annotators.
        desk: source of comparisons, destination of answers.
        settings: host, address and guidelines.
    """
    silent: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, telemetry=silent, exception_handlers=EXCEPTION_HANDLERS
    )
    cookie = "shfcas_" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    app.state.page = PageState(folder, desk, Annotators(folder), Sessions(folder), settings, cookie, FailedSignIns())
    app.include_router(pages.router)
    app.include_router(api.router)
    return Guard(app, settings)


async def _refused(request: Request, error: HTTPException) -> Response:
    return error_response(error)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """Names the first wrong field; the message never repeats its value."""
    first = error.errors()[0]
    place = first["loc"][-1]  # of malformed JSON, the position
    message = f"{place if isinstance(place, str) else 'body'}: {first['msg']}"
    return error_response(HTTPException(400, message))


async def _wrong(request: Request, error: UserError) -> Response:
    message = without_paths(str(error), request.app.state.page.folder)
    if isinstance(error, StoreError):  # the page tries again after a 503, and never after a 400
        logger.warning("%s", printable(str(error)))
        return error_response(HTTPException(503, message, {"Retry-After": str(RETRY_SECONDS)}))
    return error_response(HTTPException(400, message))


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(HTTPException(500, "the server failed; its log says why"))  # Guard logs the error


EXCEPTION_HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: _refused,
    RequestValidationError: _invalid,
    UserError: _wrong,
    Exception: _failed,
}
