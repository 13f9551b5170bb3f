"""The ASGI application and its routes."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from secrets import token_hex
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from whence.errors import WhenceError
from whence.frontends.web import code_snippets, example_inputs, handlers, reports, search_handlers, text_handlers, tiny_network
from whence.frontends.web.middleware import LOOPBACK, SecurityMiddleware
from whence.frontends.web.schemas import (
    AttackRequest,
    AuditRequest,
    ChannelRequest,
    CodeRequest,
    DownloadRequest,
    EvaluationRequest,
    ExplainRequest,
    GenerationRequest,
    PrototypeRequest,
    SourcesRequest,
    StepRequest,
)
from whence.frontends.web.served_models import ServerConfig
from whence.frontends.web.worker_pool import RETRY_SECONDS, ServiceUnavailableError, WorkerPool
from whence.plotting.html_pages import render_page

PAGES = {"/": "index.html"} | {f"/{name}.html": f"{name}.html" for name in ("index", "flow", "prototypes", "reports")}
MAX_REPORTS = 16  # stored in memory
REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
EVENT_STREAM = "text/event-stream"
MEDIA_TYPES = {"png": "image/png", "npz": "application/octet-stream", "html": "application/octet-stream"}
HANDLERS: dict[str, tuple[type[BaseModel], Callable[[Any], Any]]] = {  # each runs in a worker process
    "explain": (ExplainRequest, handlers.explain_handler),
    "layers": (ExplainRequest, handlers.layers_handler),
    "through": (ChannelRequest, handlers.channel_handler),
    "channel": (ChannelRequest, search_handlers.concept_handler),
    "attack": (AttackRequest, search_handlers.attack_handler),
    "prototypes": (PrototypeRequest, search_handlers.prototypes_handler),
    "steps": (StepRequest, tiny_network.steps_handler),
    "reliability": (ExplainRequest, handlers.reliability_handler),
    "generation": (GenerationRequest, text_handlers.generation_handler),
    "sources": (SourcesRequest, text_handlers.sources_handler),
    "code": (CodeRequest, code_snippets.code_handler),
    "evaluation": (EvaluationRequest, reports.evaluation_report),
    "audit": (AuditRequest, reports.audit_report),
}
REPORT_HANDLERS = {reports.evaluation_report, reports.audit_report}  # whose answers are stored as pages
SLOW_HANDLERS = {  # interactive requests come before these
    search_handlers.concept_handler,
    search_handlers.attack_handler,
    search_handlers.prototypes_handler,
    text_handlers.generation_handler,
    text_handlers.sources_handler,
    reports.evaluation_report,
    reports.audit_report,
}
router = APIRouter(prefix="/api")


def create_app(
    served: ServerConfig,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    workers: int = 2,
    seconds: float = 60.0,
) -> Any:
    """Return the ASGI application of the pages and their API.

    >>> uvicorn.run(create_app(ServerConfig([("digits", None)])), host="127.0.0.1", port=8000)
    """

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.workers, app.state.served, app.state.reports = WorkerPool(served, workers, seconds), served, OrderedDict()
        try:
            yield
        finally:
            app.state.workers.close()

    responses: Any = {
        WhenceError: _error_response,
        ServiceUnavailableError: _unavailable_response,
        RequestValidationError: _validation_response,
        ClientDisconnect: _no_response,
    }
    app = FastAPI(lifespan=running, docs_url=None, redoc_url=None, openapi_url=None, exception_handlers=responses)
    app.include_router(router)
    app.get("/look.css")(stylesheet)
    for address, name in PAGES.items():
        app.api_route(address, methods=["GET", "HEAD"])(_serve_text(render_page(name, "whence.frontends.web")))
    app.mount("/", StaticFiles(directory=str(resources.files("whence.frontends.web") / "static")))
    names = LOOPBACK if host in LOOPBACK else (*LOOPBACK, host)
    hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())  # browsers omit port 80
    return SecurityMiddleware(app, frozenset(hosts), token)


@router.get("/models")
async def models(request: Request) -> list[dict[str, Any]]:
    return await _compute(request, handlers.describe_models, None)


@router.get("/examples")
async def examples(request: Request) -> list[dict[str, Any]]:
    return await _compute(request, example_inputs.examples_handler, None)


@router.get("/digits")
def digits() -> list[dict[str, Any]]:
    return handlers.digits_handler()


@router.get("/ways")
def ways() -> list[str]:
    return tiny_network.constructions()


@router.get("/stores")
def stores(request: Request) -> list[str]:
    return list(request.app.state.served.stores)


@router.get("/measures")
def measures() -> dict[str, Any]:
    return reports.available_metrics()


@router.get("/reports/{number}")
def report(number: str, request: Request) -> Response:
    found = request.app.state.reports.get(number)
    if found is None:
        return JSONResponse({"error": "this report is no longer stored; create it again"}, status_code=404)
    return HTMLResponse(found, headers={"content-security-policy": REPORT_CSP})


@router.post("/download")
async def download(question: DownloadRequest, request: Request) -> Response:
    found = await _compute(request, handlers.download_handler, question)
    return Response(found, media_type=MEDIA_TYPES[question.format], headers={"content-disposition": "attachment"})


def _serve_text(text: str) -> Callable[[], HTMLResponse]:
    return lambda: HTMLResponse(text)


def _make_endpoint(form: type[BaseModel], answer: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return an endpoint whose request schema FastAPI reads from the annotation."""

    async def answering(question: Any, request: Request) -> Any:
        if request.headers.get("accept") == EVENT_STREAM:
            return await _stream(request, answer, question)
        return await _compute(request, answer, question)

    answering.__annotations__["question"] = form
    return answering


