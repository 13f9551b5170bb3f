"""Curves of accuracy and points of usefulness."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from whence.robustness.features import FeatureScores, Kind, RobustFeaturesExperiment

COLOURS: "dict[Kind, str]" = {"weak": "#c00000", "strong": "#0000c0"}
AXES = {"d": "number of weak features d", "eta": "mean of the weak features η", "p": "reliability of the strong feature p",
        "epsilon": "perturbation ε"}  # fmt: skip


def figure(experiment: "RobustFeaturesExperiment") -> Figure:
    """Accuracy of both classifiers over d, η, p and ε: closed forms as lines, simulations as points with their errors."""
    drawn = Figure(figsize=(10.4, 6.2), dpi=120, layout="constrained")
    for axis, name in zip(drawn.subplots(2, 2).flat, AXES, strict=True):
        for kind, colour in COLOURS.items():
            _line(axis, experiment, name, kind, colour)
        axis.set_xlabel(AXES[name], fontsize=9)
        axis.set_ylabel("accuracy", fontsize=9)
        axis.set_ylim(-0.04, 1.04)
        axis.tick_params(labelsize=8)
    axis.axvline(experiment.epsilon, color="grey", linewidth=0.6)
    handles = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    drawn.suptitle("Classifiers by weak features and by the strong one: lines exact, points simulated", fontsize=10)
    return drawn


def _line(axis: "Axes", experiment: "RobustFeaturesExperiment", name: str, kind: "Kind", colour: str) -> None:
    rows = [row for row in experiment.rows if row["over"] == name and row["kind"] == kind]
    values = np.linspace(min(row["value"] for row in rows), max(row["value"] for row in rows), 101).tolist()
    for attacked, style in ((False, "-"), (True, "--")):
        label = f"{kind} features, ε = {experiment.epsilon}" if attacked else f"{kind} features"
        if name != "epsilon":
            exact = [data.accuracy(kind, at[attacked]) for data, at in (experiment.at(name, value) for value in values)]
            axis.plot(values, exact, style, color=colour, linewidth=1.2, label=label)
        elif not attacked:
            axis.plot(values, [experiment.base.accuracy(kind, value) for value in values], style, color=colour, linewidth=1.2)
    x, simulated, error = ([row[key] for row in rows] for key in ("value", "simulated", "standard_error"))
    axis.errorbar(x, simulated, error, fmt="o", markersize=3, color=colour, linewidth=0.8)


def scores_figure(scores: "FeatureScores") -> Figure:
    """Each feature by its usefulness and what an attack leaves of it."""
    drawn = Figure(figsize=(5.6, 4.8), dpi=120, layout="constrained")
    axis = drawn.subplots()
    useful, robust = scores.usefulness.cpu(), scores.robustness.cpu()
    axis.scatter(useful, robust, s=12, c=["#c00000" if kept else "#0000c0" for kept in scores.robust.tolist()], alpha=0.7)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.plot([0, float(useful.max())], [0, float(useful.max())], color="grey", linewidth=0.6)
    axis.set_xlabel("usefulness", fontsize=9)
    axis.set_ylabel(f"usefulness within ε = {scores.epsilon}", fontsize=9)
    axis.set_title(repr(scores), fontsize=9)
    return drawn
