"""Transformers and language models, unmodified: conservation over all families, the rules of AttnLRP, every spelling."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import whence
from support import transformer_zoo as zoo
from support.selection import in_turn
from whence import LRP, Epsilon, presets

CP = LRP(presets.cp_lrp(conv_gamma=0))


EVERY_DAY = ["vit_b_16", "swin_v2_t", "vit_tiny_patch16_224", "mobilevit_xxs", "poolformer_s12"]


VISION = [*zoo.TORCHVISION, *zoo.TIMM]


TODAY = EVERY_DAY + in_turn([name for name in VISION if name not in EVERY_DAY], 4)


def language(name: str, additive: bool):
    pytest.importorskip("transformers")
    with zoo.default_dtype(torch.float64):
        model, x = zoo.hugging_face(name)
    return zoo.randomised(model, additive), x


def target_of(name: str):
    return (lambda outputs: outputs.logits_per_image.diagonal()) if name == "clip" else None


def assert_value_unchanged(model, x, e):
    """To the bit: with gradients off or on, between which torch chooses its kernels."""
    values = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            outputs = model(**x) if isinstance(x, dict) else model(x)
        logits = getattr(outputs, "logits", outputs)
        if callable(e.target):
            values.append(e.target(outputs))
            continue
        logits = logits if logits.dim() == 2 else logits[:, -1]
        values.append(logits[torch.arange(len(logits)), e.target])
    assert any(torch.equal(e.output, value) for value in values)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_language_models_conserve(name):
    model, x = language(name, additive=False)
    e = whence.explain(model, x, target_of(name), method=CP)
    assert_value_unchanged(model, x, e)
    assert ((e.conservation.relevance - e.output).abs() <= 1e-6 * e.output.abs()).all(), e.conservation


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_language_models_balance(name):
    model, x = language(name, additive=True)
    for rules in (presets.attn_lrp(), presets.cp_lrp(gamma=0.1)):
        e = whence.explain(model, x, target_of(name), method=LRP(rules))
        assert_value_unchanged(model, x, e)
        assert e.conservation.error.max() <= 1e-6, e.conservation
        for part, given in zip(x, e.relevance, strict=True):
            assert given == part


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TODAY)
def test_vision_transformers_conserve_and_balance(name):
    model, x = zoo.vision(name)
    e = whence.explain(zoo.randomised(model, additive=False), x, method=CP)
    assert_value_unchanged(model, x, e)
    assert ((e.conservation.relevance - e.output).abs() <= 1e-6 * e.output.abs()).all(), e.conservation
    zoo.randomised(model, additive=True)
    for rules in (presets.attn_lrp(gamma=0.05), presets.cp_lrp()):
        e = whence.explain(model, x, method=LRP(rules))
        assert_value_unchanged(model, x, e)
        assert e.conservation.error.max() <= 1e-6, e.conservation


def test_state_spaces_hold_their_steps_and_gates_constant():
    """MambaLRP: Δ, B and C are constant, so nothing reaches the projections they come from."""
    model, x = language("mamba", additive=True)
    with pytest.raises(whence.errors.ModelError, match="does not depend on the input"):
        whence.explain(model, x, layers=["backbone.layers.0.mixer.x_proj"])
    halved = whence.explain(model, x, method=LRP({F.linear: Epsilon(0)}), layers=["backbone.layers.0.mixer.x_proj"])
    assert halved.layers["backbone.layers.0.mixer.x_proj"].abs().sum() > 0


def test_grouped_experts_in_float32():
    pytest.importorskip("transformers")
    model, x = zoo.hugging_face("mixtral")
    model.config._experts_implementation = "grouped_mm"
    e = whence.explain(zoo.randomised(model, additive=True), x)
    assert e.conservation.error.max() < 1e-3


class TwoLayers(nn.Module):
    """A small decoder in the spelling that is easiest to transcribe: RMS norm, softmax attention, SwiGLU."""

    def __init__(self, width=8, hidden=12, vocabulary=11, norm="rms"):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width),
                  "gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}  # fmt: skip
        self.layers = nn.ModuleList(
            nn.ParameterDict({k: torch.randn(s) * s[1] ** -0.5 for k, s in shapes.items()}) for _ in "12"
        )
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.norm = norm
        self.eval()

    def normalised(self, x):
        if self.norm == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return F.layer_norm(x, x.shape[-1:])

    def forward(self, ids):
        x = self.table(ids)
        for w in self.layers:
            y = self.normalised(x)
            q, k, v = (y @ w[name].T for name in "qkv")
            mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
            a = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + mask, -1)
            x = x + (a @ v) @ w["o"].T
            y = self.normalised(x)
            x = x + (F.silu(y @ w["gate"].T) * (y @ w["up"].T)) @ w["down"].T
        return self.head(self.normalised(x))


def linear_rule(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Eq. 8 for one vector, message by message."""
    z = weight @ x
    return sum((x * weight[j] / z[j] * relevance[j] for j in range(len(z))), start=torch.zeros_like(x))


