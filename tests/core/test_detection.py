"""Detected boxes as targets: the class logit behind a box, through sigmoid, softmax, products, selection and suppression."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import whence
from whence import errors

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Grid(nn.Module):
    """Boxes on a grid of 4 × 4 cells, with scores of three classes, in the form that a subclass returns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classes, self.objects = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 1, 1)
        self.eval()

    def features(self, x):
        return self.body(x).relu()

    def boxes(self, x):
        """Corners of 16 cells, `[16, 4]`."""
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        low = torch.stack([columns, rows], -1).view(-1, 2) * 4
        return torch.cat([low, low + 5], 1).to(x.dtype)

    def logits(self, x):
        return self.classes(self.features(x)).flatten(2).mT  # [N, 16, 3]


class Suppressing(Grid):
    """A list of dicts, as torchvision's detectors return them: the best boxes over a threshold, in order."""

    def scores(self, x):
        return self.logits(x).sigmoid()

    def forward(self, x):
        found = []
        for scores in self.scores(x):
            kept, places = scores.flatten().topk(12)
            boxes, labels = self.boxes(x)[places // scores.shape[1]], places % scores.shape[1]
            over = torch.where(kept > 0.05)[0]
            order = torch.cat([kept[over][:6], kept[over][6:]]).argsort(descending=True)
            found.append({"boxes": boxes[over][order], "labels": labels[over][order], "scores": kept[over][order]})
        return found


class OfSoftmax(Suppressing):
    def scores(self, x):
        return self.logits(x).softmax(-1)[..., 1:]


class WithObjectness(Suppressing):
    def scores(self, x):
        return torch.sqrt(self.logits(x).sigmoid() * self.objects(self.features(x)).flatten(2).mT.sigmoid())


class Yolo(Grid):
    """A tensor [N, 4 + classes, boxes], with centres and sizes."""

    def forward(self, x):
        boxes = self.boxes(x)
        boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        return torch.cat([boxes.T.expand(len(x), -1, -1), self.logits(x).sigmoid().mT], 1)


class Detr(Grid):
    kind = type("RTDetrObjectDetectionOutput", (SimpleNamespace,), {})

    def forward(self, x):
        boxes = self.boxes(x) / 16
        boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        return self.kind(logits=self.logits(x), pred_boxes=boxes.expand(len(x), -1, -1))


class DetrWithBackground(Detr):
    kind = type("DetrObjectDetectionOutput", (SimpleNamespace,), {})


def chosen_by_hand(model, number, label=None):
    """The cell and class of the box with this number by score, for each photo."""
    logits = model.logits(X).detach()
    if isinstance(model, OfSoftmax):
        scores = logits.softmax(-1).clone()
        scores[..., 0] = -1
    elif isinstance(model, WithObjectness):
        scores = logits.sigmoid() * model.objects(model.features(X)).flatten(2).mT.sigmoid().detach()
    elif isinstance(model, DetrWithBackground):
        scores = logits.softmax(-1).clone()
        scores[..., 2] = -1
    else:
        scores = logits.sigmoid()
    if isinstance(model, Yolo | Detr):  # one class for each box
        scores = torch.where(scores == scores.amax(-1, keepdim=True), scores, -1.0)
    if label is not None:
        scores = torch.where(torch.arange(3) == label, scores, -1.0)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)[:, number]
    return [(int(k) // 3, int(k) % 3) for k in order]


KINDS = [Suppressing, OfSoftmax, WithObjectness, Yolo, Detr, DetrWithBackground]


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_behind_the_box_is_explained(kind, number):
    model = kind()
    cells = chosen_by_hand(model, number)

    def by_hand(x):
        found = model.logits(x)
        values = torch.stack([found[i, cell, label] for i, (cell, label) in enumerate(cells)])
        if kind is WithObjectness:
            objects = model.objects(model.features(x)).flatten(2)[:, 0]
            values = values + torch.stack([objects[i, cell] for i, (cell, _) in enumerate(cells)])
        return values

    e = whence.explain(model, X, whence.Detection(number))
    expected = whence.explain(by_hand, X)
    torch.testing.assert_close(e.output, by_hand(X).detach())
    torch.testing.assert_close(e.relevance, expected.relevance, atol=1e-6, rtol=1e-4)
    assert e.conservation.error.max() < 1e-5
    of_logits, name = kind in (Detr, DetrWithBackground), "softmax" if kind is OfSoftmax else "sigmoid"
    assert e.note == ("" if of_logits else f"before the final {name}")
    boxes = model.boxes(X)[[cell for cell, _ in cells]]
    torch.testing.assert_close(e.target.box, boxes)
    shift = 1 if kind is OfSoftmax else 0  # its labels do not count the background
    assert (e.target.labels + shift).tolist() == [label for _, label in cells]


@pytest.mark.parametrize("kind", [Suppressing, Yolo, Detr])
def test_boxes_of_a_label(kind):
    model = kind()
    e = whence.explain(model, X, whence.Detection(label="b"), class_names=["a", "b", "c"])
    cells = chosen_by_hand(model, 0, 1)
    torch.testing.assert_close(e.output, torch.stack([model.logits(X)[i, c, 1] for i, (c, _) in enumerate(cells)]).detach())
    x0, y0, x1, y1 = e.target.box[0].int().tolist()
    assert e.target_names()[0] == f"b {float(e.target.scores[0]):.2f} in the box ({x0}, {y0}, {x1}, {y1})"


@pytest.mark.parametrize("batch", [1, 2])
def test_one_photo_and_several(batch):
    both, first = (whence.explain(Suppressing(), X[:n], whence.Detection(1)) for n in (2, batch))
    torch.testing.assert_close(first.relevance, both.relevance[:batch])


@pytest.mark.parametrize("method", ["gradient_times_input", "occlusion", "smooth_grad"])
def test_other_methods_explain_the_score_of_the_same_object(method):
    model = Suppressing()
    (cell, label), (other_cell, other_label) = chosen_by_hand(model, 0)
    e = whence.explain(model, X, whence.Detection(), method=method, progress=False)
    scores = model.logits(X).sigmoid().detach()
    expected = torch.stack([scores[0, cell, label], scores[1, other_cell, other_label]])
    torch.testing.assert_close(e.output, expected)
    assert e.relevance.abs().sum() > 0


def test_a_box_that_is_gone_has_the_value_zero():
    model = Suppressing()
    target = whence.explain(model, X, whence.Detection()).target
    values, _ = target.select([{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}] * 2, None)
    assert values.tolist() == [0, 0]
    moved = [
        {"boxes": target.box[i : i + 1] + 0.5, "scores": torch.tensor([0.7]), "labels": target.labels[i : i + 1]}
        for i in (0, 1)
    ]
    assert target.select(moved, None)[0].tolist() == pytest.approx([0.7, 0.7])
    others = [photo | {"labels": photo["labels"] + 1} for photo in moved]
    assert target.select(others, None)[0].tolist() == [0, 0]


def test_the_box_is_outlined(tmp_path):
    e = whence.explain(Suppressing(), X, whence.Detection(), class_names=["a", "b", "c"])
    assert [len(axis.collections) for axis in e.figure().axes[:3]] == [2, 2, 2]
    assert torch.equal(e.target.outline(0, 16, 16).nonzero()[0], e.target.box[0, [1, 0]].long())
    assert e.save(tmp_path / "e.html").stat().st_size > 5000
    torch.testing.assert_close(e[1:].target.box, e.target.box[1:])


def test_boxes_that_are_not_there():
    model = Suppressing()
    with pytest.raises(errors.TargetError, match=r"photo 0 has 12 boxes with a score of at least 0, and no box 12"):
        whence.explain(model, X, whence.Detection(12))
    with pytest.raises(errors.TargetError, match=r"photo 0 has 0 boxes of class 7 .* lower score="):
        whence.explain(model, X, whence.Detection(label=7))
    with pytest.raises(errors.TargetError, match=r"a score of at least 2"):
        whence.explain(model, X, whence.Detection(score=2))
    with pytest.raises(
        errors.TargetError, match=r"needs outputs with boxes: .* the output is a tensor of shape \(2, 8, 4, 4\)"
    ):
        whence.explain(model.body, X, whence.Detection())
    for index in (-1, True, 1.5):
        with pytest.raises(errors.TargetError, match="expected the number of a box"):
            whence.Detection(index)
    with pytest.raises(errors.RuleError, match="takes no Detection"):
        whence.export(model, X, whence.Detection(), out="never.pt2")


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("retinanet_resnet50_fpn", "head.classification_head.cls_logits",
         {"min_size": 64, "max_size": 64, "score_thresh": 0.0}),
        ("ssdlite320_mobilenet_v3_large", "head.classification_head", {"score_thresh": 0.0}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "roi_heads.box_predictor.cls_score",
         {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 10}),
    ],
)  # fmt: skip
def test_detectors_of_torchvision(name, head, options, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    boxes = pytest.importorskip("torchvision.ops.boxes")
    monkeypatch.setattr(boxes, "_assert_has_ops", lambda: None)  # of a build for CUDA beside a torch for CPUs
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options).eval()
    logits = []
    with torch.no_grad():  # at random, all logits are nearly equal
        (last := list(model.get_submodule(head).modules())[-1]).weight.normal_(std=0.5)
    handle = model.get_submodule(head).register_forward_hook(lambda *call: logits.append(call[2].detach().flatten()))
    e = whence.explain(model, torch.rand(1, 3, 64, 64), whence.Detection(1))
    handle.remove()
    assert last.weight.shape
    assert (torch.cat(logits) - e.output).abs().min() < 1e-5  # it is one of them
    assert e.conservation.error.max() < 1e-4
    if name.startswith("retinanet"):
        torch.testing.assert_close(e.output.sigmoid(), e.target.scores)


def test_other_outputs_that_are_products_of_probabilities_keep_their_predicted_class():
    """σ(a) · σ(b) is largest where a + b need not be."""

    def model(x):
        return (x * torch.tensor([[9.0, 3.0]])).sigmoid() * (x * torch.tensor([[-2.0, 1.0]])).sigmoid()

    x = torch.ones(1, 2)
    assert int(model(x).argmax()) == 1
    e = whence.explain(model, x)
    assert e.target.tolist() == [1]
    torch.testing.assert_close(e.output, model(x)[:, 1])
    joined = whence.explain(lambda x: torch.cat([x.softmax(1), (3 * x[:, :2]).softmax(1)], 1), torch.tensor([[2.0, 0.0, 0.5]]))
    assert joined.target.tolist() == [3]


def test_a_value_in_the_shape_of_scores_is_no_score():
    """The first argument is moved, not the one whose shape or type is read."""
    x = torch.tensor([[0.5, 2.0]])
    e = whence.explain(lambda x: (3 * x).expand_as(x.sigmoid()).type_as(x.sigmoid()), x)
    assert e.note == ""
    assert e.output.tolist() == [6.0]
    assert e.relevance.tolist() == [[0.0, 6.0]]
