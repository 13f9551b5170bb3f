"""All boxes of a photo in one result: which, in which order, the table and the figure."""

import pytest
import torch

import whence
from core.test_detector_outputs import LISTED, Head, detr, listed, v8, v8_with_raw_outputs
from whence import errors

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
NAMES = ["cat", "dog", "cow"]


@pytest.mark.parametrize("form", [v8, v8_with_raw_outputs, listed(LISTED["max"])], ids=["tensor", "tuple", "list"])
def test_each_box_is_explained_as_alone(form, tmp_path):
    model = Head(form)
    scores, labels = (t.flatten() for t in model.raw(X)[2].detach().sigmoid().max(1))
    order = scores.argsort(descending=True)[:3]
    least = float(scores[order[-1]]) - 1e-6
    boxes = whence.explain_detections(model, X, score=least, class_names=NAMES)
    assert len(boxes) == 3
    torch.testing.assert_close(torch.cat([e.target.scores for e in boxes]), scores[order])
    assert [e.target.labels.item() for e in boxes] == labels[order].tolist()
    for number, e in enumerate(boxes):
        alone = whence.explain(model, X, whence.Detection(number), class_names=NAMES)
        torch.testing.assert_close(e.relevance, alone.relevance, atol=1e-6, rtol=1e-4)
        assert e.target_names() == alone.target_names()
        assert e.note == alone.note
    assert [row["label"] for row in boxes.table] == [NAMES[i] for i in labels[order]]
    assert boxes.table[0].keys() == {"box", "label", "score", "left", "top", "right", "bottom", "output", "relevance"}
    texts = [text.get_text() for axis in boxes.figure().subfigs[0].axes for text in axis.texts]
    assert texts == [f"{i}: {NAMES[k]} {s:.2f}" for i, (k, s) in enumerate(zip(labels[order], scores[order], strict=True))]
    assert boxes.save(tmp_path / "boxes.png").stat().st_size > 10_000
    assert "2: " in repr(boxes)


def test_a_label_a_limit_and_another_method():
    model = Head(v8)
    scores, labels = (t.flatten() for t in model.raw(X)[2].detach().sigmoid().max(1))
    label = int(labels[0])
    boxes = whence.explain_detections(model, X, score=0, label=NAMES[label], limit=2, class_names=NAMES, method="occlusion")
    assert len(boxes) == min(2, int((labels == label).sum()))
    assert all(e.target.labels.item() == label for e in boxes)
    torch.testing.assert_close(boxes[0].output[0], scores[labels == label].max())


def test_what_is_refused():
    model = Head(v8)
    with pytest.raises(errors.TargetError, match=r"no box with a score of at least 0.999: the best has 0\.\d+; lower score="):
        whence.explain_detections(model, X, score=0.999)
    with pytest.raises(errors.InputError, match="got 2 photos; pass one at a time"):
        whence.explain_detections(model, X.repeat(2, 1, 1, 1))
    with pytest.raises(errors.TargetError, match="limit=0; expected at least 1"):
        whence.explain_detections(model, X, limit=0)
    with pytest.raises(errors.TargetError, match="needs outputs with boxes"):
        whence.explain_detections(lambda x: x.mean((2, 3)), X)
    with pytest.raises(errors.TargetError, match="whether the last logit means no object"):
        whence.explain_detections(Head(detr(pred_logits=True)), X)
    assert len(whence.explain_detections(Head(detr(pred_logits=True)), X, no_object=True, score=0, limit=4)) == 4
