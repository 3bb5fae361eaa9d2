"""Documents that precompile makes up: every docid kind can be built of them."""

import pytest

from dsi_jax.docids import text_space
from dsi_jax.docids.kinds.learned import IRGen
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.kinds.quantized import ResidualQuantized
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.docids.kinds.title import Title
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.jobs.precompile.synthetic_columns import SyntheticColumns

SMALL = {"levels": 2, "codes": 4}
KINDS = [NaiveString(), Title(), Semantic(leaf_size=5), ResidualQuantized(**SMALL)]
KINDS.append(IRGen(**SMALL, supervision="classes", epochs=1, hidden=8))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_is_built_of_synthetic_documents(kind):
    tokenizer = ByteTokenizer()
    table = kind.build(SyntheticColumns(40, tokenizer, seed=0), seed=0)
    table.validate()
    assert (table.kind, table.num_documents) == (kind.kind, 40)
    assert text_space.spell(table, tokenizer).num_documents == 40
