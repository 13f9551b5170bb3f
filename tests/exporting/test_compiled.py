"""Explainers as files: they give what explain() gives, at any batch size, where this library cannot be imported."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import whence
from whence import presets


class UNet(nn.Module):
    def __init__(self):
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1))

        self.down, self.deep, self.up = block(3, 6), block(6, 8), nn.ConvTranspose2d(8, 6, 2, 2)
        self.last, self.head = block(12, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        a = self.down(x).relu()
        b = self.up(self.deep(nn.functional.max_pool2d(a, 2)).relu())
        return self.head(self.last(torch.cat([a, b], 1)).relu()).mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 9, 2, batch_first=True, bidirectional=True), nn.Linear(18, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Logits(nn.Module):
    """Of a Hugging Face model, from ids alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def residual_network():
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7)


def vision_transformer(**size):
    from torchvision.models import VisionTransformer

    found = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7) if not size else VisionTransformer(**size)
    nn.init.normal_(found.heads.head.weight)  # torchvision's is zero
    return found


def llama():
    import transformers

    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Logits(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, num_hidden_layers=2, **size)))


def vgg_like():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 7),
    )  # fmt: skip


GAMMA = whence.LRP({nn.Conv2d: whence.Gamma(0.25)})


BOX = whence.LRP({"0": whence.ZBox(-4.0, 4.0), nn.Conv2d: whence.Gamma(0.25), nn.Linear: whence.Epsilon(1e-3)})


def pictures(n, side=32):
    return torch.randn(n, 3, side, side).clamp(-4, 4)


NETWORKS = {
    "resnet": (residual_network, GAMMA, pictures, 7),
    "vgg": (vgg_like, BOX, lambda n: pictures(n, 20), 7),
    "vit": (vision_transformer, whence.LRP(), pictures, 7),
    "llama": (llama, whence.LRP(presets.attn_lrp()), lambda n: torch.randint(0, 40, (n, 6)), 40),
    "unet": (UNet, whence.LRP(presets.epsilon_plus()), lambda n: pictures(n, 16), 4),
    "lstm": (Recurrent, whence.LRP(), lambda n: torch.randn(n, 4, 5), 4),
    "gradient": (vgg_like, whence.GradientTimesInput(), lambda n: pictures(n, 20), 7),
    "guided": (vgg_like, whence.GuidedBackprop(), lambda n: pictures(n, 20), 7),
    "sensitivity": (Recurrent, whence.Sensitivity(), lambda n: torch.randn(n, 4, 5), 4),
    "cam": (vgg_like, whence.GradCAM("2"), lambda n: pictures(n, 20), 7),
}


def check_same(found, e, tolerance=1e-6):
    assert bool(found["holds"])
    largest = float(e.relevance.abs().max())
    off = (found["relevance"] - e.relevance).abs()
    assert float(off.sum()) <= tolerance * float(e.relevance.abs().sum())
    assert float(off.max()) <= 3 * tolerance * largest  # a single number: other kernels of attention round otherwise
    torch.testing.assert_close(found["output"], e.output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["relevance_sum"], e.conservation.relevance, rtol=1e-4, atol=1e-4 * largest)
    if e.conservation.absorbed is not None:
        torch.testing.assert_close(found["absorbed"], e.conservation.absorbed, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "vgg"])
def test_a_program_in_cpp_serves_it(name, tmp_path):
    if not all(map(shutil.which, ("cmake", "c++"))):
        pytest.skip("no cmake or C++ compiler on this machine")
    make, method, data, _ = NETWORKS[name]
    model = make().eval()
    whence.export(model, data(1), method=method, out=tmp_path / "compiled.pt2", compiled=True)
    whence.check_exported(tmp_path / "compiled.pt2", model)
    source = Path(__file__).parents[2] / "examples" / "serve"
    for command in (
        ["cmake", "-S", source, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"],
        ["cmake", "--build", tmp_path / "build"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    for n in (1, 3):
        x = data(n)
        torch.save(x, tmp_path / "x.pt")
        served = subprocess.run(
            [tmp_path / "build" / "explain", tmp_path / "compiled.pt2", tmp_path / "x.pt", tmp_path / "r.pt", "2"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        e = whence.explain(model, x, 2, method=method)
        torch.testing.assert_close(
            torch.load(tmp_path / "r.pt"), e.relevance, rtol=0, atol=1e-5 * float(e.relevance.abs().max())
        )
        assert served.stdout.count("class 2: output") == n
    wrong = [tmp_path / "build" / "explain", tmp_path / "compiled.pt2", tmp_path / "x.pt", tmp_path / "r.pt", "99"]
    refused = subprocess.run(wrong, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "do not hold" in refused.stderr
    whence.export(model, data(1), method="gradient_times_input", out=tmp_path / "other.pt2", compiled=True)
    for wrong, message in (("other.pt2", "of a class that is asked for"), ("missing.pt2", "missing.pt2")):
        refused = subprocess.run(
            [tmp_path / "build" / "explain", tmp_path / wrong, tmp_path / "x.pt", tmp_path / "r.pt"],
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 1
        assert message in refused.stderr


@pytest.mark.slow
def test_torch_compiles_it_within_python():
    make, method, data, _ = NETWORKS["vgg"]
    model, x, y = make().eval(), data(3), torch.tensor([1, 2, 3])
    explainer = torch.compile(whence.export(model, data(1), method=method).module())
    check_same(explainer(x, y), whence.explain(model, x, y, method=method), 1e-5)
