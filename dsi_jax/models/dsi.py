"""The differentiable search index: an encoder a modality and a decoder of docids.

Tay et al., "Transformer Memory as a Differentiable Search Index", 2022,
https://arxiv.org/abs/2202.06991. Shape letters as in `dsi_jax.models.layers`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.inputs import streams
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.models import layers, t5
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.lexical_head import LexicalHead, LexicalHeadConfig

COMPACT_SPACE, TEXT_SPACE = DOCID_SPACES = ("compact", "text")

# Docid vocabularies of at least so many tokens are padded to a multiple of 128, as T5's own is, so
# that any usual mesh can split them. Smaller ones are cheap to hold whole.
_PADDED_FROM = 4096
_PADDED_TO = 128
FIRST_DOCUMENT = 2  # the token of the first document where docids are atomic, as in a docid table


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
      lexical_head: scores of documents by the words of a query, for atomic docids; None: there
        are none.

    Raises:
      ValueError: a value is out of its range, or V does not suit the space.
    """

    t5: t5.T5Config
    docid_vocab_size: int
    docid_length: int
    docid_space: str = COMPACT_SPACE
    towers: TowersConfig | None = None
    lexical_head: LexicalHeadConfig | None = None

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
        if self.lexical_head is not None:
            self._check_lexical_head(self.lexical_head)

    def _check_lexical_head(self, head: LexicalHeadConfig) -> None:
        if self.docid_space != COMPACT_SPACE or self.docid_length != 1:
            raise ValueError(
                f"DSIConfig.lexical_head is given, with docids of length {self.docid_length} in "
                f"{self.docid_space!r} space; it is for atomic docids so far: expected length 1 in "
                f"{COMPACT_SPACE!r} space"
            )
        if head.num_documents > self.docid_vocab_size - FIRST_DOCUMENT:
            raise ValueError(
                f"DSIConfig.lexical_head has {head.num_documents} documents; expected at most the "
                f"{self.docid_vocab_size - FIRST_DOCUMENT} of the docid vocabulary"
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        value = dataclasses.asdict(self) | {"t5": self.t5.to_json()}
        if self.towers is None:  # as checkpoints were before there were towers
            del value["towers"]
        else:
            value["towers"] = self.towers.to_json()
        if self.lexical_head is None:  # likewise
            del value["lexical_head"]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DSIConfig":
        """The config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        value = t5.check_fields(cls, value)
        towers, head = value.get("towers"), value.get("lexical_head")
        parts = {
            "t5": t5.T5Config.from_json(value["t5"]),
            "towers": None if towers is None else TowersConfig.from_json(towers),
            "lexical_head": None if head is None else LexicalHeadConfig(**head),
        }
        return cls(**value | parts)


class ScoredMemory(NamedTuple):
    """What a decoder reads where there is a lexical head.

    Attributes:
      states: float [B, S, D], the encoded queries.
      document_scores: float32 [B, N], the lexical score of each document, by its place among all
        docids in order.
    """

    states: jax.Array
    document_scores: jax.Array


class ScoredLogits(NamedTuple):
    """What a model with a lexical head says of docids.

    Attributes:
      logits: float32 [B, L, V], of decoder and lexical head together.
      lexical: float32 [B, L, V], the lexical head's part.
    """

    logits: jax.Array
    lexical: jax.Array


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
        if config.lexical_head is not None:
            self.lexical_head = LexicalHead(config.lexical_head)
        self.decoder = t5.Decoder(config.t5, config.docid_vocab_size)

    def __call__(
        self, batch: Mapping[str, Mapping[str, jax.Array]], *, deterministic: bool
    ) -> jax.Array | ScoredLogits:
        """Teacher forcing.

        Args:
          batch: the streams, see `encode`, and {"decoder": {"inputs": int32 [B, L]}}; further
            entries are ignored.
          deterministic: False applies dropout, which needs rngs={"dropout": key}.

        Returns:
          Logits float32 [B, L, V]; with a lexical head, and its part of them.
        """
        memory, mask_BxS = self.encode(batch, deterministic=deterministic)
        logits_BxLxV = self.decode(
            memory, mask_BxS, batch["decoder"]["inputs"], deterministic=deterministic
        )
        if not isinstance(memory, ScoredMemory):
            return logits_BxLxV
        prior_Bx1xV = self._prior(memory.document_scores)
        return ScoredLogits(logits_BxLxV, jnp.broadcast_to(prior_Bx1xV, logits_BxLxV.shape))

    def encode(
        self, batch: Mapping[str, Mapping[str, jax.Array]], *, deterministic: bool = True
    ) -> tuple[jax.Array | ScoredMemory, jax.Array]:
        """The memory [B, S, D] of a batch's texts and images and its mask, bool [B, S].

        Args:
          batch: {"text": {"tokens": int32 [b, S], "mask": [b, S]}, "image": images, see
            `dsi_jax.inputs.pixels`}, one of them or both; no encoder runs on an absent example.
            A lexical head reads "words" of texts, int32 [b, W].
          deterministic: False applies dropout.

        Returns:
          The memories in the order of `streams.interleave`, padded to the longest; with a lexical
          head, and its scores.

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
        if self.config.lexical_head is None:
            return memory_BxSxD, mask_BxS
        return ScoredMemory(memory_BxSxD, self._document_scores(batch)), mask_BxS

    def _document_scores(self, batch: Mapping[str, Mapping[str, jax.Array]]) -> jax.Array:
        """The lexical scores [B, N] in the order of the batch; images have no words, and none."""
        scores = []
        if TEXT in batch:
            if "words" not in batch[TEXT]:
                raise ValueError(
                    f"the batch's texts have {sorted(batch[TEXT])}; a lexical head expects 'words'"
                )
            scores.append(self.lexical_head(batch[TEXT]["words"]))
        if IMAGE in batch:
            count = len(batch[IMAGE]["pixels"])
            scores.append(jnp.zeros((count, self.config.lexical_head.num_documents), jnp.float32))
        return nn.with_logical_constraint(streams.interleave(scores), ("batch", None))

    def _prior(self, document_scores_BxN: jax.Array) -> jax.Array:
        """What the lexical head adds to the logits of the only docid token, float32 [B, 1, V]."""
        behind = self.config.docid_vocab_size - FIRST_DOCUMENT - document_scores_BxN.shape[1]
        prior_BxV = jnp.pad(document_scores_BxN, [(0, 0), (FIRST_DOCUMENT, behind)])
        return nn.with_logical_constraint(prior_BxV[:, None], ("batch", "length", "vocab"))

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
        memory: jax.Array | ScoredMemory,
        mask: jax.Array,
        tokens: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits float32 [B, L, V] after each of the decoder inputs `tokens`, int32 [B, L].

        Args:
          memory: [B, S, D], from `encode`, with the lexical scores if there are any.
          mask: bool [B, S], from `encode`.
          tokens: docids shifted right, see `shift_right`.
          deterministic: False applies dropout.
        """
        embedded_BxLxD = self._output_embedder(tokens)
        embedded_BxLxD = nn.with_logical_constraint(embedded_BxLxD, ("batch", "length", "embed"))
        states = memory.states if isinstance(memory, ScoredMemory) else memory
        hidden_BxLxD = self.decoder(embedded_BxLxD, states, mask, deterministic=deterministic)
        logits_BxLxV = nn.with_logical_constraint(
            self.head(hidden_BxLxD), ("batch", "length", "vocab")
        )
        if isinstance(memory, ScoredMemory):
            logits_BxLxV += self._prior(memory.document_scores)
        return logits_BxLxV

    def init_cache(
        self, memory: jax.Array | ScoredMemory, mask: jax.Array, *, num_beams: int, length: int
    ) -> dict[str, Any]:
        """The cache of `decode_step` before position 0.

        Args:
          memory: [B, S, D], from `encode`, with the lexical scores if there are any.
          mask: bool [B, S], from `encode`.
          num_beams: C, the most beams that there will be.
          length: L, the number of steps to come at most.

        Returns:
          {"self": {"layers_<i>": {"key", "value"}}}, zeros [B, H, L, C, P]; and
          {"cross": {"layers_<i>": {"key", "value"}, "mask"}}, the projected memory [B, S, H, P]
          and its mask [B, S], shared by all beams. With scan_layers "layers" holds all layers
          stacked, see `t5.Decoder`. "document_scores" [B, N] are there with a lexical head.
        """
        scores = {}
        if isinstance(memory, ScoredMemory):
            memory, document_scores_BxN = memory
            scores = {"document_scores": document_scores_BxN}
        own = self.decoder.empty_cache(memory.shape[0], num_beams, length)
        cross = self.decoder.project_memory(memory) | {"mask": mask}
        return {"self": own, "cross": cross} | scores

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
        logits_BxMxV = self.head(hidden_BxMx1xD[:, :, 0])
        if "document_scores" in cache:
            logits_BxMxV += self._prior(cache["document_scores"])
        return logits_BxMxV, cache

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
        return hidden_BxQxD.reshape(*tokens.shape, -1), cache | {"self": own}

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
