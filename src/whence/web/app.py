"""The server: which address gives what."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from whence.errors import WhenceError
from whence.web import answers
from whence.web.guard import LOOPBACK, Guard
from whence.web.questions import FileQuestion, PartQuestion, Question
from whence.web.workers import Workers

MEDIA = {"png": "image/png", "npz": "application/octet-stream", "html": "application/octet-stream"}


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
    names = [name for name, _ in models]
    asked: dict[str, Workers] = {}

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        asked["workers"] = Workers(models, workers, seconds)
        try:
            yield
        finally:
            asked.pop("workers").close()

    app = FastAPI(lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(WhenceError)
    async def told(request: Request, error: WhenceError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.exception_handler(RequestValidationError)
    async def named(request: Request, error: RequestValidationError) -> JSONResponse:
        """Which part of the question is wrong; the question itself, which may be large, does not come back."""
        wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'question'}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"error": "; ".join(wrong[:5])}, status_code=422)

    @app.get("/api/models")
    async def models_() -> list[dict[str, Any]]:
        return await asked["workers"].ask(answers.about, names)

    @app.post("/api/explain")
    async def explain(question: Question) -> dict[str, Any]:
        return await asked["workers"].ask(answers.explained, question)

    @app.post("/api/layers")
    async def layers(question: Question) -> dict[str, Any]:
        return await asked["workers"].ask(answers.layers, question)

    @app.post("/api/through")
    async def through(question: PartQuestion) -> dict[str, Any]:
        return await asked["workers"].ask(answers.through, question)

    @app.get("/api/digits")
    def digits() -> list[dict[str, Any]]:
        return answers.digits()

    @app.post("/api/download")
    async def download(question: FileQuestion) -> Response:
        found = await asked["workers"].ask(answers.written, question)
        return Response(found, media_type=MEDIA[question.format], headers={"content-disposition": "attachment"})

    static = resources.files("whence.web") / "static"
    app.mount("/", StaticFiles(directory=str(static), html=True))
    hosts = {f"{name}:{port}" for name in (LOOPBACK if host in LOOPBACK else (*LOOPBACK, host))}
    return Guard(app, frozenset(hosts), token)
