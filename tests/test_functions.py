"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from hidden import Hidden
from whence import LRP, Epsilon, Gamma, ZBox, errors, presets

pytestmark = pytest.mark.usefixtures("float64")


def total(y):
    return y.flatten(1).sum(1)


@pytest.fixture
def layer():
    return nn.Linear(4, 4, bias=False).eval()


@pytest.fixture
def x():
    return torch.randn(3, 4)


def conserved(f, x, absorbed=None, **method):
    """The value is the model's own, to the last bit, and the account balances; nothing is absorbed where nothing can be."""
    e = whence.explain(f, x, total, method=LRP(**method))
    assert torch.equal(e.output, total(f(x.clone())).detach())
    assert e.conservation.error.max() < 1e-10
    if absorbed is not None:
        assert torch.allclose(e.conservation.absorbed, torch.as_tensor(absorbed).expand(len(x)), atol=1e-12)
    return e


# fused arithmetic is that of its parts


def test_addcmul(layer, x):
    c, d = torch.randn(4), torch.randn(4)
    e = conserved(lambda x: torch.addcmul(x, layer(x), x.exp() - 1, value=0.5), x)
    parts = conserved(lambda x: x + layer(x) * (x.exp() - 1) * 0.5, x)
    assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)
    conserved(lambda x: torch.addcmul(c, d, x), x, absorbed=c.sum())
    conserved(lambda x: torch.addcmul(x, c, d, value=2), x, absorbed=2 * (c * d).sum())
    conserved(lambda x: (x * 1).addcmul_(layer(x), x), x)


def test_addcdiv(layer, x):
    c = torch.randn(4)
    e = conserved(lambda x: torch.addcdiv(x, layer(x), x.abs() + 1, value=0.5), x, absorbed=0.0)
    parts = conserved(lambda x: x + 0.5 * layer(x) / (x.abs() + 1), x)
    assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)
    conserved(lambda x: torch.addcdiv(c, x, c.abs()), x, absorbed=c.sum())


def test_lerp(layer, x):
    c, w = torch.randn(4), torch.rand(4)
    e = conserved(lambda x: torch.lerp(x, layer(x), w), x, absorbed=0.0)
    assert torch.allclose(e.relevance, conserved(lambda x: x + w * (layer(x) - x), x).relevance, rtol=1e-10)
    conserved(lambda x: torch.lerp(c, layer(x), 0.25), x, absorbed=0.75 * c.sum())
    gated = conserved(lambda x: torch.lerp(x, layer(x), x.sigmoid()), x)
    parts = conserved(lambda x: x + x.sigmoid() * (layer(x) - x), x)
    assert torch.allclose(gated.relevance, parts.relevance, rtol=1e-10)


def test_a_difference_from_a_constant(x):
    c = torch.randn(4)
    conserved(lambda x: torch.rsub(x, c, alpha=2), x, absorbed=c.sum())
    conserved(lambda x: torch.rsub(c, x, alpha=2), x, absorbed=-2 * c.sum())
    conserved(lambda x: 1 - x, x, absorbed=4.0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample_is_linear_in_the_values_and_its_places_are_a_statistic(layer, x, mode):
    theta = torch.tensor([[0.9, 0.2, 0.1], [-0.1, 0.8, 0.2]])

    def transformed(x):
        moved = theta + 0.1 * layer(x).tanh().mean((1,)).view(-1, 1, 1)
        places = F.affine_grid(moved, [len(x), 1, 2, 2], align_corners=False)
        return F.grid_sample(x.view(-1, 1, 2, 2), places, mode, align_corners=False)

    e = conserved(transformed, x, absorbed=0.0)
    places = F.affine_grid(theta + 0.1 * layer(x).tanh().mean(1).view(-1, 1, 1), [3, 1, 2, 2], align_corners=False).detach()
    held = conserved(lambda x: F.grid_sample(x.view(-1, 1, 2, 2), places, mode, align_corners=False), x)
    assert torch.allclose(e.relevance, held.relevance, rtol=1e-10)


def test_cosine_similarity_and_distance(layer, x):
    prototypes = torch.randn(5, 4)
    e = conserved(lambda x: F.cosine_similarity(layer(x)[:, None], prototypes, dim=-1), x, absorbed=0.0)
    parts = conserved(lambda x: F.normalize(layer(x)) @ F.normalize(prototypes).T, x)
    assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)
    conserved(lambda x: F.cosine_similarity(x, layer(x))[:, None], x, absorbed=0.0)
    conserved(lambda x: F.pairwise_distance(x, layer(x))[:, None], x)


