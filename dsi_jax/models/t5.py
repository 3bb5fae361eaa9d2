"""The encoder and decoder of T5 v1.0 and v1.1 (Raffel et al., 2020; Shazeer, 2020).

v1.0 has a ReLU mlp and ties the output head to the token embeddings; v1.1 has a gated-GELU mlp and
a head of its own. Parameter paths, initial values and dropout are T5X's. Shape letters as in
`dsi_jax.models.layers`, and N layers. A cached step's Q = M T inputs are the T positions of the
first beam, then those of the next.

With `scan_layers` one layer is compiled and scanned over N sets of parameters, so that compile time
does not grow with depth. As in T5X's scalable_t5 the layers lie under `encoder/encoder` and
`decoder/decoder`, each parameter stacked on axis 1 (the scale of a norm is [D, N], a kernel
[D, N, F]), with the logical axis "layers", which is never split among devices.
`models.layer_stacking` converts both ways. The kernels of attention keep heads and head size
joined, where scalable_t5 has an axis of each.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.models import layer_stacking, layers

LayerCache = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The architecture of a T5.

    Attributes:
      vocab_size: tokens of the text vocabulary.
      emb_dim: width D.
      num_heads: heads H.
      head_dim: head size P.
      mlp_dim: hidden width F of the mlp.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      mlp_activations: ("relu",) for v1.0, ("gelu", "linear") for v1.1.
      tie_embeddings: True (v1.0) uses the output tokens' embeddings, times D**-0.5, as the head.
      dropout_rate: in [0, 1).
      dtype: "float32" or "bfloat16", of the matrix products; parameters are float32.
      remat: True keeps only each layer's input for the backward pass and computes the rest anew
        (T5X's "full"); "minimal" keeps also the products with kernels (T5X's "minimal").
      scan_layers: compile one layer and scan over the parameters of all.
      relpos_per_layer: each layer has a relative position bias of its own (umT5, and whatever
        T5X's scalable_t5 trained) instead of one for all layers of a stack.
      relpos_buckets: buckets of relative positions.
      relpos_max_distance: distance from which on all share a bucket.
      layer_norm_epsilon: added to the mean square.
      transposed_kernels: kernels are [output, input], only ever in memory; see
        `dsi_jax.models.transposed_kernels`.

    Raises:
      ValueError: a value is out of its range.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("relu",)
    tie_embeddings: bool = True
    dropout_rate: float = 0.1
    dtype: str = "float32"
    remat: bool | str = False
    scan_layers: bool = False
    relpos_per_layer: bool = False
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    transposed_kernels: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"T5Config.{field.name} is {value!r}; expected a positive integer")
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        unknown = [name for name in self.mlp_activations if name not in layers.ACTIVATIONS]
        if unknown or not self.mlp_activations:
            raise ValueError(
                f"T5Config.mlp_activations is {self.mlp_activations!r}; expected names among "
                f"{sorted(layers.ACTIVATIONS)}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"T5Config.dtype is {self.dtype!r}; expected 'float32' or 'bfloat16'")
        if not isinstance(self.remat, bool) and self.remat != "minimal":
            raise ValueError(f"T5Config.remat is {self.remat!r}; expected True, False or 'minimal'")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(
                f"T5Config.dropout_rate is {self.dropout_rate!r}; expected a number in [0, 1)"
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write; of what is written, no kernel is transposed."""
        value = dataclasses.asdict(self) | {"mlp_activations": list(self.mlp_activations)}
        del value["transposed_kernels"]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "T5Config":
        """The config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        return cls(**check_fields(cls, value))


def check_fields(cls: type, value: dict[str, Any]) -> dict[str, Any]:
    """`value`, if its keys are fields of the dataclass `cls` and none without default is absent.

    Raises:
      ValueError: otherwise, naming the fields.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    required = {
        field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING
    }
    unknown, absent = sorted(set(value) - known), sorted(required - set(value))
    if unknown or absent:
        raise ValueError(f"{cls.__name__}: unknown fields {unknown}, absent fields {absent}")
    return dict(value)