def stylesheet() -> FileResponse:
    """Return the style sheet that the page and the reports share."""
    return FileResponse(str(resources.files("whence.plotting") / "templates" / "look.css"), media_type="text/css")


def _give(request: Request, answer: Callable[..., Any], found: Any) -> Any:
    """Return an answer as it is sent: of a report its address."""
    return _store_report(request, found) if answer in REPORT_HANDLERS else found


def _store_report(request: Request, text: str) -> dict[str, str]:
    """Store a report in memory, drop the oldest, and return the address of the new one."""
    reports, number = request.app.state.reports, token_hex(8)
    reports[number] = text
    while len(reports) > MAX_REPORTS:
        reports.popitem(last=False)
    return {"address": f"api/reports/{number}"}


async def _stream(request: Request, answer: Callable[..., Any], question: Any) -> StreamingResponse:
    """Return the progress and then the answer of a worker process as server-sent events."""
    progress: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    def watch(done: int, total: int) -> None:
        progress.put_nowait((done, total))

    async def events() -> AsyncIterator[str]:
        workers = request.app.state.workers
        answering = asyncio.create_task(workers.ask(answer, question, slow=answer in SLOW_HANDLERS, watch=watch))
        reading = asyncio.create_task(progress.get())
        try:
            last = None
            while not answering.done():
                await asyncio.wait({answering, reading}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    if reading.result() != last:
                        last = reading.result()
                        yield _event("progress", {"done": last[0], "total": last[1]})
                    reading = asyncio.create_task(progress.get())
            yield _event("answer", _give(request, answer, answering.result()))
        except WhenceError as error:
            yield _event("error", {"error": str(error)})
        finally:  # also when the client has gone
            answering.cancel()
            reading.cancel()

    return StreamingResponse(events(), media_type=EVENT_STREAM, headers={"cache-control": "no-store"})


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _compute(request: Request, answer: Callable[..., Any], question: Any) -> Any:
    """Return the answer of a worker process; cancel the question if its client goes away."""
    answering = asyncio.create_task(request.app.state.workers.ask(answer, question, slow=answer in SLOW_HANDLERS))
    leaving = asyncio.create_task(_disconnection(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return _give(request, answer, answering.result())
    finally:
        answering.cancel()
        leaving.cancel()


async def _disconnection(request: Request) -> None:
    """Return when the client of a request has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _no_response(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _error_response(request: Request, error: WhenceError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=422)


async def _unavailable_response(request: Request, error: ServiceUnavailableError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=503, headers={"retry-after": str(RETRY_SECONDS)})


async def _validation_response(request: Request, error: RequestValidationError) -> JSONResponse:
    """Return which fields of a request are invalid, without the request itself, which may be large."""
    wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'request'}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"error": "; ".join(wrong[:5])}, status_code=422)


for _path, (_form, _answer) in HANDLERS.items():
    router.post(f"/{_path}")(_make_endpoint(_form, _answer))
