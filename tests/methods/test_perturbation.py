"""Ablation, occlusion, RISE: captum's portable truths and captum itself, masks, batches, memory, progress."""

import pytest
import torch
from torch import nn

import whence
from support.comparisons import captum, close, cnn, relevance
from support.small_language_model import Language
from support.toy_models import M
from whence import RISE, FeatureAblation, Occlusion, Shapley, Span, errors, patches
from whence.methods import batching

pytestmark = pytest.mark.usefixtures("float64")

CALLS_BEFORE = 4  # the output, and the check that rows are independent: the target, altered samples alone and behind others
ROW = torch.tensor([[20.0, 50, 30]], dtype=torch.float64)


def test_ablation_and_occlusion_of_m():
    close(relevance(M(), ROW, FeatureAblation()), [[80.0, 200, 120]])
    close(relevance(M(), ROW, Occlusion((2,), strides=1)), [[280.0, 300, 320]])
    close(relevance(M(), ROW, FeatureAblation(feature_mask=torch.tensor([[0, 0, 1]]))), [[280.0, 280, 120]])
    close(relevance(M(), ROW, FeatureAblation(baselines=10.0)), [[40.0, 160, 80]])


def test_integers_and_several_inputs_are_ablated():
    e = whence.explain(lambda a, b: (a * b).sum(1, keepdim=True), (ROW, torch.tensor([[2, 1, 0]])), 0,
                       method=FeatureAblation((None, 1)))  # fmt: skip
    close(e.relevance[0], [[40.0, 50, 0]])
    close(e.relevance[1], [[20.0, 0, -30]])
    mask = (torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 2]]))
    both = whence.explain(lambda a, b: (a * b).sum(1, keepdim=True), (ROW, ROW), 0, method=FeatureAblation(feature_mask=mask))
    close(both.relevance[0], [[400.0, 3400, 3400]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("window", "strides"), [((3, 4, 4), (3, 2, 2)), ((1, 5, 3), (1, 3, 2)), ((2, 12, 1), 1), ((3, 5, 5), (2, 5, 4))]
)
def test_captum_agrees_on_occlusion(window, strides):
    model, x, baselines = cnn(2), torch.randn(2, 3, 12, 12), torch.randn(1, 3, 12, 12)
    theirs = captum().Occlusion(model).attribute(x, window, strides, baselines, torch.tensor([1, 3]))
    ours = relevance(model, x, Occlusion(window, strides, baselines), torch.tensor([1, 3]))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_captum_agrees_on_ablation():
    model, x, mask = cnn(2), torch.randn(2, 3, 12, 12), patches(torch.zeros(1, 3, 12, 12), 5)
    theirs = captum().FeatureAblation(model).attribute(x, 0.5, 1, feature_mask=mask)
    torch.testing.assert_close(relevance(model, x, FeatureAblation(0.5, mask), 1), theirs)


def test_windows_cover_everything_and_defaults_are_sensible():
    seen = []
    x = torch.rand(1, 3, 20, 30) + 1

    def f(x):
        seen.append(x)
        return x.flatten(1)

    e = whence.explain(f, x, lambda y: y.sum(1), method=Occlusion())
    hidden = torch.cat(seen[CALLS_BEFORE:]) == 0  # x is nowhere 0
    assert hidden.flatten(1).any(1).all()
    assert hidden.any(0).all()  # every entry is covered
    assert hidden[0].sum() == 3 * 3 * 4  # an eighth of each side, all channels
    for c, h, w in ((0, 0, 0), (2, 19, 29), (1, 7, 11)):  # by hand
        covering = hidden[:, c, h, w]
        expected = torch.stack([x[0][m].sum() for m in hidden[covering]]).mean()
        close(e.relevance[0, c, h, w], expected)
    vector = torch.randn(2, 7)
    close(relevance(lambda x: x.sum(1, keepdim=True), vector, Occlusion()), vector)


@pytest.mark.parametrize("method", [FeatureAblation(), Occlusion((1, 4, 4), (1, 2, 2))], ids=lambda m: m.name)
def test_what_changes_nothing_is_not_asked(method):
    rows, model, x = [], cnn(), torch.randn(2, 3, 12, 12)
    x[:, :, 5:] = 0

    def counted(x):
        rows.append(len(x))
        return model(x)

    e = whence.explain(counted, x, 1, method=method)
    assert sum(rows[CALLS_BEFORE:]) == 2 * (3 * 5 * 12 if isinstance(method, FeatureAblation) else 3 * 3 * 5)
    nudged = relevance(model, x + 1e-9, method, 1)  # nothing equals the baseline any more
    close(e.relevance, nudged, atol=1e-6, rtol=0)


def test_masks_of_each_sample():
    x, mask = torch.randn(2, 4), torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    e = relevance(lambda x: x.sum(1, keepdim=True), x, FeatureAblation(feature_mask=mask))
    close(e[0], torch.stack([x[0, :2].sum()] * 2 + [x[0, 2:].sum()] * 2))
    close(e[1], torch.stack([x[1, 0]] + [x[1, 1:].sum()] * 3))


def test_patches_divide_pictures():
    mask = patches(torch.zeros(2, 3, 5, 7), 3)
    assert mask.shape == (1, 1, 5, 7)
    assert mask[0, 0].tolist() == [[0, 0, 0, 1, 1, 1, 2]] * 3 + [[3, 3, 3, 4, 4, 4, 5]] * 2
    assert patches(torch.zeros(1, 2, 7), 4).tolist() == [[[0, 0, 0, 0, 1, 1, 1]]]


def test_tokens_are_replaced_where_an_id_is_given():
    model, ids = Language(), torch.tensor([[1, 5, 2, 9], [3, 3, 7, 1]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones(2, 4).long()}
    e = whence.explain(model, inputs, 4, method=FeatureAblation({"input_ids": 0}))
    assert e.relevance["attention_mask"] is None
    with_other = ids.clone()
    with_other[:, 1] = 0
    expected = model(ids)[:, -1, 4] - model(with_other)[:, -1, 4]
    close(e.relevance["input_ids"][:, 1], expected.detach())
    shapley = whence.explain(model, inputs, 4, method=Shapley({"input_ids": 0}))
    assert shapley.conservation.error.max() < 1e-9
    with pytest.raises(errors.InputError, match="mask_token_id"):
        whence.explain(model, inputs, 4, method=FeatureAblation())
    with pytest.raises(errors.InputError, match="must be an id"):
        whence.explain(model, inputs, 4, method=FeatureAblation({"input_ids": 0.5}))


def test_a_span_stands_for_the_tokens_of_the_text_itself():
    model, ids = Language(), torch.tensor([[1, 5, 2, 9]])
    e = whence.explain(model, ids, Span(2, 4), method=FeatureAblation(0))
    other = torch.tensor([[1, 0, 2, 9]])
    logits = [model(t)[0] for t in (ids, other)]
    expected = [(y[1, 2] + y[2, 9]).detach() for y in logits]
    close(e.relevance[0, 1], expected[0] - expected[1])


def test_rise_by_hand():
    seen, x = [], torch.rand(2, 3, 20, 16) + 1
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 18 * 14, 3)).eval()

    def f(x):
        seen.append(x.detach())
        return model(x)

    e = whence.explain(f, x, 1, method=RISE(n_samples=200, batch_size=30, centred=False))
    copies = torch.cat([s.view(-1, 2, 3, 20, 16) for s in seen[CALLS_BEFORE:]])
    masks = copies / x
    assert masks.shape[0] == 200
    torch.testing.assert_close(masks[:, 0, 0], masks[:, 1, 2])  # the same for all samples and channels
    assert 0 <= masks.min() <= masks.max() <= 1 + 1e-6
    assert 0.4 < masks.mean() < 0.6
    assert masks[:, 0, 0].std(0).min() > 0.1
    outputs = model(copies.flatten(0, 1))[:, 1].detach().view(200, 2)
    expected = torch.einsum("mn,mnhw->nhw", outputs, masks[:, :, 0]) / (200 * 0.5)
    torch.testing.assert_close(e.relevance.sum(1), expected)
    draws = outputs[:, :, None, None] * masks[:, :, 0] / 0.5
    torch.testing.assert_close(e.standard_errors[:, 0] * 3, draws.std(0) / 200**0.5)
    centred = whence.explain(model, x, 1, method=RISE(n_samples=200))
    without_mean = torch.einsum("mn,mnhw->nhw", outputs - outputs.mean(0), masks[:, :, 0]) / (200 * 0.5)
    torch.testing.assert_close(centred.relevance.sum(1), without_mean)


