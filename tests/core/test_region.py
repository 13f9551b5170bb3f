"""Regions of output maps as targets: which class, where, and the mean or sum there."""

import pytest
import torch
from torch import nn

import whence
from whence import errors

pytestmark = pytest.mark.usefixtures("float64")


class Segmenter(nn.Module):
    """A map of three classes at half of the resolution of the input."""

    def __init__(self, as_dict=False):
        super().__init__()
        self.body, self.head, self.as_dict = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 3, 1), as_dict

    def forward(self, x):
        scores = self.head(self.body(x).relu())
        return {"out": scores, "aux": scores} if self.as_dict else scores


@pytest.fixture(params=[True, False], ids=["dict", "tensor"])
def model(request):
    torch.manual_seed(0)
    made = Segmenter(request.param).eval()
    with torch.no_grad():
        made.head.bias[1] += 0.3  # so that class 1 is predicted in places
    return made


X = torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(1)).double()
MASK = torch.zeros(8, 12, dtype=torch.bool)
MASK[2:6, 4:8] = True


def scores_of(out):
    return out["out"] if isinstance(out, dict) else out


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize(
    ("region", "rows", "columns"),
    [
        ({"box": (4, 2, 8, 6)}, slice(1, 3), slice(2, 4)),
        ({"mask": MASK}, slice(1, 3), slice(2, 4)),
        ({"mask": MASK[::2, ::2]}, slice(1, 3), slice(2, 4)),
        ({"point": (5, 7)}, slice(3, 4), slice(2, 3)),
        ({"box": (0, 0, 12, 8)}, slice(None), slice(None)),
    ],
)
def test_the_value_is_that_of_the_places(model, batch, reduce, region, rows, columns):
    def by_hand(out):
        part = scores_of(out)[:, 1, rows, columns].flatten(1)
        return part.mean(1) if reduce == "mean" else part.sum(1)

    found = whence.explain(model, X[:batch], whence.Region(1, **region, reduce=reduce))
    expected = whence.explain(model, X[:batch], by_hand)
    torch.testing.assert_close(found.relevance, expected.relevance)
    torch.testing.assert_close(found.output, expected.output)
    assert found.conservation.error.max() < 1e-9


def test_by_default_the_class_is_explained_where_it_is_predicted(model):
    scores = scores_of(model(X)).detach()
    e = whence.explain(model, X, whence.Region())
    for sample in range(2):
        predicted = scores[sample].argmax(0)
        most = int(predicted.flatten().mode().values)
        assert int(e.target.index[sample]) == most
        assert torch.equal(e.target.places[sample], predicted == most)
        torch.testing.assert_close(e.output[sample], scores[sample, most][predicted == most].mean())
    at = whence.explain(model, X, whence.Region(point=(2, 2)))
    assert at.target.index.tolist() == scores[:, :, 1, 1].argmax(1).tolist()
    several = whence.explain(model, X, whence.Region([0, 2], box=(0, 0, 12, 8)))
    torch.testing.assert_close(several.output, torch.stack([scores[0, 0].mean(), scores[1, 2].mean()]))


@pytest.mark.parametrize("method", ["occlusion", "gradient_times_input", "integrated_gradients", "feature_ablation"])
def test_the_region_is_fixed_while_the_input_is_changed(model, method):
    """The places are those where the class is predicted for the input, not for its altered copies."""
    place = whence.explain(model, X, whence.Region(1)).target.places

    def by_hand(out):
        return (scores_of(out)[:, 1] * place[: len(scores_of(out))].repeat(len(scores_of(out)) // 2, 1, 1)).flatten(1).sum(1)

    found = whence.explain(model, X, whence.Region(1, reduce="sum"), method=method, progress=False)
    expected = whence.explain(model, X, by_hand, method=method, progress=False)
    torch.testing.assert_close(found.relevance, expected.relevance)


def test_names_figures_slices_and_files(model, tmp_path):
    names = ["sky", "cat", "grass"]
    e = whence.explain(model, X, whence.Region("cat", box=(4, 2, 8, 6)), class_names=names)
    assert e.target_names() == ["cat in the box (4, 2, 8, 6)"] * 2
    assert whence.explain(model, X, whence.Region(1)).target_names() == ["class 1 where it is predicted"] * 2
    assert whence.explain(model, X, whence.Region(1, point=(3, 3))).target_names()[0] == "class 1 at the point (3, 3)"
    assert whence.explain(model, X, whence.Region(1, mask=MASK)).target_names()[0] == "class 1 in the mask"
    lines = [len(axis.collections) for axis in e.figure().axes[:3]]
    assert lines == [2, 2, 2]
    torch.testing.assert_close(e[1:].target.places, e.target.places[1:])
    assert whence.load(e.save(tmp_path / "e.safetensors")).relevance.shape == X.shape
    assert e.save(tmp_path / "e.html").stat().st_size > 5000


def test_a_region_is_not_exported_but_a_function_of_the_outputs_is(tmp_path):
    model, x = Segmenter().eval(), X.float()
    torch.set_default_dtype(torch.float32)
    model = model.float()
    with pytest.raises(errors.RuleError, match=r"target=lambda outputs: outputs\[:, 1, 10:20, 10:20\]"):
        whence.export(model, x, whence.Region(1), out=tmp_path / "region.pt2")
    whence.export(model, x, lambda outputs: outputs[:, 1, 1:2, 1:2].mean((1, 2)), out=tmp_path / "function.pt2")
    captured = whence.Explainer(model, capture=True)(x, whence.Region(1, box=(0, 0, 4, 4)))
    expected = whence.explain(model, x, whence.Region(1, box=(0, 0, 4, 4)))
    torch.testing.assert_close(captured.relevance, expected.relevance)


def test_several_regions_of_one_photo(model):
    boxes = [whence.Region(1, box=(0, 0, 6, 8)), whence.Region(1, box=(6, 0, 12, 8)), 0]
    left, right = whence.explain_targets(model, X, boxes[:2])
    whole = whence.explain(model, X, whence.Region(1, box=(0, 0, 12, 8)))
    torch.testing.assert_close((left.relevance + right.relevance) / 2, whole.relevance)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"mask": torch.zeros(8, 12)}, "the mask is empty"),
        ({"mask": torch.ones(5, 5)}, r"expected \[8, 12\], the size of the input, or \[4, 6\]"),
        ({"mask": torch.ones(3, 8, 12)}, "for all or each of 2 samples"),
        ({"point": (12, 3)}, "outside of an input of 12 × 8"),
        ({"point": (3, 9)}, "outside"),
        ({"point": (1, 2, 3)}, r"expected point=\(x, y\)"),
        ({"point": "here"}, "must be numbers"),
        ({"box": (4, 4, 2, 6)}, "empty or outside"),
        ({"box": (-1, 4, 2, 6)}, "empty or outside"),
        ({"index": 7}, "has classes 0 to 2"),
    ],
)
def test_regions_that_do_not_exist(model, region, message):
    with pytest.raises(errors.TargetError, match=message):
        whence.explain(model, X, whence.Region(**({"index": 1} | region)))


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"reduce": "max"}, "choose 'mean' or 'sum'"),
        ({"mask": "cat"}, "expected a bool tensor, or 'predicted'"),
        ({"mask": MASK, "point": (1, 1)}, "pass one"),
    ],
)
def test_settings_that_contradict_each_other(region, message):
    with pytest.raises(errors.TargetError, match=message):
        whence.Region(1, **region)


