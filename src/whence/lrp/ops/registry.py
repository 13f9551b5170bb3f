"""The registry of ops: how each torch function propagates relevance. Other functions are refused unless they have a rule.

Functions are listed under the one name that all their spellings share; groups of similar names are in `function_names.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.op_context import OpContext
from whence.lrp.ops import function_names as words
from whence.lrp.ops.activations import clamp, glu, hold_constant, identity, rectify
from whence.lrp.ops.arithmetic import (
    added_quotient,
    added_scaling,
    affine,
    always,
    extremum,
    grid_sample,
    lerp,
    no_constant_terms,
    plain_gradient,
    power,
    quotient,
    scale,
    scatter_reduce,
    single_data_factor,
    solution,
)
from whence.lrp.ops.attention import decompose, scaled_dot_product_attention, softmax
from whence.lrp.ops.function_facts import FunctionFacts, function_facts
from whence.lrp.ops.linear import (
    added_product,
    bilinear,
    convolution,
    dense,
    embedding_bag,
    plain_dense,
    transposed_convolution,
)
from whence.lrp.ops.norms import batch_norm, cosine, distance, group_norm, instance_norm, layer_norm, normalize, rms_norm
from whence.lrp.ops.recurrent import cell, recurrent
from whence.lrp.ops.state_spaces import split_parts

Treatment = Callable[..., Any]  # (context, call) -> the call's value, with the modified gradient

TREATMENTS: dict[str, Treatment] = (
    dict.fromkeys(words.MOVES_VALUES + words.PLAIN + words.SIGNED, plain_gradient)
    | dict.fromkeys(words.AFFINE, affine)
    | dict.fromkeys(words.WINNERS, extremum)
    | dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution)
    | dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], transposed_convolution)
    | dict.fromkeys(words.MATMULS, bilinear)
    | dict.fromkeys(words.ACTIVATIONS, identity)
    | dict.fromkeys(words.STATISTICS, hold_constant)
    | dict.fromkeys(words.OWN_GRADIENT, OpContext.own_gradient)
    | dict.fromkeys(["addmm", "baddbmm", "addbmm", "addmv", "sparse_addmm"], added_product)
    | dict.fromkeys(["scatter_reduce", "index_reduce", "segment_reduce"], scatter_reduce)
    | dict.fromkeys(["grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"], grid_sample)
    | {
        "embedding_bag": embedding_bag,
        "split": split_parts,
        "split_with_sizes": split_parts,
        "linear": dense,
        "batch_norm": batch_norm,
        "relu": rectify,
        "mul": scale,
        "addcmul": added_scaling,
        "addcdiv": added_quotient,
        "lerp": lerp,
        "div": quotient,
        "cosine_similarity": cosine,
        "pairwise_distance": distance,
        "linalg_solve": solution,
        "linalg_solve_triangular": solution,
        "pow": power,
        "square": power,
        "clamp": clamp,
        "glu": glu,
        "softmax": softmax,
        "scaled_dot_product_attention": scaled_dot_product_attention,
        "multi_head_attention_forward": decompose,
        "lstm": recurrent,
        "gru": recurrent,
        "rnn_tanh": recurrent,
        "rnn_relu": recurrent,
        "lstm_cell": cell,
        "gru_cell": cell,
        "rnn_tanh_cell": cell,
        "rnn_relu_cell": cell,
        "layer_norm": layer_norm,
        "rms_norm": rms_norm,
        "normalize": normalize,
        "group_norm": group_norm,
        "instance_norm": instance_norm,
    }
)

WITHOUT_FUNCTION_RULES = frozenset({
    plain_gradient, affine, extremum, scale, dense, added_product, convolution, transposed_convolution, bilinear, batch_norm,
    rectify, split_parts, recurrent, cell, scaled_dot_product_attention, decompose,
})  # fmt: skip


ADDS = frozenset({affine, extremum})  # a gate that is an argument beside data is added to them
LINEAR_MAPS = frozenset({dense, convolution, transposed_convolution, bilinear, added_product, recurrent, cell})


GRADIENT_SUFFICES: dict[Treatment | None, Callable[[OpContext, Call], bool]] = {
    plain_gradient: always,
    affine: no_constant_terms,
    scale: single_data_factor,
    dense: plain_dense,
}


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """A torch function and how it is handled."""

    facts: FunctionFacts
    asks: bool  # only reads an attribute of a tensor: call it unchanged
    treatment: Treatment | None
    by_rule: bool  # a user's rule takes precedence over the treatment
    alone: Callable[[OpContext, Call], bool] | None  # whether autograd's own gradient suffices for a call
    saturates: bool  # its input explains more than its saturated result
    passes_by: bool  # called unchanged, and its results inherit no facts


@lru_cache(maxsize=4096)
def find_op(function: Callable[..., Any]) -> Op:
    """Return the op of a function, from the registry or attached to the function by `custom_op`; cached."""
    facts = function_facts(function)
    treatment = getattr(function, "treatment", None) or TREATMENTS.get(facts.name)
    return Op(
        facts,
        facts.asks,
        treatment,
        by_rule=treatment not in WITHOUT_FUNCTION_RULES,
        alone=GRADIENT_SUFFICES.get(treatment),
        saturates=facts.name in words.SATURATES,
        passes_by=treatment is plain_gradient and not (facts.overwrites or facts.pointwise or facts.nonnegative or facts.clips),
    )
