"""Input gradients and heatmaps of the standard and the robust digit network, side by side.

python scripts/robust_heatmaps.py docs/images/robust_digits.png
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

import whence
from whence.models.digits import digit_samples, digits, robust_digits
from whence.plotting.heatmaps import color_limit, sum_channels, to_picture
from whence.plotting.palettes import current_palette

DIGITS = range(10)


def main(picture: Path) -> None:
    images, labels = digit_samples()
    x, y = images[list(DIGITS)], labels[list(DIGITS)]
    rows = {"input": x}
    for way, method in (("gradient", whence.Sensitivity("signed")), ("LRP", whence.LRP())):
        for name, model in (("standard", digits()), ("robust", robust_digits())):
            rows[f"{way},\n{name}"] = whence.explain(model, x, y, method=method).relevance
    drawn = Figure(figsize=(0.95 * len(DIGITS) + 0.6, 1.0 * len(rows)), dpi=120, layout="constrained")
    for line, (name, values) in zip(drawn.subplots(len(rows), len(DIGITS)), rows.items(), strict=True):
        for axis, value in zip(line, values, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if name == "input":
                axis.imshow(to_picture(value).numpy(), cmap="gray")
            else:
                heat = sum_channels(value)
                axis.imshow(heat.numpy(), cmap=current_palette().map, vmin=-color_limit(heat), vmax=color_limit(heat))
        line[0].set_ylabel(name, fontsize=8)
    drawn.savefig(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
