"""Every docid kind by its name."""

from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.docids.kinds.learned import RQVAE, IRGen
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.kinds.quantized import ProductQuantized, ResidualQuantized
from dsi_jax.docids.kinds.random_control import Random
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.docids.kinds.title import Title
from dsi_jax.docids.table import DocidTable

_KINDS: dict[str, type[DocidBuilder]] = {
    kind.kind: kind
    for kind in (
        *(Atomic, NaiveString, Semantic, ProductQuantized, ResidualQuantized),
        *(RQVAE, IRGen, Title, Random),
    )
}


def register_kind(kind: type[DocidBuilder]) -> type[DocidBuilder]:
    """Registers another project's docid kind, so that its class methods are found for its tables.

    Needed only where a kind overrides `DocidBuilder.spell` or `DocidBuilder.text_tokens`.

    Args:
      kind: the class; returned as it is, so that this may stand above it as a decorator.

    Raises:
      ValueError: another class has its name.
    """
    known = _KINDS.setdefault(kind.kind, kind)
    if known is not kind:
        raise ValueError(
            f"{kind.__name__} cannot be registered as docid kind {kind.kind!r}, which is "
            f"{known.__module__}.{known.__name__}; expected another name"
        )
    return kind


def kind_of(table: DocidTable) -> type[DocidBuilder]:
    """Finds the class of a table's kind; `DocidBuilder`, with its defaults, where it is unknown."""
    return _KINDS.get(table.kind, DocidBuilder)
