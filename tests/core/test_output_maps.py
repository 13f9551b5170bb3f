"""The maps in the outputs of models, for regions: which of several, masks, values, channels last; masks as users have them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import whence
from whence import errors

X = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


class Maps(nn.Module):
    """A map of three channels at the resolution of the input, in the form that a function makes of it."""

    def __init__(self, form, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.form = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, channels, 1), form
        self.eval()

    def raw(self, x):
        return self.head(self.body(x).relu())

    def forward(self, x):
        return self.form(self.raw(x))


def outputs(**fields):
    return type("Output", (SimpleNamespace,), {})(**fields)


BOX = whence.Region(1, box=(2, 1, 9, 6))


def in_box(t):
    return t[:, 1, 1:6, 2:9].mean((1, 2)).detach()


FORMS = {
    "tensor": lambda t: t,
    "one of a tuple": lambda t: (t, torch.zeros(len(t))),
    "last of a list": lambda t: [t.mean((2, 3)), t],
    "out": lambda t: {"aux": -t, "out": t},
    "unknown name": lambda t: {"pred": t, "loss": t.mean()},
    "object": lambda t: outputs(logits=t, features=-t),
    "unknown name of an object": lambda t: outputs(heatmaps=t, hidden=t.flatten(1)),
    "channels last": lambda t: t.movedim(1, -1),
    "depth with channels": lambda t: outputs(reconstruction=t),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_map_is_found(form, batch):
    model = Maps(form)
    e = whence.explain(model, X[:batch], BOX)
    torch.testing.assert_close(e.output, in_box(model.raw(X[:batch])))
    assert e.conservation.error.max() < 1e-5


@pytest.mark.parametrize(
    ("form", "which", "sign"),
    [
        (lambda t: [-t, t], -1, 1),
        (lambda t: (t, -t), 1, -1),
        (lambda t: {"hm": -t, "wh": t}, "wh", 1),
        (lambda t: outputs(a=-t, b=t), "b", 1),
        (lambda t: {"a": -t, "b": t}, 1, 1),
    ],
)
def test_one_of_several_maps_must_be_named(form, which, sign):
    model = Maps(form)
    with pytest.raises(errors.TargetError, match="several maps for a Region; choose one by output="):
        whence.explain(model, X, BOX)
    e = whence.explain(model, X, whence.Region(1, box=(2, 1, 9, 6), output=which))
    torch.testing.assert_close(e.output, sign * in_box(model.raw(X)))
    for missing in ("nothing", 7):
        with pytest.raises(errors.TargetError, match="is no map"):
            whence.explain(model, X, whence.Region(1, output=missing))


@pytest.mark.parametrize("form", [lambda t: t.mean((2, 3)), lambda t: t.flatten(2), lambda t: t[:, :, ::2, 0]])
def test_outputs_of_pictures_that_are_no_maps(form):
    with pytest.raises(errors.TargetError, match=r"no map \[N, C, H, W\].*for boxes pass whence.Detection\(\)"):
        whence.explain(Maps(form), X, whence.Region())


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("probability", [False, True])
def test_a_single_channel_is_a_mask(squeezed, probability):
    model = Maps(lambda t: (t.sigmoid() if probability else t)[:, 0] if squeezed else t.sigmoid() if probability else t, 1)
    with torch.no_grad():
        model.head.bias.sub_(model.raw(X).median())  # so that the mask is half of each photo
    e = whence.explain(model, X, whence.Region())
    scores = model.raw(X)[:, 0].detach()
    torch.testing.assert_close(e.target.places, scores > 0)
    torch.testing.assert_close(e.output, torch.stack([s[s > 0].mean() for s in scores]))
    assert e.target_names() == ["mask 0 where it is predicted"] * 2


def test_masks_of_prompts_as_of_segment_anything():
    quality = torch.tensor([[[0.1, 0.9, 0.3]], [[0.5, 0.2, 0.1]]])

    def form(t):
        return outputs(pred_masks=t[:, None, :, ::2, ::2], iou_scores=quality[: len(t)])

    model = Maps(form)
    e = whence.explain(model, X, whence.Region(box=(0, 0, 12, 8)))
    assert e.target.places.all()
    scores = model.raw(X)[:, :, ::2, ::2].detach()
    most = (scores > 0).flatten(2).sum(2).argmax(1)
    assert e.target.index.tolist() == most.tolist()
    with torch.no_grad():
        model.head.bias.fill_(1)
    e = whence.explain(model, X, whence.Region())
    assert e.target.index.tolist() == [1, 0]
    assert e.target_names() == ["mask 1 where it is predicted", "mask 0 where it is predicted"]
    points = {"input_points": torch.rand(2, 1, 1, 2), "x": X}
    with_points = whence.explain(lambda input_points, x: model(x), points, whence.Region(1, box=(0, 0, 12, 8)))
    torch.testing.assert_close(with_points.output, model.raw(X)[:, 1, ::2, ::2].mean((1, 2)).detach())


def test_a_depth_is_explained_everywhere():
    model = Maps(lambda t: outputs(predicted_depth=t[:, 0, ::2, ::2]), 1)
    e = whence.explain(model, X, whence.Region())
    torch.testing.assert_close(e.output, model.raw(X)[:, 0, ::2, ::2].mean((1, 2)).detach())
    assert e.target_names() == ["output everywhere"] * 2


@pytest.mark.parametrize(
    "mask",
    [
        np.arange(96).reshape(8, 12) < 40,
        (np.arange(96).reshape(8, 12) < 40).astype(np.uint8),
        Image.fromarray(np.arange(96).reshape(8, 12) < 40),
        (torch.arange(96).view(8, 12) < 40).float(),
        (torch.arange(96).view(8, 12) < 40).tolist(),
    ],
    ids=["bool", "uint8", "picture", "float", "list"],
)
def test_masks_of_many_kinds(mask):
    model = Maps(lambda t: t)
    e = whence.explain(model, X, whence.Region(2, mask=mask))
    torch.testing.assert_close(e.output, model.raw(X)[:, 2].flatten(1)[:, :40].mean(1).detach())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": torch.arange(96).view(8, 12)}, "other than 0 and 1, such as 2; expected a bool tensor: of a map of labels"),
        ({"mask": torch.full((8, 12), float("nan"))}, "values other than 0 and 1, such as nan"),
        ({"mask": object()}, "expected a bool tensor"),
        ({"box": "abcd"}, "a box must be numbers"),
        ({"point": 3}, "a point must be numbers"),
    ],
)
def test_masks_and_places_that_are_none(settings, message):
    with pytest.raises(errors.TargetError, match=message):
        whence.Region(1, **settings)


def test_relative_boxes_and_tensors():
    model = Maps(lambda t: t)
    with pytest.raises(errors.TargetError, match=r"seems to be relative; expected pixels, from 0 to \[12, 8\]"):
        whence.explain(model, X, whence.Region(1, box=(0.1, 0.1, 0.5, 0.5)))
    e = whence.explain(model, X, whence.Region(1, box=torch.tensor([2.0, 1.0, 9.0, 6.0])))
    torch.testing.assert_close(e.output, in_box(model.raw(X)))
    assert e.target_names()[0] == "class 1 in the box (2, 1, 9, 6)"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_saved_regions_keep_their_names_and_outlines(suffix, tmp_path):
    regions = [whence.Region([0, 2], point=(3, 4)), whence.Region(1, mask=np.eye(8, 12) > 0), whence.Region()]
    for region in regions:
        e = whence.explain(Maps(lambda t: t), X, region, class_names=["a", "b", "c"])
        loaded = whence.load(e.save(tmp_path / f"e{suffix}"))
        assert loaded.target_names() == e.target_names()
        assert loaded[1].target_names() == [e.target_names()[1]]
        assert torch.equal(loaded.target.places, e.target.places)
        assert loaded.target.reduce == "mean"


def test_a_volume_made_of_a_vector_is_a_map_of_its_channels():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 2 * 27), nn.Unflatten(1, (2, 3, 3, 3))).eval(), torch.randn(2, 4)
    e = whence.explain(model, x, whence.Region(1, mask=torch.ones(3, 3, 3)))
    torch.testing.assert_close(e.output, model(x)[:, 1].mean((1, 2, 3)).detach())


def test_a_mask_with_a_channel_and_places_of_volumes():
    torch.manual_seed(0)
    model, x = nn.Conv3d(1, 2, 1).eval(), torch.rand(1, 1, 4, 6, 8)
    mask = torch.zeros(1, 1, 4, 6, 8, dtype=torch.bool)
    mask[..., 1:3, 2:5, 3:7] = True
    by_mask = whence.explain(model, x, whence.Region(1, mask=mask))
    by_box = whence.explain(model, x, whence.Region(1, box=(3, 2, 1, 7, 5, 3)))
    torch.testing.assert_close(by_mask.output, by_box.output)
    assert torch.equal(by_box.target.places, mask[0])
    with pytest.raises(errors.TargetError, match=r"outside of an input of 8 × 6 × 4 in x, y, z"):
        whence.explain(model, x, whence.Region(1, point=(0, 0, 4)))
    with pytest.raises(errors.TargetError, match=r"expected point=\(x, y, z\) or box=\(x0, y0, z0, x1, y1, z1\)"):
        whence.explain(model, x, whence.Region(1, box=(0, 0, 1, 1)))


class Annotated(torch.Tensor):
    """A tensor with metadata, as MONAI's."""