class EncoderLayer(nn.Module):
    """Self-attention and mlp, each with a layer norm before and a residual around it."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        if config.relpos_per_layer:
            self.relpos_bias = _relative_position_bias(config, bidirectional=True)
        self.pre_attention_layer_norm = _layer_norm(config)
        self.attention = _attention(config)
        self.pre_mlp_layer_norm = _layer_norm(config)
        self.mlp = _mlp(config)
        self.dropout = layers.shared_along_length(config.dropout_rate)

    def __call__(
        self,
        x_BxSxD: jax.Array,
        bias_1xHxSxS: jax.Array | None,
        mask_BxS: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; the bias is None where the layer has its own."""
        if self.config.relpos_per_layer:
            bias_1xHxSxS = self.relpos_bias(x_BxSxD.shape[1])
        y_BxSxD = self.pre_attention_layer_norm(x_BxSxD)
        y_BxSxD = self.attention(
            y_BxSxD, y_BxSxD, bias=bias_1xHxSxS, mask_BxK=mask_BxS, deterministic=deterministic
        )
        x_BxSxD += self.dropout(y_BxSxD, deterministic)
        y_BxSxD = self.mlp(self.pre_mlp_layer_norm(x_BxSxD), deterministic=deterministic)
        x_BxSxD += self.dropout(y_BxSxD, deterministic)
        return nn.with_logical_constraint(x_BxSxD, ("batch", "length", "embed"))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder and mlp; in full or one cached step at a time."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        if config.relpos_per_layer:
            self.relpos_bias = _relative_position_bias(config, bidirectional=False)
        self.pre_self_attention_layer_norm = _layer_norm(config)
        self.self_attention = _attention(config)
        self.pre_cross_attention_layer_norm = _layer_norm(config)
        self.encoder_decoder_attention = _attention(config)
        self.pre_mlp_layer_norm = _layer_norm(config)
        self.mlp = _mlp(config)
        self.dropout = layers.shared_along_length(config.dropout_rate)

    def __call__(
        self,
        x_BxLxD: jax.Array,
        bias_1xHxLxL: jax.Array | None,
        memory_BxSxD: jax.Array,
        mask_BxS: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]; the bias holds the causal mask, None: the layer's own."""
        if self.config.relpos_per_layer:
            bias_1xHxLxL = self.relpos_bias(x_BxLxD.shape[1])
        y_BxLxD = self.pre_self_attention_layer_norm(x_BxLxD)
        y_BxLxD = self.self_attention(
            y_BxLxD, y_BxLxD, bias=bias_1xHxLxL, deterministic=deterministic
        )
        x_BxLxD += self.dropout(y_BxLxD, deterministic)
        y_BxLxD = self.encoder_decoder_attention(
            self.pre_cross_attention_layer_norm(x_BxLxD),
            memory_BxSxD,
            mask_BxK=mask_BxS,
            deterministic=deterministic,
        )
        x_BxLxD += self.dropout(y_BxLxD, deterministic)
        y_BxLxD = self.mlp(self.pre_mlp_layer_norm(x_BxLxD), deterministic=deterministic)
        x_BxLxD += self.dropout(y_BxLxD, deterministic)
        return nn.with_logical_constraint(x_BxLxD, ("batch", "length", "embed"))

    def project_memory(self, memory_BxSxD: jax.Array) -> LayerCache:
        """Keys and values of the encoder's memory, {"key", "value"} each [B, S, H, P]."""
        key, value = self.encoder_decoder_attention.project_key_value(memory_BxSxD)
        return {"key": key, "value": value}

    def step(
        self,
        x_BxQxD: jax.Array,
        bias_HxTxL: jax.Array | None,
        own: LayerCache,
        cross: LayerCache,
        mask_BxS: jax.Array,
        position: jax.Array | int,
        lineage_BxMxL: jax.Array,
    ) -> tuple[jax.Array, LayerCache]:
        """T positions of all beams.

        Args:
          x_BxQxD: the inputs of the positions.
          bias_HxTxL: rows of the self-attention's bias, None where the layer has its own.
          own: {"key", "value"}, each [B, H, L, C, P], filled up to `position`.
          cross: as from `project_memory`; the beams share it, being its queries' positions.
          mask_BxS: the memory's mask.
          position: int32 scalar, the first.
          lineage_BxMxL: int32, see `Decoder.step`.

        Returns:
          [B, Q, D], and `own` with the positions written.
        """
        beams, length = lineage_BxMxL.shape[1:]
        count = x_BxQxD.shape[1] // beams

        def each_beam(x_BxQxHxP: jax.Array) -> jax.Array:
            return x_BxQxHxP.reshape(-1, beams, count, *x_BxQxHxP.shape[2:])

        attention = self.self_attention
        y_BxQxD = self.pre_self_attention_layer_norm(x_BxQxD)
        key_BxQxHxP, value_BxQxHxP = attention.project_key_value(y_BxQxD)
        own = {
            "key": _write(own["key"], each_beam(key_BxQxHxP), position),
            "value": _write(own["value"], each_beam(value_BxQxHxP), position),
        }
        if count == 1 and isinstance(position, int) and position == 0:
            x_BxQxD += attention.attend_itself(value_BxQxHxP)
        else:
            if self.config.relpos_per_layer:
                bias_HxTxL = self.relpos_bias.step(position, count, length)
            query_BxMxTxHxP = each_beam(attention.project_query(y_BxQxD))
            y_BxMxTxD = attention.attend_lineage(
                query_BxMxTxHxP, own["key"], own["value"], bias_HxTxL, lineage_BxMxL
            )
            x_BxQxD += y_BxMxTxD.reshape(x_BxQxD.shape)

        attention = self.encoder_decoder_attention
        query_BxQxHxP = attention.project_query(self.pre_cross_attention_layer_norm(x_BxQxD))
        x_BxQxD += attention.attend(
            query_BxQxHxP, cross["key"], cross["value"], mask_BxK=mask_BxS, deterministic=True
        )
        x_BxQxD += self.mlp(self.pre_mlp_layer_norm(x_BxQxD), deterministic=True)
        return x_BxQxD, own