def test_rise_finds_what_counts():
    x = torch.ones(1, 1, 28, 28)
    e = whence.explain(lambda x: x[:, 0, 4:8, 20:24].mean((1, 2))[:, None], x, 0, method=RISE(n_samples=1000))
    row, column = divmod(int(e.relevance[0, 0].argmax()), 28)
    assert 2 <= row <= 9
    assert 18 <= column <= 25


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("method", [FeatureAblation(), Occlusion(), Shapley(), RISE(n_samples=20)], ids=lambda m: m.name)
def test_a_scripted_model_will_do(method):
    model, x = cnn(), torch.randn(1, 3, 12, 12)
    if not isinstance(method, RISE):
        model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), torch.randn(2, 6)
    scripted = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(relevance(scripted, x, method), relevance(model, x, method))
    with pytest.raises(errors.OpaqueError):
        whence.explain(scripted, x, 0)


class Viewing(nn.Module):
    """Reads its convolution's output by `view`, which refuses pictures that lie with their channels last."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head, self.layouts = nn.Conv2d(3, 4, 3).float(), nn.Linear(144, 3).float(), []

    def forward(self, x):
        self.layouts.append(x.is_contiguous())
        return self.head(self.convolution(x).view(len(x), 144))


def test_a_model_that_needs_its_pictures_as_they_were_gets_them():
    x, model = torch.randn(1, 3, 8, 8, dtype=torch.float32), Viewing().eval()
    e = whence.explain(model, x, 0, method=FeatureAblation(batch_size=50))
    assert model.layouts == [True, True, True, True, False, True, True, True, True]
    torch.testing.assert_close(
        e.relevance, relevance(model.double(), x.double(), FeatureAblation()).float(), rtol=1e-4, atol=1e-5
    )


class Crowded(nn.Module):
    """Memory for `room` samples at once."""

    def __init__(self, room, error=torch.OutOfMemoryError):
        super().__init__()
        self.room, self.error, self.sizes = room, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise self.error("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize(
    "method",
    [FeatureAblation(), Occlusion(), whence.IntegratedGradients(), whence.SmoothGrad(), Shapley(budget=200)],
    ids=lambda m: m.name if hasattr(m, "name") else m.__name__,
)
def test_batches_get_smaller_until_they_fit(method, error):
    x = torch.randn(2, 12)
    model = Crowded(7, error).eval()
    torch.testing.assert_close(relevance(model, x, method), relevance(Crowded(10**6).eval(), x, method))
    assert max(size for size in model.sizes if size <= 7) >= 4
    assert sum(size > 7 for size in model.sizes) < 16


def test_memory_for_less_than_the_batch_is_an_error():
    with pytest.raises((errors.ModelError, torch.OutOfMemoryError), match="memory"):
        relevance(Crowded(1).eval(), torch.randn(2, 4), FeatureAblation())


def test_batch_sizes_are_kept_and_change_nothing():
    sizes, x, model = [], torch.randn(3, 3, 12, 12), cnn()

    def counted(x):
        sizes.append(len(x))
        return model(x)

    for method in (Occlusion, FeatureAblation, RISE, whence.IntegratedGradients, whence.SmoothGrad):
        sizes.clear()
        small, automatic = (relevance(counted if b else model, x, method(batch_size=b)) for b in (10, None))
        torch.testing.assert_close(small, automatic)
        assert max(sizes) == 9  # three samples in three rounds


def test_the_automatic_batch_size_goes_by_the_size_of_samples():
    from whence.core.inputs import Inputs

    large, small, text = torch.zeros(1, 3, 224, 224), torch.zeros(1, 10), torch.zeros(1, 128).long()
    sizes = [batching.automatic_batch_size(Inputs.of(x)) for x in (large, small, text)]
    assert 4 <= sizes[0] <= 64
    assert sizes[1] >= 1000
    assert 4 <= sizes[2] <= 128


def test_the_batch_size_goes_by_the_largest_activation():
    sizes: list[int] = []

    class Wide(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.first, self.head = nn.Conv2d(1, channels, 3, padding=1), nn.Linear(channels, 2)

        def forward(self, x):
            sizes.append(len(x))
            return self.head(self.first(x).relu().mean((2, 3)))

    def largest(channels):
        sizes.clear()
        whence.explain(Wide(channels).eval(), torch.rand(2, 1, 16, 16), 0, method=FeatureAblation())
        return max(sizes)

    assert largest(1) == 512, "all rounds at once"
    assert largest(64) == batching.ACTIVATIONS_PER_BATCH["cpu"] // (64 * 16 * 16)
    assert largest(8192) == 6, "the check of the rows; then one round at a time"


def test_weights_are_no_activations():
    sizes: list[int] = []

    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("codes", torch.randint(-8, 8, (512, 512)).to(torch.int8))

        def forward(self, x):
            sizes.append(len(x))
            weight = self.codes.to(x.dtype) * 0.1
            return torch.nn.functional.linear(x, weight)[:, :3].sum(1)

    whence.explain(Quantised().eval(), torch.rand(1, 512), method=FeatureAblation())
    assert max(sizes) > 100


def test_the_time_left_is_shown_from_the_first_second(capsys, monkeypatch):
    from whence.core import progress

    seconds = iter([0.0, 4.0, 8.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds, 9.0))
    assert progress._time_left(4.0, 1, 1801) == "2:00:00 left"
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress("occlusion", 1801, shown=True) as advance:
        advance(1)
        advance(1)
    shown = capsys.readouterr().err
    assert "left" in shown
    assert "1/1801" in shown or "2/1801" in shown


def test_progress_is_told_to_a_function_and_silent_otherwise(capsys):
    told = []
    x = torch.randn(1, 10)
    model = nn.Linear(10, 2).eval()
    whence.explain(model, x, 0, method=FeatureAblation(batch_size=4), progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]
    whence.explain(model, x, 0, method=FeatureAblation(batch_size=4))
    assert capsys.readouterr() == ("", "")


def test_a_long_run_shows_a_bar(capsys, monkeypatch):
    from whence.core import progress

    monkeypatch.setattr(progress, "SILENT_SECONDS", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    model, x = nn.Linear(10, 2).eval(), torch.randn(1, 10)
    whence.explain(model, x, 0, method=FeatureAblation(batch_size=4))
    assert "feature ablation" in capsys.readouterr().err
    whence.explain(model, x, 0, method=FeatureAblation(batch_size=4), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Occlusion((3, 13, 2)), "larger than a sample"),
        (Occlusion((3, 4)), "along each dimension"),
        (Occlusion((3, 0, 2)), "along each dimension"),
        (Occlusion((3, 4, 4), strides=(3, 5, 5)), "expected strides no larger than it"),
        (Occlusion((3, 4, 4), baselines=torch.zeros(3)), "baselines of shape"),
        (FeatureAblation(feature_mask=torch.tensor([[[[0]], [[2]], [[3]]]])), "skips 1"),
        (FeatureAblation(feature_mask=torch.tensor([[[[1]], [[2]], [[3]]]])), "skips 0"),
        (FeatureAblation(feature_mask=torch.tensor([[[[-1]], [[0]], [[1]]]])), "from -1"),
        (FeatureAblation(feature_mask=torch.zeros(12, 12).long()), "feature_mask of shape"),
        (
            FeatureAblation(feature_mask=torch.zeros(1, 3, 12, 12)),
            "mask must be an integer tensor for every explained input, go",
        ),
        (FeatureAblation(batch_size=-1), "batch_size=-1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(method, message):
    with pytest.raises(errors.InputError, match=message):
        whence.explain(cnn(), torch.randn(2, 3, 12, 12), 0, method=method)


def test_rise_refuses():
    with pytest.raises(errors.RuleError, match="at least 2 masks"):
        RISE(n_samples=1)
    with pytest.raises(errors.InputError, match="use FeatureAblation, Occlusion or Shapley for other inputs"):
        whence.explain(nn.Linear(4, 2).eval(), torch.randn(1, 4), 0, method=RISE())
    with pytest.raises(errors.InputError, match="patches needs images"):
        patches(torch.zeros(3, 4), 2)
    with pytest.raises(errors.ModelError, match="NaN"):
        whence.explain(lambda x: 1 / x, torch.ones(1, 3), 0, method=FeatureAblation())


def test_one_number_is_a_square_window_through_all_channels():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    close(relevance(model, x, Occlusion(4), 1), relevance(model, x, Occlusion((3, 4, 4)), 1))
    last = lambda x: model(x.permute(0, 3, 1, 2))  # noqa: E731
    close(relevance(last, x.permute(0, 2, 3, 1), Occlusion(4), 1), relevance(model, x, Occlusion(4), 1).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("method", "advised", "count"),
    [
        (FeatureAblation(), FeatureAblation(feature_mask=patches(torch.zeros(1, 3, 110, 110), 10)), "36,300"),
        (Occlusion(1), Occlusion(8), "12,100"),
    ],
    ids=["ablation", "occlusion"],
)
def test_many_evaluations_are_announced_before_the_first(method, advised, count, recwarn):
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 8 and recwarn:
                raise KeyboardInterrupt  # as a user may on reading the warning
            return x.flatten(1).sum(1, keepdim=True)

    x = torch.ones(1, 3, 110, 110)
    with pytest.raises(KeyboardInterrupt):
        whence.explain(Counting(), x, 0, method=method, progress=False)
    (warning,) = recwarn
    assert warning.category is errors.CostWarning
    assert f"evaluates the model {count} times for every sample" in str(warning.message)
    recwarn.clear()
    whence.explain(Counting(), x, 0, method=advised, progress=False)
    assert not recwarn
