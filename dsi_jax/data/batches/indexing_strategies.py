"""Indexing strategies: what an indexing example asks of the model.

Tay et al., "Transformer Memory as a Differentiable Search Index", 2022, section 3.1.1,
https://arxiv.org/abs/2202.06991. A task gives (document, row) whatever the strategy is; the
example is made from them here, in text tokens, so that a document can be a target and a docid an
input. Retrieval examples are always query -> docid.

Every random choice is a function of (seed, step, place in the global batch) alone: it does not
depend on the number of hosts, and nothing needs saving.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN
from dsi_jax.docids.text_space import NUM_SENTINELS

INPUTS2TARGETS = "inputs2targets"
TARGETS2INPUTS = "targets2inputs"
BIDIRECTIONAL = "bidirectional"
SPAN_CORRUPTION = "span_corruption"
STRATEGIES = (INPUTS2TARGETS, TARGETS2INPUTS, BIDIRECTIONAL, SPAN_CORRUPTION)

# Span corruption as in T5's pretraining (Raffel et al. 2020, section 3.1.4).
NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Makes the encoder's input and the decoder's target of indexing examples.

      * inputs2targets: document -> docid;
      * targets2inputs: docid -> document;
      * bidirectional: one or the other with equal probability; docid -> document begins with a
        token of its own (<extra_id_99>), which names the direction;
      * span_corruption: the docid followed by the document, spans of which are replaced by
        sentinels and are the target; the docid is masked like any other token.

    Attributes:
      name: one of `STRATEGIES`.
      seed: of the random choices.
      first_sentinel: see `dsi_jax.docids.text_space.first_sentinel`; unused by inputs2targets.

    Raises:
      ValueError: at construction, if there is no such strategy.
    """

    name: str = INPUTS2TARGETS
    seed: int = 0
    first_sentinel: int = 0

    def __post_init__(self) -> None:
        if self.name not in STRATEGIES:
            raise ValueError(f"INDEXING_STRATEGY is {self.name!r}; expected one of {STRATEGIES}")

    @property
    def needs_text_space(self) -> bool:
        """Whether docids and documents must share a vocabulary."""
        return self.name != INPUTS2TARGETS

    def target_length(self, docid_length: int, source_length: int) -> int:
        """T, the decoder's length, for docids of length L and inputs of length S.

        Raises:
          ValueError: if a docid does not fit into the input.
        """
        if not self.needs_text_space:
            return docid_length
        needed = docid_length + (self.name == BIDIRECTIONAL)
        if needed > source_length:
            raise ValueError(
                f"a docid as input of {self.name} has {needed} tokens; TASK_FEATURE_LENGTHS "
                f"keeps {source_length}"
            )
        return max(docid_length, source_length)

    def apply(
        self,
        tokens_BxS: np.ndarray,
        docids_BxL: np.ndarray,
        is_indexing_B: np.ndarray,
        *,
        step: int,
        places_B: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs int32 [B, S] and targets int32 [B, T] of a batch.

        Args:
          tokens_BxS: the texts' tokens, ending with 1, then zeros.
          docids_BxL: the docids of their documents, in text tokens.
          is_indexing_B: 1 where the text is a document, 0 where it is a query.
          step: number of the batch.
          places_B: place of each example in the global batch.
        """
        if not self.needs_text_space:
            return tokens_BxS, docids_BxL
        length = self.target_length(docids_BxL.shape[1], tokens_BxS.shape[1])
        inputs_BxS = tokens_BxS.copy()
        targets_BxT = np.zeros([len(tokens_BxS), length], np.int32)
        targets_BxT[:, : docids_BxL.shape[1]] = docids_BxL
        for i in np.flatnonzero(is_indexing_B):
            rng = np.random.default_rng((self.seed, step, int(places_B[i])))
            if self.name == BIDIRECTIONAL and rng.random() < 0.5:
                continue  # document -> docid, as it stands
            source, target = self._example(_content(tokens_BxS[i]), _content(docids_BxL[i]), rng)
            _fill(inputs_BxS[i], source)
            _fill(targets_BxT[i], target)
        return inputs_BxS, targets_BxT

    def _example(
        self, document: np.ndarray, docid: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(source, target) of one indexing example, both without end tokens."""
        if self.name == SPAN_CORRUPTION:
            return self._corrupted(np.concatenate([docid, document]), rng)
        if self.name == BIDIRECTIONAL:
            docid = np.concatenate([[self.first_sentinel], docid])
        return docid, document

    def _corrupted(
        self, tokens: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """`tokens` with a sentinel for each run of noise; each sentinel followed by its run."""
        noise = noise_mask(len(tokens), rng)
        starts = noise & ~np.concatenate([[False], noise[:-1]])
        (places,) = np.nonzero(starts)
        sentinels = self.first_sentinel + NUM_SENTINELS - 1 - np.arange(len(places))
        source = tokens.copy()
        source[places] = sentinels
        target = np.insert(tokens, places, sentinels)[np.insert(noise, places, True)]
        return source[starts | ~noise], target


DEFAULT_STRATEGY = Strategy()


def noise_mask(length: int, rng: np.random.Generator) -> np.ndarray:
    """bool [length]: a random 15% of the tokens, in runs of three on average; at least one.

    The lengths of the runs are uniform over all compositions, as in T5's random_spans_noise_mask;
    the mask is then rotated, so that no place is favoured.
    """
    if length < 2:
        return np.ones(length, bool)
    num_noise = min(max(round(length * NOISE_DENSITY), 1), length - 1)
    most = min(num_noise, length - num_noise, NUM_SENTINELS - 2)
    num_spans = min(max(round(num_noise / MEAN_SPAN_LENGTH), 1), most)
    kept = _composition(length - num_noise, num_spans, rng)
    noise = _composition(num_noise, num_spans, rng)
    runs = np.stack([kept, noise], axis=1).reshape(-1)
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.roll(mask, rng.integers(length))


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`parts` positive integers that add up to `total`, all such lists alike probable."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _content(tokens: np.ndarray) -> np.ndarray:
    """The tokens before the end token and the padding."""
    return tokens[(tokens != PAD_TOKEN) & (tokens != END_TOKEN)]


def _fill(row: np.ndarray, content: np.ndarray) -> None:
    """Writes as much of `content` as fits before an end token, then padding."""
    kept = content[: len(row) - 1]
    row[: len(kept)] = kept
    row[len(kept)] = END_TOKEN
    row[len(kept) + 1 :] = PAD_TOKEN