def matmul_rule(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Proposition 3.3: R_ji = Σ_p a_ji b_ip R_jp / (2 O_jp), and the like for b; masked entries of a are 0."""
    to_a, to_b, out = torch.zeros_like(a), torch.zeros_like(b), a @ b
    for j in range(a.shape[0]):
        for i in range(a.shape[1]):
            for p in range(b.shape[1]):
                message = a[j, i] * b[i, p] / (2 * out[j, p]) * relevance[j, p]
                to_a[j, i] += message
                to_b[i, p] += message
    return to_a, to_b


def softmax_rule(x: Tensor, s: Tensor, relevance: Tensor) -> Tensor:
    """Proposition 3.1: R_i = x_i (R_i − s_i Σ_j R_j)."""
    return torch.where(s > 0, x * (relevance - s * relevance.sum(-1, keepdim=True)), 0.0)


def transcribed(model: TwoLayers, ids: Tensor, target: int) -> Tensor:
    """Relevance of each number of each embedded token of one sequence, from the last position's logit."""
    x, trace = model.table.weight[ids].detach(), []
    for w in model.layers:
        y = model.normalised(x)
        q, k, v = (y @ w[name].T for name in "qkv")
        scores = q @ k.T / q.shape[-1] ** 0.5
        a = torch.softmax(scores + torch.full(scores.shape, -torch.inf).triu(1), -1)
        attended = a @ v
        middle = x + attended @ w["o"].T
        y2 = model.normalised(middle)
        gate, up = y2 @ w["gate"].T, y2 @ w["up"].T
        gated = F.silu(gate) * up
        after = middle + gated @ w["down"].T
        trace.append((w, x, y, q, k, v, scores, a, attended, middle, y2, gated, after))
        x = after
    last = model.normalised(x)
    relevance = torch.zeros_like(x)
    relevance[-1] = last[-1] * model.head.weight[target]  # one output: eq. 8; RMS norm passes R on unchanged (prop. 3.4)
    rows = lambda x, weight, r: torch.stack([linear_rule(x[t], weight, r[t]) for t in range(len(x))])  # noqa: E731
    for w, x, y, q, k, v, scores, a, attended, middle, y2, gated, after in reversed(trace):
        from_mlp = (after - middle) / after * relevance  # a sum: in proportion
        to_middle = middle / after * relevance
        half = rows(gated, w["down"], from_mlp) / 2  # prop. 3.2: a product is halved; SiLU passes R on (eq. 9)
        to_middle = to_middle + rows(y2, w["gate"], half) + rows(y2, w["up"], half)
        from_attention = (middle - x) / middle * to_middle
        to_x = x / middle * to_middle
        to_a, to_v = matmul_rule(a, v, rows(attended, w["o"], from_attention))
        to_scores = softmax_rule(scores, a, to_a)
        to_q, to_k = matmul_rule(q, k.T / q.shape[-1] ** 0.5, to_scores)
        relevance = to_x + rows(y, w["q"], to_q) + rows(y, w["k"], to_k.T) + rows(y, w["v"], to_v)
    return relevance


@pytest.mark.usefixtures("float64")
def test_attn_lrp_equals_the_explicit_rules():
    model, ids = TwoLayers(), torch.tensor([[1, 4, 2, 9, 4]])
    e = whence.explain(model, ids, 3, method=LRP(presets.attn_lrp()))
    expected = transcribed(model, ids[0], 3)
    assert (e.relevance[0] - expected.sum(1)).abs().max() < 1e-8
    assert e.conservation.error.max() < 1e-10


def same(*models, x=None, target=None, method=None, tolerance=1e-10):
    """All of them explain alike, balance, and compute what they compute."""
    x = torch.randn(2, 6, 8) if x is None else x
    target = target or (lambda y: y.flatten(1)[:, ::3].sum(1))
    first, *others = (whence.explain(model, x, target, method=method) for model in models)
    assert first.conservation.error.max() < 1e-9
    for e in others:
        assert (e.relevance - first.relevance).abs().max() <= tolerance * first.relevance.abs().max()
        assert e.conservation.error.max() < 1e-9
    return first


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", [LRP(), CP], ids=["attn", "cp"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_fused_or_written_out(method, masked):
    weights = [torch.randn(8, 8) for _ in range(3)]
    mask = torch.full((6, 6), -torch.inf).triu(1) if masked else None

    def fused(x):
        q, k, v = (F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2) for w in weights)
        return F.scaled_dot_product_attention(q, k, value=v, is_causal=masked)

    def explicit(x):
        q, k, v = (F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2) for w in weights)
        scores = q @ k.transpose(-2, -1) / math.sqrt(4)
        return (scores if mask is None else scores + mask).softmax(-1) @ v

    def einsum(x):
        q, k, v = (F.linear(x, w).unflatten(-1, (2, 4)) for w in weights)
        scores = torch.einsum("bihd,bjhd->bhij", q, k).div(2)
        scores = scores if mask is None else scores.masked_fill(mask < 0, -torch.inf)
        return torch.einsum("bhij,bjhd->bhid", F.softmax(scores, dim=-1, dtype=torch.float64), v)

    same(fused, explicit, einsum, method=method)


