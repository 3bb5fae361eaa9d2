"""Layers of T5 (Raffel et al., 2020, https://arxiv.org/abs/1910.10683) with logical axes.

Shape letters: B batch, M beams, C beams that a cache has room for, Q queries (decoder positions, or
those of all beams in a cached step), K keys, L docid length, T positions of a cached step, S source
tokens, D width, H heads, P head size, F mlp width, V vocabulary.

Parameters are float32 and carry T5X's logical axis names. Matrix products run in `dtype`;
statistics of layer norms, attention logits, softmax and output logits are always float32.
Dropout masks are shared along the length axis, as in Mesh TensorFlow's and T5X's T5.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]

# Added to or put in place of the logits of masked keys. Finite, so that a row whose keys are all
# masked (an empty text) yields a uniform average and no NaN.
MASKED_LOGIT = -1e10

# So few beams look at the keys of all of them, those of the others masked, which is a product of
# matrices a query; of more beams, or at several positions at once, each gathers its own keys first.
_FEW_BEAMS = 24

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=True),  # T5 v1.1's and "gelu_new" elsewhere
    "silu": nn.silu,
    "linear": lambda x: x,
}

fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def parameter(
    module: nn.Module, name: str, init: Initializer, axes: tuple[str, ...], shape: tuple[int, ...]
) -> jax.Array:
    """A float32 parameter with logical axes, made by `init` where the module has none yet.

    `nn.Module.param` does the same, but to check the shape of one that is there it traces `init`,
    which is a third of the time to trace a decoder.

    Raises:
      flax.errors.ScopeParamShapeError: the module has one of another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    value = nn.unbox(module.get_variable("params", name))
    if value.shape != shape:
        raise ScopeParamShapeError(name, module.scope.path_text, value.shape, shape)
    return value


def shared_along_length(rate: float) -> nn.Dropout:
    """Dropout whose mask is drawn once for all positions of axis -2."""
    return nn.Dropout(rate, broadcast_dims=(-2,))


