"""The differentiable search index: an encoder a modality and a decoder of docids.

Tay et al., "Transformer Memory as a Differentiable Search Index", 2022,
https://arxiv.org/abs/2202.06991. Shape letters as in `dsi_jax.models.layers`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.inputs import streams
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.models import layers, t5
from dsi_jax.models.encoders.config import TowersConfig

COMPACT_SPACE, TEXT_SPACE = DOCID_SPACES = ("compact", "text")

# Docid vocabularies of at least so many tokens are padded to a multiple of 128, as T5's own is, so
# that any usual mesh can split them. Smaller ones are cheap to hold whole.
_PADDED_FROM = 4096
_PADDED_TO = 128


@dataclasses.dataclass(frozen=True)
class DSIConfig:
    """A DSI model.

    Attributes:
      t5: the architecture of the decoder and, without towers, of the encoder of texts.
      docid_vocab_size: V, tokens of the docid vocabulary, pad 0 and end 1 included; that of the
        docid table, or more (`padded_vocab_size`).
      docid_length: L, tokens of a docid, with its end token where it has one.
      docid_space: "compact" gives docids a vocabulary, embeddings and head of their own; in
        "text" docids are made of T5's own tokens, and V is t5.vocab_size.
      towers: pretrained encoders of texts, images or both; None: T5's encoder of texts.

    Raises:
      ValueError: a value is out of its range, or V does not suit the space.
    """

    t5: t5.T5Config
    docid_vocab_size: int
    docid_length: int
    docid_space: str = COMPACT_SPACE
    towers: TowersConfig | None = None

    def __post_init__(self) -> None:
        if self.docid_space not in DOCID_SPACES:
            raise ValueError(
                f"DSIConfig.docid_space is {self.docid_space!r}; expected one of {DOCID_SPACES}"
            )
        if self.docid_vocab_size < 1 or self.docid_length < 1:
            raise ValueError(
                f"DSIConfig.docid_vocab_size is {self.docid_vocab_size!r} and docid_length is "
                f"{self.docid_length!r}; expected positive integers"
            )
        if self.docid_space == TEXT_SPACE and self.docid_vocab_size != self.t5.vocab_size:
            raise ValueError(
                f"DSIConfig.docid_vocab_size is {self.docid_vocab_size}; in text space expected "
                f"T5's vocabulary size {self.t5.vocab_size}"
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        value = dataclasses.asdict(self) | {"t5": self.t5.to_json()}
        if self.towers is None:  # as checkpoints were before there were towers
            del value["towers"]
        else:
            value["towers"] = self.towers.to_json()
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DSIConfig":
        """The config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        value = t5.check_fields(cls, value)
        config = cls(**value | {"t5": t5.T5Config.from_json(value["t5"]), "towers": None})
        if value.get("towers") is None:
            return config
        return dataclasses.replace(config, towers=TowersConfig.from_json(value["towers"]))


