"""Volumes are drawn as three slices through the strongest relevance."""

import torch
from torch import nn

import whence
from whence.plotting.volumes import strongest_place


def test_the_strongest_place_is_that_of_the_largest_magnitude():
    heat = torch.zeros(3, 4, 5)
    heat[2, 1, 3], heat[0, 0, 0] = -2.0, 1.0
    assert strongest_place(heat) == (2, 1, 3)


def test_a_volume_is_drawn_by_default(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 8 * 10, 2)).eval()
    e = whence.explain(net, torch.rand(2, 1, 6, 8, 10), 1)
    figure = e.figure()
    depth, height, width = strongest_place(e.relevance[0].sum(0))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == [
        f"depth {depth} of 6  (height ↓, width →)",
        f"height {height} of 8  (depth ↓, width →)",
        f"width {width} of 10  (depth ↓, height →)",
    ]
    drawn = [axis.images[0].get_array().shape for axis in figure.axes[:3]]
    assert drawn == [(8, 10), (6, 10), (6, 8)]
    assert e.save(tmp_path / "e.html").stat().st_size > 5000
