"""The decoders that the decoding benchmarks compare, on the same random weights and queries.

Docids are digits (or codes) of one length. `text` has the whole vocabulary of T5 as its head,
`compact` that of the docids alone, with the same rows of the same weights.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import made_docids
from benchmarks.made_texts import text_batch
from benchmarks.t5x_beam import Children, make_t5x_search
from dsi_jax.convert import docid_vocabulary, hf_t5
from dsi_jax.decoding.adapter import make_search
from dsi_jax.decoding.constraint import Free, TrieConstraint
from dsi_jax.decoding.score import score_docids
from dsi_jax.decoding.trie import build_trie
from dsi_jax.docids.table import FIRST_CODE, DocidTable, token_dtype
from dsi_jax.models import t5_sizes, transposed_kernels
from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right

TOLERANCE = 1e-4  # of scores
Found = tuple[np.ndarray, np.ndarray]  # tokens [B, M, L] in the compact space, scores [B, M]
Search = Callable[[], Found]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model, docids and queries.

    Attributes:
      model: a name in `dsi_jax.models.t5_sizes`.
      documents: N.
      codes: of a level: 10 for digits.
      length: L.
      batch: B.
      source: S, tokens of a query; all have as many.
      shape: of the docids, see `made_docids`.
      vocab_size: of the text; None: the model's.
    """

    model: str = "t5_small"
    documents: int = 100_000
    codes: int = 10
    length: int = 8
    batch: int = 1
    source: int = 32
    shape: str = "uniform"
    vocab_size: int | None = None


