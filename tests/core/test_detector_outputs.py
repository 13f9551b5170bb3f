"""The forms in which detectors return boxes: which box is explained, at which logit, and what is refused."""

from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
CLASSES = 3


class Head(nn.Module):
    """A detector of 16 boxes, whose boxes and classes depend on the photo; `form` makes its output of both."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.form = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 5 + CLASSES, 1), form
        self.eval()

    def raw(self, x):
        """Centres and sizes `[N, 4, 16]`, the logit of an object `[N, 1, 16]`, and of the classes `[N, 3, 16]`."""
        found = self.head(self.body(x).relu()).flatten(2)
        boxes = torch.cat([8 + found[:, :2], 6 + found[:, 2:4]], 1)
        return boxes, found[:, 4:5], found[:, 5:]

    def forward(self, x):
        return self.form(*self.raw(x))


def v8(boxes, _, classes):
    return torch.cat([boxes, classes.sigmoid()], 1)


def v8_with_raw_outputs(boxes, _, classes):
    return v8(boxes, _, classes), {"boxes": boxes, "scores": classes, "feats": []}


def pose(boxes, _, classes):
    return torch.cat([v8(boxes, _, classes), 100 * boxes], 1), {"scores": classes}


def masks(boxes, _, classes):
    return (torch.cat([v8(boxes, _, classes), boxes], 1), boxes.new_zeros(len(boxes), 2, 4, 4)), {"scores": classes}


def v5(boxes, objects, classes):
    return torch.cat([boxes.mT, objects.sigmoid().mT, classes.sigmoid().mT], 2)


def end_to_end(boxes, _, classes):
    scores, labels = classes.sigmoid().max(1)
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1).mT
    scores, order = scores.topk(5)
    return torch.cat([
        corners.gather(1, order[..., None].expand(-1, -1, 4)), scores[..., None], labels.gather(1, order)[..., None].float()
    ], 2)  # fmt: skip


def listed(scores_of):
    """A list of dicts, as of torchvision, with scores and labels computed by the function."""

    def form(boxes, objects, classes):
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1).mT
        scores, labels = scores_of(objects, classes)
        return [{"boxes": b, "scores": s, "labels": k} for b, s, k in zip(corners, scores, labels, strict=True)]

    return form


LISTED = {
    "max": lambda o, c: tuple(c.sigmoid().max(1)),
    "max of softmax": lambda o, c: tuple(c.mT.softmax(-1).max(-1)),
    "torch.max": lambda o, c: tuple(torch.max(c.sigmoid(), 1)),
    "kept dimension": lambda o, c: tuple(t.squeeze(1) for t in c.sigmoid().max(dim=1, keepdim=True)),
    "amax": lambda o, c: (c.sigmoid().amax(1), c.argmax(1)),
    "where": lambda o, c: (torch.where(c.sigmoid() > 0.1, c.sigmoid(), 0.0).amax(dim=1), c.argmax(1)),
    "masked_fill": lambda o, c: tuple(c.sigmoid().masked_fill(c < -2, 0).max(1)),
    "clamp": lambda o, c: tuple(c.sigmoid().clamp(1e-4, 1 - 1e-4).max(1)),
    "factor": lambda o, c: tuple((0.9 * c.sigmoid()).max(1)),
    "mask": lambda o, c: tuple((c.sigmoid() * (c > -2)).max(1)),
    "power": lambda o, c: tuple((c.sigmoid() ** 0.5).max(1)),
    "divided": lambda o, c: tuple((c.sigmoid() / 2).max(1)),
}


FORMS = {"v8": v8, "raw": v8_with_raw_outputs, "pose": pose, "masks": masks, "end to end": end_to_end}
FORMS |= {name: listed(scores_of) for name, scores_of in LISTED.items()}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_the_logit_of_the_best_class_is_explained(name, batch):
    model, x = Head(FORMS[name]), X[:batch]
    kind = "softmax" if "softmax" in name else "sigmoid"
    boxes, _, classes = (t.detach() for t in model.raw(x))
    scores = classes.softmax(1) if kind == "softmax" else classes.sigmoid()
    best = [divmod(int(k), 16) for k in scores.flatten(1).argmax(1)]

    def by_hand(x):
        return torch.stack([model.raw(x)[2][i, label, box] for i, (label, box) in enumerate(best)])

    e = whence.explain(model, x, whence.Detection())
    torch.testing.assert_close(e.output, by_hand(x).detach())
    torch.testing.assert_close(e.relevance, whence.explain(by_hand, x).relevance, atol=1e-6, rtol=1e-4)
    assert e.note == f"before the final {kind}"
    assert e.conservation.error.max() < 1e-5
    centres = torch.stack([boxes[i, :2, box] for i, (_, box) in enumerate(best)])
    torch.testing.assert_close((e.target.box[:, :2] + e.target.box[:, 2:]) / 2, centres)
    assert e.target.labels.tolist() == [label for label, _ in best]


def test_the_product_with_the_score_of_an_object():
    model = Head(v5)
    e = whence.explain(model, X, whence.Detection())
    _, objects, classes = (t.detach() for t in model.raw(X))
    scores = (objects.sigmoid() * classes.sigmoid()).flatten(1)
    label, box = scores.argmax(1) // 16, scores.argmax(1) % 16
    rows = torch.arange(2)
    torch.testing.assert_close(e.output, objects[rows, 0, box] + classes[rows, label, box])
    torch.testing.assert_close(e.target.scores, scores.amax(1))
    assert e.target.labels.tolist() == label.tolist()


@pytest.mark.parametrize("part", ["left", "top", "right", "bottom"])
@pytest.mark.parametrize("form", [v8, end_to_end, listed(LISTED["max"])], ids=["v8", "end to end", "list"])
def test_the_sides_of_a_box(form, part):
    model = Head(form)
    e = whence.explain(model, X, whence.Detection(part=part), class_names=["a", "b", "c"])
    boxes, _, classes = (t.detach() for t in model.raw(X))
    rows, box = torch.arange(2), classes.flatten(1).argmax(1) % 16
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    side = ["left", "top", "right", "bottom"].index(part)
    torch.testing.assert_close(e.output, corners[rows, side, box])
    assert e.conservation.error.max() < 1e-5
    assert e.note == ""
    assert e.target_names()[0].startswith(f"{part} side of the box of ")
    occluded = whence.explain(model, X, whence.Detection(part=part), method="occlusion")
    torch.testing.assert_close(occluded.output, e.output)
    assert torch.isfinite(occluded.relevance).all()


def test_the_overlap_of_a_box_with_itself():
    model = Head(v8)
    e = whence.explain(model, X, whence.Detection(part="iou"), method="occlusion")
    assert e.output.tolist() == [1, 1]
    assert (e.relevance >= 0).all()
    assert e.relevance.any()
    with pytest.raises(errors.TargetError, match="has no gradient; pass a method without gradients"):
        whence.explain(model, X, whence.Detection(part="iou"))


def detr(**more):
    fields = {"logits": None, "pred_boxes": None} | more

    def form(boxes, _, classes):
        name = "pred_logits" if "pred_logits" in fields else "logits"
        return {name: classes.mT, "pred_boxes": boxes.mT / 16}

    return form


def test_a_dict_of_logits_and_boxes_must_say_what_the_last_logit_is():
    model = Head(detr(pred_logits=True))
    with pytest.raises(errors.TargetError, match="whether the last logit means no object"):
        whence.explain(model, X, whence.Detection())
    logits = model.raw(X)[2].detach().mT
    e = whence.explain(model, X, whence.Detection(no_object=False))
    torch.testing.assert_close(e.output, logits.amax((1, 2)))
    e = whence.explain(model, X, whence.Detection(no_object=True))
    scores = logits.softmax(-1)[..., :-1]
    torch.testing.assert_close(e.target.scores, scores.amax((1, 2)))
    assert (e.target.labels < 2).all()


def test_outputs_of_segmentation_by_detr_have_a_last_logit_of_no_object():
    kind = type("DetrSegmentationOutput", (SimpleNamespace,), {})
    model = Head(lambda boxes, _, classes: kind(logits=classes.mT, pred_boxes=boxes.mT / 16))
    assert (whence.explain(model, X, whence.Detection()).target.labels < 2).all()
    one = Head(lambda boxes, _, classes: kind(logits=classes[:, 0], pred_boxes=boxes.mT / 16))
    e = whence.explain(one, X, whence.Detection(no_object=False))
    torch.testing.assert_close(e.output, one.raw(X)[2][:, 0].amax(1).detach())


@pytest.mark.parametrize(
    "scores_of",
    [lambda o, c: tuple((c.sigmoid() * torch.linspace(-0.1, 1, 16)).max(1)), lambda o, c: tuple((1 - c.sigmoid()).max(1))],
    ids=["negative factors", "reversed"],
)
def test_a_score_without_a_logit_is_explained_with_a_note(scores_of):
    e = whence.explain(Head(listed(scores_of)), X, whence.Detection())
    assert e.note == "the score of the box, not the logit behind it"
    torch.testing.assert_close(e.output, e.target.scores)
    assert whence.explain(Head(v8), X, whence.Detection(), method="occlusion").note == e.note
    assert whence.explain(Head(v8), X, whence.Detection(part="left"), method="occlusion").note == ""


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda b, o, c: torch.cat([b, c.sigmoid(), 100 * b], 1), "should be between 0 and 1, but are .* keypoints"),
        (lambda b, o, c: torch.cat([b, c], 1), "should be between 0 and 1.* or the scores be logits"),
        (lambda b, o, c: torch.cat([b.mT / 16, c.sigmoid().amax(1)[..., None], o.mT * 0], 2), "not in pixels of the photo"),
        (lambda b, o, c: b, "has no classes behind the four numbers of a box"),
        (lambda b, o, c: c.mean(2), "needs outputs with boxes"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_boxes_and_scores(form, message):
    with pytest.raises(errors.TargetError, match=message):
        whence.explain(Head(form), X, whence.Detection())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "width"}, "part='width'; choose 'class', 'left', 'top', 'right', 'bottom' or 'iou'"),
        ({"score": "0.5"}, "score='0.5'; expected a number"),
        ({"index": True}, "index=True; expected the number of a box"),
        ({"index": 1.5}, "index=1.5; expected the number of a box"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(errors.TargetError, match=message):
        whence.Detection(**settings)
    assert whence.Detection(torch.tensor(2)).index == 2


def test_the_class_instead_of_an_instance():
    with pytest.raises(errors.TargetError, match=r"got the class Detection; pass an instance, whence.Detection\(…\)"):
        whence.explain(Head(v8), X, whence.Detection)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_saved_detections_keep_their_names_and_outlines(suffix, tmp_path):
    e = whence.explain(Head(v8), X, whence.Detection(1, part="top"), class_names=["a", "b", "c"])
    loaded = whence.load(e.save(tmp_path / f"e{suffix}"))
    assert loaded.target_names() == e.target_names()
    assert loaded[1].target_names() == [e.target_names()[1]]
    assert loaded.target.part == "top"
    torch.testing.assert_close(loaded.target.box, e.target.box)
    loaded.save(tmp_path / "e.png")


def test_photos_in_a_list():
    class Listed(Head):
        def forward(self, images):
            if any(image.dim() != 3 for image in images):
                raise ValueError(f"images is expected to be a list of 3d tensors of shape [C, H, W], got {images[0].shape}")
            return super().forward(torch.stack(list(images)))

    model = Listed(listed(LISTED["max"]))
    torch.testing.assert_close(
        whence.explain(model, X, whence.Detection()).relevance,
        whence.explain(Head(listed(LISTED["max"])), X, whence.Detection()).relevance,
    )
    with pytest.raises(errors.ModelError, match=r"pass x\[None\]"):
        whence.explain(model, X[0], whence.Detection())
    with pytest.raises(errors.ModelError, match=r"pass x\[None\]"):
        whence.explain(model, [X[0]], whence.Detection())
    with pytest.raises(errors.ModelError, match=r"pass torch.stack\(photos\), a batch"):
        whence.explain(model, [X[0], X[1]], whence.Detection())
    with pytest.raises(errors.ModelError, match=r"photos of unequal size one at a time, as photo\[None\]"):
        whence.explain(model, [X[0], X[1, :, :12]], whence.Detection())


def test_a_detector_in_training_mode():
    model = Head(v8)
    model.head = nn.Sequential(model.head, nn.BatchNorm2d(8))
    with pytest.raises(errors.WhenceError, match=r"model.eval\(\)"):
        whence.explain(model.train(), X, whence.Detection())


def test_a_namedtuple_of_logits_and_boxes_must_say_what_the_last_logit_is():
    kind = namedtuple("kind", "pred_logits pred_boxes")
    model = Head(lambda boxes, _, classes: kind(classes.mT, boxes.mT / 16))
    with pytest.raises(errors.TargetError, match="whether the last logit means no object"):
        whence.explain(model, X, whence.Detection())
    assert (whence.explain(model, X, whence.Detection(no_object=True)).target.labels < 2).all()
    one = Head(lambda boxes, _, classes: kind(classes[:, :1].mT, boxes.mT / 16))
    with pytest.raises(errors.TargetError, match="have a single logit"):
        whence.explain(one, X, whence.Detection(no_object=True))


def test_relative_boxes_and_targets_of_other_photos():
    relative = Head(lambda b, _, c: torch.cat([b / 16, c.sigmoid()], 1))
    with pytest.raises(errors.TargetError, match="not in pixels of the photo"):
        whence.explain(relative, X, whence.Detection())
    e = whence.explain(Head(v8), X, whence.Detection())
    with pytest.raises(errors.TargetError, match="is of the boxes of 2 photos, but the model detects in 1"):
        whence.explain(Head(v8), X[:1], e.target)


@pytest.mark.parametrize("label", [np.array([1, 1]), np.int64(1), [np.int64(1), np.int64(1)]], ids=["array", "number", "list"])
def test_labels_and_scores_of_numpy_are_saved(label, tmp_path):
    e = whence.explain(Head(v8), X, whence.Detection(label=label, score=np.float32(0.0)))
    loaded = whence.load(e.save(tmp_path / "e.npz"))
    assert loaded.target_names() == e.target_names()
