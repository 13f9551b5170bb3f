"""`whence serve`: models explained in the browser."""

import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from whence.errors import InputError, MissingPackageError
from whence.stores.store import open_store

HOST = "127.0.0.1"


def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="As for `whence explain`; several may be given. digits if none is.")
    ] = None,
    weights: Annotated[list[str] | None, typer.Option(help="One for each --model, in their order; - for none.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Samples for evaluations and what channels stand for, as for `whence evaluate`.")
    ] = None,
    store: Annotated[
        list[Path] | None, typer.Option(help="A folder of `whence explain-dataset` to audit; several may be given.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine are asked for a token.")] = HOST,
    port: Annotated[int, typer.Option(help="Where to listen.", min=1, max=65535)] = 8000,
    seconds: Annotated[float, typer.Option(help="How long an answer may take.", min=1)] = 60.0,
) -> None:
    """Draw a digit, drop a photo, type a text, look inside: a page on this machine."""
    try:
        import uvicorn

        from whence.frontends.web.app import create_app
        from whence.frontends.web.middleware import LOOPBACK
        from whence.frontends.web.served_models import ServerConfig
    except ImportError as error:
        raise MissingPackageError(f"{error.name} is not installed; pip install 'whence[web]'") from error
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    for folder in store or []:
        open_store(folder)  # which raises here what is wrong with it
    served = ServerConfig(_pair_weights(model or ["digits"], weights or []), data, [str(folder) for folder in store or []])
    app = create_app(served, host, port, token, seconds=seconds)
    address = f"http://{host}:{port}/{f'?token={token}' if token else ''}"
    Console(highlight=False, soft_wrap=True).print(f"whence listens at {address} (Ctrl-C ends it)", markup=False)
    uvicorn.run(app, host=host.strip("[]"), port=port, log_level="warning", server_header=False)


def _pair_weights(models: list[str], weights: list[str]) -> list[tuple[str, str | None]]:
    from whence.models.registry import load_model

    twice = next((name for name in models if models.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--model {twice} is given twice; models need different names")
    if len(weights) > len(models):
        raise InputError(f"{len(weights)} --weights for {len(models)} --model; give one each, - for none")
    found = [
        (name, None if given == "-" else given) for name, given in zip(models, [*weights, *["-"] * len(models)], strict=False)
    ]
    for name, given in found:
        load_model(name, given)  # which raises here what is wrong with it
    return found
