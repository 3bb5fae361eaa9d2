"""Search bound to a `dsi_jax.models.dsi.DSIModel`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from dsi_jax.decoding.constraint import Constraint
from dsi_jax.decoding.levels import DecodeFns
from dsi_jax.decoding.result import BeamResult
from dsi_jax.decoding.strategies import BeamSearch, Decoding

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
        cache: dict[str, Any], tokens_BxM: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        return model.apply({"params": params}, cache, tokens_BxM, position, method="decode_step")

    return DecodeFns(init_cache, step)


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
      decoding: how docids are got from the decoder.
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
        return decoding(
            for_model(model, params),
            memory,
            mask,
            constraint=constraint,
            beam_size=beam_size,
            draw=draw,
        )

    return jax.jit(search, out_shardings=out_sharding)
