"""Every public call with its default settings where the model runs on an accelerator, and the data lies there or does not."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import whence
from whence.graphs.cuda_graphs import CudaGraph, as_cuda_graph
from whence.methods.registry import METHODS
from whence.models.digits import digit_decoder, digit_expert, digit_samples, digits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here; run on a machine with CUDA")


DEVICE = "cuda"


SHAPE = (1, 28, 28)


DRAWN = ("smooth_grad", "rise", "shapley")  # from generators of the devices


@pytest.fixture(autouse=True)
def in_full_precision():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def model():
    return digits().to(DEVICE)


@pytest.fixture(params=["cpu", DEVICE])
def data(request):
    """Where loaders leave it, and beside the model."""
    x, y = digit_samples()
    return x[:20].to(request.param), y[:20].to(request.param)


@pytest.fixture
def near():
    x, y = digit_samples()
    return x[:6].to(DEVICE), y[:6].to(DEVICE)


def off(here, there):
    return float((here.detach().cpu().double() - there.double()).abs().max() / there.abs().max())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in DRAWN])
def test_relevance_is_that_of_the_cpu(model, near, method):
    x, y = near
    here = whence.explain(model, x, y, method=method)
    there = whence.explain(digits(), x.cpu(), y.cpu(), method=method)
    assert here.relevance.device == x.device
    assert off(here.relevance, there.relevance) < 1e-3


@pytest.mark.parametrize("method", DRAWN)
def test_methods_that_draw(model, near, method):
    assert whence.explain(model, *near, method=method).relevance.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(near, dtype):
    x, y = near
    assert whence.explain(digits().to(DEVICE, dtype), x.to(dtype), y).relevance.dtype == dtype


def test_an_input_left_behind(model):
    with pytest.raises(whence.errors.ModelError, match=r"is on cpu, the model on cuda:0: pass x.to\('cuda:0'\)"):
        whence.explain(model, digit_samples()[0][:2])


@pytest.mark.parametrize("target", [3, np.arange(6), torch.arange(6), [0, 1, 2, 3, 4, 5]])
def test_targets_from_elsewhere(model, near, target):
    whence.explain(model, near[0], target)


@pytest.mark.parametrize("ending", ["png", "html", "npz", "safetensors"])
def test_saving(model, near, tmp_path, ending):
    whence.explain(model, *near).save(tmp_path / f"heat.{ending}")


def test_recurrent_and_attending_networks():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 8, 2, batch_first=True, bidirectional=True)
            self.lstm, self.out = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.lstm(self.gru(x)[0])[0][:, -1])

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, batch_first=True)
            self.words, self.layers, self.out = nn.Embedding(50, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

        def forward(self, x):
            return self.out(self.layers(self.words(x)).mean(1))

    for net, x in ((Recurrent(), torch.randn(3, 7, 4)), (Attending(), torch.randint(0, 50, (3, 7)))):
        there = whence.explain(net.eval(), x, 1).relevance
        assert off(whence.explain(net.to(DEVICE), x.to(DEVICE), 1).relevance, there) < 1e-4


def test_replays(model, near):
    x, y = near
    explainer = whence.Explainer(model, capture=True)
    for _ in range(3):
        first = explainer(x, y)
    other = explainer(x.flip(0), y.flip(0))
    (capture,) = explainer._captures._captures.values()
    assert isinstance(capture.program, CudaGraph)
    assert off(first.relevance, whence.explain(digits(), x.cpu(), y.cpu()).relevance) < 1e-4
    assert off(other.relevance.flip(0), first.relevance.cpu()) < 1e-4
    with pytest.raises(whence.errors.TargetError, match="classes 0 to 9"):
        explainer(x, 12)
    with torch.no_grad():
        model[0].weight *= 1.1
    assert off(explainer(x, y).relevance, whence.explain(model, x, y).relevance.cpu()) < 1e-4


def test_replays_from_several_streams(model, near):
    x, y = near
    explainer = whence.Explainer(model, capture=True)
    wanted = [whence.explain(model, x.roll(i, 0), y.roll(i)).relevance.cpu() for i in range(6)]
    explainer(x, y)

    def ask(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            return max(off(explainer(x.roll(i, 0), y.roll(i)).relevance, wanted[i]) for _ in range(20))

    torch.cuda.synchronize()
    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(ask, range(6))) < 1e-4


def test_what_waits_for_values_is_not_recorded(near):
    def program(x):
        return {"sum": x[x > 0].sum()}

    assert as_cuda_graph(program, [near[0]]) is program
    assert as_cuda_graph(program, [near[0].cpu()]) is program
    assert torch.ones(2, device=DEVICE).sum() == 2


def test_inside(model, near, tmp_path):
    x, y = near
    whence.channel_relevance(model, x, "5", target=y)
    whence.explain(model, x, y, layers=["3", "6"])
    whence.explain(model, x, y, through={"5": [17, 20]})
    whence.flow(model, x[:1]).save(tmp_path / "layers.png")
    embedder = nn.Sequential(*list(model)[:-1]).eval()
    whence.explain_similarity(embedder, x[:1], x[1:2], n_projections=4).save(tmp_path / "pairs.png")


def test_inside_of_data(model, near, data, tmp_path):
    whence.concepts(model, near[0][:1], reference_inputs=data[0]).save(tmp_path / "concepts.png")
    whence.top_samples(model, "5:0-3", data[0])
    whence.top_samples(model, "5:0-3", data[0], ranking="relevance")
    for settings in ({}, {"algorithm": "drsa", "n_subspaces": 2, "n_steps": 20}):
        found = whence.subspaces(model, data, "5", target=data[1], n_dimensions=2, progress=False, **settings)
        whence.explain(model, *near, through=found.through(0))


def test_evaluation(model, data, tmp_path):
    metrics = ["srg", "sparseness", "continuity", "mprt", "random_logit", "infidelity", "sensitivity_n", "max_sensitivity"]
    whence.evaluate(model, data, ["lrp", "sensitivity", "random"], metrics).save(tmp_path / "report.html")
    loader = DataLoader(TensorDataset(*data), 5)
    whence.evaluate(model, loader, ["lrp"], ["srg", "relevance_mass"], masks=data[0][:, 0] > 0)
    whence.tune(model, data)


def test_comparison(model, near, tmp_path):
    whence.compare(model, near[0][:2], ["lrp", "sensitivity"]).save(tmp_path / "compared.png")
    whence.superpixels(near[0], 10)


def test_a_data_set(model, data, tmp_path):
    x, y = (t[(data[1] == 3) | (data[1] == 4)].repeat(8, *[1] * (t.dim() - 1)) for t in data)
    x[y == 3, :, :3, :3] = 1.0
    store = whence.explain_dataset(model, (x, y), tmp_path / "store", target="label")
    assert not store.failures
    whence.audit(store).save(tmp_path / "audit.html")
    better = whence.cure(model, "3", x[y == 3], x[y == 4])
    assert better(x.to(DEVICE)).isfinite().all()


def test_attacks(model, near, tmp_path):
    x, y = near
    for chosen in (whence.attacks.FGSM(0.1), whence.attacks.PGD(0.1), whence.attacks.MIFGSM(0.1), whence.attacks.DeepFool()):
        whence.attack(model, x, y, chosen)
    whence.explain_attack(model, x, y, whence.attacks.PGD(0.15)).save(tmp_path / "attack.png")
    whence.attack_explanation(model, x, epsilon=0.05)
    whence.attacks.feature_scores(model, x, y, epsilon=0.1, layer="3").save(tmp_path / "scores.png")


def test_prototypes(model, near, tmp_path):
    usual = {"shape": SHAPE, "n_steps": 8, "progress": False}
    whence.prototype(model, [3, 8], **usual).save(tmp_path / "grid.png")
    for prior in (
        whence.priors.L2(),
        digit_expert(),
        whence.priors.CodeSpace(digit_decoder()),
        whence.priors.CodeSpace(digit_decoder().to(DEVICE)),
    ):
        whence.prototype(model, [3, 8], prior=prior, **usual)
    for image in (whence.images.Fourier(0.0, 1.0), whence.images.MACO(0.0, 1.0), whence.images.CPPN(0.0, 1.0)):
        whence.prototype(model, "3:0-3", image=image, **usual)
    for concept in (whence.objectives.Direction("5", torch.randn(64)), whence.objectives.Inversion("5", near[0][:1])):
        whence.prototype(model, concept, **usual)
    whence.images.spatial_atlas(model, "3", near[0][:1], size=28, cells=2, n_steps=8)


def test_experts_and_decoders_learn_from_data_anywhere(data):
    whence.priors.GaussianExpert.fitted(data[0])
    whence.priors.GaussianRBM(SHAPE, 8).fit(data[0], epochs=1)
    for kind in (whence.priors.VAE, whence.priors.AdversarialAutoencoder):
        for place in ("cpu", DEVICE):
            kind(SHAPE, 4).to(place).fit(data[0], epochs=1)


def test_kernel_machines(near):
    svm = pytest.importorskip("sklearn.svm").OneClassSVM(nu=0.1, gamma=0.05)
    svm.fit(digit_samples()[0].flatten(1).double().numpy())
    assert whence.explain(whence.neuralize(svm).to(DEVICE), near[0]).relevance.isfinite().all()


@pytest.mark.parametrize("compiled", [False, True])
def test_export(model, near, tmp_path, compiled):
    x, y = near
    program = whence.export(model, x, out=tmp_path / "explainer.pt2", compiled=compiled)
    assert off(program.module()(x, y)["relevance"], whence.explain(digits(), x.cpu(), y.cpu()).relevance) < 1e-4
    if compiled:
        run = torch._inductor.aoti_load_package(str(tmp_path / "explainer.pt2"))
        assert off(run(x, y)["relevance"], program.module()(x, y)["relevance"].cpu()) < 1e-3