@pytest.mark.usefixtures("float64")
def test_attention_over_constants_and_with_masks_made_of_the_input():
    keys, values, to_q, to_m = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(8, 8), torch.randn(5, 8)
    written = lambda q, k, v, m: (q @ k.mT / 8**0.5 + m).softmax(-1) @ v  # noqa: E731
    sdpa = lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m)  # noqa: E731
    cases = [
        lambda x, f: f(x @ to_q, keys, values, torch.zeros(6, 5)),
        lambda x, f: f(x @ to_q, keys, x[:, :5], torch.zeros(6, 5)),
        lambda x, f: f(keys, x[:, :5], x[:, :5], torch.zeros(5, 5)),
        lambda x, f: f(x, x, x, torch.zeros(6, 6)),
        lambda x, f: f(x @ to_q, keys, values, F.linear(x, to_m)),
        lambda x, f: f(x @ to_q, keys, x[:, :5], F.linear(x, to_m)),
    ]
    for case in cases:
        same(lambda x, case=case: case(x, sdpa), lambda x, case=case: case(x, written))


@pytest.mark.usefixtures("float64")
def test_only_a_living_and_unchanged_value_has_gates():
    up, gate, other = (nn.Linear(8, 8, bias=False) for _ in range(3))
    same(lambda x: F.silu(gate(x)) * up(x) * 0.5, lambda x: F.silu(gate(x)) * (up(x) * 0.5))

    def stale(x):
        h = up(x)
        g = h.tanh()
        h += other(x)
        return h * g

    same(lambda x: (up(x) + other(x)) * up(x).tanh(), stale)


