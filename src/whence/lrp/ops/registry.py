"""The table: which torch function gets which treatment. What is not in it, and not linear, is refused.

Functions go by the one name that all their spellings share; the words for those that are alike stand in `vocabulary.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from whence.lrp.engine.calls import Call
from whence.lrp.engine.op_context import Workbench
from whence.lrp.ops import function_names as words
from whence.lrp.ops.activations import clamp, glu, identity, rectify, statistic
from whence.lrp.ops.arithmetic import (
    added_quotient,
    added_scaling,
    affine,
    always,
    between,
    one_factor,
    only_data,
    plain,
    power,
    quotient,
    reduced,
    sampled,
    scale,
    solution,
    winner,
)
from whence.lrp.ops.attention import scaled_dot_product_attention, softmax, written_out
from whence.lrp.ops.function_facts import Facts, facts_of
from whence.lrp.ops.linear import added_product, bag, bilinear, convolution, dense, plain_dense, transposed_convolution
from whence.lrp.ops.norms import batch_norm, cosine, distance, group_norm, instance_norm, layer_norm, normalize, rms_norm
from whence.lrp.ops.recurrent import cell, recurrent
from whence.lrp.ops.state_spaces import parted

Treatment = Callable[..., Any]  # (workbench, call) -> the call's value, with the right way back

TREATMENTS: dict[str, Treatment] = (
    dict.fromkeys(words.MOVES_VALUES + words.PLAIN + words.SIGNED, plain)
    | dict.fromkeys(words.AFFINE, affine)
    | dict.fromkeys(words.WINNERS, winner)
    | dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution)
    | dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], transposed_convolution)
    | dict.fromkeys(words.MATMULS, bilinear)
    | dict.fromkeys(words.ACTIVATIONS, identity)
    | dict.fromkeys(words.STATISTICS, statistic)
    | dict.fromkeys(words.OWN_GRADIENT, Workbench.own_gradient)
    | dict.fromkeys(["addmm", "baddbmm", "addbmm", "addmv", "sparse_addmm"], added_product)
    | dict.fromkeys(["scatter_reduce", "index_reduce", "segment_reduce"], reduced)
    | dict.fromkeys(["grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"], sampled)
    | {
        "embedding_bag": bag,
        "split": parted,
        "split_with_sizes": parted,
        "linear": dense,
        "batch_norm": batch_norm,
        "relu": rectify,
        "mul": scale,
        "addcmul": added_scaling,
        "addcdiv": added_quotient,
        "lerp": between,
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
        "multi_head_attention_forward": written_out,
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
    plain, affine, winner, scale, dense, added_product, convolution, transposed_convolution, bilinear, batch_norm,
    rectify, parted, recurrent, cell, scaled_dot_product_attention, written_out,
})  # fmt: skip


GRADIENT_ALONE: dict[Treatment | None, Callable[[Workbench, Call], bool]] = {
    plain: always,
    affine: only_data,
    scale: one_factor,
    dense: plain_dense,
}


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A torch function, and what is done with it."""

    facts: Facts
    asks: bool  # a tensor for an attribute: nothing is done
    treatment: Treatment | None
    by_rule: bool  # a user's rule comes before the treatment
    alone: Callable[[Workbench, Call], bool] | None  # whether autograd's own gradient is all there is to a call
    saturates: bool  # what it is made of says more than its result
    passes_by: bool  # the treatment is to let it be, and its results have nothing to inherit


@lru_cache(maxsize=4096)
def operation_of(function: Callable[..., Any]) -> Operation:
    """By the table, or as the function itself brings it along (`own_rules.py`); looked up once for each function."""
    facts = facts_of(function)
    treatment = getattr(function, "treatment", None) or TREATMENTS.get(facts.name)
    return Operation(
        facts,
        facts.asks,
        treatment,
        by_rule=treatment not in WITHOUT_FUNCTION_RULES,
        alone=GRADIENT_ALONE.get(treatment),
        saturates=facts.name in words.SATURATES,
        passes_by=treatment is plain and not (facts.overwrites or facts.pointwise or facts.nonnegative or facts.clips),
    )
