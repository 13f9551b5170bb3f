"""Figures and pages of explanations."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from whence.core.detection import Detection
from whence.core.explanation_data import ExplanationData
from whence.core.feature_plots import beeswarm, method_suffix, waterfalls
from whence.core.feature_table import FeatureTable, has_common_features, has_features
from whence.core.input_layouts import as_picture, as_series
from whence.core.region import Region
from whence.core.series_plots import lines_of_series, series_heatmap
from whence.core.trees import named_leaves, short_repr
from whence.plotting.bars import Bars
from whence.plotting.heatmaps import Heatmap, Photo, color_limit, sum_channels
from whence.plotting.html_pages import embed_figure, embed_in_each_palette, render_page
from whence.plotting.interactions import InteractionMatrix
from whence.plotting.palettes import PALETTES, palette
from whence.plotting.stacked_panels import Panel, stack_panels
from whence.plotting.text_escape import shorten_middle
from whence.plotting.time_series import MAX_LINES, SeriesHeatmap, Ticks
from whence.plotting.token_text import TokenText, merge_runs, styled_tokens
from whence.plotting.videos import VideoFrames
from whence.plotting.volumes import VolumeSlices, slice_images, strongest_place

MAX_SAMPLES = 16
FEW_ROWS = 4
SMALL_SHARE = 0.01  # of all |relevance|, below which an input is drawn paler
VISIBLE_SHARE = 0.05  # of the output, from which what does not reach the input is said in the title


def figure(e: ExplanationData) -> Figure:
    """Return a figure of the first samples, with a row for each sample and input; of many rows of a table, their summary."""
    if len(e) > FEW_ROWS and has_features(e) and has_common_features(e) and e.feature_names:
        return beeswarm(e).figure()
    return stack_panels([panel for sample in range(min(len(e), MAX_SAMPLES)) for panel in panels(e, sample)])


def panels(e: ExplanationData, sample: int) -> list[Panel]:
    """Return the panels of one sample's figure."""
    account, relevance, given = e.conservation, named_leaves(e.relevance), named_leaves(e.inputs)
    what = f"{e.heading(sample)} {e.note}".rstrip()
    total = f",  ΣR = {account.relevance[sample]:.4g}{_elsewhere(e, sample)}" if account.adds_up else ""
    about = f"{what}:  f = {account.explained[sample]:.4g}{total}{method_suffix(e)}"
    panels: list[Panel] = []
    if has_features(e) and e.feature_names:
        panels.append(_panel_of_features(e, about, sample))
        given = {}
    limit = partial(_limit, e, sample) if len(given) > 1 else None
    for name, x in given.items():
        r, title = relevance[name], f"{name}:  {_share(e, name, sample)};  {about}" if len(given) > 1 else about
        if x.is_floating_point():
            found = _panels_of_input(e, name, x, r, title, sample)
            panels += [replace(panel, limit=limit(name)) if isinstance(panel, Heatmap) and limit else panel for panel in found]
        elif name in e.tokens:
            rows = e.rows_of_sample(x, sample)
            panels += [TokenText(*merge_runs(e.tokens[name][row], r[row]), title) for row in rows]
        elif not e.tokens:  # otherwise they are ids of other kinds, such as segment ids
            rows = e.rows_of_sample(x, sample)
            panels += [TokenText([f" {i}" for i in x[row].flatten().tolist()], r[row], title) for row in rows]
    if e.interactions is not None:
        names = next(iter(e.feature_names.values()), ())
        if e.feature_mask is not None and names:
            names = FeatureTable.of(e[sample]).names
        title = "interactions of two features, and on the diagonal the effect of each"
        panels.append(InteractionMatrix(e.interactions[sample], title, names))
    return panels


def _elsewhere(e: ExplanationData, sample: int) -> str:
    """Return the baseline's output and the absorbed share for a title, where they are not negligible."""
    account = e.conservation
    parts = {"baseline": account.baseline, "absorbed": account.absorbed}
    least = VISIBLE_SHARE * float(account.explained[sample].abs())
    return "".join(f",  {k} {t[sample]:.4g}" for k, t in parts.items() if t is not None and float(t[sample].abs()) > least)


