"""Options that several commands take, in one wording."""

from typing import Annotated

import typer

from whence.errors import InputError

Input = Annotated[
    str | None, typer.Argument(help="An image, a .npy batch, or a text for hf: models; a bundled digit if not given.")
]
Model = Annotated[
    str, typer.Option(help="digits, digits-robust, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER or FILE.py:FACTORY.")
]
Weights = Annotated[str | None, typer.Option(help="A .safetensors, .npz or .pt file, or torchvision's DEFAULT.")]
Size = Annotated[int | None, typer.Option(help="Side of the pictures that the model takes, where it does not say so.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs, as in cuda; where it is loaded if not given.")]
Sample = Annotated[int, typer.Option(help="Which of the 50 bundled digits.")]
Limit = Annotated[int | None, typer.Option(help="The first so many samples.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Shard = Annotated[str | None, typer.Option(help="A part for array jobs: i/n, or env under torchrun.")]
Engine = Annotated[str, typer.Option(help="local or ray.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster, host:port; one on this machine if not given.")]


def check_device(device: str | None, engine: str) -> None:
    """Raise where the model would be sent to machines that may not have the device."""
    if device is not None and engine != "local":
        raise InputError(f"--device {device} is one of this machine; remove it with --engine {engine}")
