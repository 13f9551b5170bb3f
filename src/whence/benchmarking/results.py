"""The result of the benchmark: the score of every method in every task, with intervals, as a table, a file or a report."""

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from whence.core.files import PICTURE_SUFFIXES, text_writer, write_json
from whence.core.result import Result
from whence.errors import RuleError, count_noun, suggest_or_list, value_repr
from whence.evaluation.bootstrap import Interval, mean_interval, paired_interval
from whence.evaluation.results import ARROWS, format_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEGLIGIBLE = 1e-3  # share of the distance from random relevance to the best score
RANDOM, DEFAULT = "random", "lrp"
BENCH_SUFFIXES = (*PICTURE_SUFFIXES, ".csv", ".json", ".html")


@dataclass(frozen=True, eq=False)
class ScoredTask:
    """The scores of all methods by one metric of one task.

    Args:
        suite: Name of the suite.
        task: Name of the task.
        metric: Name of the metric.
        better: "higher" or "lower".
        values: Scores of each method, `[n]`.
        accuracy: Accuracy of the network, None if it is not trained.
    """

    suite: str
    task: str
    metric: str
    better: str
    values: Mapping[str, Tensor]
    accuracy: float | None

    @property
    def label(self) -> str:
        """The task, and what is ranked where it has a score for time steps and one for features."""
        _, ranked, over = self.metric.partition("average_precision_")
        return self.task + (f", {over}" if ranked else "")

    @property
    def title(self) -> str:
        return f"{self.suite}: {self.label}"

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The mean score of each method with its bootstrap interval."""
        return {name: mean_interval(values) for name, values in self.values.items()}

    @cached_property
    def best(self) -> str:
        """The method with the best mean."""
        sign = 1 if self.better == "higher" else -1
        return max(self.intervals, key=lambda name: sign * self.intervals[name].mean)

    def relative(self, method: str) -> float:
        """Return the mean score of a method on a scale from random relevance (0) to the best (1); NaN without a score."""
        if method not in self.values or RANDOM not in self.values:
            return math.nan
        chance, best = self.intervals[RANDOM].mean, self.intervals[self.best].mean
        return (self.intervals[method].mean - chance) / (best - chance) if best != chance else 1.0

    @cached_property
    def level(self) -> frozenset[str]:
        """The methods that are not worse than the best: the paired interval of the difference contains 0.

        Differences below a thousandth of the distance from random relevance to the best are no differences.
        """
        sign = 1 if self.better == "higher" else -1
        reference = sign * self.values[self.best]
        chance = float(sign * self.values[RANDOM].mean()) if RANDOM in self.values else float(reference.mean())
        negligible = NEGLIGIBLE * (float(reference.mean()) - chance)
        return frozenset(
            name for name, values in self.values.items()
            if paired_interval(sign * values, reference).high >= -negligible
        )  # fmt: skip


@dataclass(frozen=True)
class MethodFailure:
    """A method that could not explain a task, with its error message."""

    method: str
    task: str
    message: str


@dataclass(frozen=True)
class UnlearnedTask:
    """A task that is not scored, since its network does not reach the accuracy that the suite requires."""

    task: str
    accuracy: float
    required: float


@dataclass(frozen=True, repr=False, eq=False)
class BenchResult(Result):
    """The scores of explanation methods on tasks whose correct explanation is known.

    >>> found = whence.bench(["hand_made"])
    >>> found.share_level("lrp")        # share of cells in which LRP is not worse than the best method
    >>> found.save("bench.html")        # or .json, .csv, .png

    Args:
        tasks: The scores, one entry for each task and metric.
        failures: The methods that failed, by task.
        unlearned: The tasks that are not scored.
        settings: The settings of the run and the versions of the packages.
    """

    tasks: Sequence[ScoredTask]
    failures: Sequence[MethodFailure] = ()
    unlearned: Sequence[UnlearnedTask] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def methods(self) -> list[str]:
        """The names of the methods with a score in any task, in the order given."""
        return list(dict.fromkeys(name for task in self.tasks for name in task.values))

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per task, metric and method: the mean, its interval, and whether it is level with the best."""
        return [
            {
                "suite": task.suite, "task": task.task, "metric": task.metric, "better": task.better, "method": name,
                "n_samples": len(task.values[name]), **found._asdict(), "level": name in task.level, "accuracy": task.accuracy,
            }
            for task in self.tasks
            for name, found in task.intervals.items()
        ]  # fmt: skip

    def share_level(self, method: str) -> float:
        """Return the share of tasks and metrics in which a method is not worse than the best by more than the paired interval.

        Tasks in which the method failed count as worse.

        Args:
            method: The name of a method.
        """
        if method not in self.methods:
            raise RuleError(f"no method {value_repr(method)} in this result{suggest_or_list(method, self.methods, 'it has')}")
        return sum(method in task.level for task in self.tasks) / len(self.tasks)

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """The methods with the share of tasks in which they are level with the best, best first."""
        return sorted(((name, self.share_level(name)) for name in self.methods), key=lambda pair: -pair[1])

    def __repr__(self) -> str:
        widest = max(map(len, self.methods), default=0)
        lines = [f"{name:<{widest}}  {share:4.0%}" for name, share in self.ranking]
        return "\n".join([f"level with the best, of {len(self.tasks)} cells:", *lines, *self.remarks])

    @property
    def remarks(self) -> list[str]:
        """The tasks that are not scored, and the number of tasks that each method cannot explain, as text."""
        unlearned = [
            f"{found.task} is not scored: its network has an accuracy of {found.accuracy:.0%}, below {found.required:.0%}"
            for found in self.unlearned
        ]
        counts = Counter(failure.method for failure in self.failures)
        return unlearned + [f"{name} cannot explain {count_noun(count, 'task')}" for name, count in counts.items()]

    def save(self, path: str | Path) -> Path:
        """Write a report (.html), all scores (.json), the table (.csv) or a figure (.png, .pdf, …), and return the path."""
        return self._save(path, {".json": self._write_json, ".html": text_writer(self._page)})

    def figure(self) -> "Figure":
        """Return a matrix of methods and tasks: the score on a scale from random relevance (0) to the best method (1)."""
        from whence.plotting.score_matrix import score_matrix_figure

        names = [name for name, _ in self.ranking]
        scores = [[task.relative(name) for task in self.tasks] for name in names]
        level = [[name in task.level for task in self.tasks] for name in names]
        return score_matrix_figure(scores, level, names, [task.title for task in self.tasks])

    def _write_json(self, path: Path) -> None:
        values = [
            {"suite": task.suite, "task": task.task, "metric": task.metric, "values": dict(task.values)} for task in self.tasks
        ]
        failures, unlearned = ([vars(found) for found in each] for each in (self.failures, self.unlearned))
        write_json(
            path,
            {"settings": self.settings, "table": self.table, "values": values, "failures": failures, "unlearned": unlearned},
        )

    def behind(self, method: str = DEFAULT) -> list[ScoredTask]:
        """Return the tasks in which a method is not level with the best, or has no score."""
        return [task for task in self.tasks if method not in task.level]

    def _page(self) -> str:
        from whence.plotting.html_pages import embed_figure, render_page

        names = [name for name, _ in self.ranking]
        suites = []
        for suite in dict.fromkeys(task.suite for task in self.tasks):
            own = [task for task in self.tasks if task.suite == suite]
            heads = [f"{task.label} {ARROWS[task.better]}" for task in own]
            rows = [(name, [(_cell(task, name), name in task.level) for task in own]) for name in names]
            suites.append((suite, heads, [row for row in rows if any(text != "–" for text, _ in row[1])]))
        behind = [
            (task.title, _cell(task, DEFAULT), task.best, _cell(task, task.best), _cell(task, RANDOM))
            for task in (self.behind() if DEFAULT in self.methods else ())
        ]
        return render_page(
            "bench.html", n_cells=len(self.tasks),
            ranking=[(name, f"{share:.0%}", sum(name in task.values for task in self.tasks)) for name, share in self.ranking],
            suites=suites, behind=behind, settings=self.settings, unlearned=self.unlearned,
            failures=[(found.method, found.task, found.message) for found in self.failures],
            picture=embed_figure(self.figure()),
        )  # fmt: skip


def _cell(task: ScoredTask, method: str) -> str:
    return format_interval(task.intervals[method]) if method in task.values else "–"


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