def test_tensors_with_metadata_are_explained_as_plain_ones():
    model = Maps(lambda t: t)
    annotated = X.clone().as_subclass(Annotated)
    for target in (BOX, whence.Region(2, point=(3, 3))):
        e = whence.explain(model, annotated, target)
        torch.testing.assert_close(e.relevance, whence.explain(model, X, target).relevance)
        assert type(e.relevance) is torch.Tensor
    assert type(annotated) is Annotated


@pytest.mark.parametrize("stride", [1, 2])
def test_maps_with_channels_last(stride):
    torch.manual_seed(0)
    body, x = nn.Conv2d(3, 5, 3, stride, 1).eval(), torch.rand(2, 3, 16, 24)
    box = whence.Region(1, box=(4, 4, 20, 12))
    first = whence.explain(body, x, box)
    last = whence.explain(lambda x: body(x).movedim(1, -1), x, box)
    torch.testing.assert_close(last.output, first.output)
    torch.testing.assert_close(last.relevance, first.relevance)
    of_photo = whence.explain(lambda x: body(x.movedim(-1, 1)).movedim(1, -1), x.movedim(1, -1), box)
    torch.testing.assert_close(of_photo.output, first.output)
    assert torch.equal(of_photo.target.places, first.target.places)


def test_series_and_tokens_with_the_time_first():
    torch.manual_seed(0)
    head, x = nn.Linear(4, 6), torch.randn(2, 9, 4)
    e = whence.explain(head, x, whence.Region(3, mask=torch.arange(9) == 5))
    torch.testing.assert_close(e.output, head(x)[:, 5, 3].detach())
    model, ids = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 12)).eval(), torch.randint(10, (2, 7))
    e = whence.explain(model, ids, whence.Region(3, mask=torch.ones(7)))
    torch.testing.assert_close(e.output, model(ids)[:, :, 3].mean(1).detach())


def test_whether_a_mask_has_probabilities_is_decided_for_each_photo():
    scores = torch.stack([torch.linspace(0.01, 0.99, 96), torch.linspace(-3, 3, 96)]).view(2, 1, 8, 12)
    model = lambda x: scores[: len(x)] + 0 * x[:, :1]  # noqa: E731
    e = whence.explain(model, X, whence.Region(), method="occlusion")
    assert torch.equal(e.target.places[0], scores[0, 0] > 0.5)
    assert torch.equal(e.target.places[1], scores[1, 0] > 0)