class Encoder(nn.Module):
    """T5's encoder, from embeddings to memory."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        layer = _layer_class(EncoderLayer, config, deterministic_argument=4)
        if not config.relpos_per_layer:
            self.relpos_bias = _relative_position_bias(config, bidirectional=True)
        if config.scan_layers:
            self.encoder = layer(config)
        else:
            self.layers = [layer(config) for _ in range(config.num_encoder_layers)]
        self.encoder_norm = _layer_norm(config)
        self.dropout = layers.shared_along_length(config.dropout_rate)

    def __call__(
        self, embedded_BxSxD: jax.Array, mask_BxS: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        """Maps token embeddings [B, S, D], of which mask (bool) marks the real ones, to memory."""
        config = self.config
        bias_1xHxSxS = None
        if not config.relpos_per_layer:
            bias_1xHxSxS = self.relpos_bias(embedded_BxSxD.shape[1])

        def apply(layer: EncoderLayer, x_BxSxD: jax.Array) -> tuple[jax.Array, None]:
            return layer(x_BxSxD, bias_1xHxSxS, mask_BxS, deterministic), None

        x_BxSxD = self.dropout(embedded_BxSxD, deterministic)
        if config.scan_layers:
            x_BxSxD, _ = _scan(apply, config.num_encoder_layers)(self.encoder, x_BxSxD)
        else:
            for layer in self.layers:
                x_BxSxD, _ = apply(layer, x_BxSxD)
        return self.dropout(self.encoder_norm(x_BxSxD), deterministic)


class Decoder(nn.Module):
    """T5's decoder, from embeddings to the last hidden state, and its own head if untied.

    Caches are dicts by layer, `layers_<i>`; with scan_layers there is one entry, "layers", with all
    layers stacked on axis 0: the decoder's own keys and values, [N, B, H, L, C, P] (`empty_cache`),
    and the memory's, [N, B, S, H, P].

    Attributes:
      config: the architecture.
      output_vocab_size: V of the head; unused where the head is tied to an embedder.
    """

    config: T5Config
    output_vocab_size: int

    def setup(self) -> None:
        config = self.config
        layer = _layer_class(DecoderLayer, config, deterministic_argument=5)
        if not config.relpos_per_layer:
            self.relpos_bias = _relative_position_bias(config, bidirectional=False)
        if config.scan_layers:
            self.decoder = layer(config)
        else:
            self.layers = [layer(config) for _ in range(config.num_decoder_layers)]
        self.decoder_norm = _layer_norm(config)
        self.dropout = layers.shared_along_length(config.dropout_rate)
        if not config.tie_embeddings:
            self.logits_dense = layers.Dense(
                self.output_vocab_size,
                ("embed", "vocab"),
                dtype=config.dtype,
                output_dtype=jnp.float32,
                transposed=config.transposed_kernels,
            )

    def __call__(
        self,
        embedded_BxLxD: jax.Array,
        memory_BxSxD: jax.Array,
        mask_BxS: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Maps embeddings of the decoder inputs [B, L, D] to hidden states [B, L, D]."""
        config = self.config
        bias_1xHxLxL = None
        if not config.relpos_per_layer:
            bias_1xHxLxL = self.relpos_bias(embedded_BxLxD.shape[1])

        def apply(layer: DecoderLayer, x_BxLxD: jax.Array) -> tuple[jax.Array, None]:
            return layer(x_BxLxD, bias_1xHxLxL, memory_BxSxD, mask_BxS, deterministic), None

        x_BxLxD = self.dropout(embedded_BxLxD, deterministic)
        if config.scan_layers:
            x_BxLxD, _ = _scan(apply, config.num_decoder_layers)(self.decoder, x_BxLxD)
        else:
            for layer in self.layers:
                x_BxLxD, _ = apply(layer, x_BxLxD)
        return self.dropout(self.decoder_norm(x_BxLxD), deterministic)

    def empty_cache(self, batch_size: int, num_beams: int, length: int) -> dict[str, LayerCache]:
        """The self-attention's keys and values before position 0, zeros [(N,) B, H, L, C, P].

        Beams are not moved when others take their places: a step writes its own position and reads
        all others where they lie, see `step`.
        """
        config = self.config
        depth = config.num_decoder_layers
        shape = (batch_size, config.num_heads, length, num_beams, config.head_dim)

        def zeros(*stacked: int) -> LayerCache:
            return {name: jnp.zeros((*stacked, *shape), config.dtype) for name in ("key", "value")}

        if config.scan_layers:
            return {"layers": zeros(depth)}
        return {f"layers_{index}": zeros() for index in range(depth)}

    def project_memory(self, memory_BxSxD: jax.Array) -> dict[str, LayerCache]:
        """The cross-attention's keys and values of every layer, [(N,) B, S, H, P]."""
        if self.config.scan_layers:

            def project(layer: DecoderLayer, carry: None) -> tuple[None, LayerCache]:
                return carry, layer.project_memory(memory_BxSxD)

            _, cross = _scan(project, self.config.num_decoder_layers)(self.decoder, None)
            return {"layers": cross}
        return {
            f"layers_{index}": layer.project_memory(memory_BxSxD)
            for index, layer in enumerate(self.layers)
        }

    def step(
        self,
        embedded_BxQxD: jax.Array,
        own: dict[str, LayerCache],
        cross: dict[str, LayerCache],
        mask_BxS: jax.Array,
        position: jax.Array | int,
        lineage_BxMxL: jax.Array,
    ) -> tuple[jax.Array, dict[str, LayerCache]]:
        """T positions of all beams; never applies dropout.

        Args:
          embedded_BxQxD: the embeddings of the inputs.
          own: from `empty_cache`, filled up to `position`.
          cross: from `project_memory`.
          mask_BxS: the memory's mask.
          position: int32 scalar, the first.
          lineage_BxMxL: int32, in [0, C): as which beam each position of a beam was decoded; from
            `position` on, the beam's own number.

        Returns:
          [B, Q, D], and `own` with the positions written.
        """
        beams, length = lineage_BxMxL.shape[1:]
        bias_HxTxL = None
        if not self.config.relpos_per_layer:
            count = embedded_BxQxD.shape[1] // beams
            bias_HxTxL = self.relpos_bias.step(position, count, length)

        def apply(
            layer: DecoderLayer, x_BxQxD: jax.Array, own: LayerCache, cross: LayerCache
        ) -> tuple[jax.Array, LayerCache]:
            return layer.step(x_BxQxD, bias_HxTxL, own, cross, mask_BxS, position, lineage_BxMxL)

        x_BxQxD, updated = embedded_BxQxD, {}
        if self.config.scan_layers:
            scan = _scan_with_cache(apply, self.config.num_decoder_layers)
            x_BxQxD, updated["layers"] = scan(self.decoder, x_BxQxD, own["layers"], cross["layers"])
        else:
            for index, layer in enumerate(self.layers):
                name = f"layers_{index}"
                x_BxQxD, updated[name] = apply(layer, x_BxQxD, own[name], cross[name])
        return self.decoder_norm(x_BxQxD), updated


