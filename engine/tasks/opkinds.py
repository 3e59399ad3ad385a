"""Which kind of work each torch function does, by its name; names are those that a TorchFunctionMode sees.

A function that is not listed is `other` when it makes a new tensor and a view when it does not.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KINDS = ("conv", "matmul", "norm", "pool", "reduce", "pointwise", "recurrent", "attention", "other")

RECURRENT_LAYERS = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}
"""Whole-sequence functions of nn.GRU, nn.LSTM and nn.RNN, with their gates."""

RECURRENT_CELLS = {"gru_cell": 3, "lstm_cell": 4, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}

_CONV = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc convolution
"""
_MATMUL = """
    matmul mm bmm mv dot vdot inner outer ger addmm addbmm baddbmm addmv linear bilinear einsum tensordot
    chain_matmul multi_dot cdist
"""
# softmax belongs here: like a norm it needs a statistic of the whole row before it can scale any element.
_NORM = """
    batch_norm instance_norm group_norm layer_norm rms_norm local_response_norm normalize softmax log_softmax
    softmin gumbel_softmax renorm
"""
_POOL = """
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool1d lp_pool2d lp_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    fractional_max_pool2d fractional_max_pool3d
"""
_REDUCE = """
    sum mean prod var std var_mean std_mean amax amin aminmax argmax argmin max min median nanmedian mode any
    all count_nonzero norm vector_norm matrix_norm logsumexp nansum nanmean cumsum cumprod cummax cummin
    logcumsumexp trace kthvalue quantile mse_loss l1_loss smooth_l1_loss huber_loss cross_entropy nll_loss
    kl_div binary_cross_entropy binary_cross_entropy_with_logits triplet_margin_loss
    triplet_margin_with_distance_loss hinge_embedding_loss cosine_embedding_loss margin_ranking_loss
    multi_margin_loss multilabel_margin_loss soft_margin_loss poisson_nll_loss gaussian_nll_loss ctc_loss
    cosine_similarity pairwise_distance dist
"""
_POINTWISE = """
    add sub mul div true_divide floor_divide remainder fmod pow neg abs sign exp exp2 expm1 log log2 log10 log1p
    sqrt rsqrt square reciprocal sin cos tan asin acos atan atan2 sinh cosh tanh erf erfc lgamma digamma sigmoid
    logsigmoid logit relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign hardtanh
    hardsigmoid hardswish hardshrink softshrink tanhshrink threshold glu clamp clamp_min clamp_max clip maximum
    minimum fmax fmin where masked_fill lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or
    logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor invert isnan isinf isfinite round
    floor ceil trunc frac dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout and or xor
    rsub rdiv truediv rtruediv floordiv rfloordiv rpow rmul radd mod rmod nan_to_num copysign hypot xlogy
    multiply subtract divide negative absolute greater less not_equal greater_equal less_equal positive
"""
_ATTENTION = """
    scaled_dot_product_attention multi_head_attention_forward _native_multi_head_attention flex_attention
"""

_BY_NAME = {
    name: kind
    for kind, names in (
        ("conv", _CONV), ("matmul", _MATMUL), ("norm", _NORM), ("pool", _POOL), ("reduce", _REDUCE),
        ("pointwise", _POINTWISE), ("attention", _ATTENTION),
        ("recurrent", " ".join([*RECURRENT_LAYERS, *RECURRENT_CELLS])),
    )
    for name in names.split()
}  # fmt: skip

COPIES = _names("""
    contiguous reshape flatten to type clone float double half bfloat16 int long bool cpu type_as repeat
    expand_as unflatten permute_copy view_copy detach_copy ravel tile
""")
"""Moves that eager PyTorch may have to do; priced as costs, never counted as operations."""

FACTORIES = _names("""
    zeros ones empty full arange linspace rand randn randint randperm eye zeros_like ones_like empty_like
    full_like rand_like randn_like new_zeros new_ones new_empty new_full new_tensor tensor as_tensor
    tril_indices triu_indices scalar_tensor
""")
"""Allocation; priced as costs, never counted as operations."""

VIEWS = _names("""
    view unsqueeze squeeze transpose permute expand t mT T H swapaxes swapdims movedim moveaxis chunk split
    tensor_split narrow select unbind detach view_as diagonal hsplit vsplit real imag data __get__ requires_grad
""")
"""Never work, not even where a fake tensor had to be made from a real parameter first."""

LOOK_UPS = _names("""
    embedding index_select gather take take_along_dim
""")
"""Functions that read of a table only what indices name."""

QUERIES = _names("""
    size dim numel stride item tolist __len__ is_contiguous untyped_storage data_ptr
""")

SHARPENING = _names("""
    softmax relu exp sigmoid gelu silu softplus elu sparsemax tanh
""")
"""Non-linear functions that turn a product of two activations into attention weights."""

_DUNDER_IN_PLACE = _names("""
    iadd isub imul itruediv idiv ifloordiv ipow iand ior ixor imod
""")


def plain_name(name: str) -> str:
    """`__iadd__`, `add_` and `__add__` are all `add`; names of unknown functions only lose their underscores."""
    bare = name.strip("_") if name.startswith("__") else name.rstrip("_")
    if name.startswith("__") and bare in _DUNDER_IN_PLACE:
        return bare[1:]
    return bare


def in_place(name: str) -> bool:
    """Whether the function writes into its first argument."""
    dunder = name.startswith("__")
    if dunder:
        return name == "__setitem__" or name.strip("_") in _DUNDER_IN_PLACE
    return name.endswith("_")


def kind_of(name: str, tensors: int) -> str | None:
    """The kind of a function called with `tensors` tensor arguments, None when the table does not list it."""
    bare = plain_name(name)
    if bare in ("max", "min") and tensors > 1:
        return "pointwise"
    return _BY_NAME.get(bare)