class Dense(nn.Module):
    """A product with a 2-D kernel, without bias.

    Attributes:
      features: size of the output's last axis.
      axes: logical axes of the kernel, (input, output).
      kernel_init: initialiser of the kernel.
      dtype: dtype of the product's operands.
      output_dtype: dtype of the result and of the accumulation; `dtype` if None.
      transposed: whether the kernel is [output, input], see `dsi_jax.models.transposed_kernels`.
    """

    features: int
    axes: tuple[str, str]
    kernel_init: Initializer = fan_in_truncated
    dtype: DTypeLike = jnp.float32
    output_dtype: DTypeLike | None = None
    transposed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., input] to [..., features]."""
        shape, axes, init = (x.shape[-1], self.features), self.axes, self.kernel_init
        if self.transposed:
            shape, axes = shape[::-1], axes[::-1]
            init = lambda key, shape, dtype: self.kernel_init(key, shape[::-1], dtype).T  # noqa: E731
        kernel = parameter(self, "kernel", init, axes, shape)
        return jax.lax.dot_general(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (((x.ndim - 1,), (int(self.transposed),)), ((), ())),
            preferred_element_type=self.output_dtype,
        )


class Embedder(nn.Module):
    """A table of token embeddings, which may serve as the output head as well.

    Attributes:
      vocab_size: number of tokens V.
      features: width D.
      dtype: dtype of the embeddings handed out and of the head's operands.
    """

    vocab_size: int
    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = self.vocab_size, self.features
        init, axes = nn.initializers.normal(1.0), ("vocab", "embed")
        self.embedding = parameter(self, "embedding", init, axes, shape)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens int32 [...] to [..., D]; a token outside the vocabulary becomes NaN."""
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] to its products with all embeddings, float32 [..., V]."""
        return jnp.einsum(
            "...d,vd->...v",
            x.astype(self.dtype),
            self.embedding.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )


class LayerNorm(nn.Module):
    """T5's layer norm: divides by the root mean square; neither mean nor bias."""

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] to `dtype` [..., D]."""
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), x.shape[-1:])
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * inverse).astype(self.dtype) * scale.astype(self.dtype)


class Mlp(nn.Module):
    """T5's feed-forward block; with several activations their products are multiplied (gated).

    Attributes:
      mlp_dim: hidden width F.
      activations: names in ACTIVATIONS; one names the kernel `wi`, more `wi_0`, `wi_1`, ...
      dropout_rate: rate on the hidden units.
      dtype: dtype of the products.
      transposed: see `Dense`.
    """

    mlp_dim: int
    activations: Sequence[str]
    dropout_rate: float
    dtype: DTypeLike = jnp.float32
    transposed: bool = False

    @nn.compact
    def __call__(self, x_BxQxD: jax.Array, *, deterministic: bool) -> jax.Array:
        """Maps [B, Q, D] to [B, Q, D]."""
        gated = len(self.activations) > 1
        hidden_BxQxF: jax.Array | None = None
        for index, activation in enumerate(self.activations):
            name = f"wi_{index}" if gated else "wi"
            dense = self._dense(self.mlp_dim, ("embed", "mlp"), name)
            branch_BxQxF = ACTIVATIONS[activation](dense(x_BxQxD))
            if hidden_BxQxF is None:
                hidden_BxQxF = branch_BxQxF
            else:
                hidden_BxQxF = hidden_BxQxF * branch_BxQxF
        hidden_BxQxF = shared_along_length(self.dropout_rate)(hidden_BxQxF, deterministic)
        hidden_BxQxF = nn.with_logical_constraint(hidden_BxQxF, ("batch", "length", "mlp"))
        return self._dense(x_BxQxD.shape[-1], ("mlp", "embed"), "wo")(hidden_BxQxF)

    def _dense(self, features: int, axes: tuple[str, str], name: str) -> Dense:
        return Dense(features, axes, dtype=self.dtype, transposed=self.transposed, name=name)


class Attention(nn.Module):
    """Multi-head attention as in T5: no scaling of the logits, no biases in the projections.

    The factor 1/sqrt(P) that other transformers apply to the logits is in the initial query
    kernel instead.

    Attributes:
      num_heads: heads H.
      head_dim: head size P.
      features: width D of the output.
      dropout_rate: rate on the attention weights.
      dtype: dtype of the products.
      transposed: see `Dense`.
    """

    num_heads: int
    head_dim: int
    features: int
    dropout_rate: float
    dtype: DTypeLike = jnp.float32
    transposed: bool = False

    def setup(self) -> None:
        joined = self.num_heads * self.head_dim
        axes = ("embed", "joined_kv")
        query_init = nn.initializers.variance_scaling(1.0 / self.head_dim, "fan_in", "normal")

        def dense(features: int, axes: tuple[str, str], init: Initializer) -> Dense:
            return Dense(features, axes, init, self.dtype, transposed=self.transposed)

        self.query = dense(joined, axes, query_init)
        self.key = dense(joined, axes, fan_in_normal)
        self.value = dense(joined, axes, fan_in_normal)
        self.out = dense(self.features, ("joined_kv", "embed"), fan_in_normal)
        self.dropout = shared_along_length(self.dropout_rate)

    def project_query(self, x_BxQxD: jax.Array) -> jax.Array:
        """Queries [B, Q, H, P] of [B, Q, D]."""
        return self._split(self.query(x_BxQxD))

    def project_key_value(self, x_BxKxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values, each [B, K, H, P], of [B, K, D]."""
        return self._split(self.key(x_BxKxD)), self._split(self.value(x_BxKxD))

    def __call__(
        self,
        x_BxQxD: jax.Array,
        source_BxKxD: jax.Array,
        *,
        bias: jax.Array | None = None,
        mask_BxK: jax.Array | None = None,
        deterministic: bool,
    ) -> jax.Array:
        """Attends from x to source.

        Args:
          x_BxQxD: where the queries come from.
          source_BxKxD: where the keys and values come from.
          bias: float32 [1, H, Q, K], added to the logits.
          mask_BxK: bool, False where a key must not be seen.
          deterministic: False applies dropout.

        Returns:
          [B, Q, D].
        """
        key_BxKxHxP, value_BxKxHxP = self.project_key_value(source_BxKxD)
        return self.attend(
            self.project_query(x_BxQxD),
            key_BxKxHxP,
            value_BxKxHxP,
            bias=bias,
            mask_BxK=mask_BxK,
            deterministic=deterministic,
        )

    def attend(
        self,
        query_BxQxHxP: jax.Array,
        key_BxKxHxP: jax.Array,
        value_BxKxHxP: jax.Array,
        *,
        bias: jax.Array | None = None,
        mask_BxK: jax.Array | None = None,
        deterministic: bool,
    ) -> jax.Array:
        """As `__call__`, from projected queries, keys and values."""
        logits_BxHxQxK = jnp.einsum(
            "BQHP,BKHP->BHQK", query_BxQxHxP, key_BxKxHxP, preferred_element_type=jnp.float32
        )
        if bias is not None:
            logits_BxHxQxK += bias
        if mask_BxK is not None:
            logits_BxHxQxK = jnp.where(mask_BxK[:, None, None, :], logits_BxHxQxK, MASKED_LOGIT)
        weights_BxHxQxK = jax.nn.softmax(logits_BxHxQxK).astype(self.dtype)
        weights_BxHxQxK = self.dropout(weights_BxHxQxK, deterministic)
        return self._join(jnp.einsum("BHQK,BKHP->BQHP", weights_BxHxQxK, value_BxKxHxP))

    def attend_lineage(
        self,
        query_BxMxTxHxP: jax.Array,
        key_BxHxLxCxP: jax.Array,
        value_BxHxLxCxP: jax.Array,
        bias_HxTxL: jax.Array,
        lineage_BxMxL: jax.Array,
    ) -> jax.Array:
        """A cached step, in which every beam attends to the beams that it comes from.

        Args:
          query_BxMxTxHxP: queries of the current positions.
          key_BxHxLxCxP: keys of all positions; those to come are hidden by the bias.
          value_BxHxLxCxP: their values.
          bias_HxTxL: float32, position bias and causal mask of the current positions.
          lineage_BxMxL: int32, where on axis C each position of a beam lies.

        Returns:
          [B, M, T, D].
        """
        num_beams, num_positions = key_BxHxLxCxP.shape[3], bias_HxTxL.shape[1]
        if num_beams <= _FEW_BEAMS and num_positions == 1:
            logits_BxHxMxTxLxC = jnp.einsum(
                "BMTHP,BHLCP->BHMTLC",
                query_BxMxTxHxP,
                key_BxHxLxCxP,
                preferred_element_type=jnp.float32,
            )
            own_BxMxLxC = lineage_BxMxL[..., None] == jnp.arange(num_beams)
            logits_BxHxMxTxLxC = jnp.where(
                own_BxMxLxC[:, None, :, None],
                logits_BxHxMxTxLxC + bias_HxTxL[:, None, :, :, None],
                MASKED_LOGIT,
            )
            weights_BxHxMxTxLxC = jax.nn.softmax(logits_BxHxMxTxLxC, axis=(-2, -1))
            weights_BxHxMxTxLxC = weights_BxHxMxTxLxC.astype(self.dtype)
            return self._join(
                jnp.einsum("BHMTLC,BHLCP->BMTHP", weights_BxHxMxTxLxC, value_BxHxLxCxP)
            )
        place_Bx1xLxMx1 = jnp.swapaxes(lineage_BxMxL, 1, 2)[:, None, :, :, None]
        key_BxHxLxMxP, value_BxHxLxMxP = (
            jnp.take_along_axis(x, place_Bx1xLxMx1, axis=3, mode="clip")
            for x in (key_BxHxLxCxP, value_BxHxLxCxP)
        )
        logits_BxHxMxTxL = jnp.einsum(
            "BMTHP,BHLMP->BHMTL", query_BxMxTxHxP, key_BxHxLxMxP, preferred_element_type=jnp.float32
        )
        weights_BxHxMxTxL = jax.nn.softmax(logits_BxHxMxTxL + bias_HxTxL[:, None])
        weights_BxHxMxTxL = weights_BxHxMxTxL.astype(self.dtype)
        return self._join(jnp.einsum("BHMTL,BHLMP->BMTHP", weights_BxHxMxTxL, value_BxHxLxMxP))

    def attend_itself(self, value_BxQxHxP: jax.Array) -> jax.Array:
        """The first position, which sees no other: [B, Q, D] of its values."""
        return self._join(value_BxQxHxP)

    def _split(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        return nn.with_logical_constraint(x, ("batch", "length", "heads", "kv"))

    def _join(self, x: jax.Array) -> jax.Array:
        return self.out(x.reshape(*x.shape[:-2], self.num_heads * self.head_dim))


def relative_position_buckets(
    distances: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each distance, as in Mesh TensorFlow's T5.

    Half of the buckets hold one distance each, the other half grow logarithmically up to
    max_distance; all distances beyond share the last one.

    Args:
      distances: int [...], position of the key minus position of the query.
      bidirectional: True gives keys after the query buckets of their own (encoder); False puts
        them all into bucket 0 (decoder, where they are masked).
      num_buckets: number of buckets.
      max_distance: distance from which on all share a bucket.

    Returns:
      int32 [...], in [0, num_buckets).
    """
    distances = np.asarray(distances)
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distances > 0, num_buckets, 0)
        distances = np.abs(distances)
    else:
        offset = 0
        distances = np.maximum(-distances, 0)
    exact = num_buckets // 2
    # In float32, as where the published weights were trained: the boundaries depend on it.
    ratio = np.maximum(distances, 1).astype(np.float32) / np.float32(exact)
    growth = np.log(ratio) / np.float32(np.log(max_distance / exact))
    logarithmic = exact + (growth * np.float32(num_buckets - exact)).astype(np.int32)
    logarithmic = np.minimum(logarithmic, num_buckets - 1)
    return (offset + np.where(distances < exact, distances, logarithmic)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """One learned bias a head and bucket of distances, shared by all layers of a stack.

    Attributes:
      num_heads: heads H.
      num_buckets: see `relative_position_buckets`.
      max_distance: see `relative_position_buckets`.
      bidirectional: True in the encoder. In the decoder the bias is the causal mask as well.
    """

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        axes, shape = ("heads", "relpos_buckets"), (self.num_heads, self.num_buckets)
        self.rel_embedding = parameter(self, "rel_embedding", init, axes, shape)

    def __call__(self, length: int) -> jax.Array:
        """The bias between all pairs of `length` positions, float32 [1, H, length, length].

        The bias depends on the distance alone: each distance is looked up once, then the row of
        them is laid out as a matrix by copying and reshaping, whose gradient is a sum. (A lookup
        of all pairs would have a scatter of length**2 updates as its gradient.)
        """
        distances = np.arange(1 - length, length + 1)  # the last is never used
        row_HxW = jnp.take(self.rel_embedding, self._buckets(distances), axis=1)
        if not self.bidirectional:
            row_HxW = jnp.where(distances > 0, MASKED_LOGIT, row_HxW)
        # In `length` copies of the row, a step of W - 1 is one query on with the same key.
        heads, width = row_HxW.shape
        flat = jnp.broadcast_to(row_HxW[:, None], (heads, length, width)).reshape(heads, -1)
        flat = flat[:, length - 1 :][:, : length * (width - 1)]
        return flat.reshape(heads, length, width - 1)[None, :, :, :length]

    def step(self, position: jax.Array, count: int, length: int) -> jax.Array:
        """Rows of the decoder's bias from `position` (int32) on, float32 [H, count, length]."""
        keys = np.arange(length)
        buckets = self._buckets(keys[None, :] - keys[:, None])
        rows_TxL = jax.lax.dynamic_slice_in_dim(jnp.asarray(buckets), position, count)
        queries_Tx1 = position + np.arange(count)[:, None]
        bias_HxTxL = jnp.take(self.rel_embedding, rows_TxL, axis=1)
        return jnp.where(keys > queries_Tx1, MASKED_LOGIT, bias_HxTxL)

    def _buckets(self, distances: np.ndarray) -> np.ndarray:
        return relative_position_buckets(
            distances,
            bidirectional=self.bidirectional,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