def _write(
    cache_BxHxLxCxP: jax.Array, new_BxMxTxHxP: jax.Array, position: jax.Array | int
) -> jax.Array:
    """The first M of C beams at T positions."""
    new_BxHxTxMxP = jnp.transpose(new_BxMxTxHxP, (0, 3, 2, 1, 4))
    return jax.lax.dynamic_update_slice_in_dim(cache_BxHxLxCxP, new_BxHxTxMxP, position, axis=2)


def _scan(apply: Callable[..., Any], depth: int, in_axes: Any = 0) -> Callable[..., Any]:
    """`apply(layer, carry, *xs) -> (carry, ys)` over the stacked parameters of `depth` layers."""
    return nn.scan(
        apply,
        variable_axes={"params": layer_stacking.AXIS},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def _scan_with_cache(apply: Callable[..., Any], depth: int) -> Callable[..., Any]:
    """`apply(layer, x, own, cross) -> (x, own)` over stacked layers, `own` and `cross` stacked too.

    The decoder's own cache is carried, so that it is written where it lies.
    """

    def body(layer: nn.Module, carry: Any, index: jax.Array, cross: LayerCache) -> tuple[Any, None]:
        x, stacked = carry
        own = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked
        )
        x, own = apply(layer, x, own, cross)
        stacked = jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, axis=0),
            stacked,
            own,
        )
        return (x, stacked), None

    def run(layer: nn.Module, x: jax.Array, own: LayerCache, cross: LayerCache) -> Any:
        scan = _scan(body, depth, in_axes=(0, 0))
        return scan(layer, (x, own), jnp.arange(depth), cross)[0]

    return run


