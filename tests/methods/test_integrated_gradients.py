"""Methods made of gradients: closed forms, captum's portable truths and captum itself, completeness."""

import functools
import re
import warnings

import pytest
import torch
from torch import nn

import whence
from support.comparisons import close, cnn, relevance
from whence import (
    ExpectedGradients,
    IntegratedGradients,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("act", [nn.Tanh, nn.GELU, nn.Softplus])  # smooth: a kink costs the quadrature its order
def test_integrated_gradients_are_complete(act):
    e = whence.explain(
        cnn(1, act, nn.AvgPool2d), torch.randn(3, 3, 12, 12), method=IntegratedGradients(torch.randn(3, 3, 12, 12))
    )
    assert e.conservation.error.max() < 1e-8
    close(e.conservation.output - e.conservation.baseline, e.relevance.flatten(1).sum(1), rtol=1e-8, atol=1e-8)


def test_expected_gradients_are_complete_up_to_their_error():
    model, x, background = cnn(1, nn.Tanh), torch.randn(2, 3, 12, 12), torch.randn(40, 3, 12, 12)
    e = whence.explain(model, x, 1, method=ExpectedGradients(background, n_samples=400))
    close(e.conservation.baseline, model(background)[:, 1].detach().mean().expand(2))
    assert e.conservation.gap.abs().max() < 4 * model(background)[:, 1].std() / 400**0.5
    exact = torch.stack([relevance(model, x, IntegratedGradients(b[None]), 1) for b in background]).mean(0)
    off = (e.relevance - exact) / e.standard_errors
    assert 0.6 < off.square().mean().sqrt() < 1.3


def test_a_linear_function_is_integrated_exactly_by_one_step():
    w, x, background = torch.randn(5), torch.randn(2, 5), torch.randn(6, 5)
    close(relevance(lambda x: (x @ w)[:, None], x, IntegratedGradients(n_steps=1)), x * w)
    expected = relevance(lambda x: (x @ w)[:, None], x, ExpectedGradients(background, n_samples=12))
    close(expected, (x - background.mean(0)) * w)


class RootMeanSquares(nn.Module):
    """A residual network that normalises by the root mean square, which is not smooth at zero."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 5)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, input_ids):
        x = self.table(input_ids) if not input_ids.is_floating_point() else input_ids
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + nn.functional.silu(layer(norm(x)))
        return self.head(self.norms[0](x)).mean(1)


@pytest.mark.parametrize("of_ids", [True, False])
def test_integrated_gradients_that_do_not_add_up_name_a_baseline_with_which_they_do(of_ids):
    torch.manual_seed(0)
    model = RootMeanSquares().eval()
    x = torch.randint(0, 20, (2, 7)) if of_ids else torch.randn(8, 7, 16) + 1
    given = {"input_ids": x}
    advice = (
        "baselines={'input_ids': tokenizer.pad_token_id}"
        if of_ids
        else "the mean of many inputs as baselines, data.mean(0, keepdim=True)"
    )
    with pytest.warns(whence.errors.ConservationWarning, match=re.escape(advice)):
        zero = whence.explain(model, given, 1, method=IntegratedGradients(), progress=False)
    assert zero.conservation.gap.abs().max() > 0.1
    neutral = {"input_ids": 0 if of_ids else x.mean(0, keepdim=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e = whence.explain(model, given, 1, method=IntegratedGradients(neutral), progress=False)
    assert e.conservation.gap.abs().max() < 1e-3


def test_the_warning_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 3)).eval(), torch.randn(8, 6)
    x[0] = torch.tensor([1.0, -1, 1, -1, 1, -1])
    for rows in (x, x[:1]):
        with pytest.warns(whence.errors.ConservationWarning, match="do not add up"):
            whence.explain(model, rows, 0, method=IntegratedGradients(), progress=False)


# the neutral token


class Config:
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2


class Reader(nn.Module):
    def __init__(self, **names):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.read = nn.Embedding(9, 4), nn.Linear(4, 2)
        self.config = type("Named", (Config,), names)()

    def forward(self, input_ids):
        return self.read(self.embedding(input_ids).tanh().mean(1))


def test_texts_are_compared_with_the_padding_token_of_the_config():
    model, ids = Reader().double().eval(), torch.tensor([[1, 5, 7, 2], [1, 6, 8, 2]])
    by_default = whence.explain(model, ids, 0, method="integrated_gradients")
    blank = torch.tensor([[1, 0, 0, 2]])
    given = whence.explain(model, ids, 0, method=whence.IntegratedGradients(baselines=blank))
    torch.testing.assert_close(by_default.relevance, given.relevance)
    assert not by_default.relevance[:, [0, 3]].any()
    torch.testing.assert_close(by_default.conservation.baseline, model(blank)[:, 0].expand(2))


def test_a_padding_token_that_ends_texts_is_not_neutral():
    model, ids = Reader(pad_token_id=2).double().eval(), torch.tensor([[1, 5, 7, 2]])
    e = whence.explain(model, ids, 0, method="integrated_gradients")
    zero = model.read(torch.zeros(1, 4).double())[0, 0]
    torch.testing.assert_close(e.conservation.baseline, zero[None])


def test_the_tokenizer_goes_before_the_config():
    class Tokenizer(Config):
        mask_token_id = 3

        def __call__(self, ids):
            return [f"t{i}" for i in ids]

    model, ids = Reader().double().eval(), torch.tensor([[1, 5, 7, 2]])
    e = whence.explain(model, ids, 0, method="integrated_gradients", tokenizer=Tokenizer())
    same = whence.Explainer(model, method="integrated_gradients", tokenizer=Tokenizer())(ids, 0)
    for found in (e, same):
        torch.testing.assert_close(found.conservation.baseline, model(torch.tensor([[1, 3, 3, 2]]))[:, 0])


def test_integrated_gradients_that_do_not_add_up_have_a_caution():
    """A step at 0.9 of the path, between the two points of the quadrature."""
    model = lambda x: ((x - 0.9) * 1000).sigmoid() * 5  # noqa: E731
    with pytest.warns(whence.errors.ConservationWarning, match="do not add up"):
        few = whence.explain(model, torch.ones(1, 1), 0, method=whence.IntegratedGradients(n_steps=2))
    assert "for sample 0, the output's difference from the baseline is 5; take more steps" in few.conservation.caution
    many = whence.explain(model, torch.ones(1, 1), 0, method=whence.IntegratedGradients(n_steps=2000, method="riemann_middle"))
    assert not many.conservation.caution


IDS = torch.tensor([[1, 5, 7, 2], [1, 6, 8, 2]])
BLANK = torch.tensor([[1, 0, 0, 2]])


def baseline_output(model, inputs, **options):
    return whence.explain(model, inputs, 0, method="integrated_gradients", **options).conservation.baseline


class Masked(Reader):
    """A model whose mask weighs the tokens."""

    def forward(self, ids, mask):
        vectors = self.embedding(ids).tanh() * mask[..., None]
        return self.read(vectors.sum(1) / mask.sum(1, keepdim=True))


class Pair(Reader):
    def forward(self, question, answer):
        return self.read(self.embedding(question).tanh().mean(1) - self.embedding(answer).tanh().mean(1).exp())


def test_masks_and_other_names_do_not_hide_the_text():
    model, mask = Masked().double().eval(), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    expected = model(BLANK.expand(2, -1), mask)[:, 0]
    torch.testing.assert_close(baseline_output(model, (IDS, mask)), expected)
    torch.testing.assert_close(baseline_output(model, {"ids": IDS, "mask": mask}), expected)
    whole = Reader().double().eval()
    torch.testing.assert_close(baseline_output(lambda tokens: whole(tokens), {"tokens": IDS}), whole(BLANK)[:, 0].expand(2))


def test_two_texts_are_both_blank_at_the_baseline():
    model, expected = Pair().double().eval(), Pair().double()(BLANK, BLANK)[:, 0].expand(2)
    torch.testing.assert_close(baseline_output(model, (IDS, IDS.flip(0))), expected)
    torch.testing.assert_close(baseline_output(model, {"question": IDS, "answer": IDS.flip(0)}), expected)


def test_wrapped_models_have_the_config_of_the_model_within():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids):
            return self.inner(input_ids)

    model = Reader().double().eval()
    for wrapped in (Wrapper(model).eval(), lambda ids: model(ids)):
        torch.testing.assert_close(baseline_output(wrapped, IDS), model(BLANK)[:, 0].expand(2))


def test_lists_of_end_tokens_and_padding_are_left():
    several = Reader(eos_token_id=[2, 7], pad_token_id=3, mask_token_id=4).double().eval()
    ids = torch.tensor([[1, 5, 7, 3]])
    torch.testing.assert_close(baseline_output(several, ids), several(torch.tensor([[1, 4, 7, 3]]))[:, 0])
    ends = Reader(eos_token_id=[2, 7], pad_token_id=7).double().eval()  # padding with an end token is not neutral
    e = whence.explain(ends, ids, 0, method="integrated_gradients")
    torch.testing.assert_close(e.conservation.baseline, ends.read(torch.zeros(1, 4).double())[:, 0])
    assert "zero vectors in place of their embeddings" in e.note


@pytest.mark.parametrize("of_tokenizer", [True, False])
def test_padding_outside_the_vocabulary_is_no_baseline(of_tokenizer):
    class Tokenizer(Config):
        pad_token_id = 9

        def __call__(self, ids):
            return [f"t{i}" for i in ids]

    model = Reader(pad_token_id=50).double().eval()
    e = whence.explain(model, IDS, 0, method="integrated_gradients", tokenizer=Tokenizer() if of_tokenizer else None)
    torch.testing.assert_close(e.conservation.baseline, model.read(torch.zeros(2, 4).double())[:, 0])
    assert "zero vectors" in e.note
    with pytest.raises(whence.errors.InputError, match="the baseline's token id 50 is out of range for a vocabulary of size 9"):
        whence.explain(model, IDS, 0, method=whence.IntegratedGradients(baselines=50))


def test_chat_markers_of_tokenizers_are_no_words():
    class Tokenizer:
        all_special_ids, pad_token_id, unk_token_id = [8, 0, 3], 0, 3

        def __call__(self, ids):
            return [f"t{i}" for i in ids]

    model = Reader().double().eval()
    found = baseline_output(model, torch.tensor([[8, 5, 3, 2]]), tokenizer=Tokenizer())
    torch.testing.assert_close(found, model(torch.tensor([[8, 0, 0, 0]]))[:, 0])


@pytest.mark.parametrize("names", [("ids", "token_types"), ("ids", "seg"), ("ids", "pos"), None])
def test_types_and_positions_are_no_texts(names):
    class Typed(Reader):
        def forward(self, ids, other):
            return self.read((self.embedding(ids) + 0.1 * other[..., None]).tanh().mean(1))

    model = Typed().double().eval()
    for other in (torch.tensor([[0, 0, 1, 1]] * 2), torch.arange(2, 6).expand(2, -1), torch.tensor([[1, 1, 0, 1]] * 2)):
        given = (IDS, other) if names is None else {"ids": IDS, "other": other}
        given = given if names is None else dict(zip(names, (IDS, other), strict=True))
        wrapped = model if names is None else lambda **parts: model(*parts.values())
        torch.testing.assert_close(baseline_output(wrapped, given), model(BLANK.expand(2, -1), other)[:, 0])


def test_two_models_with_other_padding_have_no_token_in_common():
    one, two = Reader().double().eval(), Reader(pad_token_id=4).double().eval()
    e = whence.explain(lambda a, b: one(a) + two(b), (IDS, IDS.flip(0)), 0, method="integrated_gradients")
    assert "zero vectors" in e.note
    zero = one.read(torch.zeros(2, 4).double()) + two.read(torch.zeros(2, 4).double())
    torch.testing.assert_close(e.conservation.baseline, zero[:, 0])


def test_a_padding_token_beyond_the_smaller_of_two_vocabularies_is_no_baseline():
    class Two(Reader):
        def __init__(self):
            super().__init__(pad_token_id=20)
            self.other = nn.Embedding(30, 4)

        def forward(self, a, b):
            return self.read((self.embedding(a) + self.other(b)).tanh().mean(1))

    model = Two().double().eval()
    e = whence.explain(model, {"a": IDS, "b": IDS}, 0, method="integrated_gradients")
    assert "zero vectors" in e.note
    assert e.conservation.gap.abs().max() < 1e-3


def test_partial_functions_have_the_config_of_their_model():
    model = Reader().double().eval()
    found = baseline_output(functools.partial(lambda net, ids: net(ids), model), IDS)
    torch.testing.assert_close(found, model(BLANK)[:, 0].expand(2))