@pytest.mark.usefixtures("float64")
def test_projections_of_other_networks_are_no_state_space_gates():
    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.x_proj = nn.Linear(8, 8, bias=False)

        def forward(self, x):
            return self.x_proj(x)

    e = whence.explain(Fusion().eval(), torch.randn(2, 8), 1)
    torch.testing.assert_close(e.relevance.sum(1), e.output)


@pytest.mark.usefixtures("float64")
def test_products_added_to_an_offset():
    x = torch.randn(2, 4, 4)
    for model in (
        lambda x: torch.baddbmm(x, x, x),
        lambda x: torch.baddbmm(torch.ones(1), x, x, beta=2, alpha=0.5),
        lambda x: torch.baddbmm(x, torch.ones(2, 4, 4), x),
        lambda x: torch.addmm(torch.ones(1), x[0], torch.ones(4, 4))[None],
        lambda x: F.linear(x, torch.ones(3, 4), torch.ones(1)),
    ):
        e = whence.explain(model, x if model(x).shape[0] == 2 else x[:1], lambda y: y.flatten(1)[:, 1])
        assert e.conservation.error.max() < 1e-9


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", [LRP(), CP], ids=["attn", "cp"])
def test_grouped_queries(method):
    weights = [torch.randn(8, 8), torch.randn(4, 8), torch.randn(4, 8)]
    heads = lambda x: [F.linear(x, w).unflatten(-1, (-1, 2)).transpose(1, 2) for w in weights]  # noqa: E731
    same(
        lambda x: F.scaled_dot_product_attention(*heads(x), enable_gqa=True),
        lambda x: F.scaled_dot_product_attention(*(t.repeat_interleave(4 // t.shape[1], 1) for t in heads(x))),
        method=method,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", [LRP(), CP], ids=["attn", "cp"])
@pytest.mark.parametrize("extra", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 5, "vdim": 3}],
                         ids=str)  # fmt: skip
def test_multi_head_attention(method, extra):
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **extra).eval()
    x = torch.randn(2, 6, 8)
    others = [x[..., :width] for width in (extra.get("kdim", 8), extra.get("vdim", 8))]
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True

    def attended(x, need_weights):
        keys = [x[..., : o.shape[-1]] for o in others]
        return layer(x, *keys, need_weights=need_weights, key_padding_mask=padding)[0]

    e = same(lambda x: attended(x, True), lambda x: attended(x, False), x=x, method=method)
    with torch.no_grad():
        assert torch.allclose(e.output, attended(x, True).flatten(1)[:, ::3].sum(1))


@pytest.mark.usefixtures("float64")
def test_torch_encoder_and_decoder_layers_balance_without_their_fast_path():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), 2).eval()
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1).eval()
    x, y = torch.randn(2, 6, 8), torch.randn(2, 4, 8)
    same(encoder)
    e = whence.explain(lambda x, y: decoder(y, encoder(x)), (x, y), lambda z: z.flatten(1)[:, 0])
    assert e.conservation.error.max() < 1e-9
    assert all(r.abs().sum() > 0 for r in e.relevance)


@pytest.mark.usefixtures("float64")
def test_norms_in_every_spelling():
    weight, bias = torch.rand(8) + 0.5, torch.randn(8)
    same(
        lambda x: F.layer_norm(x, (8,), weight, bias, 1e-5),
        lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5) * weight + bias,
        lambda x: weight * ((x - x.mean(-1, True)) * ((x - x.mean(-1, True)) ** 2).mean(-1, True).add(1e-5).rsqrt()) + bias,
        tolerance=1e-9,
    )
    rms = nn.RMSNorm(8, eps=1e-6).eval()
    rms.weight.data = weight
    e = same(
        lambda x: F.rms_norm(x, (8,), weight, 1e-6),
        rms,
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight,
        lambda x: weight * (x / (x.square().mean(-1, keepdim=True) + 1e-6) ** 0.5),
    )
    assert (e.relevance.sum((1, 2)) - e.output).abs().max() < 1e-10
    same(lambda x: F.normalize(x, dim=-1), lambda x: x / x.norm(dim=-1, keepdim=True), tolerance=1e-9)


