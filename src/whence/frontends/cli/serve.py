"""`whence serve`: explanations in the browser."""

import secrets
from typing import Annotated

import typer
from rich.console import Console

from whence.errors import InputError, MissingPackageError

HOST = "127.0.0.1"
SHUTDOWN_SECONDS = 3  # for requests under way when the server is stopped


def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="As for `whence explain`; repeatable. Default: the bundled models.")
    ] = None,
    weights: Annotated[list[str] | None, typer.Option(help="Weights of each --model, in their order; - for none.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Samples for evaluations and for concepts of channels, as for `whence evaluate`.")
    ] = None,
    store: Annotated[list[str] | None, typer.Option(help="A store of `whence explain-dataset` to audit; repeatable.")] = None,
    host: Annotated[str, typer.Option(help="Host to listen on; hosts other than this machine need a token.")] = HOST,
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    seconds: Annotated[float, typer.Option(help="Timeout of a request, in seconds.", min=1)] = 60.0,
) -> None:
    """Start a web server on this machine to explain models in the browser."""
    from whence.stores.store import open_store

    try:
        import uvicorn

        from whence.frontends.web.app import create_app
        from whence.frontends.web.connections import BoundedProtocol
        from whence.frontends.web.middleware import LOOPBACK
        from whence.frontends.web.served_models import DEFAULT_MODELS, ServerConfig
    except ImportError as error:
        raise MissingPackageError(f"{error.name} is not installed; pip install 'whence[web]'") from error
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    for folder in store or []:
        open_store(folder)  # raises errors before the server starts
    served = ServerConfig(_pair_weights(model or list(DEFAULT_MODELS), weights or []), data, store or [])
    app = create_app(served, host, port, token, seconds=seconds)
    address = f"http://{host}:{port}/{f'?token={token}' if token else ''}"
    Console(highlight=False, soft_wrap=True).print(f"whence is running at {address} (press Ctrl-C to stop)", markup=False)
    uvicorn.run(
        app, host=host.strip("[]"), port=port, http=BoundedProtocol, ws="none", log_level="warning", server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )  # fmt: skip


def _pair_weights(models: list[str], weights: list[str]) -> list[tuple[str, str | None]]:
    from whence.models.registry import load_model

    twice = next((name for name in models if models.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--model {twice} is given twice; models need different names")
    if len(weights) > len(models):
        raise InputError(f"{len(weights)} --weights for {len(models)} --model; pass one for each model, - for none")
    found = [
        (name, None if given == "-" else given) for name, given in zip(models, [*weights, *["-"] * len(models)], strict=False)
    ]
    for name, given in found:
        load_model(name, given)  # raises errors before the server starts
    return found
