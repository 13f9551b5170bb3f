"""Methods of other libraries, as functions `(model, inputs, target) → relevance`; the libraries are imported when they run."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whence.benchmarking.ground_truth_task import GroundTruthTask
from whence.benchmarking.lexical_shortcuts import TextClassifier
from whence.benchmarking.standard_methods import MethodFactory, feature_groups
from whence.errors import MissingPackageError, RuleError
from whence.evaluation.evaluation_batch import ExternalMethod


class SingleOutput(nn.Module):
    """One output of a network, as `[N, 1]`."""

    def __init__(self, network: nn.Module, index: int):
        super().__init__()
        self.network, self.index = network, index

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, self.index : self.index + 1]


def captum_method(name: str) -> MethodFactory:
    """Return a factory of a captum method; for token ids, of its form for the embedding layer."""

    def of_task(task: GroundTruthTask) -> ExternalMethod:
        attr = _package("captum.attr")

        def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
            if x.is_floating_point():
                return getattr(attr, name)(model).attribute(x.clone().requires_grad_(), target=target)
            method = {"IntegratedGradients": "LayerIntegratedGradients", "InputXGradient": "LayerGradientXActivation"}.get(name)
            if method is None:
                raise RuleError(f"captum's {name} does not explain token ids")
            more = {"baselines": torch.full_like(x, task.neutral or 0)} if method.startswith("LayerI") else {}
            return getattr(attr, method)(model, model.embedding).attribute(x, target=target, **more).sum(-1)

        return explain

    return of_task


def captum_ablation(task: GroundTruthTask) -> ExternalMethod:
    attr = _package("captum.attr")
    mask = feature_groups(task)

    def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return attr.FeatureAblation(model).attribute(x, baselines=task.neutral or 0, target=target, feature_mask=mask).float()

    return explain


def zennit_composite(name: str) -> MethodFactory:
    """Return a factory of LRP by a composite of zennit, which knows modules: linear layers, convolutions and ReLUs."""

    def of_task(task: GroundTruthTask) -> ExternalMethod:
        if not isinstance(task.model, nn.Sequential):
            raise RuleError("zennit assigns rules to modules; this network calls functions between them")
        composites, attribution, canonizers = (
            _package(f"zennit.{module}") for module in ("composites", "attribution", "canonizers")
        )
        bounds = {"low": task.background.min(), "high": task.background.max()} if name.endswith("Box") else {}

        def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
            bound = {key: value.expand_as(x) for key, value in bounds.items()}
            composite = getattr(composites, name)(canonizers=[canonizers.SequentialMergeBatchNorm()], **bound)
            frozen = [p.requires_grad_() for p in model.parameters() if not p.requires_grad]
            try:
                classes = model(x[:1]).shape[1]
                with attribution.Gradient(model, composite) as attributor:
                    return attributor(x, torch.eye(classes)[target])[1]
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(False)

        return explain

    return of_task


def shap_explainer(name: str) -> MethodFactory:
    """Return a factory of an explainer of shap with the task's background."""

    def of_task(task: GroundTruthTask) -> ExternalMethod:
        shap = _package("shap")
        if not task.x.is_floating_point():
            raise RuleError(f"shap's {name} does not explain token ids")

        def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
            relevance = torch.zeros_like(x)
            for index in target.unique().tolist():  # shap explains all outputs; one at a time costs a fraction
                rows = target == index
                with torch.enable_grad():
                    explainer = getattr(shap, name)(SingleOutput(model, index), task.background)
                    values = torch.as_tensor(explainer.shap_values(x[rows]))
                relevance[rows] = values.reshape(x[rows].shape).to(x)
            return relevance

        return explain

    return of_task


def lxt_attention(task: GroundTruthTask) -> ExternalMethod:
    """Return AttnLRP by the functions of LXT, with which the benchmark's transformer is computed again."""
    functional, rules = _package("lxt.explicit.functional"), _package("lxt.explicit.rules")
    if not isinstance(task.model, TextClassifier):
        raise RuleError("LXT needs a network written with its functions; only that of the texts is")

    def linear(layer: nn.Linear, h: Tensor) -> Tensor:
        return functional.linear_epsilon(h, layer.weight, layer.bias)

    def norm(layer: nn.LayerNorm, h: Tensor) -> Tensor:
        return functional.layer_norm(h, layer.weight, layer.bias, layer.eps)

    def block(net: Any, h: Tensor) -> Tensor:
        parts = linear(net.queries_keys_values, norm(net.norm_1, h)).chunk(3, 2)
        q, k, v = (t.unflatten(2, (net.heads, -1)).transpose(1, 2) for t in parts)
        weights = functional.softmax(functional.matmul(q, k.transpose(2, 3) / q.shape[3] ** 0.5), -1)
        h = functional.add2(h, linear(net.out, functional.matmul(weights, v).transpose(1, 2).flatten(2)))
        first, last = net.mlp[0], net.mlp[2]
        return functional.add2(h, linear(last, rules.identity(F.gelu, linear(first, norm(net.norm_2, h)))))

    def explain(model: Any, ids: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad():
            vectors = model.embedding(ids).requires_grad_()
            h = functional.add2(vectors, model.positions.expand_as(vectors))
            for part in model.blocks:
                h = block(part, h)
            out = linear(model.read, functional.mean(norm(model.norm, h), 1, False))
            chosen = out.gather(1, target[:, None])
            (relevance,) = torch.autograd.grad(chosen, vectors, chosen)
        return relevance.sum(2)

    return explain


def _package(name: str) -> Any:
    """Import a module of another library; raise `MissingPackageError` if it is not installed, or fails to import."""
    try:
        return import_module(name)
    except Exception as error:
        raise MissingPackageError(f"{name.partition('.')[0]} cannot be imported ({error})") from error


PEER_METHODS: Mapping[str, MethodFactory] = {
    **{f"captum {name}": captum_method(name) for name in ("InputXGradient", "Saliency", "IntegratedGradients", "DeepLift")},
    "captum FeatureAblation": captum_ablation,
    **{
        f"zennit {name}": zennit_composite(name)
        for name in ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox", "EpsilonAlpha2Beta1")
    },
    "LXT AttnLRP": lxt_attention,
    "shap GradientExplainer": shap_explainer("GradientExplainer"),
    "shap DeepExplainer": shap_explainer("DeepExplainer"),
}
