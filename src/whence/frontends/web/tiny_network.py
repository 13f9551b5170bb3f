"""Relevance flow in a tiny network, step by step."""

from typing import Any

import torch
from torch import nn

from whence.errors import InputError, suggest
from whence.frontends.web.request_parsing import make_rule
from whence.frontends.web.schemas import StepRequest
from whence.lrp.rules.rules import AlphaBeta
from whence.mechanistic.relevance_flow import flow
from whence.methods.lrp import LRP
from whence.models.tiny_networks import CONSTRUCTIONS, INPUT_NAMES, tiny_network


def constructions() -> list[str]:
    """Return the names of the networks."""
    return list(CONSTRUCTIONS)


def steps_handler(question: StepRequest) -> dict[str, Any]:
    """Return activations, weights and messages from the input up, by α1β0 if no rule is chosen."""
    if question.way not in CONSTRUCTIONS:
        raise InputError(f"unknown network {question.way!r}{suggest(question.way, CONSTRUCTIONS)}")
    rule = AlphaBeta(1, 0) if question.settings.rule == "default" else make_rule(question.settings)
    x = torch.tensor([question.inputs], dtype=torch.double)
    found = flow(tiny_network(question.way).double(), x, method=LRP({nn.Linear: rule}))
    names = [INPUT_NAMES, *[[f"h{i + 1}" for i in range(len(c.activations))] for c in found.columns[1:-1]], ["y"]]
    return {
        "columns": [
            {"names": list(own), "activations": c.activations.tolist(), "relevance": c.relevance.tolist()}
            for own, c in zip(names, found.columns, strict=True)
        ],
        "edges": [
            {"messages": edges.messages.tolist(), "weight": None if edges.weight is None else edges.weight.tolist()}
            for edges in found.edges
        ],
        "output": float(found.explanation.output),
        "relevance_sum": float(found.explanation.conservation.relevance),
    }
