"""Options that several commands share."""

from typing import Annotated

import typer

from whence.errors import InputError
from whence.frontends.common.choices import METHODS, PRESETS

Input = Annotated[
    str | None,
    typer.Argument(
        help="An image, a .npy batch; for models of texts a text, a .txt file or - for standard input; for models of tables or "
        "series a .csv file. Default: a bundled example."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="digits, digits-robust, surfaces, reviews, wine, heartbeats, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER or "
        "FILE.py:FACTORY."
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help=f"Explanation method: {', '.join(METHODS)}; or a preset of LRP rules.",
        autocompletion=lambda: [*METHODS, *PRESETS],
    ),
]
OptionalMethod = Annotated[
    str | None,
    typer.Option(
        help=f"Explanation method: {', '.join(METHODS)}; or a preset of LRP rules. Default: lrp; shapley for tables.",
        autocompletion=lambda: [*METHODS, *PRESETS],
    ),
]
Rules = Annotated[
    str | None, typer.Option(help=f"Preset of LRP rules: {', '.join(PRESETS)}.", autocompletion=lambda: list(PRESETS))
]
Weights = Annotated[
    str | None, typer.Option(help="A .safetensors, .npz, .pt or .ckpt file, a folder of them, or torchvision's DEFAULT.")
]
Size = Annotated[int | None, typer.Option(help="Side of the input images, if the model does not state it.")]
Device = Annotated[str | None, typer.Option(help="Device of the model, such as cuda. Default: where it is loaded.")]
Sample = Annotated[
    int, typer.Option(help="Index of the bundled example, such as a digit from 0 to 49; or of a row of a .csv file.")
]
Limit = Annotated[int | None, typer.Option(help="Use only the first N samples.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Shard = Annotated[str | None, typer.Option(help="Shard of this job in an array of jobs: i/n, or env under torchrun.")]
Engine = Annotated[str, typer.Option(help="Execution engine: local or ray.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster, host:port. Default: a cluster on this machine.")]


def check_device(device: str | None, engine: str) -> None:
    """Raise `InputError` if --device is combined with an engine on other machines."""
    if device is not None and engine != "local":
        raise InputError(f"--device {device} is a device of this machine; it cannot be combined with --engine {engine}")
