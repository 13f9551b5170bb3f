"""Relevance of sources by a gate on the attention to each of them: a differentiable ablation.

Attention from outside of source k to its tokens gets the additive bias ln g_k, so that g_k = 1 leaves the model as it is and
g_k → 0 masks the source. r_k = ∂f/∂g_k, at a small g of all sources at once, is the effect of letting in a little of source k
where the others are almost hidden.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whence.contexts.likelihoods import token_log_probabilities
from whence.contexts.prompt import Prompt
from whence.core.devices import device_of, first_weight
from whence.core.inputs import Inputs
from whence.lrp.engine.model_outputs import logits_of
from whence.methods.backward_passes import gradients_enabled

GATE = 0.2
CLOSE = 1e-2  # of the log-probabilities with an open gate to those of the model
MAX_TOKENS = 1024  # a bias on attention takes T² memory and slow kernels


def gate_relevance(model: Any, prompt: Prompt, response: Tensor, parts: Sequence[slice]) -> Tensor | None:
    """Return ∂ ln p / ∂g of parts of the response by source, `[parts, K]`; None if the model takes no bias on attention."""
    ids = torch.cat([prompt.ids, response])[None]
    weight = first_weight(model)
    if not isinstance(model, nn.Module) or weight is None or ids.shape[1] > MAX_TOKENS:
        return None
    gates = torch.full((len(prompt.sources),), GATE, dtype=weight.dtype, device=device_of(model))
    try:
        with torch.no_grad():
            plain = _log_probabilities(model, ids, torch.ones_like(ids), response)
            opened = _log_probabilities(model, ids, _bias(prompt, ids, torch.ones_like(gates)), response)
        if not torch.allclose(plain, opened, atol=CLOSE):
            return None
        with gradients_enabled():
            gates.requires_grad_()
            values = _log_probabilities(model, ids, _bias(prompt, ids, gates), response)
            if not values.requires_grad:
                return None
            found = [torch.autograd.grad(values[part].sum(), gates, retain_graph=True)[0] for part in parts]
    except Exception:  # a model that does not take such a mask
        return None
    relevance = torch.stack(found).double().cpu()
    return relevance if bool(relevance.isfinite().all()) and bool(relevance.any()) else None


def _bias(prompt: Prompt, ids: Tensor, gates: Tensor) -> Tensor:
    """Return the additive causal mask `[1, 1, T, T]` with ln g where a query outside of a source reads a key inside."""
    count = ids.shape[1]
    own = torch.zeros(len(gates), count, dtype=gates.dtype, device=gates.device)
    own[:, : len(prompt)] = prompt.membership.to(own)
    inside = own.T @ own > 0
    bias = (gates.log() @ own).expand(count, count).masked_fill(inside, 0)
    future = torch.ones(count, count, dtype=torch.bool, device=gates.device).triu(1)
    return bias.masked_fill(future, torch.finfo(gates.dtype).min)[None, None]


def _log_probabilities(model: Any, ids: Tensor, mask: Tensor, response: Tensor) -> Tensor:
    inputs = Inputs((ids, mask), ("input_ids", "attention_mask")).beside(model)
    logits = logits_of(inputs.call(model, inputs.parts))
    return token_log_probabilities(logits[:, -len(response) - 1 : -1], response)[0]