# groups, graphs


@pytest.mark.parametrize("reduction", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("alone", [True, False])
def test_scatter_reduce(layer, x, reduction, alone):
    groups = torch.tensor([[0, 1, 0, 1]] * 3)
    own = torch.ones(3, 2)
    e = conserved(
        lambda x: own.scatter_reduce(1, groups, layer(x), reduction, include_self=not alone), x, absorbed=0.0 if alone else None
    )
    reduce = {"sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "amin": torch.amin}[reduction]
    if alone:
        parts = conserved(lambda x: torch.stack([reduce(layer(x)[:, i::2], 1) for i in (0, 1)], 1), x)
        assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "min"])
def test_segment_reduce(layer, x, reduction):
    conserved(
        lambda x: torch.segment_reduce(layer(x).T.contiguous(), reduction, lengths=torch.tensor([1, 3])).T, x, absorbed=0.0
    )


@pytest.mark.filterwarnings("ignore:index_reduce")
def test_a_product_of_groups_is_refused(x):
    for product in (
        lambda x: torch.ones(3, 2).scatter_reduce(1, torch.tensor([[0, 1, 0, 1]] * 3), x, "prod"),
        lambda x: torch.ones(3, 2).index_reduce(1, torch.tensor([0, 1, 0, 1]), x, reduce="prod"),
    ):
        with pytest.raises(errors.UnknownFunctionError, match="reduce"):
            whence.explain(product, x, total)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("rule", [Epsilon(0), Gamma(0.5)], ids=repr)
@pytest.mark.parametrize(
    "product",
    [lambda a, x: torch.sparse.mm(a, x), lambda a, x: a @ x, lambda a, x: a.to_sparse_csr() @ x, lambda a, x: torch.mm(a, x)],
)
def test_a_constant_sparse_adjacency_is_a_weight(layer, x, product, rule):
    adjacency = torch.tensor([[0, 1.0, 0, -0.5], [1, 0, 2, 0], [0, 2, 0, 0], [1, 0, 0, 1]])
    method = {"rules": {(torch.matmul, torch.mm, torch.sparse.mm): rule}}
    sparse = conserved(lambda x: product(adjacency.to_sparse(), layer(x).T).T, x, **method)
    dense = conserved(lambda x: (adjacency @ layer(x).T).T, x, **method)
    assert torch.allclose(sparse.relevance, dense.relevance, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_an_offset_beside_a_sparse_product_absorbs(layer, x):
    offset = torch.randn(4, 3)
    e = conserved(lambda x: torch.sparse.addmm(offset, torch.eye(4).to_sparse(), layer(x).T).T, x)
    assert torch.allclose(e.conservation.absorbed, offset.sum(0))


# what is neither linear nor homogeneous keeps its own gradient, and the rest is measured


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.log(y.abs() + 1),
        lambda x, y: torch.log2(y.abs() + 1),
        lambda x, y: torch.log10(y.abs() + 1),
        torch.atan2,
        lambda x, y: torch.cdist(x[:, None], y[:, None]),
    ],
)
def test_own_gradients(layer, x, function):
    conserved(lambda x: function(x, layer(x)), x)


def test_log_sigmoid_is_a_gate(layer, x):
    e = conserved(lambda x: x * F.logsigmoid(layer(x)), x, absorbed=0.0)
    assert torch.allclose(e.relevance, x * F.logsigmoid(layer(x)))


# what happens beside the output


@pytest.mark.parametrize(
    "beside",
    [
        lambda x: F.mse_loss(x, torch.ones(3, 4)),
        lambda x: F.cross_entropy(x, torch.zeros(3, dtype=torch.long)),
        lambda x: torch.special.erfinv(x.tanh()),
        lambda x: torch.linalg.svd(x),
        lambda x: Hidden.apply(x) + 1,
    ],
)
def test_what_never_reaches_the_output_is_not_refused(layer, x, beside):
    def model(x):
        kept.append(beside(x))
        return layer(x)

    kept = []
    conserved(model, x, absorbed=0.0)


