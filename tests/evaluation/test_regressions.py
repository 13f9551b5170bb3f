"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.core.fingerprints import fingerprint
from whence.models.digits import digit_samples, digits

SIDE = 6


def cnn(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)
    ).eval()  # fmt: skip


def linear(n=12):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, 3, bias=False)).eval()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.table(input_ids) * mask).sum(1))


def test_samples_of_other_numbers_of_regions_change_nothing():
    model, x = cnn(), torch.rand(4, 2, SIDE, SIDE)

    def cut(x):
        counts = 3 + (x.sum((1, 2, 3)) * 100).long() % 30
        return torch.arange(SIDE * SIDE).view(1, 1, SIDE, SIDE).expand(len(x), 1, SIDE, SIDE) % counts.view(-1, 1, 1, 1)

    for name in ("srg", "aopc", "abpc", "sensitivity_n", "infidelity"):
        whole, single = (
            whence.evaluate(model, x, ["lrp"], [name], regions=cut, batch_size=size, progress=False).values["lrp"][name]
            for size in (None, 1)
        )
        torch.testing.assert_close(whole, single, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_tuning_pairs_targets_with_samples_and_lets_the_users_names_be():
    x, y = digit_samples()
    ways, wanted = {"a": whence.LRP(), "b": whence.GradientTimesInput()}, (y[:20] + 1) % 10
    plain = whence.tune(digits(), x[:20], ways, target=wanted, progress=False)
    logits = whence.tune(digits(), x[:20], ways, target=whence.Logit(wanted), progress=False)
    assert plain.table == logits.table
    named = whence.tune(digits(), x[:12], {"default": whence.Sensitivity()}, progress=False)
    direct = whence.evaluate(digits(), x[:12], {"s": whence.Sensitivity()}, ["srg"], progress=False).values["s"]["srg"]
    assert float(named.held_out.values["default"]["srg"].mean()) < float(direct.max()) + 1e-6
    assert named.held_out.values.keys() == {"default"}
    twins = {"baselines": [torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28)]}
    assert len(whence.tune(digits(), x[:8], whence.IntegratedGradients(n_steps=4), fields=twins, progress=False).table) == 2
    few = whence.tune(digits(), x[:8], ways, held_out=0.01, progress=False)
    assert few.score.n == 1


def test_as_many_targets_and_masks_as_samples():
    x, y = digit_samples()
    for wrong in ({"target": y}, {"masks": torch.ones(50, 28, 28), "metrics": ["relevance_mass"]}):
        with pytest.raises(errors.InputError, match="for 10 samples"):
            whence.evaluate(digits(), x[:10], ["lrp"], **({"metrics": ["sparseness"]} | wrong), progress=False)


def test_defaults_fit_other_inputs_than_pictures(tmp_path):
    assert len(whence.compare(linear(), torch.rand(2, 12))) == 5
    text = {"input_ids": torch.randint(1, 20, (6, 5)), "attention_mask": torch.ones(6, 5).long(), "labels": torch.arange(6) % 2}
    found = whence.evaluate(Words().eval(), text, imputer=0, target="label", progress=False)
    assert set(found.better) == {"srg", "sparseness"}
    with pytest.raises(errors.InputError, match="imputer 'mean' does not apply to token ids"):
        whence.evaluate(Words().eval(), {k: v for k, v in text.items() if k != "labels"}, progress=False)


def test_what_failed_once_is_tried_again(tmp_path):
    x, fails = torch.rand(3, 12), tmp_path / "fails"
    fails.touch()

    def theirs(model, x, target):
        if fails.exists() and torch.equal(x[-1], last):
            raise OSError("disk full")
        return x

    last = x[-1].clone()
    first = whence.evaluate(linear(), x, {"m": theirs}, ["sparseness"], cache_dir=tmp_path / "k", progress=False)
    assert len(first.failures) == 1
    fails.unlink()
    assert not whence.evaluate(linear(), x, {"m": theirs}, ["sparseness"], cache_dir=tmp_path / "k", progress=False).failures


def test_fingerprints_tell_functions_objects_and_attributes_apart():
    from functools import partial

    class Scaled(nn.Module):
        def __init__(self, k):
            super().__init__()
            self.k = k

        def forward(self, x):
            return x * self.k

    class Callable:
        def __init__(self, k):
            self.k = k

        def __call__(self, x):
            return x * self.k

    def g(x, k=1):
        return x * k

    box = {"k": 1}, {"k": -3}
    pairs = [
        (lambda x: x[:, 3], lambda x: x[:, 5]),
        (partial(g, k=2), partial(g, k=3)),
        (Scaled(1.0), Scaled(-5.0)),
        (Callable(1), Callable(2)),
        (Callable(1).__call__, Callable(2).__call__),
        tuple((lambda x, w=w: x * w["k"]) for w in box),
    ]
    for one, other in pairs:
        assert fingerprint(one) != fingerprint(other)
        assert fingerprint(one) == fingerprint(one)
    assert fingerprint(Scaled(1.0)) == fingerprint(Scaled(1.0))


def test_single_samples_of_an_iterable_are_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.rand(3, 12))

    with pytest.raises(errors.InputError, match="DataLoader"):
        whence.evaluate(linear(), Stream(), ["lrp"], ["sparseness"], progress=False)
