"""The table: which torch function gets which treatment. What is not in it, and not linear, is refused.

Functions go by the one name that all their spellings share (`functions.function_name`). Adding a function is adding a word.
"""

from collections.abc import Callable
from typing import Any

from whence.lrp.attention import scaled_dot_product_attention, softmax, written_out
from whence.lrp.functions import Call
from whence.lrp.recurrent import cell, recurrent
from whence.lrp.treatments import (
    added_product,
    affine,
    batch_norm,
    bilinear,
    clamp,
    convolution,
    dense,
    glu,
    group_norm,
    identity,
    instance_norm,
    layer_norm,
    normalize,
    own_gradient,
    plain,
    power,
    quotient,
    rectify,
    rms_norm,
    scale,
    solution,
    statistic,
    transposed_convolution,
    winner,
)

Treatment = Callable[..., Any]


def _words(text: str) -> list[str]:
    return text.split()


MOVES_VALUES = _words("""
    T H mT mH alias_copy as_strided atleast_1d atleast_2d atleast_3d broadcast_to broadcast_tensors chunk
    channel_shuffle clone contiguous cpu cuda dsplit diagonal diag double expand expand_as flatten flip fliplr flipud
    float gather getitem half bfloat16 hsplit index_select masked_select moveaxis narrow native_channel_shuffle permute
    pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90 select slice split
    split_with_sizes squeeze swapaxes t take take_along_dim tensor_split tile to transpose tril triu type type_as unbind
    unflatten unfold view_as_complex view_as_real unsafe_chunk unsafe_split unsqueeze view view_as vsplit real fold
    im2col col2im meshgrid pack_padded_sequence pad_packed_sequence
""")

PLAIN = _words("""
    positive sum mean nanmean nansum cumsum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear dropout dropout1d
    dropout2d dropout3d feature_dropout max_pool1d max_pool2d max_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool1d
    max_unpool2d max_unpool3d amax amin aminmax topk sort median nanmedian kthvalue cummax cummin abs leaky_relu prelu
    rrelu lp_pool1d lp_pool2d lp_pool3d norm vector_norm linalg_vector_norm linalg_norm nan_to_num trace
""")

SIGNED = _words("""
    neg diff fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn
    fft_irfftn fft_fftshift fft_ifftshift
""")  # linear, and of either sign whatever the input's

AFFINE = _words("""
    add sub rsub cat stack hstack vstack dstack column_stack pad where masked_fill masked_scatter setitem copy fill zero
    index_put index_fill index_add index_copy scatter scatter_add
""")

WINNERS = _words("maximum minimum max min fmax fmin clamp_min clamp_max")

MATMULS = _words("""
    matmul mm bmm mv rmatmul dot vdot inner outer einsum tensordot grouped_mm vecdot linalg_vecdot linalg_multi_dot
    chain_matmul
""")

ACTIVATIONS = _words("""
    relu6 hardtanh silu gelu mish hardswish tanh elu celu selu softsign tanhshrink softshrink hardshrink sin tan asin
    atan arctan asinh arcsinh sinh expm1 log1p local_response_norm
""")  # f(0) = 0

STATISTICS = _words("""
    sigmoid hardsigmoid softplus exp exp2 erf rsqrt sqrt reciprocal rdiv std var std_mean var_mean logsigmoid cos cosh
    floor ceil round trunc sign sgn inverse linalg_inv
""")

TREATMENTS: dict[str, Treatment] = (
    dict.fromkeys(MOVES_VALUES + PLAIN + SIGNED, plain)
    | dict.fromkeys(AFFINE, affine)
    | dict.fromkeys(WINNERS, winner)
    | dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution)
    | dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], transposed_convolution)
    | dict.fromkeys(MATMULS, bilinear)
    | dict.fromkeys(ACTIVATIONS, identity)
    | dict.fromkeys(STATISTICS, statistic)
    | dict.fromkeys(["log_softmax", "softmin", "logsumexp"], own_gradient)
    | dict.fromkeys(["addmm", "baddbmm", "addbmm", "addmv"], added_product)
    | {
        "linear": dense,
        "batch_norm": batch_norm,
        "relu": rectify,
        "mul": scale,
        "div": quotient,
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
    rectify, recurrent, cell, scaled_dot_product_attention, written_out,
})  # fmt: skip

LEAVES_VALUES = frozenset(_words("requires_grad detach share_memory"))  # end in an underscore and overwrite nothing


def treatment_of(call: Call) -> Treatment | None:
    """By the table, or as the function itself brings it along (`own_rules.py`)."""
    return getattr(call.function, "treatment", None) or TREATMENTS.get(call.name)


NONNEGATIVE = frozenset(_words("relu relu6 sigmoid hardsigmoid softmax exp exp2 abs softplus square"))
ARITHMETIC = frozenset(_words("add mul div maximum where masked_fill cat stack pad"))
PROPORTIONAL = frozenset(_words("to float double half bfloat16 type_as neg clone contiguous"))
ACROSS_VALUES = frozenset(_words("local_response_norm std var std_mean var_mean"))
POINTWISE = (PROPORTIONAL | frozenset(ACTIVATIONS + STATISTICS + _words("relu pow square clamp abs"))) - ACROSS_VALUES
KEEPS_SIGN = ARITHMETIC | frozenset(MOVES_VALUES + PLAIN)