def test_what_does_is_refused_by_names_that_exist(x):
    with pytest.raises(errors.UnknownFunctionError, match=r"torch\.special\.erfinv: whence"):
        whence.explain(lambda x: torch.special.erfinv(x.tanh()), x, total)
    with pytest.raises(errors.UnknownFunctionError, match=r"torch\.nn\.functional\.mse_loss: whence"):
        whence.explain(lambda x: x * F.mse_loss(x, torch.zeros(3, 4)), x, total)
    with pytest.raises(errors.OpaqueError, match="HiddenBackward"):
        whence.explain(lambda x: Hidden.apply(x) + 1, x, total)


def test_every_hint_names_what_can_be_found(x):
    from whence.lrp.ops.function_facts import selector_name

    for function in (F.relu, torch.special.erfinv, torch.linalg.svd, torch.sparse.mm, torch.Tensor.lgamma_, F.grid_sample):
        named = selector_name(function)
        assert named is None or callable(eval(named))
    assert selector_name(torch.autograd.grad) is None or "functional" not in selector_name(torch.autograd.grad)


def test_a_leaf_made_in_the_likeness_of_data_absorbs(layer, x):
    conserved(lambda x: layer(x) + torch.zeros_like(x, requires_grad=True) + 1, x, absorbed=4.0)
    conserved(lambda x: x + (torch.zeros_like(x).requires_grad_() + 1) * 1, x, absorbed=4.0)


# a model that differentiates


def test_a_model_that_differentiates_at_a_leaf_of_its_own_keeps_its_output(layer, x):
    def descends(x):
        y = x.detach().requires_grad_()
        energy = (layer(y).relu() ** 2).sum() + y.exp().sum()
        return layer(x) - 0.1 * torch.autograd.grad(energy, y)[0]

    e = conserved(descends, x)
    assert torch.allclose(e.relevance, whence.explain(layer, x, total).relevance)


@pytest.mark.parametrize("method", ["gradient_times_input", "sensitivity"])
def test_other_methods_keep_it_too(layer, x, method):
    def descends(x):
        y = x.detach().requires_grad_()
        return layer(x) - torch.autograd.grad(layer(y).square().sum(), y)[0]

    e = whence.explain(descends, x, total, method=method)
    assert torch.equal(e.output, total(descends(x)).detach())


def test_one_that_differentiates_by_its_input_is_refused(layer, x):
    with pytest.raises(errors.ModelError, match="differentiates within its forward"):
        whence.explain(lambda x: layer(x) - torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0], x, total)


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_a_hook_by_which_a_model_scales_its_gradient_only_looks(layer, x, method):
    seen = []

    def scaled(x):
        y = layer(x)
        y.register_hook(lambda g: seen.append(g) or g * 0.1)
        return y * 1

    e = whence.explain(scaled, x, total, method=method)
    assert torch.allclose(e.relevance, whence.explain(layer, x, total, method=method).relevance)
    assert len(seen) == 1


def test_hooks_within_relevance_rules_are_the_users_own(layer, x):
    x.requires_grad_()
    with whence.relevance_rules(None, {}):
        y = layer(x)
        y.register_hook(lambda g: g * 0.5)
        out = (y * 1).sum()
    (g,) = torch.autograd.grad(out, x)
    with whence.relevance_rules(None, {}):
        whole = layer(x).sum()
    assert torch.allclose(2 * g, torch.autograd.grad(whole, x)[0])


# modules with backward hooks


@pytest.mark.parametrize("rules", [{nn.Conv2d: ZBox(0, 1)}, presets.epsilon_gamma(), presets.epsilon_plus_flat()], ids=repr)
def test_backward_hooks_of_modules_look_and_change_nothing(rules):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5), nn.ReLU()).eval()
    x, seen = torch.rand(2, 1, 6, 6), []
    plain = whence.explain(net, x, 1, method=LRP(rules), layers=["0", "2"])
    handles = [m.register_full_backward_hook(lambda *given: seen.append(given)) for m in net.modules()]
    hooked = whence.explain(net, x, 1, method=LRP(rules), layers=["0", "2"])
    assert torch.allclose(hooked.relevance, plain.relevance, rtol=1e-10, atol=1e-14)
    for name in ("0", "2"):
        assert torch.allclose(hooked.layers[name], plain.layers[name], rtol=1e-10, atol=1e-14)
    assert seen
    for handle in handles:
        handle.remove()


