"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors, imputers
from whence.core.inputs import Inputs
from whence.evaluation.regions import Regions


def test_imputers_by_hand():
    x = torch.rand(2, 3, 8, 8)
    everywhere, nowhere = torch.ones(1, 2, 3, 8, 8, dtype=torch.bool), torch.zeros(1, 2, 3, 8, 8, dtype=torch.bool)
    random = [torch.Generator().manual_seed(i) for i in range(2)]
    for imputer in (
        imputers.ConstantValue(0.5),
        imputers.Mean(),
        imputers.Blur(2),
        imputers.Inpainting(),
        imputers.BackgroundSamples(x),
    ):
        (fill,) = imputer.fills(x, random)
        assert torch.equal(fill(nowhere)[0], x)
        filled = fill(everywhere)[0]
        assert filled.shape == x.shape
        assert filled.min() >= x.min() - 1e-6
        assert filled.max() <= x.max() + 1e-6
    assert torch.allclose(imputers.Mean().fills(x, random)[0](everywhere)[0], x.mean((2, 3), keepdim=True).expand_as(x))
    flat = torch.full((1, 1, 9, 9), 0.3)
    hole = torch.zeros(1, 1, 1, 9, 9, dtype=torch.bool)
    hole[..., 2:6, 3:7] = True
    assert torch.allclose(imputers.Inpainting().fills(flat, random[:1])[0](hole)[0], flat, atol=1e-6)


def test_blur_equals_scipy():
    from scipy.ndimage import gaussian_filter

    x = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    (fill,) = imputers.Blur(1.5).fills(x, [torch.Generator()])
    ours = fill(torch.ones(1, *x.shape, dtype=torch.bool))[0, 0, 0]
    theirs = gaussian_filter(x[0, 0].numpy(), 1.5, mode="nearest", radius=5)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-9)


def test_regions():
    x = torch.rand(2, 3, 28, 28)
    assert Regions.of(None, Inputs.of(x), [0]).valid.shape == (2, 196)
    assert Regions.of("pixels", Inputs.of(x), [0]).valid.shape == (2, 784)
    cut = whence.superpixels(x, 20)
    found = Regions.of(lambda x: whence.superpixels(x, 20), Inputs.of(x), [0])
    assert found.counts.tolist() == [int(cut[0].max()) + 1, int(cut[1].max()) + 1]
    with pytest.raises(errors.InputError, match="the side length of square patches, or a mask"):
        Regions.of("tiles", Inputs.of(x), [0])
    with pytest.raises(errors.InputError, match="expected an integer tensor"):
        Regions.of(torch.zeros(1, 1, 5, 5).long(), Inputs.of(x), [0])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.table(input_ids) * mask).sum(1))


def test_tokens_are_taken_away_and_padding_never():
    model = Words().eval()
    ids = torch.randint(1, 20, (4, 6))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    found = whence.evaluate(model, (text, None), ["lrp", "random"], ["srg"], imputer=0, progress=False)
    assert found.best("srg") == "lrp"
    assert Regions.of(None, Inputs.of(text), [0]).counts.tolist() == [6, 3, 6, 6]
    marked = torch.zeros(4, 6)
    marked[:, 0] = 1
    mass = whence.evaluate(model, (text, None), ["lrp"], ["relevance_mass"], masks=marked, progress=False)
    assert 0 <= float(mass.values["lrp"]["relevance_mass"].nanmean()) <= 1
    with pytest.raises(errors.InputError, match="imputer 'mean' does not apply to token ids"):
        whence.evaluate(model, (text, None), ["lrp"], ["srg"], progress=False)
    with pytest.raises(errors.InputError, match="token ids cannot be perturbed continuously; continuity and m"):
        whence.evaluate(model, (text, None), ["lrp"], ["max_sensitivity"], progress=False)