def _limit(e: ExplanationData, sample: int, name: str) -> float:
    """Return the limit of the colour scale of a picture among several inputs: common to all pictures.

    It is wider for an input with less than a hundredth of all |relevance|, which would look as relevant as the others.
    """
    of_sample = {key: t[sample] for key, t in named_leaves(e.relevance).items() if len(t) == len(e)}
    limit = max((color_limit(sum_channels(t)) for t in of_sample.values() if t.dim() == 3), default=0.0)
    amounts = {key: float(t.abs().sum()) for key, t in of_sample.items()}
    share = amounts.get(name, 0.0) / (sum(amounts.values()) or 1.0)
    return limit * max(1.0, SMALL_SHARE / max(share, 1e-12))


def _share(e: ExplanationData, name: str, sample: int) -> str:
    """Return the sum of relevance of one of several inputs, and its share of that of all."""
    t, total = e.entry_relevance(name), float(e.conservation.relevance[sample])
    amount = float(sum(t[row].detach().double().sum() for row in e.rows_of_sample(t, sample)))
    return f"R = {amount:.4g}" + (f" ({round(100 * amount / total)} %)" if total and e.conservation.adds_up else "")


def _panel_of_features(e: ExplanationData, title: str, sample: int) -> Panel:
    """Return the panel of a row of a table: its waterfall, or bars where relevance does not add up to the output."""
    if len(e) > FEW_ROWS or not has_common_features(e):
        e, sample = e[sample], 0
    features = FeatureTable.of(e)
    if e.conservation.adds_up:
        return waterfalls(e, features)[sample]
    return Bars(features.relevance[sample], title, features.captions(sample))


def detection_set_figure(explanations: Sequence[ExplanationData]) -> Figure:
    """Return a figure of explanations of boxes of one photo: the photo with all boxes, and a heatmap for each."""
    first = explanations[0]
    x = max((t for t in named_leaves(first.inputs).values() if t.is_floating_point() and t.dim() == 4), key=Tensor.numel)
    regions, captions = [], []
    for number, e in enumerate(explanations):
        regions.append(e.target.outline(0, x.shape[-2], x.shape[-1]))
        captions.append(f"{number}: {e.target.caption(e.class_name, 0)}")
    numbered = [(i, panel) for i, e in enumerate(explanations) for panel in panels(e, 0)]
    below = [replace(panel, title=f"{i}: {panel.title}") for i, panel in numbered]  # type: ignore[type-var]
    return stack_panels([Photo(x[0], f"{len(explanations)} boxes", regions, captions), *below])


def _panels_of_input(e: ExplanationData, name: str, x: Tensor, relevance: Tensor, title: str, sample: int) -> list[Panel]:
    """Return the panels of one input: the images that its rows are patches of; one heatmap for many rows that are shared by
    all samples (the nodes of a graph); else one panel per row."""

    if name in e.patches:
        patches = e.patches[name]
        both = zip(patches.pictures(x, torch.mean), patches.pictures(relevance, torch.sum), strict=True)
        return [Heatmap(picture, heat, title) for picture, heat in both]
    if x.dim() == 2 and len(x) != len(e) and len(x) > FEW_ROWS:
        names = tuple(e.feature_names.get(name, ()))
        return [SeriesHeatmap(relevance, title, rows="node", time="feature", ticks=_named_ticks(names), columns="features")]
    rows = e.rows_of_sample(x, sample)
    region, caption = _outlined(e, x, sample)
    return [_panel_of_row(e, name, x[row], relevance[row], title, region, caption) for row in rows]


def _named_ticks(names: Sequence[str]) -> Ticks | None:
    """Return a tick for each column with its name, if columns have names."""
    return (lambda count: (range(count), [shorten_middle(name, 16) for name in names])) if names else None


def _outlined(e: ExplanationData, x: Tensor, sample: int) -> tuple[Tensor | None, str]:
    """Return the region or box of a sample that is explained, `[h, w]` or `[d, h, w]`, with its caption, or None."""
    if x.dim() not in (4, 5) or not isinstance(e.target, Region | Detection):
        return None, ""
    outline = e.target.outline(sample, x.shape[-2], x.shape[-1])
    fits = outline is not None and outline.dim() == x.dim() - 2
    return (outline, e.target.caption(e.class_name, sample)) if fits else (None, "")


