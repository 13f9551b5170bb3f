"""The server: which address gives what."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from secrets import token_hex
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from whence.errors import WhenceError
from whence.frontends.web import handlers, reports, search_handlers, tiny_network
from whence.frontends.web.middleware import LOOPBACK, Guard
from whence.frontends.web.schemas import (
    AttackQuestion,
    AuditQuestion,
    EvaluationQuestion,
    FileQuestion,
    PartQuestion,
    PrototypeQuestion,
    Question,
    StepQuestion,
)
from whence.frontends.web.served_models import Served
from whence.frontends.web.worker_pool import Workers
from whence.plotting.html_pages import page

PAGES = {"/": "index.html"} | {f"/{name}.html": f"{name}.html" for name in ("index", "flow", "prototypes", "reports")}
MOST_REPORTS = 16  # kept for the page to show
OF_REPORTS = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
MEDIA = {"png": "image/png", "npz": "application/octet-stream", "html": "application/octet-stream"}
ANSWERS: dict[str, tuple[type[BaseModel], Callable[[Any], Any]]] = {  # each computed in a process of its own
    "explain": (Question, handlers.explained),
    "layers": (Question, handlers.layers),
    "through": (PartQuestion, handlers.through),
    "channel": (PartQuestion, search_handlers.channel),
    "attack": (AttackQuestion, search_handlers.attacked),
    "prototypes": (PrototypeQuestion, search_handlers.prototypes),
    "steps": (StepQuestion, tiny_network.steps),
}
asked = APIRouter(prefix="/api")


def create_app(
    served: Served,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    workers: int = 2,
    seconds: float = 60.0,
) -> Any:
    """The page and what it asks, as an ASGI application.

    >>> uvicorn.run(create_app(Served([("digits", None)])), host="127.0.0.1", port=8000)
    """

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.workers, app.state.served, app.state.reports = Workers(served, workers, seconds), served, OrderedDict()
        try:
            yield
        finally:
            app.state.workers.close()

    handlers: Any = {WhenceError: _told, RequestValidationError: _named}
    app = FastAPI(lifespan=running, docs_url=None, redoc_url=None, openapi_url=None, exception_handlers=handlers)
    app.include_router(asked)
    app.get("/look.css")(look)
    for address, name in PAGES.items():
        app.api_route(address, methods=["GET", "HEAD"])(_showing(page(name, "whence.frontends.web")))
    app.mount("/", StaticFiles(directory=str(resources.files("whence.frontends.web") / "static")))
    names = LOOPBACK if host in LOOPBACK else (*LOOPBACK, host)
    hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())  # which browsers leave out
    return Guard(app, frozenset(hosts), token)


@asked.get("/models")
async def models(request: Request) -> list[dict[str, Any]]:
    return await _answer(request, handlers.about, None)


@asked.get("/digits")
def digits() -> list[dict[str, Any]]:
    return handlers.digits()


@asked.get("/ways")
def ways() -> list[str]:
    return tiny_network.ways()


@asked.get("/stores")
def stores(request: Request) -> list[str]:
    return list(request.app.state.served.stores)


@asked.get("/measures")
def measures() -> dict[str, list[str]]:
    return reports.measures()


@asked.post("/evaluation")
async def evaluation(question: EvaluationQuestion, request: Request) -> dict[str, str]:
    return _kept(request, await _answer(request, reports.evaluated, question))


@asked.post("/audit")
async def audit(question: AuditQuestion, request: Request) -> dict[str, str]:
    return _kept(request, await _answer(request, reports.audited, question))


@asked.get("/reports/{number}")
def report(number: str, request: Request) -> Response:
    found = request.app.state.reports.get(number)
    if found is None:
        return JSONResponse({"error": "that report is no longer kept; make it again"}, status_code=404)
    return HTMLResponse(found, headers={"content-security-policy": OF_REPORTS})


@asked.post("/download")
async def download(question: FileQuestion, request: Request) -> Response:
    found = await _answer(request, handlers.written, question)
    return Response(found, media_type=MEDIA[question.format], headers={"content-disposition": "attachment"})


def _showing(text: str) -> Callable[[], HTMLResponse]:
    return lambda: HTMLResponse(text)


def _answering(form: type[BaseModel], answer: Callable[[Any], Any]) -> Callable[..., Any]:
    """What an address does, its question of a form that FastAPI reads from the annotation."""

    async def answering(question: Any, request: Request) -> Any:
        return await _answer(request, answer, question)

    answering.__annotations__["question"] = form
    return answering


def look() -> FileResponse:
    """What the page and the reports have in common."""
    return FileResponse(str(resources.files("whence.plotting") / "templates" / "look.css"), media_type="text/css")


def _kept(request: Request, text: str) -> dict[str, str]:
    """Where a report can be opened, and saved from: the last few are kept in memory."""
    reports, number = request.app.state.reports, token_hex(8)
    reports[number] = text
    while len(reports) > MOST_REPORTS:
        reports.popitem(last=False)
    return {"address": f"api/reports/{number}"}


async def _answer(request: Request, answer: Callable[..., Any], question: Any) -> Any:
    return await request.app.state.workers.ask(answer, question)


async def _told(request: Request, error: WhenceError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=422)


async def _named(request: Request, error: RequestValidationError) -> JSONResponse:
    """Which part of the question is wrong; the question itself, which may be large, does not come back."""
    wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'question'}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"error": "; ".join(wrong[:5])}, status_code=422)


for _path, (_form, _give) in ANSWERS.items():
    asked.post(f"/{_path}")(_answering(_form, _give))
