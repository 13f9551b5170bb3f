"""`bench`: scores of explanation methods on data and networks for which the right explanation is known."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask
from whence.benchmarking.peer_methods import PEER_METHODS
from whence.benchmarking.results import BenchResult, MethodFailure, ScoredTask, UnlearnedTask, package_versions
from whence.benchmarking.standard_methods import BASELINES, STANDARD_METHODS, MethodFactory
from whence.benchmarking.suites import SUITES
from whence.benchmarking.torch_state import default_state
from whence.core.argument_checks import check_arguments
from whence.core.files import make_cache_dir
from whence.core.progress import Progress, progress as show_progress
from whence.errors import InputError, RuleError, first_line, suggest_or_list, value_repr
from whence.evaluation.evaluate import evaluate
from whence.evaluation.method_adapters import Methods, make_adapters, name_methods

MIN_SAMPLES = 5  # for intervals
MAX_SEED = 2**32 - 1  # numpy's
PACKAGES = ("torch", "whence", "captum", "zennit", "lxt", "shap")


@check_arguments
def bench(
    suites: Sequence[str] | str | None = None,
    methods: Methods | None = None,
    *,
    peers: bool = True,
    n_samples: int = 100,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> BenchResult:
    """Score explanation methods on generated data, where the right explanation is known.

    >>> found = whence.bench("hand_made")
    >>> found = whence.bench(methods={"mine": lambda model, inputs, target: inputs, "lrp": "lrp"}, cache_dir="bench")
    >>> found.save("bench.html")

    The networks are trained by the call, on data that it generates. Random relevance and, for pictures, an edge filter that
    ignores the network are always scored. A method is level with the best in a task if the paired bootstrap interval of the
    difference contains 0. All suites take some ten minutes; networks and scores are read from `cache_dir` unless
    the data, the network, the settings or the method have changed, the functions and values that its code names included.

    Each method explains a copy of each network, with torch's default settings and seeded random generators, so that what it
    changes there reaches no other method. A method must not patch classes and functions of torch.

    Args:
        suites: Names of suites, all by default: "xai_tris" (tetrominoes in noise), "hand_made" (networks with known terms),
            "lstm_arithmetic", "mosaics", "lexical_shortcuts", "time_series", "graph_motifs", "drawn_parts".
        methods: Methods or their names, or a dict of them by name, which may contain functions `(model, inputs, target) →
            relevance`; the names of the baselines and of peers are taken. By default all standard methods.
            "expected_gradients", "lrp_from_mean", "feature_ablation" and "shapley" are given the background, baseline and
            features of each task.
        peers: Whether to score the methods of captum, zennit, LXT and shap too, where they are installed.
        n_samples: Number of samples explained in each task, at least 5; those that the network classifies right.
        cache_dir: A folder for trained networks and scores; None trains and scores again.
        seed: Random seed of the data, of the training, of random relevance and of other libraries' methods.
        progress: Whether to show a progress bar, or a function that is called with (done, total).
    Returns:
        A `BenchResult`. A method that raises an error in a task has no score there and is listed in `failures`.
    Raises:
        RuleError: A suite or method is unknown, a name is taken, no network learned its task, or no method explains any.
        InputError: Another argument is not what is expected.
    """
    _check_settings(n_samples, seed, peers)
    factories = {**_method_factories(methods), **(PEER_METHODS if peers else {})}
    chosen = [task for suite in _suites(suites) for task in SUITES[suite].items()]
    folder = None if cache_dir is None else make_cache_dir(cache_dir)
    tasks: list[ScoredTask] = []
    failures: list[MethodFailure] = []
    unlearned: list[UnlearnedTask] = []
    with (
        default_state(seed),
        TemporaryDirectory(prefix="whence-bench-") as temporary,  # suites share networks
        show_progress("bench", len(chosen), progress) as advance,
    ):
        settings = BenchSettings(n_samples, seed, folder or Path(temporary))
        for name, make in chosen:
            task = make(settings)
            if task.learned:
                tasks += _scored(task, factories, folder, seed, failures)
            else:
                unlearned.append(UnlearnedTask(task.title, float(task.accuracy or 0), task.required))
            advance(1, name)
    if not tasks and unlearned:
        worst = f"that of {unlearned[0].task} is {unlearned[0].accuracy:.0%}"
        raise RuleError(f"no network of these suites reached the accuracy it needs; {worst}")
    if not tasks:
        first = failures[0]
        raise RuleError(f"no method has a score in any task; {first.method} failed on {first.task}: {first.message}")
    about = {"n_samples": n_samples, "seed": seed, "versions": package_versions(PACKAGES)}
    return BenchResult(tasks, failures, unlearned, about)


def _check_settings(n_samples: Any, seed: Any, peers: Any) -> None:
    if type(n_samples) is not int or n_samples < MIN_SAMPLES:
        raise InputError(
            f"n_samples={value_repr(n_samples)}; expected an int of at least {MIN_SAMPLES}, so that intervals can be computed"
        )
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={value_repr(seed)}; expected an int from 0 to {MAX_SEED}")
    if not isinstance(peers, bool):
        raise InputError(f"peers={value_repr(peers)}; expected True or False")


def _suites(given: Sequence[str] | str | None) -> list[str]:
    if not isinstance(given, str | Sequence | None):
        raise RuleError(f"suites={value_repr(given)}; expected names: {', '.join(SUITES)}")
    names = list(SUITES) if given is None else [given] if isinstance(given, str) else list(given)
    for name in names:
        if not isinstance(name, str):
            raise RuleError(f"suites={value_repr(given)}; expected names: {', '.join(SUITES)}")
        if name not in SUITES:
            raise RuleError(f"unknown suite {value_repr(name)}{suggest_or_list(name, SUITES)}")
    if not names:
        raise RuleError(f"no suites given; choose from {', '.join(SUITES)}")
    return names


def _method_factories(given: Methods | None) -> dict[str, MethodFactory]:
    """Return factories of the methods by name, with the baselines that are always scored."""
    if given is None:
        return {**STANDARD_METHODS, **BASELINES}
    named, known = name_methods(given), {**STANDARD_METHODS, **BASELINES}
    for name, method in named.items():
        baseline = name in BASELINES and name not in (method, getattr(method, "name", None))
        if baseline or name in PEER_METHODS:
            raise RuleError(f"the name {name!r} is that of a method that bench adds itself; choose another name")
    found = {name: known[method] for name, method in named.items() if isinstance(method, str) and method in known}
    others = {name: method for name, method in named.items() if name not in found}
    adapters = make_adapters(None, others) if others or not named else []  # checks them
    found |= {adapter.name: lambda task, method=adapter.method: method for adapter in adapters}
    return {name: found[name] for name in named} | dict(BASELINES)


def _scored(
    task: GroundTruthTask, factories: Mapping[str, MethodFactory], folder: Path | None, seed: int, failures: list[MethodFailure]
) -> Iterator[ScoredTask]:
    """Yield the scores of a task by each of its metrics, and add the methods that fail to `failures`."""
    values: dict[str, dict[str, Tensor]] = {metric.name: {} for metric in task.metrics}
    for name, make in factories.items():
        try:
            with default_state(seed):
                found = _evaluate(task.copy(), name, make, folder, seed)
        except Exception as error:
            failures.append(MethodFailure(name, task.title, first_line(error)))
            continue
        for metric, scores in found.items():
            values[metric][name] = scores
    for metric in task.metrics if any(values.values()) else ():
        yield ScoredTask(task.suite, task.name, metric.name, metric.better, values[metric.name], task.accuracy)


def _evaluate(task: GroundTruthTask, name: str, make: MethodFactory, folder: Path | None, seed: int) -> Mapping[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers, where they are imported and where they run
        found = evaluate(
            task.model, task.x, {name: make(task)}, task.metrics, target=task.target, masks=task.truth, seed=seed,
            cache_dir=None if folder is None else folder / "scores", progress=False,
        )  # fmt: skip
    scores = found.values[name]
    lost = max(int(values.isnan().sum()) for values in scores.values())
    if lost:  # a mean over the others would compare different samples
        first = found.failures[0].message if found.failures else "a relevance that has no score, as of zeros alone"
        raise InputError(f"{lost} of {len(task.x)} samples have no score: {first}")
    return scores