def _layer_class(
    layer: type[nn.Module], config: T5Config, deterministic_argument: int
) -> type[nn.Module]:
    """`layer`, its backward pass by config.remat; the argument is counted with self as 0."""
    if config.remat is False:
        return layer
    policy = None
    if config.remat == "minimal":
        policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    return nn.remat(
        layer,
        policy=policy,
        static_argnums=(deterministic_argument,),
        prevent_cse=not config.scan_layers,  # a scan keeps the compiler from it anyway
    )


def _layer_norm(config: T5Config) -> layers.LayerNorm:
    return layers.LayerNorm(config.layer_norm_epsilon, config.dtype)


def _attention(config: T5Config) -> layers.Attention:
    return layers.Attention(
        config.num_heads,
        config.head_dim,
        config.emb_dim,
        config.dropout_rate,
        config.dtype,
        config.transposed_kernels,
    )


def _mlp(config: T5Config) -> layers.Mlp:
    return layers.Mlp(
        config.mlp_dim,
        config.mlp_activations,
        config.dropout_rate,
        config.dtype,
        config.transposed_kernels,
    )


def _relative_position_bias(
    config: T5Config, *, bidirectional: bool
) -> layers.RelativePositionBias:
    return layers.RelativePositionBias(
        config.num_heads, config.relpos_buckets, config.relpos_max_distance, bidirectional
    )
