"""Names of torch functions, grouped by how they propagate relevance.

A function is listed under the one name that all its spellings share (`function_facts.function_name`). To support another one,
add its name here or an entry in `registry.py`.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


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
    fft_irfftn fft_fftshift fft_ifftshift affine_grid stft istft imag conj conj_physical resolve_conj resolve_neg
""")  # linear; the result may have either sign for any input

AFFINE = _words("""
    add sub rsub cat stack hstack vstack dstack column_stack pad where masked_fill masked_scatter setitem copy fill zero
    index_put index_fill index_add index_copy scatter scatter_add
""")

WINNERS = _words("maximum minimum max min fmax fmin clamp_min clamp_max")

MATMULS = _words("""
    matmul mm bmm mv rmatmul dot vdot inner outer einsum tensordot grouped_mm vecdot linalg_vecdot linalg_multi_dot
    chain_matmul sparse_mm smm
""")

OWN_GRADIENT = _words("""
    log_softmax softmin logsumexp log log2 log10 atan2 arctan2 cdist
""")  # neither linear nor with f(0) = 0: relevance that their gradient does not conserve is measured

ACTIVATIONS = _words("""
    relu6 hardtanh silu gelu mish hardswish tanh elu celu selu softsign tanhshrink softshrink hardshrink sin tan asin
    atan arctan asinh arcsinh sinh expm1 log1p local_response_norm
""")  # f(0) = 0

STATISTICS = _words("""
    sigmoid hardsigmoid softplus exp exp2 erf rsqrt sqrt reciprocal rdiv std var std_mean var_mean log_sigmoid cos cosh
    floor ceil round trunc sign sgn inverse linalg_inv
""")

SATURATES = frozenset(_words("sigmoid softmax log_softmax log_sigmoid softplus exp"))  # monotone

FRESH = _words("""
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full
    new_tensor new_empty_strided
""")  # made with the shape or dtype of a tensor, not its values

LEAVES_VALUES = frozenset(_words("requires_grad detach share_memory"))  # end in an underscore but modify no values

# facts that the result of a function inherits

NONNEGATIVE = frozenset(_words("relu relu6 sigmoid hardsigmoid softmax exp exp2 abs softplus square"))
ARITHMETIC = frozenset(_words("add mul div maximum where masked_fill cat stack pad"))  # nonnegative if all arguments are
CLIPS = frozenset(_words("hardtanh clamp clamp_min"))
KEEPS_SIGN = ARITHMETIC | frozenset(MOVES_VALUES + PLAIN)
AVERAGES = frozenset(
    _words("interpolate upsample upsample_nearest upsample_bilinear avg_pool2d avg_pool3d adaptive_avg_pool2d")
)
COMBINES = frozenset(_words("add sub rsub mul div"))
PROPORTIONAL = frozenset(_words("to float double half bfloat16 type_as neg clone contiguous"))
SCALES_PIXELS = COMBINES | PROPORTIONAL | {"clamp"}  # what preprocessing does to single values
ACROSS_VALUES = frozenset(_words("local_response_norm std var std_mean var_mean"))
POINTWISE = (
    COMBINES | PROPORTIONAL | frozenset(ACTIVATIONS + STATISTICS + _words("relu pow square clamp abs"))
) - ACROSS_VALUES