@pytest.mark.usefixtures("float64")
def test_activations_written_out_are_activations():
    root = math.sqrt(2 / math.pi)
    identities = [
        (
            lambda x: F.gelu(x, approximate="tanh"),
            lambda x: 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * torch.pow(x, 3.0)))),
        ),
        (lambda x: F.gelu(x, approximate="tanh"), lambda x: x * 0.5 * (1.0 + torch.tanh(root * x * (1 + 0.044715 * x * x)))),
        (F.gelu, lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        (F.silu, lambda x: x * torch.sigmoid(x)),
        (F.hardswish, lambda x: x * F.relu6(x + 3) / 6),
        (F.mish, lambda x: x * torch.tanh(F.softplus(x))),
    ]
    for fused, written in identities:
        e = same(fused, written, tolerance=1e-9)
        assert torch.allclose(e.relevance.flatten(1).sum(1), e.output)


@pytest.mark.usefixtures("float64")
def test_gated_linear_units():
    e = same(lambda x: F.glu(x, -1), lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1].sigmoid())
    assert (e.relevance[..., 4:] == 0).all()


@pytest.mark.usefixtures("float64")
def test_rotary_embeddings_as_pairs_halves_or_complex_numbers():
    angles = torch.rand(6, 4)
    turn = torch.polar(torch.ones_like(angles), angles)
    cos, sin = angles.cos(), angles.sin()

    def by_complex(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * turn).flatten(-2)

    def by_pairs(x):
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    e = same(by_complex, by_pairs)
    assert torch.allclose(e.relevance.flatten(1).sum(1), e.output)


@pytest.mark.usefixtures("float64")
def test_constant_at_a_path_keeps_relevance_out():
    gated = nn.ModuleDict({"gate_proj": nn.Linear(8, 8), "up_proj": nn.Linear(8, 8, bias=False)})

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = gated

        def forward(self, x):
            return F.silu(self.mlp["gate_proj"](x)) * self.mlp["up_proj"](x)

    model, x = Gated().eval(), torch.randn(2, 8)
    e = whence.explain(model, x, 1, method=LRP({"*.gate_proj": whence.Constant()} | presets.attn_lrp()))
    gate = F.silu(gated["gate_proj"](x))[:, 1:2]
    assert torch.allclose(e.relevance, gate * x * gated["up_proj"].weight[1])


@pytest.mark.usefixtures("float64")
def test_gamma_on_a_vision_transformer_reads_signed_inputs():
    model, x = zoo.vision("vit_tiny_patch16_224")
    zoo.randomised(model, additive=False)
    sharp = whence.explain(model, x, 1, method=LRP(presets.cp_lrp(gamma=0, conv_gamma=0)))
    calm = whence.explain(model, x, 1, method=LRP(presets.cp_lrp(gamma=1.0, conv_gamma=100.0)))
    assert abs(calm.conservation.relevance - calm.output) < 1e-6 * abs(calm.output)
    assert calm.relevance.abs().sum() < sharp.relevance.abs().sum()


def test_epsilon_on_attention_weights_as_constants():
    """Attention weights under CP-LRP are the weights of a linear map like any other."""
    x, a = torch.randn(2, 6, 8), torch.rand(2, 6, 6)
    e = whence.explain(lambda x: a @ x, x, lambda y: y.flatten(1)[:, 0], method=LRP({torch.matmul: Epsilon(0.5)}))
    z = (a @ x).flatten(1)[:, 0]
    assert torch.allclose(e.conservation.relevance, z * z.abs() / (z.abs() + 0.5))
