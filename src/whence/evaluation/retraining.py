"""Evaluations that train networks: remove and retrain, and label randomization."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.inputs import Inputs
from whence.errors import InputError
from whence.evaluation.evaluation_batch import EvaluationBatch
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
    """Remove and retrain (ROAR, Hooker et al. 2019): measure the test accuracy of networks trained without relevant regions.

    >>> rows = whence.experiments.roar(train, (x, y), (x_test, y_test), ["lrp", "random"])
    >>> rows[0]
    {'method': 'lrp', 'fraction': 0.1, 'accuracy': [0.97]}

    The most relevant fraction of regions of every training and test sample is imputed, by the mean if not set otherwise, and a
    network is trained on the modified data from scratch. The lower its accuracy, the better the explanation identified the
    relevant regions. The labels are the explained targets. `train` is called once for the original data, and once for each
    method, fraction and seed.

    Args:
        train: A function `train(x, y, seed)` that returns a trained network in eval mode.
        train_data: Training samples `[N, …]` and labels `[N]`.
        test_data: Test samples and labels.
        methods: Methods or their names, as for `evaluate`.
        fractions: The fractions of regions to remove, between 0 and 1.
        seeds: The seeds of the trainings.
        regions: The regions to remove, as for `whence.metrics.Removal`.
        imputer: The values that replace removed regions, as for `whence.metrics.Removal`; None is the mean.
    Returns:
        One row per method and fraction; "accuracy" is a list with one test accuracy per seed.
    Raises:
        InputError: A fraction is not between 0 and 1.
    """
    if not all(0 < fraction < 1 for fraction in fractions):
        raise InputError(f"fractions={tuple(fractions)}; expected numbers between 0 and 1")
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
    """Compare explanations of a network trained on the labels with those of one trained on shuffled labels.

    >>> whence.experiments.label_randomisation(train, (x, y), ["lrp", "gradient_times_input"])["lrp"].mean()

    Computes Spearman's rank correlation of |R| between both networks for each sample (Adebayo et al. 2018, section 4). It is
    near 0 if the explanation depends on what the network learned.

    Args:
        train: A function `train(x, y, seed)` that returns a trained network in eval mode.
        train_data: Training samples `[N, …]` and labels `[N]`.
        methods: Methods or their names, as for `evaluate`.
        samples: The samples to explain; None is the first hundred of the training data.
        seed: The seed of the training and the shuffling.
    Returns:
        The correlations `[samples]`, by the name of the method.
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
    """Return the rank of each region of each sample by its relevance for the label."""
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
