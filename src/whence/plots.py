"""Plots of explanations of tables and time series, as results with a figure and its numbers."""

from whence.core.feature_plots import Plot, bar, beeswarm, heatmap, scatter, waterfall
from whence.core.public_names import namespace
from whence.core.series_plots import horizons, series, spectrum

__all__ = ["Plot", "bar", "beeswarm", "heatmap", "horizons", "scatter", "series", "spectrum", "waterfall"]
__getattr__ = namespace(__name__, globals())
