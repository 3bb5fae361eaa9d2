"""Groups of parameters, by path, with learning rates of their own, layer-wise decay and freezing.

A borrowed encoder wants a far lower rate than a new decoder: IRGen (Zhang et al. 2023,
arXiv:2303.10126) trains its encoder at 0.01 of the decoder's.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dsi_jax.models import layer_stacking
from dsi_jax.models.encoders import registry


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """Parameters that are trained alike.

    Attributes:
      name: of the group, in messages and in model-info.txt.
      pattern: regex of the whole path of a parameter, whose parts are joined by `/`. Of several
        groups the first that matches has the parameter; what none matches has the rate 1.
      rate: factor on the learning rate, and so on the weight decay.
      decay: factor on the rate for each layer down from the top one of the pattern's layers
        (Clark et al. 2020, arXiv:2003.10555, section 3.1). Embeddings lie below the first layer,
        all else that is in no layer is at the top. None for one rate throughout.
      frozen: never changed, and neither gradients nor moments are computed for it.
      unfreeze_at: changed from this step on. Until then its gradients are computed, its moments
        gather, and it counts in the gradients' norm, so that it starts without a jolt.

    Raises:
      ValueError: a value is out of its range, or excludes another.
    """

    name: str
    pattern: str
    rate: float = 1.0
    decay: float | None = None
    frozen: bool = False
    unfreeze_at: int | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"{self}: pattern {self.pattern!r} is no regex: {error}") from error
        if not self.rate > 0:
            raise ValueError(f"{self}: rate is {self.rate}, expected more than 0 (or frozen)")
        if self.decay is not None and not 0 < self.decay <= 1:
            raise ValueError(f"{self}: decay is {self.decay}, expected one in (0, 1], or None")
        if self.unfreeze_at is not None and self.unfreeze_at < 1:
            raise ValueError(f"{self}: unfreeze_at is {self.unfreeze_at}, expected at least 1")
        if self.frozen and self.unfreeze_at is not None:
            raise ValueError(
                f"{self}: frozen for the whole run and unfreeze_at {self.unfreeze_at}; expected "
                "one of the two"
            )

    def __str__(self) -> str:
        return f"learning-rate group {self.name!r}"


REST = ParamGroup("all others", ".*")


@dataclasses.dataclass(frozen=True)
class Share:
    """What one parameter gets.

    Attributes:
      group: the group it belongs to.
      factor: on the learning rate: the group's rate and its decay.
    """

    group: ParamGroup
    factor: float


def resolve(groups: Sequence[ParamGroup], params: Any) -> Any:
    """The share of each parameter.

    Args:
      groups: in the order in which they are tried.
      params: tree of arrays or shapes.

    Returns:
      The same tree of `Share`s.

    Raises:
      ValueError: two groups have one name, a group is left without parameters, or its layers are
        such that `decay` has no meaning.
    """
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"learning-rate groups are named {names}, expected each name once")
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    owners = {path: _first_match(groups, path) for path in paths}
    factors: dict[str, float] = {}
    for group in (*groups, REST):
        members = [path for path, owner in owners.items() if owner is group]
        if not members and group is not REST:
            raise ValueError(
                f"{group}: pattern {group.pattern!r} matches no parameter that no group before it "
                f"matches; paths look like {', '.join(_some(paths))}"
            )
        factors |= _factors(group, members)
    return jax.tree.unflatten(tree, [Share(owners[path], factors[path]) for path in paths])


def with_groups(
    optimizer: optax.GradientTransformation, groups: Sequence[ParamGroup]
) -> optax.GradientTransformation:
    """The optimizer with the updates of each group scaled, delayed or left out.

    Args:
      optimizer: for all parameters alike, learning rate and weight decay included.
      groups: none leave the optimizer as it is.

    Returns:
      A transformation whose state has no moments of frozen parameters. It raises as `resolve`.
    """
    if not groups:
        return optimizer

    def is_moving(params: Any) -> Any:
        return jax.tree.map(lambda share: not share.group.frozen, resolve(groups, params))

    return optax.chain(optax.masked(optimizer, is_moving), _scale_by_group(groups))


def stop_frozen(groups: Sequence[ParamGroup], params: Any) -> Any:
    """The parameters, of which the frozen ones are constants to differentiation.

    So the backward pass of a frozen encoder is not computed at all.
    """
    if not any(group.frozen for group in groups):
        return params
    return jax.tree.map(
        lambda share, param: jax.lax.stop_gradient(param) if share.group.frozen else param,
        resolve(groups, params),
        params,
    )


def describe(groups: Sequence[ParamGroup], params: Any) -> list[str]:
    """A line a group, for model-info.txt: its parameters, its rates, and when it moves.

    Args:
      groups: none give no line.
      params: tree of arrays or shapes.

    Raises:
      ValueError: as `resolve`.
    """
    if not groups:
        return []
    sizes: dict[ParamGroup, list[tuple[float, int]]] = {group: [] for group in (*groups, REST)}
    shares = resolve(groups, params)
    for share, param in zip(jax.tree.leaves(shares), jax.tree.leaves(params), strict=True):
        sizes[share.group].append((share.factor, param.size))
    return [_line(group, members) for group, members in sizes.items() if members]


class _Updates(NamedTuple):
    """State of `_scale_by_group`: int32 [], updates made."""

    count: jax.Array


def _scale_by_group(groups: Sequence[ParamGroup]) -> optax.GradientTransformation:
    """Multiplies each update by its parameter's factor; none while the parameter is frozen.

    The count is kept whether a group waits or not, so that a run may be resumed with other rates
    and times.
    """

    def init(params: Any) -> _Updates:
        del params
        return _Updates(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: _Updates, params: Any = None) -> tuple[Any, _Updates]:
        del params

        def scale(share: Share, update: jax.Array) -> jax.Array:
            # -0.0, because -0.0 + 0.0 is another number than -0.0.
            none = jnp.full_like(update, -0.0)
            if share.group.frozen:
                return none
            scaled = update * share.factor
            if share.group.unfreeze_at is None:
                return scaled
            return jnp.where(state.count < share.group.unfreeze_at, none, scaled)

        scaled = jax.tree.map(scale, resolve(groups, updates), updates)
        return scaled, _Updates(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _first_match(groups: Sequence[ParamGroup], path: str) -> ParamGroup:
    return next((group for group in groups if re.fullmatch(group.pattern, path)), REST)


def _factors(group: ParamGroup, paths: Sequence[str]) -> Mapping[str, float]:
    """Path -> factor on the learning rate."""
    if group.decay is None:
        return dict.fromkeys(paths, group.rate)
    scanned = [path for path in paths if layer_stacking.is_stacked(path)]
    if scanned:
        raise ValueError(
            f"{group} has a decay, and {scanned[0]} holds all layers at once; expected a model "
            "without scan_layers, or no decay"
        )
    layer, below = _layer_patterns()
    layers = {path: match for path in paths if (match := layer.fullmatch(path))}
    stacks = sorted({match["stack"] for match in layers.values()})
    if len(stacks) != 1:
        raise ValueError(
            f"{group} has a decay, and pattern {group.pattern!r} matches the layers of "
            f"{' and '.join(stacks) or 'no stack'}; expected those of one stack"
        )
    top = max(int(match["index"]) for match in layers.values())

    def depth(path: str) -> int:
        if path in layers:
            return top - int(layers[path]["index"])
        return top + 1 if below.fullmatch(path) else 0

    return {path: group.rate * group.decay ** depth(path) for path in paths}


def _layer_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Returns the paths of parameters within layers, and of those below the first layer."""
    # `encoder/layers_3/...` of T5, `encoder/layers/3/...` of CLIP.
    names = "|".join(["layers", *registry.layers_names()])
    layer = re.compile(rf"(?P<stack>(.*/)?({names}))[/_](?P<index>\d+)/.+")
    # Embeddings, T5's of relative positions included, and what else an encoder has there.
    names = "|".join([r"\w*embed\w*", *registry.input_modules()])
    return layer, re.compile(rf"(.*/)?({names})(/.*)?")


def _line(group: ParamGroup, members: Iterable[tuple[float, int]]) -> str:
    factors, sizes = zip(*members, strict=True)
    line = f"{group.name}: {sum(sizes):,} parameters, "
    if group.frozen:
        return line + "frozen"
    low, high = min(factors), max(factors)
    line += f"learning rate x {high:g}" if low == high else f"learning rate x {low:g} to {high:g}"
    if group.unfreeze_at is not None:
        line += f", frozen until step {group.unfreeze_at:,}"
    return line


def _some(paths: Sequence[str], number: int = 4) -> list[str]:
    """A few paths from all over the tree."""
    return list(paths[:: -(-len(paths) // number)])