def test_what_hides_behind_a_backward_hook_is_still_refused(x):
    class Hides(nn.Module):
        def forward(self, x):
            return Hidden.apply(x)

    net = nn.Sequential(Hides(), nn.Linear(4, 2)).eval()
    net[0].register_full_backward_hook(lambda *given: None)
    with pytest.raises(errors.OpaqueError):
        whence.explain(net, x, 1)


# vmapped parts


@pytest.mark.parametrize(
    ("vmapped", "plain"),
    [
        (lambda f, x: torch.vmap(f)(x), lambda f, x: f(x)),
        (lambda f, x: torch.vmap(f, in_dims=1, out_dims=1)(x.T).T, lambda f, x: f(x)),
        (lambda f, x: torch.vmap(lambda a, b: f(a) + b, in_dims=(0, None))(x, torch.ones(4)), lambda f, x: f(x) + 1),
        (lambda f, x: torch.vmap(lambda a: (f(a), a * 2), out_dims=(0, 0))(x)[0], lambda f, x: f(x)),
        (lambda f, x: torch.vmap(lambda a: (f(a), torch.ones(1)), out_dims=(0, None))(x)[0], lambda f, x: f(x)),
        (lambda f, x: torch.vmap(lambda a: ((f(a), a),), out_dims=(0,))(x)[0][0], lambda f, x: f(x)),
        (lambda f, x: torch.vmap(torch.vmap(lambda a: a.tanh() * 2))(x) + f(x), lambda f, x: x.tanh() * 2 + f(x)),
    ],
)
@pytest.mark.parametrize("rule", [Epsilon(0), Gamma(0.5)], ids=repr)
def test_what_is_vmapped_is_seen_sample_by_sample(layer, x, vmapped, plain, rule):
    f = lambda x: F.relu(layer(x))  # noqa: E731
    rules = LRP({F.linear: rule})
    e = whence.explain(lambda x: vmapped(f, x), x, total, method=rules)
    expected = whence.explain(lambda x: plain(f, x), x, total, method=rules)
    assert torch.allclose(e.output, expected.output)
    assert torch.allclose(e.relevance, expected.relevance, atol=1e-10)
    assert e.conservation.error.max() < 1e-9


def test_vmap_is_left_as_it_was(layer, x):
    from torch._functorch import apis

    before = apis.vmap_impl
    with pytest.raises(errors.TargetError):
        whence.explain(lambda x: torch.vmap(layer)(x), x, 99)
    assert apis.vmap_impl is before


# attention


@pytest.mark.filterwarnings("ignore::whence.errors.ConservationWarning")  # written out, such rows pass on what is 0
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
@pytest.mark.parametrize("of_values", [False, True])
def test_rows_of_attention_that_a_mask_leaves_nothing_of(dtype, method, of_values):
    """There torch's own backward on a CPU is wrong, where the mask is the least finite number."""
    q, k, v = (nn.Linear(8, 8, bias=False, dtype=dtype) for _ in range(3))
    x, mask = torch.randn(2, 5, 8, dtype=dtype), torch.zeros(5, 5, dtype=dtype)
    mask[2], mask[:, 4] = torch.finfo(dtype).min, torch.finfo(dtype).min
    fixed = torch.randn(2, 1, 5, 8, dtype=dtype)

    def operands(x):
        return (fixed, fixed, v(x)[:, None]) if of_values else (q(x)[:, None], k(x)[:, None], v(x)[:, None])

    def fused(x):
        return F.scaled_dot_product_attention(*operands(x), attn_mask=mask)[:, 0]

    def written_out(x):
        a, b, c = operands(x)
        return (((a @ b.mT) * 8**-0.5 + mask).softmax(-1) @ c)[:, 0]

    e, expected = (whence.explain(f, x, lambda y: y[:, 2, 0] + y[:, 1, 1], method=method) for f in (fused, written_out))
    assert torch.allclose(e.output, expected.output, rtol=1e-5)
    assert torch.allclose(e.relevance, expected.relevance, rtol=1e-3, atol=1e-6)
    if method == "lrp":
        assert e.conservation.error.max() < 1e-4
        assert torch.equal(e.output, fused(x)[:, 2, 0] + fused(x)[:, 1, 1])