def test_a_class_that_is_predicted_nowhere(model):
    with torch.no_grad():
        model.head.bias[2] -= 1e3
    with pytest.raises(errors.TargetError, match="class 2 is predicted nowhere in sample 0"):
        whence.explain(model, X, whence.Region(2))


def test_outputs_without_a_map_say_what_they_are():
    class Boxes(nn.Module):
        def forward(self, x):
            return [{"boxes": x.mean((1, 2, 3))[:, None].expand(-1, 4), "labels": x.mean((1, 2, 3)).long()}]

    with pytest.raises(
        errors.TargetError, match=r"no logits but a list of a dict of boxes: a tensor of shape \(2, 4\); labels"
    ):
        whence.explain(Boxes().eval(), X)
    with pytest.raises(errors.TargetError, match=r"has no map \[N, C, H, W\] for a Region; the output is a list of a dict"):
        whence.explain(Boxes().eval(), X, whence.Region(1))
    with pytest.raises(errors.TargetError, match=r"pass whence\.Region\(class\) for a map"):
        whence.explain(Segmenter().eval(), X)


@pytest.mark.parametrize("shape", [(2, 1, 9), (2, 1, 4, 6, 8)])
def test_series_and_volumes(shape):
    kind = {3: nn.Conv1d, 5: nn.Conv3d}[len(shape)]
    torch.manual_seed(0)
    model, x = kind(1, 3, 3, padding=1).eval(), torch.randn(shape)
    mask = torch.zeros(shape[2:], dtype=torch.bool)
    mask[1:3] = True
    found = whence.explain(model, x, whence.Region(2, mask=mask))
    expected = whence.explain(model, x, lambda out: out[:, 2, 1:3].flatten(1).mean(1))
    torch.testing.assert_close(found.relevance, expected.relevance)


def test_segmentation_models_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=5, depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 2, 4], decoder_hidden_size=16
    )
    model, photo = transformers.SegformerForSemanticSegmentation(config).eval(), torch.rand(1, 3, 64, 64)
    e = whence.explain(model, {"pixel_values": photo}, whence.Region("LABEL_2", box=(8, 8, 40, 40)))
    assert e.target_names() == ["LABEL_2 in the box (8, 8, 40, 40)"]
    expected = whence.explain(model, {"pixel_values": photo}, lambda out: out.logits[:, 2, 2:10, 2:10].mean((1, 2)))
    torch.testing.assert_close(e.relevance["pixel_values"], expected.relevance["pixel_values"])
    assert e.conservation.error.max() < 1e-4


def test_masks_of_queries():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.classes, self.masks = nn.Linear(2, 4), nn.Conv2d(2, 5, 1)

        def forward(self, x):
            vectors = torch.stack([x.mean((2, 3)) * (i + 1) for i in range(5)], 1)
            return {"class_queries_logits": self.classes(vectors), "masks_queries_logits": self.masks(x)}

    torch.manual_seed(0)
    model = Queries().eval()
    with torch.no_grad():
        out = model(X)
    scores = torch.zeros(2, 3, 8, 12)
    for query in range(5):
        likely = out["class_queries_logits"][:, query].softmax(-1)[:, :3]
        scores += likely[:, :, None, None] * out["masks_queries_logits"][:, query].sigmoid()[:, None]
    e = whence.explain(model, X, whence.Region(1, box=(0, 0, 4, 4)))
    torch.testing.assert_close(e.output, scores[:, 1, :4, :4].mean((1, 2)))
    assert e.relevance.isfinite().all()
