"""All methods and presets, ours and zennit's and captum's, on trained networks: SRG with bootstrap intervals.

    python benchmarks/which_method.py ../shared/data   # prints and writes benchmarks/results/which_method.md

Predicted class, its logit; patches, some fourteen a side, become the mean of their channel. Differences are paired.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import networks
import peers
import whence
from networks import Subject
from whence import presets
from whence.evaluation.results import Evaluation
from whence.methods.feature_masks import PATCHES_PER_SIDE

SAMPLES = {"digits": 200, "digits-robust": 200, "lenet": 200, "resnet20": 300, "squeezenet": 36, "plain": 100,
           "plain-biased": 100, "mobile": 100, "vit": 200}  # fmt: skip


def ours(subject: Subject) -> dict[str, Any]:
    low, high = subject.bounds
    side = -(-subject.x.shape[-1] // PATCHES_PER_SIDE)
    cells = whence.patches(subject.x, side)
    sets = {
        "LRP, as it comes": presets.attn_lrp(),
        "LRP, no flat rule (before)": {presets.input_layer: whence.RisingGamma()} | presets.attn_lrp(),
        "LRP, γ 0.25": presets.attn_lrp(conv_gamma=0.25),
        "LRP ε, γ 0.5": presets.epsilon_gamma(gamma=0.5),
        "LRP ε, γ, z^B": presets.epsilon_gamma_box(low, high),
        "LRP ε, z⁺": presets.epsilon_plus(),
        "LRP ε, z⁺, flat": presets.epsilon_plus_flat(),
        "LRP ε, α2β1": presets.epsilon_alpha2_beta1(),
        "deep Taylor": presets.deep_taylor(low, high),
    }
    return {
        **{name: whence.LRP(rules) for name, rules in sets.items()},
        "gradient × input": whence.GradientTimesInput(),
        "sensitivity": whence.Sensitivity(),
        "integrated gradients": whence.IntegratedGradients(),
        "SmoothGrad": whence.SmoothGrad(n_samples=10),
        "guided backprop": whence.GuidedBackprop(),
        "GradCAM": whence.GradCAM(),
        "occlusion": whence.FeatureAblation(feature_mask=cells),
        "random": "random",
    }  # fmt: skip


def theirs(subject: Subject) -> dict[str, Callable]:
    import captum.attr
    import zennit.composites
    from zennit.attribution import Gradient
    from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
    from zennit.layer import Sum

    low, high = (torch.as_tensor(bound).float() for bound in subject.bounds)

    def sum_of_residuals(name: str, module: Any) -> dict[str, Any]:
        """A residual block whose sum is zennit's module, which its composites divide by contributions."""
        if isinstance(module, networks.Block | networks.Separable):
            return {"add": Sum(), "forward": residual_forward(module)}
        return {}

    canonizer = CompositeCanonizer([AttributeCanonizer(sum_of_residuals), SequentialMergeBatchNorm()])

    def by_zennit(name: str, **more: Any) -> Callable:
        def way(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            given = {k: v.expand_as(x) for k, v in more.items()}
            composite = getattr(zennit.composites, name)(canonizers=[canonizer], **given)
            grown = [p.requires_grad_() for p in model.parameters()]
            classes = model(x[:1]).shape[1]
            with Gradient(model, composite) as attributor:
                _, relevance = attributor(x, torch.eye(classes)[target])
            for p in grown:
                p.requires_grad_(False)
            return relevance

        return way

    def by_captum(name: str) -> Callable:
        return lambda model, x, target: getattr(captum.attr, name)(model).attribute(x.clone().requires_grad_(), target=target)

    return {
        "zennit EpsilonPlus": by_zennit("EpsilonPlus"),
        "zennit EpsilonGammaBox": by_zennit("EpsilonGammaBox", low=low, high=high),
        "zennit EpsilonPlusFlat": by_zennit("EpsilonPlusFlat"),
        "zennit EpsilonAlpha2Beta1": by_zennit("EpsilonAlpha2Beta1"),
        "captum LRP": by_captum("LRP"),
        "captum InputXGradient": by_captum("InputXGradient"),
        "captum IntegratedGradients": by_captum("IntegratedGradients"),
        "captum Saliency": by_captum("Saliency"),
        "captum DeepLift": by_captum("DeepLift"),
    }


def residual_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward function of a residual block, with its sum as a module over the last dimension."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        if isinstance(module, networks.Separable):
            return module.add(torch.stack([x, module.parts(x)], -1)) if module.adds else module.parts(x)
        return torch.relu(module.add(torch.stack([module.residual(x), module.shortcut(x)], -1)))

    return forward


def measured(subject: Subject, count: int) -> Evaluation:
    """Of all ways that can explain this network."""
    x, ways, able = subject.x[:count], ours(subject) | theirs(subject), {}
    for name, way in ways.items():
        try:
            whence.evaluate(subject.model, x[:2], {name: way}, ["sparseness"], progress=False)
        except Exception:
            continue
        able[name] = way
    return whence.evaluate(subject.model, x, able, ["srg"], progress=False)


def table(found: dict[str, Evaluation]) -> list[str]:
    """A row for each way; in bold what the best LRP does not surpass by more than its interval."""
    names = list(dict.fromkeys(name for e in found.values() for name in e.values))
    rows = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    cells = {subject: _cells(e) for subject, e in found.items()}
    return rows + [f"| {name} | {' | '.join(cells[subject].get(name, '–') for subject in found)} |" for name in names]


def _cells(e: Evaluation) -> dict[str, str]:
    means = {row["method"]: row for row in e.table if row["metric"] == "srg"}
    rules = [name for name in means if "LRP" in name or "zennit" in name or name == "deep Taylor"]
    best = max(rules, key=lambda name: means[name]["mean"])
    level = {best} | {row["method"] for row in e.differences("srg", to=best) if row["high"] >= 0}
    texts = {name: f"{row['mean']:.2f} [{row['low']:.1f}, {row['high']:.1f}]" for name, row in means.items()}
    return {name: f"**{text}**" if name in level else text for name, text in texts.items()}


def main(data: Path, names: tuple[str, ...]) -> None:
    warnings.simplefilter("ignore")
    peers.declare_torchvision_operators()
    found = {}
    for name, make in networks.SUBJECTS.items():
        if not names or name in names:
            subject = make(data)
            found[subject.name] = measured(subject, SAMPLES[name])
            print(name, repr(found[subject.name]), flush=True)
    heading = (
        f"# Which method\n\n{peers.versions('zennit', 'captum')}.\n\nSRG of the predicted class's logit (higher is better, "
        "0 is chance), patches some fourteen a side replaced by the mean; means with 95 % bootstrap intervals. Bold: not below "
        "the best LRP of all by more than the paired interval. – : cannot explain this network.\n"
    )
    peers.write("which_method", heading, table(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]))
