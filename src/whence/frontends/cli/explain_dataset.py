"""`whence explain-dataset`: explanations of a dataset in a store; interrupted runs can be resumed."""

import json
from typing import Annotated

import typer
from rich.console import Console

from whence.errors import count_noun
from whence.frontends.cli.options import (
    Address,
    Device,
    Engine,
    Json,
    Limit,
    Method,
    Model,
    Rules,
    Shard,
    Size,
    Weights,
    check_device,
)
from whence.frontends.common.choices import DATA_HELP, SHARD_SIZE
from whence.frontends.common.terminal import warn_about_model


def explain_dataset(
    store: Annotated[str, typer.Argument(help="The folder of the store, new or unfinished, or its URL.")],
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    device: Device = None,
    method: Method = "lrp",
    rules: Rules = None,
    target: Annotated[str, typer.Option(help="Class to explain: predicted, label, or an index.")] = "predicted",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Store the relevance of every channel of this layer; repeatable."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Store relevance in full, instead of summed over channels in half precision.")
    ] = False,
    shard: Shard = None,
    shard_size: Annotated[int, typer.Option(help="Samples in each file.")] = SHARD_SIZE,
    batch_size: Annotated[int | None, typer.Option(help="Batch size. Default: by the size of a sample.")] = None,
    engine: Engine = "local",
    address: Address = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Explain a dataset and save the explanations in a store. An interrupted run resumes where it stopped."""
    import torch

    from whence.frontends.common.data import read_data, sample_name, warn_about_failures
    from whence.frontends.common.methods import make_method, method_and_rules
    from whence.models.registry import load_model
    from whence.stores.explain_dataset import explain_dataset as run

    method_and_rules(method, rules)
    check_device(device, engine)
    loaded = load_model(model, weights, size=size, device=device)
    loaded.check_reads_images("create the store in Python with whence.explain_dataset")
    samples = read_data(data, loaded, "explain-dataset", limit)
    bounded = loaded.preprocessing.bounds_known
    first = torch.zeros(1, loaded.preprocessing.channels, *(loaded.preprocessing.size or (1, 1)))
    found = run(
        loaded.model, samples, store,
        method=make_method(method, rules, loaded, first, bounded), target=int(target) if target.isdecimal() else target,
        layers=layer or (), reduce="none" if full else "channels", shard=shard, shard_size=shard_size,
        batch_size=batch_size, engine=engine, address=address, class_names=loaded.class_names,
    )  # fmt: skip
    failures = [{"sample": sample_name(samples, f["index"]), "message": f["message"]} for f in found.failures]
    if as_json:
        about = {"model": loaded.name, "trained": loaded.trained, "samples": len(found), "missing_shards": found.missing}
        print(json.dumps(about | {"failures": failures, "store": str(store)}))
        return
    warn_about_model(loaded)
    warn_about_failures([f"{failure['sample']}: {failure['message']}" for failure in failures])
    console = Console(highlight=False, soft_wrap=True)
    rest = f", {len(found.missing)} shards remain for other jobs" if found.missing else ""
    console.print(
        f"{len(found)} of {count_noun(found.manifest.count, 'sample')} of {loaded.name} explained{rest}", markup=False
    )
    of_data = "" if data is None else f" --data {data}"
    console.print(f"saved {store}; to audit it: whence audit {store} --model {model}{of_data}", markup=False)