class Decoders:
    """Searches of a `Setting`; each call encodes the queries and finds docids."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        more = {} if setting.vocab_size is None else {"vocab_size": setting.vocab_size}
        self.t5 = getattr(t5_sizes, setting.model)(dropout_rate=0.0, **more)
        codes = made_docids.made_codes(
            setting.documents, setting.codes, setting.length, setting.shape
        )
        self.table = made_docids.made_table(codes, setting.codes)
        rng = np.random.default_rng(1)
        vocab_size = self.t5.vocab_size
        shape = (setting.batch, setting.source)
        self.queries_BxS = rng.integers(2, vocab_size, shape, dtype=np.int32)
        chosen = rng.choice(vocab_size - FIRST_CODE, setting.codes, replace=False) + FIRST_CODE
        self.as_text_V = np.concatenate([[0, 1], np.sort(chosen)])  # the trie's order is kept
        self.batch = jax.device_put(text_batch(self.queries_BxS))

    @functools.cached_property
    def text_params(self) -> Any:
        """Random weights in T5's own vocabulary."""
        model = self._model("text")
        batch = text_batch(self.queries_BxS[:1]) | {
            "decoder": {"inputs": np.zeros((1, self.table.length), np.int32)}
        }
        init = jax.jit(functools.partial(model.init, deterministic=True))
        return jax.device_get(nn.meta.unbox(init(jax.random.key(0), batch)["params"]))

    @functools.cached_property
    def text_table(self) -> DocidTable:
        """The docids in text tokens."""
        tokens = self.as_text_V[self.table.tokens]
        vocab_size = self.t5.vocab_size
        return dataclasses.replace(
            self.table, tokens=tokens.astype(token_dtype(vocab_size)), vocab_size=vocab_size
        )

    def ours(
        self, beam_size: int, space: str = "compact", free: bool = False, jump: bool = True
    ) -> Search:
        """Our search, constrained by the trie or not; without `jump` all levels one by one."""
        table = self.table if space == "compact" else self.text_table
        trie = build_trie(table)
        trie = jax.device_put(trie if jump else dataclasses.replace(trie, jump=None))
        constraint = Free(trie) if free else TrieConstraint(trie)
        model, params = self._model(space), self._params(space)
        if transposed_kernels.pays():  # as a `Retriever` does
            model, params = transposed_kernels.for_search(model, params)
        search = make_search(model, beam_size=beam_size)

        def run() -> Found:
            result = search(params, self.batch, constraint)
            return self._found(result.tokens, result.scores, space)

        return run

    def scores_of(self, tokens_BxMxL: np.ndarray) -> np.ndarray:
        """The log-probabilities of docids of the compact space, teacher forced; [B, M]."""
        model = self._model("compact")

        @jax.jit
        def score(params: Any, tokens_BxL: jax.Array) -> jax.Array:
            memory, mask = model.apply(params, self.batch, method="encode")
            inputs = shift_right(tokens_BxL)
            logits = model.apply(params, memory, mask, inputs, method="decode")
            return score_docids(logits, tokens_BxL)

        params = {"params": self._params("compact")}
        beams = np.moveaxis(tokens_BxMxL.astype(np.int32), 1, 0)
        return np.stack([np.asarray(score(params, tokens_BxL)) for tokens_BxL in beams], axis=1)

    def t5x(self, beam_size: int, space: str = "text", free: bool = False) -> Search:
        """The T5X-like search."""
        table = self.table if space == "compact" else self.text_table
        children = None if free else Children.of(table)
        search = make_t5x_search(self._model(space), beam_size, table.length)
        params = self._params(space)
        return lambda: self._found(*search(params, self.batch, children), space)

    def torch(self, beam_size: int, space: str = "text") -> Search:
        """PyTorch's `generate` with a dictionary of allowed tokens; see the extra `parity`."""
        import torch
        import transformers

        with tempfile.TemporaryDirectory() as directory:
            hf_t5.save_t5(directory, self.t5, self.text_params)
            model = transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()
        table = self.text_table
        if space == "compact":
            table = self.table
            _slice_head(model, torch.tensor(self.as_text_V))
        children: dict[tuple[int, ...], set[int]] = {}
        for docid in table.tokens.tolist():
            for level, token in enumerate(docid):
                children.setdefault(tuple(docid[:level]), set()).add(token)
        allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
        queries = torch.tensor(self.queries_BxS).long()

        def run() -> Found:
            with torch.no_grad():
                output = model.generate(
                    input_ids=queries,
                    attention_mask=torch.ones_like(queries),
                    num_beams=beam_size,
                    num_return_sequences=beam_size,
                    length_penalty=0.0,
                    do_sample=False,
                    max_new_tokens=table.length,
                    prefix_allowed_tokens_fn=lambda _, prefix: allowed[tuple(prefix.tolist()[1:])],
                    return_dict_in_generate=True,
                    output_scores=True,
                )
            shape = (len(queries), beam_size)
            tokens = output.sequences.numpy()[:, 1:].reshape(*shape, table.length)
            return self._found(tokens, output.sequences_scores.numpy().reshape(shape), space)

        return run

    def _model(self, space: str) -> DSIModel:
        vocab_size = self.t5.vocab_size if space == "text" else self.table.vocab_size
        return DSIModel(DSIConfig(self.t5, vocab_size, self.table.length, docid_space=space))

    def _params(self, space: str) -> Any:
        params = self.text_params
        if space == "compact":
            params = docid_vocabulary.initialize(params, self.as_text_V)
        return jax.device_put(jax.tree.map(jnp.asarray, params))

    def _found(self, tokens: Any, scores: Any, space: str) -> Found:
        tokens = np.asarray(tokens)
        if space == "text":
            tokens = np.searchsorted(self.as_text_V, tokens)
        return tokens, np.asarray(scores)


def assert_same(found: Found, expected: Found, name: str) -> None:
    """Stops unless both rankings are one, but for docids whose scores are near.

    Raises:
      SystemExit: if they are not.
    """
    if not np.allclose(found[1], expected[1], atol=TOLERANCE, rtol=0):
        worst = float(np.abs(found[1] - expected[1]).max())
        raise SystemExit(f"{name} has other scores: they differ by {worst:.2g}")
    for tokens, scores, theirs, their_scores in zip(*found, *expected, strict=True):
        score_of = dict(zip(map(tuple, theirs.tolist()), their_scores.tolist(), strict=True))
        last = float(their_scores[-1])
        for docid, score in zip(map(tuple, tokens.tolist()), scores.tolist(), strict=True):
            # A near tie with the last may have fallen off the end.
            if abs(score_of.get(docid, last) - score) > TOLERANCE:
                raise SystemExit(f"{name} ranks {docid} otherwise")


def _slice_head(model: Any, as_text_V: Any) -> None:
    """A PyTorch T5 whose decoder reads and writes these tokens only."""
    import torch

    rows = model.shared.weight[as_text_V].detach().clone()
    model.decoder.embed_tokens = torch.nn.Embedding.from_pretrained(rows)
    head = model.lm_head.weight[as_text_V].detach().clone()
    model.lm_head = torch.nn.Linear(head.shape[1], head.shape[0], bias=False)
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.vocab_size = model.generation_config.vocab_size = len(as_text_V)
