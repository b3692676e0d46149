"""Routes of the pages and of their files."""

import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from shfcas.feedback.web.dependencies import PageState, State, Visit, Visitor
from shfcas.feedback.web.guidelines import render_guidelines

TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}

router = APIRouter()


@router.get("/")
def index(visit: Visitor, state: State) -> Response:
    """Returns the page with the comparisons, or with the sign-in; observers have only the dashboard."""
    if visit and visit.observes:
        return RedirectResponse(f"{state.settings.root}/dashboard", 303)
    return _page("index.html.j2", visit, state)


@router.get("/dashboard")
def dashboard(visit: Visitor, state: State) -> Response:
    """Returns the dashboard's page."""
    return _page("dashboard.html.j2", visit, state) if visit else RedirectResponse(f"{state.settings.root}/", 303)


@router.get("/guidelines")
def guidelines(visit: Visitor, state: State) -> Response:
    """Returns the guidelines as a page."""
    if not visit:
        return RedirectResponse(f"{state.settings.root}/", 303)
    return _page("guidelines.html.j2", visit, state, html=render_guidelines(state.settings.guidelines))


@router.get("/static/{name}")
async def static_file(name: str) -> Response:
    """Returns a script or a style sheet; the name is a key of a dictionary, never a path."""
    if name not in _static_files():
        raise HTTPException(404)
    content, media_type = _static_files()[name]
    return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})


def _page(template: str, visit: Visit | None, state: PageState, **more: Any) -> Response:
    context = {
        "csrf": visit.csrf if visit else "",
        "page_version": page_version(),
        "run": state.cookie,  # browser storage is kept per run
        "root": state.settings.root,
        "signed_in": visit.name if visit else "",
        "observes": visit is not None and visit.observes,
    }
    return HTMLResponse(_templates().get_template(template).render(**context, **more))


@cache
def page_version() -> str:
    """Returns a hash of the page's files, which is stored with each answer."""
    digest = hashlib.sha256()
    for part in ("templates", "static"):
        for name, content in sorted(_files(part).items()):
            digest.update(f"{part}/{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("shfcas.feedback.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


@cache
def _static_files() -> dict[str, tuple[bytes, str]]:
    """Returns content and media type by name."""
    return {
        name: (content, TYPES[Path(name).suffix])
        for name, content in _files("static").items()
        if Path(name).suffix in TYPES and re.fullmatch(r"[\w.-]+", name)
    }


def _files(part: str) -> dict[str, bytes]:
    folder = files("shfcas.feedback.web") / part
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