def padded_vocab_size(vocab_size: int) -> int:
    """The docid vocabulary of a model for a table of `vocab_size` tokens.

    The tokens beyond the table's are never targets and never decoded.
    """
    if vocab_size < _PADDED_FROM:
        return vocab_size
    return -(-vocab_size // _PADDED_TO) * _PADDED_TO


def shift_right(tokens: jax.Array) -> jax.Array:
    """Decoder inputs int32 [..., L] of docids [..., L]: 0 first, the last token dropped."""
    return jnp.pad(tokens[..., :-1], [(0, 0)] * (tokens.ndim - 1) + [(1, 0)])


class DSIModel(nn.Module):
    """Encodes a text or an image and decodes the docids of the documents it looks for.

    In the compact space, too, docid embeddings start at T5's standard deviation of 1: a tied head
    (times D**-0.5) and an untied one both start with logits near 1, whatever the width. Started
    at D**-0.5, a tied head memorised far slower under Adam (D = 64, 400 atomic docids, one seed).
    """

    config: DSIConfig

    def setup(self) -> None:
        config = self.config
        width, dtype = config.t5.emb_dim, config.t5.dtype
        self.token_embedder = layers.Embedder(config.t5.vocab_size, width, dtype)
        if config.docid_space == COMPACT_SPACE:
            self.docid_embedder = layers.Embedder(config.docid_vocab_size, width, dtype)
        self.encoder = t5.Encoder(config.t5)
        if config.towers is not None:
            self.text_tower, self.image_tower = config.towers.modules(width)
        self.decoder = t5.Decoder(config.t5, config.docid_vocab_size)

    def __call__(
        self, batch: Mapping[str, Mapping[str, jax.Array]], *, deterministic: bool
    ) -> jax.Array:
        """Teacher forcing.

        Args:
          batch: the streams, see `encode`, and {"decoder": {"inputs": int32 [B, L]}}; further
            entries are ignored.
          deterministic: False applies dropout, which needs rngs={"dropout": key}.

        Returns:
          Logits float32 [B, L, V].
        """
        memory_BxSxD, mask_BxS = self.encode(batch, deterministic=deterministic)
        return self.decode(
            memory_BxSxD, mask_BxS, batch["decoder"]["inputs"], deterministic=deterministic
        )

    def encode(
        self, batch: Mapping[str, Mapping[str, jax.Array]], *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """The memory [B, S, D] of a batch's texts and images and its mask, bool [B, S].

        Args:
          batch: {"text": {"tokens": int32 [b, S], "mask": [b, S]}, "image": images, see
            `dsi_jax.inputs.pixels`}, one of them or both; no encoder runs on an absent example.
          deterministic: False applies dropout.

        Returns:
          The memories in the order of `streams.interleave`, padded to the longest.

        Raises:
          ValueError: if the batch has neither.
        """
        encoders = {TEXT: self._encode_text, IMAGE: self._encode_images}
        found = [
            encode(batch[modality], deterministic=deterministic)
            for modality, encode in encoders.items()
            if modality in batch
        ]
        if not found:
            raise ValueError(f"batch has {sorted(batch)}; expected {TEXT!r}, {IMAGE!r} or both")
        length = max(memory.shape[1] for memory, _ in found)

        def padded(array: jax.Array) -> jax.Array:
            rest = [(0, 0)] * (array.ndim - 2)
            return jnp.pad(array, [(0, 0), (0, length - array.shape[1]), *rest])

        memory_BxSxD = streams.interleave([padded(memory) for memory, _ in found])
        mask_BxS = streams.interleave([padded(mask) for _, mask in found])
        memory_BxSxD = nn.with_logical_constraint(memory_BxSxD, ("batch", "length", "embed"))
        return memory_BxSxD, mask_BxS

    def _encode_images(
        self, images: Mapping[str, jax.Array], *, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        if self.config.towers is None or self.image_tower is None:
            raise ValueError("the batch has images, and the model has no encoder of images")
        return self.image_tower(images, deterministic=deterministic)

    def _encode_text(
        self, text: Mapping[str, jax.Array], *, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        if self.config.towers is not None:
            if self.text_tower is None:
                raise ValueError("the batch has texts, and the model has no encoder of texts")
            return self.text_tower(text, deterministic=deterministic)
        mask_BxS = text["mask"].astype(bool)
        embedded_BxSxD = self.token_embedder(text["tokens"])
        embedded_BxSxD = nn.with_logical_constraint(embedded_BxSxD, ("batch", "length", "embed"))
        return self.encoder(embedded_BxSxD, mask_BxS, deterministic=deterministic), mask_BxS

    def decode(
        self,
        memory: jax.Array,
        mask: jax.Array,
        tokens: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits float32 [B, L, V] after each of the decoder inputs `tokens`, int32 [B, L].

        Args:
          memory: [B, S, D], from `encode`.
          mask: bool [B, S], from `encode`.
          tokens: docids shifted right, see `shift_right`.
          deterministic: False applies dropout.
        """
        embedded_BxLxD = self._output_embedder(tokens)
        embedded_BxLxD = nn.with_logical_constraint(embedded_BxLxD, ("batch", "length", "embed"))
        hidden_BxLxD = self.decoder(embedded_BxLxD, memory, mask, deterministic=deterministic)
        return nn.with_logical_constraint(self.head(hidden_BxLxD), ("batch", "length", "vocab"))

    def init_cache(
        self, memory: jax.Array, mask: jax.Array, *, num_beams: int, length: int
    ) -> dict[str, Any]:
        """The cache of `decode_step` before position 0.

        Args:
          memory: [B, S, D], from `encode`.
          mask: bool [B, S], from `encode`.
          num_beams: C, the most beams that there will be.
          length: L, the number of steps to come at most.

        Returns:
          {"self": {"layers_<i>": {"key", "value"}}}, zeros [B, H, L, C, P]; and
          {"cross": {"layers_<i>": {"key", "value"}, "mask"}}, the projected memory [B, S, H, P]
          and its mask [B, S], shared by all beams. With scan_layers "layers" holds all layers
          stacked, see `t5.Decoder`.
        """
        own = self.decoder.empty_cache(memory.shape[0], num_beams, length)
        return {"self": own, "cross": self.decoder.project_memory(memory) | {"mask": mask}}

    def decode_step(
        self,
        cache: dict[str, Any],
        tokens: jax.Array,
        position: jax.Array | int,
        lineage: jax.Array,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """One position of all beams, equal to that position of `decode`.

        Args:
          cache: from `init_cache` or the step before.
          tokens: int32 [B, M], each beam's decoder input at `position` (0 at position 0).
          position: int32 scalar, in [0, L); cheaper as a Python 0.
          lineage: int32 [B, M, L], in [0, C): as which beam each position of a beam was decoded;
            from `position` on, the beam's own number.

        Returns:
          Logits float32 [B, M, V], and the cache with `position` written.
        """
        inputs = tokens[..., None]
        hidden_BxMx1xD, cache = self.decode_positions(cache, inputs, position, lineage)
        return self.head(hidden_BxMx1xD[:, :, 0]), cache

    def decode_positions(
        self,
        cache: dict[str, Any],
        tokens: jax.Array,
        position: jax.Array | int,
        lineage: jax.Array,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Several positions of all beams in one pass, without the head.

        Args:
          cache: as for `decode_step`.
          tokens: int32 [B, M, T], each beam's decoder inputs at `position` and those after it.
          position: int32 scalar, the first, in [0, L - T].
          lineage: as for `decode_step`.

        Returns:
          Hidden states [B, M, T, D] for `head`, and the cache with the positions written.
        """
        own, cross = cache["self"], cache["cross"]
        inputs_BxQ = tokens.reshape(len(tokens), -1)
        hidden_BxQxD, own = self.decoder.step(
            self._output_embedder(inputs_BxQ), own, cross, cross["mask"], position, lineage
        )
        return hidden_BxQxD.reshape(*tokens.shape, -1), {"self": own, "cross": cross}

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits float32 [..., V] of the decoder's hidden states [..., D]."""
        if not self.config.t5.tie_embeddings:
            return self.decoder.logits_dense(hidden)
        # In the operand rather than the result: D is smaller than V.
        return self._output_embedder.attend(hidden * self.config.t5.emb_dim**-0.5)

    @property
    def path_rules(self) -> tuple[tuple[str, tuple], ...]:
        """How the parameters of the towers lie on a mesh (`training.partitioning.PathRules`)."""
        return () if self.config.towers is None else self.config.towers.path_rules

    @property
    def _output_embedder(self) -> layers.Embedder:
        compact = self.config.docid_space == COMPACT_SPACE
        return self.docid_embedder if compact else self.token_embedder
