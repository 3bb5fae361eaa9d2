"""Docids from learned residual quantizers: rqvae (reconstruction) and irgen (classification).

Both start as the kind rq: the feature map is the identity and the codebooks are those of residual
k-means. What they learn is where to go from there.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsi_jax.docids.clustering import residual_vq
from dsi_jax.docids.clustering.kmeans import residual_kmeans
from dsi_jax.docids.clustering.neighbours import nearest_rows
from dsi_jax.docids.clustering.residual_vq import Codebooks, Rounded
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.quantized_base import CodedKind, Quantized

SUPERVISIONS = ("neighbours", "classes")

# More documents are refused: each is compared with each, for so many of 768 dimensions two hours
# of a core, and has a row in two classifiers, 9 GB on the device with Adam's moments.
MOST_BY_NEIGHBOURS = 500_000

_ROWS = 1 << 16  # documents that are mapped at a time: their hidden layers are large


@dataclasses.dataclass(frozen=True)
class LearnedKind(CodedKind):
    """A quantizer trained by gradients; a kind defines `kind`, `params` and `loss`.

    The embeddings are centred and scaled to a mean squared length of 1 first, which changes no
    neighbour and makes the weights below mean the same for all embeddings. After training, a few
    iterations of residual k-means from the learned codebooks on all documents end the fit.

    Attributes:
      epochs: passes over the documents.
      batch_size: documents a step.
      learning_rate: of Adam at the start; falls to 0 along a cosine.
      hidden: width of the hidden layer of feature map and decoder.
      commitment: weight of the squared distance between a feature and each prefix of its codes.
      decay: of the codebooks' moving averages, a step.
      least_use: a code that is used less than this part of an equal share starts anew.
      refits: iterations of k-means at the end.
    """

    epochs: int = 80
    batch_size: int = 512
    learning_rate: float = 3e-3
    hidden: int = 512
    commitment: float = 0.25
    decay: float = 0.9
    least_use: float = 0.1
    refits: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.epochs, self.batch_size, self.hidden, self.refits) < 1:
            raise ValueError(f"{self}: expected epochs, batch_size, hidden and refits >= 1")
        if not (self.learning_rate > 0 and self.commitment >= 0):
            raise ValueError(f"{self}: expected learning_rate > 0 and commitment >= 0")
        if not (0 <= self.decay < 1 and 0 <= self.least_use < 1):
            raise ValueError(f"{self}: expected decay and least_use in [0, 1)")

    @abc.abstractmethod
    def params(self, points_NxD: jax.Array, targets_NxP: np.ndarray, key: jax.Array) -> Any:
        """The parameters at the start, those of `features` among them."""

    @abc.abstractmethod
    def features(self, params: Any, points_BxD: jax.Array) -> jax.Array:
        """What is quantized, float32 [B, D]."""

    @abc.abstractmethod
    def loss(
        self,
        params: Any,
        features_BxD: jax.Array,
        prefixes_LxBxD: jax.Array,
        points_BxD: jax.Array,
        targets_B: jax.Array,
    ) -> jax.Array:
        """The loss of a batch, but for the commitment.

        Args:
          params: the parameters.
          features_BxD: the features.
          prefixes_LxBxD: the prefixes of their codes, straight through.
          points_BxD: the centred and scaled embeddings.
          targets_B: for each document one of its targets.
        """

    def targets(self, documents: DocumentColumns) -> np.ndarray:
        """Returns the targets of each document, of which each step draws one; int32 [N, P].

        By default a document's only target is its row.

        Args:
          documents: the columns.
        """
        return np.arange(len(documents), dtype=np.int32)[:, None]

    def quantize(self, documents: DocumentColumns, seed: int) -> Quantized:
        """See `CodedKind`; the seed decides parameters, codebooks and the order of documents."""
        targets_NxP = self.targets(documents)
        points_NxD = _centred(np.asarray(documents.embeddings, np.float32))
        books, features_NxD, restarted = self._train(points_NxD, targets_NxP, seed)
        codes_NxL, vectors_LxKxD = residual_kmeans(
            features_NxD,
            self.levels,
            self.codes,
            seed=seed,
            iterations=self.refits,
            start=np.asarray(books.vectors),
            engine=self.resolved_engine(),
        )
        return Quantized(codes_NxL, vectors_LxKxD, features_NxD, {"restarted": restarted})

    def _train(
        self, points_NxD: np.ndarray, targets_NxP: np.ndarray, seed: int
    ) -> tuple[Codebooks, np.ndarray, int]:
        """Codebooks, features of all documents, and how often a code was restarted."""
        batch_size = min(self.batch_size, len(points_NxD))
        steps = len(points_NxD) // batch_size
        rng = np.random.default_rng(seed)
        params_key, restart_key = jax.random.split(jax.random.key(seed))
        points = jnp.asarray(points_NxD)
        params = self.params(points, targets_NxP, params_key)
        features = jax.jit(self.features)
        books = residual_vq.fit_codebooks(
            _by_blocks(functools.partial(features, params), points),
            self.levels,
            self.codes,
            batch_size=batch_size,
            seed=seed,
            engine=self.resolved_engine(),
        )
        optimizer = optax.adam(optax.cosine_decay_schedule(self.learning_rate, steps * self.epochs))
        state = _State(params, optimizer.init(params), books, restart_key, jnp.int32(0))
        epoch = jax.jit(functools.partial(_epoch, self, optimizer), donate_argnums=0)
        for _ in range(self.epochs):
            rows_TxB = rng.permutation(len(points_NxD))[: steps * batch_size]
            rows_TxB = rows_TxB.reshape(steps, batch_size)
            drawn_TxB = rng.integers(targets_NxP.shape[1], size=rows_TxB.shape)
            state = epoch(state, points, rows_TxB, targets_NxP[rows_TxB, drawn_TxB])
        found = _by_blocks(functools.partial(features, state.params), points)
        if not np.isfinite(found).all():
            raise ValueError(
                f"{self.kind} docids: training diverged; a learning_rate below "
                f"{self.learning_rate} may help"
            )
        return state.books, found, int(state.restarted)


class _State(NamedTuple):
    params: Any
    optimizer: Any
    books: Codebooks
    key: jax.Array
    restarted: jax.Array


def _epoch(
    kind: LearnedKind,
    optimizer: optax.GradientTransformation,
    state: _State,
    points_NxD: jax.Array,
    rows_TxB: jax.Array,
    targets_TxB: jax.Array,
) -> _State:
    def loss(
        params: Any, books: Codebooks, points_BxD: jax.Array, targets_B: jax.Array
    ) -> tuple[jax.Array, Rounded]:
        features_BxD = kind.features(params, points_BxD)
        rounded = residual_vq.round_residuals(books.vectors, jax.lax.stop_gradient(features_BxD))
        prefixes_LxBxD = residual_vq.straight_through(features_BxD, rounded.prefixes)
        committed = ((features_BxD - rounded.prefixes) ** 2).sum(-1).mean(-1).sum()
        own = kind.loss(params, features_BxD, prefixes_LxBxD, points_BxD, targets_B)
        return own + kind.commitment * committed, rounded

    def step(state: _State, batch: tuple[jax.Array, jax.Array]) -> tuple[_State, None]:
        rows_B, targets_B = batch
        gradients, rounded = jax.grad(loss, has_aux=True)(
            state.params, state.books, points_NxD[rows_B], targets_B
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        key, restart_key = jax.random.split(state.key)
        books = residual_vq.follow(state.books, rounded, kind.decay)
        books, restarted = residual_vq.restart_dead(books, rounded, restart_key, kind.least_use)
        params = optax.apply_updates(state.params, updates)
        return _State(params, optimizer_state, books, key, state.restarted + restarted), None

    return jax.lax.scan(step, state, (rows_TxB, targets_TxB))[0]


def _by_blocks(function: Callable[[jax.Array], jax.Array], points_NxD: jax.Array) -> np.ndarray:
    """What a function makes of each point, float32 [N, D]."""
    found_NxD = np.empty(points_NxD.shape, np.float32)
    for start in range(0, len(points_NxD), _ROWS):
        found_NxD[start : start + _ROWS] = function(points_NxD[start : start + _ROWS])
    return found_NxD


class _NearIdentity(nn.Module):
    """``x + W2 gelu(W1 x)``, which starts as the identity: W2 starts at 0."""

    hidden: int

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        hidden_BxF = nn.gelu(nn.Dense(self.hidden)(x_BxD))
        return x_BxD + nn.Dense(x_BxD.shape[-1], kernel_init=nn.initializers.zeros)(hidden_BxF)


@dataclasses.dataclass(frozen=True)
class RQVAE(LearnedKind):
    """Residual-quantized autoencoder (TIGER, Rajput et al. 2023, section 3.1; Lee et al. 2022).

    The decoder restores the embedding from every prefix of the codes, and the loss is the mean of
    the squared errors: first codes then say as much as they can. TIGER decodes the whole code
    alone, `every_prefix = False`.

    Attributes:
      every_prefix: whether all prefixes are decoded, or the whole code alone.
    """

    every_prefix: bool = True

    kind: ClassVar[str] = "rqvae"

    def params(self, points_NxD: jax.Array, targets_NxP: np.ndarray, key: jax.Array) -> Any:
        """See `LearnedKind`: an encoder and a decoder."""
        del targets_NxP
        keys = dict(zip(("encoder", "decoder"), jax.random.split(key), strict=True))
        net = _NearIdentity(self.hidden)
        return {name: net.init(key, points_NxD[:1]) for name, key in keys.items()}

    def features(self, params: Any, points_BxD: jax.Array) -> jax.Array:
        """See `LearnedKind`."""
        return _NearIdentity(self.hidden).apply(params["encoder"], points_BxD)

    def loss(
        self,
        params: Any,
        features_BxD: jax.Array,
        prefixes_LxBxD: jax.Array,
        points_BxD: jax.Array,
        targets_B: jax.Array,
    ) -> jax.Array:
        """See `LearnedKind`."""
        del features_BxD, targets_B
        decoded = prefixes_LxBxD if self.every_prefix else prefixes_LxBxD[-1:]
        restored = _NearIdentity(self.hidden).apply(params["decoder"], decoded)
        return ((restored - points_BxD) ** 2).sum(-1).mean()


@dataclasses.dataclass(frozen=True)
class IRGen(LearnedKind):
    """IRGen's semantic tokenizer (Zhang et al. 2023, section 3.1): codes that tell classes apart.

    One linear classifier reads the feature, another every prefix of its codes. IRGen trains a
    vision tower beneath; here the embeddings are given and a map of them is trained. Its features
    have unit length, and the classifiers start at the directions of the classes' mean features.

    What the classes are depends on `supervision`:
      "classes": the classes are the documents' column of that name, as in IRGen.
      "neighbours": every document is a class, and a document belongs, each step anew, to one drawn
        from itself and its nearest neighbours by embedding. Codes then say who is near whom. For at
        most `MOST_BY_NEIGHBOURS` documents.

    The softmax is over the classes that the batch's documents belong to: with many classes a
    sample, with few nearly always all of them.

    Attributes:
      supervision: "neighbours" or "classes".
      neighbours: how many nearest documents are drawn from.
      temperature: of the softmax over cosines with which training starts.
    """

    commitment: float = 0.1
    supervision: str = "neighbours"
    neighbours: int = 10
    temperature: float = 0.1

    kind: ClassVar[str] = "irgen"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.supervision not in SUPERVISIONS:
            raise ValueError(f"supervision is {self.supervision!r}; expected one of {SUPERVISIONS}")
        if self.neighbours < 1 or not self.temperature > 0:
            raise ValueError(f"{self}: expected neighbours >= 1 and temperature > 0")

    def check_count(self, num_documents: int) -> None:
        """See `DocidBuilder`."""
        super().check_count(num_documents)
        if self.supervision == "neighbours" and num_documents > MOST_BY_NEIGHBOURS:
            raise ValueError(
                f"irgen docids by neighbours are for at most {MOST_BY_NEIGHBOURS:,} documents, "
                f"found {num_documents:,}: all pairs are compared, and each document has a row in "
                "two classifiers; take supervision = 'classes', or the kind rqvae or rq"
            )

    def targets(self, documents: DocumentColumns) -> np.ndarray:
        """See `LearnedKind`: the document and its nearest neighbours, or its class.

        Raises:
          ValueError: the classes are missing, or not one for each document.
        """
        count = len(documents)
        if self.supervision == "neighbours":
            near_NxP = nearest_rows(
                documents.embeddings, np.arange(count), min(self.neighbours, count - 1)
            )
            targets_NxP = np.concatenate([np.arange(count)[:, None], near_NxP], axis=1)
        else:
            classes = documents.classes
            if classes.shape != (count,):
                raise ValueError(
                    f"irgen docids by classes need one for each of the {count} documents, "
                    f"found the shape {classes.shape}"
                )
            targets_NxP = np.unique(classes, return_inverse=True)[1].reshape(-1, 1)
        return targets_NxP.astype(np.int32)

    def params(self, points_NxD: jax.Array, targets_NxP: np.ndarray, key: jax.Array) -> Any:
        """See `LearnedKind`: a feature map and two classifiers."""
        net = {"map": _NearIdentity(self.hidden).init(key, points_NxD[:1])}
        features_NxD = _by_blocks(_unit, points_NxD)
        sums_CxD = np.zeros((targets_NxP.max() + 1, points_NxD.shape[1]), np.float32)
        for targets_N in targets_NxP.T:
            np.add.at(sums_CxD, targets_N, features_NxD)
        # Two arrays, not one twice: the state is donated.
        means = (_unit(jnp.asarray(sums_CxD)) / self.temperature for _ in range(2))
        return net | dict(zip(("of_feature", "of_prefix"), means, strict=True))

    def features(self, params: Any, points_BxD: jax.Array) -> jax.Array:
        """See `LearnedKind`."""
        return _unit(_NearIdentity(self.hidden).apply(params["map"], points_BxD))

    def loss(
        self,
        params: Any,
        features_BxD: jax.Array,
        prefixes_LxBxD: jax.Array,
        points_BxD: jax.Array,
        targets_B: jax.Array,
    ) -> jax.Array:
        """See `LearnedKind`."""
        del points_BxD
        of_prefix = functools.partial(
            _classification, params["of_prefix"][targets_B], targets_B=targets_B
        )
        own = _classification(params["of_feature"][targets_B], features_BxD, targets_B=targets_B)
        return own + jax.vmap(of_prefix)(prefixes_LxBxD).sum()


def _classification(
    weights_BxD: jax.Array, features_BxD: jax.Array, *, targets_B: jax.Array
) -> jax.Array:
    """Mean cross-entropy of document b with class b, among the classes of the batch.

    Args:
      weights_BxD: the classifier's rows for the classes `targets`.
      features_BxD: what is classified.
      targets_B: the classes; one that occurs n times enters the softmax once, as n nths.
    """
    logits_BxB = features_BxD @ weights_BxD.T
    times_B = (targets_B[:, None] == targets_B).sum(-1)
    normalizer_B = jax.nn.logsumexp(logits_BxB - jnp.log(times_B), axis=-1)
    return (normalizer_B - jnp.diagonal(logits_BxB)).mean()


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1; the zero vector stays."""
    squared = (x**2).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def _centred(embeddings_NxD: np.ndarray) -> np.ndarray:
    """Mean 0, mean squared length 1; equal vectors become zeros."""
    centred_NxD = embeddings_NxD - embeddings_NxD.mean(axis=0)
    scale = np.sqrt(np.einsum("nd,nd->n", centred_NxD, centred_NxD).mean())
    if scale > 0:
        centred_NxD /= scale
    return centred_NxD
