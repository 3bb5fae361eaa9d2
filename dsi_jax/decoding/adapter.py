"""Beam search bound to a `dsi_jax.models.dsi.DSIModel`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from dsi_jax.decoding.beam import BeamResult, DecodeFns, beam_search
from dsi_jax.decoding.constraint import Constraint

SearchFn = Callable[[Any, Mapping[str, Any], Constraint], BeamResult]


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
    model: nn.Module, *, beam_size: int, renormalize: bool = False, out_sharding: Any = None
) -> SearchFn:
    """Jits encoding and beam search as one program.

    Args:
      model: a `DSIModel`.
      beam_size: M.
      renormalize: see `beam_search`.
      out_sharding: where the result lies; None leaves it to the compiler.

    Returns:
      ``search(params, batch, constraint) -> BeamResult``. ``batch`` is what ``model.encode``
      takes. Keep ``constraint`` on the device (``jax.device_put``): it is an argument, so that
      another table of the same shapes compiles nothing.
    """

    def search(params: Any, batch: Mapping[str, Any], constraint: Constraint) -> BeamResult:
        memory, mask = model.apply({"params": params}, batch, method="encode")
        return beam_search(
            for_model(model, params),
            memory,
            mask,
            constraint=constraint,
            beam_size=beam_size,
            renormalize=renormalize,
        )

    return jax.jit(search, out_shardings=out_sharding)
