"""Search bound to a `dsi_jax.models.dsi.DSIModel`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.decoding.constraint import Constraint
from dsi_jax.decoding.decode_loop import DecodeFns
from dsi_jax.decoding.result import BeamResult
from dsi_jax.decoding.score import score_tokens
from dsi_jax.decoding.strategies import BeamSearch, Decoding, Queries

_MOST_LOGITS = 1 << 25  # 128 MiB

SearchFn = Callable[..., BeamResult]


def for_model(model: nn.Module, params: Any) -> DecodeFns:
    """The decoder of a `DSIModel` with ``params`` bound.

    Call it inside the function that is jitted, or the parameters become constants of the program.
    """

    def init_cache(
        memory: jax.Array, mask: jax.Array, num_beams: int, length: int
    ) -> dict[str, Any]:
        return model.apply(
            {"params": params},
            memory,
            mask,
            num_beams=num_beams,
            length=length,
            method="init_cache",
        )

    def step(
        cache: dict[str, Any],
        tokens_BxM: jax.Array,
        position: jax.Array | int,
        lineage_BxMxL: jax.Array,
    ) -> tuple[jax.Array, dict[str, Any]]:
        return model.apply(
            {"params": params}, cache, tokens_BxM, position, lineage_BxMxL, method="decode_step"
        )

    def score(
        cache: dict[str, Any],
        inputs_BxMxT: jax.Array,
        targets_BxMxT: jax.Array,
        position: int,
        lineage_BxMxL: jax.Array,
    ) -> jax.Array:
        args = cache, inputs_BxMxT, position, lineage_BxMxL
        hidden_BxMxTxD, _ = model.apply({"params": params}, *args, method="decode_positions")

        def of_position(args: tuple[jax.Array, jax.Array]) -> jax.Array:
            hidden_BxMxD, targets_BxM = args
            logits_BxMxV = model.apply({"params": params}, hidden_BxMxD, method="head")
            return score_tokens(logits_BxMxV, targets_BxM)

        # As many positions at once as keep the logits in bounds.
        batch_size, num_beams, count = inputs_BxMxT.shape
        logits = batch_size * num_beams * model.config.docid_vocab_size
        by_position = jnp.moveaxis(hidden_BxMxTxD, 2, 0), jnp.moveaxis(targets_BxMxT, 2, 0)
        at_once = min(max(_MOST_LOGITS // logits, 1), count)
        return jax.lax.map(of_position, by_position, batch_size=at_once).sum(0)

    return DecodeFns(init_cache, step, score)


def make_search(
    model: nn.Module,
    *,
    beam_size: int,
    decoding: Decoding = BeamSearch(),
    out_sharding: Any = None,
) -> SearchFn:
    """Jits encoding and search as one program.

    Args:
      model: a `DSIModel`.
      beam_size: M.
      decoding: the decoding strategy.
      out_sharding: where the result lies; None leaves it to the compiler.

    Returns:
      ``search(params, batch, constraint, draw=0) -> BeamResult``. ``batch`` is what
      ``model.encode`` takes. Keep ``constraint`` on the device (``jax.device_put``): it is an
      argument, so that another table of the same shapes compiles nothing. ``draw`` numbers the
      searches of a strategy that is random.
    """

    def search(
        params: Any, batch: Mapping[str, Any], constraint: Constraint, draw: jax.Array | int = 0
    ) -> BeamResult:
        memory, mask = model.apply({"params": params}, batch, method="encode")
        queries = Queries(for_model(model, params), memory, mask)
        return decoding(queries, constraint, beam_size, draw)

    return jax.jit(search, out_shardings=out_sharding)