def _panel_of_row(
    e: ExplanationData, name: str, x: Tensor, relevance: Tensor, title: str, region: Tensor | None, caption: str
) -> Panel:
    """Return the panel of one row: bars for a vector, lines for a time series, else a heatmap."""

    names = e.feature_names.get(name, ())
    x, relevance = (as_picture(e, name, t) for t in (x, relevance))
    if relevance.dim() == 1 and e.time_axis is None:
        return Bars(relevance, title, names)
    as_lines, of_series = (as_series(e, name, t) for t in (x, relevance))
    if as_lines is not None and of_series is not None and region is None:
        if len(as_lines) <= MAX_LINES:
            return lines_of_series(e, name, as_lines, of_series, title)
        return series_heatmap(e, name, of_series, title)
    if (time := _time_of_video(x, names)) is not None:
        return VideoFrames(x.movedim(time, 0), relevance.movedim(time, 0), title)
    if relevance.dim() == 4:
        return VolumeSlices(x, relevance, title, region)
    return Heatmap(x, relevance, title, region, caption)


def render_in_notebook(e: ExplanationData) -> str:
    """Return the figure as HTML, with the account in a folded section."""
    return render_page("notebook.html", picture=embed_figure(figure(e)), **_account(e))


def _account(e: ExplanationData) -> dict[str, Any]:
    """Return what pages say of conservation: the parts of the output by sample, and the share that each layer absorbed."""
    account = e.conservation
    through = {} if account.conditional_output is None else {"through the condition": account.conditional_output}
    amounts = (
        {"output": account.output} | through | account.parts | ({"relative error": account.error} if account.adds_up else {})
    )
    columns = [column.tolist() for column in amounts.values()]
    layers = sorted(account.by_layer.items(), key=lambda item: -float(item[1].abs().sum()))
    return {
        "method": short_repr(e.method),
        "parts": list(account.parts) if account.adds_up else [],
        "headings": list(amounts),
        "caution": account.caution,
        "samples": list(zip(e.target_names(), zip(*columns, strict=True), strict=True)),
        "layers": [(name, amount.tolist()) for name, amount in layers],
    }


def _time_of_video(x: Tensor, names: Sequence[str]) -> int | None:
    """Return the dimension of the time in a sample of a video; None for others: channels with names are those of a volume."""
    return None if names else VideoFrames.time_dimension(x)


def render(e: ExplanationData) -> str:
    """Return the explanation as a self-contained HTML page."""
    pictures = not e.tokens or any(t.is_floating_point() for t in named_leaves(e.inputs).values())
    return render_page(
        "explanation.html",
        **_account(e),
        texts=_styled_texts(e),
        picture=embed_in_each_palette(lambda: figure(e)) if pictures else None,
        volumes=_volumes(e),
    )


def _volumes(e: ExplanationData) -> list[dict[str, Any]]:
    """Return the slices of the volumes of the first samples, once in each palette, for a slider."""
    found, relevance = [], named_leaves(e.relevance)
    for name, x in named_leaves(e.inputs).items():
        if x.dim() != 5 or len(x) != len(e) or _time_of_video(x[0], e.feature_names.get(name, ())) is not None:
            continue
        for i in range(min(len(e), FEW_ROWS)):
            images = []
            for colors in PALETTES:
                with palette(colors):
                    images.append(slice_images(x[i], relevance[name][i]))
            start = strongest_place(relevance[name][i].detach().float().sum(0))[0]
            depths = list(images[0])
            nearest = min(range(len(depths)), key=lambda k: abs(depths[k] - start))
            found.append({
                "title": e.heading(i), "depths": depths, "start": nearest, "count": x.shape[2],
                "images": [list(one.values()) for one in images],
            })  # fmt: skip
    return found


def _styled_texts(e: ExplanationData) -> list[tuple[str, list]]:
    """Return the texts of each sample as coloured tokens, with the name of its target."""

    relevance, names = named_leaves(e.relevance), e.target_names()
    return [
        (names[i], styled_tokens(*merge_runs(rows[row], relevance[name][row].float().cpu())))
        for i in range(len(e))
        for name, rows in e.tokens.items()
        for row in e.rows_of_sample(rows, i)
    ]
