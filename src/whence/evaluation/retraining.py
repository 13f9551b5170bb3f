"""Checks that train: does a network learn without what an explanation calls relevant, does an explanation read the labels?"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.inputs import Inputs
from whence.errors import InputError
from whence.evaluation.case import EvaluationBatch
from whence.evaluation.imputers import Mean, make_imputer
from whence.evaluation.method_adapters import Methods, make_adapters
from whence.evaluation.metrics.faithfulness_curves import rank_regions
from whence.evaluation.metrics.randomization import spearman
from whence.evaluation.regions import Regions, RegionSpec

LabelledData = tuple[Tensor, Tensor]
TrainFunction = Callable[[Tensor, Tensor, int], nn.Module]  # (x, y, seed) -> a trained network in eval mode
EVAL_BATCH_SIZE = 256


@check_arguments
def roar(
    train: TrainFunction,
    train_data: LabelledData,
    test_data: LabelledData,
    methods: Methods,
    *,
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    seeds: Sequence[int] = (0,),
    regions: RegionSpec = "pixels",
    imputer: Any = None,
) -> list[dict[str, Any]]:
    """Remove and retrain (Hooker et al. 2019): the most relevant fraction of every training and test sample becomes the mean, a
    network is trained from scratch, and its test accuracy told. The lower, the more the explanation had found.

    >>> rows = whence.evaluation.retraining.roar(train, (x, y), (x_test, y_test), ["lrp", "random"])
    >>> rows[0]
    {'method': 'lrp', 'fraction': 0.1, 'accuracy': [0.97]}

    `train(x, y, seed)` gives a trained network in eval mode; it is called once for all data and once for each method, fraction
    and seed. Explained are the labels.
    """
    if not all(0 < fraction < 1 for fraction in fractions):
        raise InputError(f"fractions {tuple(fractions)}; give some between 0 and 1")
    model, rows = train(*train_data, seeds[0]), []
    for way in make_adapters(model, methods):
        ordered = [_region_ranks(way, part, regions) for part in (train_data, test_data)]
        for fraction in fractions:
            parts = [
                _remove_regions(part[0], *order, fraction, imputer)
                for part, order in zip((train_data, test_data), ordered, strict=True)
            ]
            accuracy = []
            for seed in seeds:
                network = train(parts[0], train_data[1], seed)
                accuracy.append(_accuracy(network, parts[1], test_data[1]))
            rows.append({"method": way.name, "fraction": fraction, "accuracy": accuracy})
    return rows


@check_arguments
def label_randomisation(
    train: TrainFunction, train_data: LabelledData, methods: Methods, *, samples: Tensor | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Spearman's correlation of |R| between a network trained on the labels and one trained on shuffled labels, for each sample
    (Adebayo et al. 2018, section 4): near 0 where the explanation says what was learned.

    `samples` are explained, the first hundred of the data if not given.
    """
    x, y = train_data
    samples = x[:100] if samples is None else samples
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    learned, lost = train(x, y, seed), train(x, shuffled, seed)
    found: dict[str, Tensor] = {}
    for one, other in zip(make_adapters(learned, methods), make_adapters(lost, methods), strict=True):
        batch = EvaluationBatch.of(one.prepared, Inputs.of(samples), None, seed=seed)
        case = one.case(batch)
        found[one.name] = spearman(case.flat().abs(), case.flat(other.relevance(batch.inputs, batch.target)).abs())
    return found


def _region_ranks(way: Any, data: LabelledData, spec: RegionSpec) -> tuple[Tensor, Regions]:
    """The rank of each region of each sample, by the relevance for its label."""
    x, y = data
    ranks, found = [], None
    for start in range(0, len(x), EVAL_BATCH_SIZE):
        rows = range(start, min(start + EVAL_BATCH_SIZE, len(x)))
        batch = EvaluationBatch.of(way.prepared, Inputs.of(x[rows.start : rows.stop]), y[rows.start : rows.stop], rows)
        found = Regions.of(spec, batch.inputs, [0])
        ranks.append(rank_regions(found.means(way.case(batch).relevance), found.valid, batch.random("ties")))
    assert found is not None
    return torch.cat(ranks), found


def _remove_regions(x: Tensor, ranks: Tensor, regions: Regions, fraction: float, imputer: Any) -> Tensor:
    chosen = ranks < round(fraction * ranks.shape[1])
    hidden = regions.entries(chosen[None])[0]
    fill = make_imputer(Mean() if imputer is None else imputer).fills(
        x, [torch.Generator().manual_seed(i) for i in range(len(x))]
    )
    return fill[0](hidden)[0]


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    right = [
        network(part).argmax(1) == of_part
        for part, of_part in zip(x.split(EVAL_BATCH_SIZE), y.split(EVAL_BATCH_SIZE), strict=True)
    ]
    return float(torch.cat(right).double().mean())
