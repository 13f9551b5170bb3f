"""All suites of the benchmark by name."""

from collections.abc import Mapping

from whence.benchmarking import (
    drawn_figures,
    graph_motifs,
    hand_made_networks,
    lexical_shortcuts,
    lstm_arithmetic,
    time_series,
    xai_tris,
)
from whence.benchmarking.ground_truth_task import TaskFactory

SUITES: Mapping[str, Mapping[str, TaskFactory]] = {
    "xai_tris": xai_tris.TASKS,
    "hand_made": hand_made_networks.TASKS,
    "lstm_arithmetic": lstm_arithmetic.TASKS,
    "mosaics": {"one cell per class": drawn_figures.mosaic_task},
    "lexical_shortcuts": lexical_shortcuts.TASKS,
    "time_series": time_series.TASKS,
    "graph_motifs": graph_motifs.TASKS,
    "drawn_parts": {"CNN": drawn_figures.parts_task},
}
