"""Document embeddings for the docid kinds that cluster documents."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.inputs.tokenizer import SentencePieceTokenizer

_SHORTEST = 16  # batches are padded to 16, 32, 64, ... tokens: few programs, little padding
_BERT_LIKE = (
    "albert", "bert", "big_bird", "distilbert", "electra", "roberta", "roberta-prelayernorm",
    "roformer", "xlm-roberta",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TfidfSvd:
    """Latent semantic analysis: TF-IDF and a truncated SVD; needs no weights.

    Sublinear term frequencies, no English stop words, rows of length 1 (Deerwester et al. 1990).
    A text without any word of the vocabulary becomes the zero vector.

    Attributes:
      dimensions: D; lower where the corpus has fewer words or documents.
      max_words: the vocabulary keeps the most frequent words.
    """

    dimensions: int = 128
    max_words: int = 100_000

    def embed(self, texts: Sequence[str], seed: int = 42) -> np.ndarray:
        """See `Embedder`.

        Raises:
          ValueError: if no text holds a word that is not a stop word.
        """
        # scikit-learn takes a second to import: only who embeds pays for it.
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import normalize
        from threadpoolctl import threadpool_limits

        vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            stop_words="english",
            max_features=self.max_words,
            dtype=np.float32,
        )
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise ValueError(f"TF-IDF of {len(texts)} documents failed: {error}") from error
        if counts.shape[1] == 1:  # nothing to reduce, and TruncatedSVD refuses
            return normalize(counts.toarray())
        svd = TruncatedSVD(min(self.dimensions, *counts.shape), random_state=seed)
        # One thread sums in a fixed order: the same vectors every time. The variance explained, not
        # used here, is 0 / 0 where all documents are equal.
        with threadpool_limits(limits=1), np.errstate(invalid="ignore"):
            vectors = svd.fit_transform(counts)
        return normalize(vectors).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """See `Embedder`."""
        return {"name": "tfidf_svd", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class EncoderMeanPool:
    """The mean of a pretrained encoder's last hidden states over a text's tokens.

    The files are read, and a program compiled for each width of a batch, once an embedder. Between
    calls the weights are in the host's memory alone: whatever comes next has the device for itself.

    Attributes:
      directory: a model as Hugging Face saves it. T5 (v1.0 or v1.1) or mT5: config.json,
        safetensors and spiece.model or tokenizer.json. BERT-like (albert, bert, big_bird,
        distilbert, electra, roberta, roformer, xlm-roberta): config.json, its tokenizer, and a
        single model.safetensors in PyTorch's names.
      max_length: tokens of a text that are read, special tokens included.
      batch_size: texts encoded at a time.
      prefix: put before each text, for encoders trained with one ("passage: ").
    """

    directory: str
    max_length: int = 128
    batch_size: int = 64
    prefix: str = ""

    one_by_one: ClassVar[bool] = True

    def embed(self, texts: Sequence[str], seed: int = 42) -> np.ndarray:
        """See `Embedder`; nothing is random here.

        Raises:
          FileNotFoundError: if a file of the model is missing.
          ValueError: if the kind of model is not supported, weights are missing, the tokenizer has
            more ids than the model, `max_length` is beyond the model's, or there is no text.
        """
        del seed
        if not texts:
            raise ValueError("no documents to embed; expected at least one")
        encoder = self._encoder
        if self.max_length > encoder.max_length:
            raise ValueError(
                f"max_length is {self.max_length}, the encoder in {self.directory} reads at most "
                f"{encoder.max_length} tokens"
            )

        params = jax.device_put(encoder.params)
        # Texts of similar length share a batch, which is then padded to little more than theirs.
        order = np.argsort([len(text) for text in texts], kind="stable")
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        means = []
        for rows in batches:
            batch = [self.prefix + texts[row] for row in rows]
            batch += [""] * (self.batch_size - len(batch))
            tokens_BxS, mask_BxS = _trim(*encoder.tokenize(batch, self.max_length))
            means.append(np.asarray(encoder.means(params, tokens_BxS, mask_BxS))[: len(rows)])
        vectors_NxD = np.concatenate(means)
        return vectors_NxD[np.argsort(order)]

    @functools.cached_property
    def _encoder(self) -> "_Encoder":
        return _load_encoder(Path(self.directory))

    def describe(self) -> dict[str, Any]:
        """See `Embedder`; the model goes by the name of its directory."""
        return {
            "name": "encoder_mean_pool",
            "model": Path(self.directory).resolve().name,
            "max_length": self.max_length,
            "prefix": self.prefix,
        }


class _Encoder(NamedTuple):
    """A pretrained encoder as functions.

    Attributes:
      tokenize: (texts, length) -> tokens and mask, both int32 [B, length].
      means: (params, tokens, mask) -> the means of the last hidden states, float32 [B, D], under
        `jax.jit`.
      params: the parameters, float32 NumPy arrays.
      max_length: the longest S.
    """

    tokenize: Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]
    means: Callable[[Any, np.ndarray, np.ndarray], jax.Array]
    params: Any
    max_length: float


def _means(states: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`_Encoder.means` of (params, tokens, mask) -> the last hidden states [B, S, D]."""

    @jax.jit
    def means(params: Any, tokens_BxS: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        states_BxSxD = states(params, tokens_BxS, mask_BxS).astype(jnp.float32)
        weights_BxS = mask_BxS / jnp.maximum(mask_BxS.sum(axis=1, keepdims=True), 1)
        return jnp.einsum("bsd,bs->bd", states_BxSxD, weights_BxS)

    return means


def _load_encoder(directory: Path) -> _Encoder:
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no pretrained encoder: {path} does not exist")
    model_type = json.loads(path.read_text("utf-8")).get("model_type")
    if model_type in ("t5", "mt5"):
        return _load_t5(directory)
    if model_type in _BERT_LIKE:
        return _load_bert_like(directory)
    raise ValueError(
        f"{path}: cannot embed with a model of type {model_type!r}, expected t5, mt5 or one of "
        f"{', '.join(_BERT_LIKE)}"
    )


def _load_t5(directory: Path) -> _Encoder:
    from dsi_jax.convert.hf_t5 import load_t5
    from dsi_jax.models.dsi import DSIConfig, DSIModel

    config, params = load_t5(directory, encoder_only=True)
    # The decoder is not run, so its docids do not matter: in text space nothing else is needed.
    model = DSIModel(DSIConfig(config, config.vocab_size, docid_length=1, docid_space="text"))

    def states(params: Any, tokens_BxS: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        batch = {"text": {"tokens": tokens_BxS, "mask": mask_BxS}}
        return model.apply({"params": params}, batch, method="encode")[0]

    tokenize, num_ids = _load_tokenizer(directory)
    _check_vocabulary(directory, num_ids, config.vocab_size)
    return _Encoder(tokenize, _means(states), params, max_length=float("inf"))


def _load_bert_like(directory: Path) -> _Encoder:
    from flax.traverse_util import flatten_dict, unflatten_dict
    from safetensors.flax import load_file
    from transformers import AutoConfig, FlaxAutoModel
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    path = directory / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no pretrained encoder: {path} does not exist")
    model = FlaxAutoModel.from_config(AutoConfig.from_pretrained(directory))
    # Not `from_pretrained`: it would fill missing weights with random numbers, and only warn.
    found = flatten_dict(convert_pytorch_state_dict_to_flax(load_file(path), model))
    used = flatten_dict(model.params)
    # The pooler is often left out of a file, and its output is not used.
    lost = ["/".join(name) for name in used.keys() - found.keys() if name[0] != "pooler"]
    if lost:
        raise ValueError(f"{path} lacks {sorted(lost)}")
    used |= {name: found[name].astype(jnp.float32) for name in used.keys() & found.keys()}
    params = jax.device_get(unflatten_dict(used))
    model.params = params  # else it would keep random ones on the device
    takes_types = "token_type_ids" in inspect.signature(model.__call__).parameters

    def states(params: Any, tokens_BxS: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        types = {"token_type_ids": jnp.zeros_like(tokens_BxS)} if takes_types else {}
        return model(tokens_BxS, mask_BxS, params=params, **types).last_hidden_state

    tokenize, num_ids = _load_tokenizer(directory)
    _check_vocabulary(directory, num_ids, model.config.vocab_size)
    max_length = model.config.max_position_embeddings
    if "roberta" in model.config.model_type:  # its positions start after the padding id
        max_length -= model.config.pad_token_id + 1
    return _Encoder(tokenize, _means(states), params, max_length)


def _load_tokenizer(directory: Path) -> tuple[Callable[..., tuple[np.ndarray, np.ndarray]], int]:
    """The tokenizer beside a model, and the number of its ids."""
    if (directory / "spiece.model").exists():
        ours = SentencePieceTokenizer.from_file(directory / "spiece.model")

        def tokenize(texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
            tokens_BxS = ours.encode_batch(texts, length)
            return tokens_BxS, ours.mask(tokens_BxS).astype(np.int32)

        return tokenize, ours.vocab_size

    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def tokenize(texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        encoded = theirs(
            texts, truncation=True, max_length=length, padding="max_length", return_tensors="np"
        )
        names = ("input_ids", "attention_mask")
        tokens_BxS, mask_BxS = (encoded[name].astype(np.int32) for name in names)
        return tokens_BxS, mask_BxS

    return tokenize, len(theirs)


def _check_vocabulary(directory: Path, num_ids: int, vocab_size: int) -> None:
    if num_ids > vocab_size:
        raise ValueError(
            f"the tokenizer in {directory} has {num_ids} ids, its model only {vocab_size}"
        )


def _trim(tokens_BxS: np.ndarray, mask_BxS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts padding off, to a power of two of tokens or to all of them."""
    longest = int(mask_BxS.sum(axis=1).max())
    width = max(_SHORTEST, 1 << (longest - 1).bit_length())
    return tokens_BxS[:, :width], mask_BxS[:, :width]
