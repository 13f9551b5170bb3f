"""The server: which address gives what."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from whence.errors import WhenceError
from whence.web import answers
from whence.web.guard import LOOPBACK, Guard
from whence.web.questions import FileQuestion, PartQuestion, Question
from whence.web.workers import Workers

MEDIA = {"png": "image/png", "npz": "application/octet-stream", "html": "application/octet-stream"}
asked = APIRouter(prefix="/api")


def create_app(
    models: Sequence[tuple[str, str | None]],
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    workers: int = 2,
    seconds: float = 60.0,
) -> Any:
    """The page and what it asks, of models by name and weights, as an ASGI application.

    >>> uvicorn.run(create_app([("digits", None)]), host="127.0.0.1", port=8000)
    """

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.workers, app.state.names = Workers(models, workers, seconds), [name for name, _ in models]
        try:
            yield
        finally:
            app.state.workers.close()

    handlers: Any = {WhenceError: _told, RequestValidationError: _named}
    app = FastAPI(lifespan=running, docs_url=None, redoc_url=None, openapi_url=None, exception_handlers=handlers)
    app.include_router(asked)
    app.mount("/", StaticFiles(directory=str(resources.files("whence.web") / "static"), html=True))
    hosts = {f"{name}:{port}" for name in (LOOPBACK if host in LOOPBACK else (*LOOPBACK, host))}
    return Guard(app, frozenset(hosts), token)


@asked.get("/models")
async def models(request: Request) -> list[dict[str, Any]]:
    return await _answer(request, answers.about, request.app.state.names)


@asked.get("/digits")
def digits() -> list[dict[str, Any]]:
    return answers.digits()


@asked.post("/explain")
async def explain(question: Question, request: Request) -> dict[str, Any]:
    return await _answer(request, answers.explained, question)


@asked.post("/layers")
async def layers(question: Question, request: Request) -> dict[str, Any]:
    return await _answer(request, answers.layers, question)


@asked.post("/through")
async def through(question: PartQuestion, request: Request) -> dict[str, Any]:
    return await _answer(request, answers.through, question)


@asked.post("/download")
async def download(question: FileQuestion, request: Request) -> Response:
    found = await _answer(request, answers.written, question)
    return Response(found, media_type=MEDIA[question.format], headers={"content-disposition": "attachment"})


async def _answer(request: Request, answer: Callable[..., Any], question: Any) -> Any:
    return await request.app.state.workers.ask(answer, question)


async def _told(request: Request, error: WhenceError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=422)


async def _named(request: Request, error: RequestValidationError) -> JSONResponse:
    """Which part of the question is wrong; the question itself, which may be large, does not come back."""
    wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'question'}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"error": "; ".join(wrong[:5])}, status_code=422)
