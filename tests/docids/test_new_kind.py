"""The docid kind of docs/add_a_docid_kind.md, and how the package finds kinds and columns."""

import re
from pathlib import Path

import numpy as np
import pytest

from dsi_jax import build_docids
from dsi_jax.docids import text_space
from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds import registry
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.docids.kinds.title import Title
from dsi_jax.docids.spelling import Spelled
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.tokenizer import ByteTokenizer
from tests.fixtures.installed import ROOT
from tests.fixtures.small_corpus import write_corpus
from tests.jobs.test_train_command import arguments

FILES = Path(__file__).with_name("new_kind")
PAGE = ROOT / "docs" / "add_a_docid_kind.md"


def test_the_page_shows_the_tested_files():
    # A paragraph that begins with the name of a file, then its content.
    block = r"(?<=\n\n)`([\w./]+\.\w+)`(?:[^\n]*\n)+?\n```\w*\n(.*?)^```"
    blocks = dict(re.findall(block, PAGE.read_text(), re.M | re.S))
    names = ("initials.py", "initials.gin", "test_initials.py")
    assert blocks == {name: (FILES / name).read_text() for name in names}


def test_the_command_builds_the_kind_of_the_page(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "dsi_jax")
    monkeypatch.chdir(FILES)
    monkeypatch.syspath_prepend(FILES)
    corpus = write_corpus(tmp_path / "corpus_of_new_kind")
    options = ["--gin_file=initials.gin", "--gin_bindings=initials.Initials.most = 60"]
    assert build_docids.main(arguments(corpus, tmp_path / "m", *options)) == 0
    table = DocidTable.load(tmp_path / "m" / "docids")
    assert (table.kind, table.parameters["most"], table.length) == ("initials", 60, 2)
    assert "initials docids" in caplog.text


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "named"),
    [
        ("titles", "titles"),
        ("texts", "texts"),
        ("embeddings", "embeddings"),
        ("tokenizer", "a tokenizer"),
        ("classes", "classes"),
    ],
)
def test_a_column_that_is_not_there_is_named(column, named):
    documents = DocumentColumns(["a"])
    with pytest.raises(ValueError, match=f"need {named} of the documents, found none"):
        getattr(documents, column)


def test_a_kind_asks_only_for_what_it_is_made_of():
    class Nothing(DocumentColumns):
        def _lacks(self, column):
            raise AssertionError(column)

    assert Atomic().build(Nothing(["a", "b"])).num_documents == 2
    with pytest.raises(AssertionError, match="embeddings"):
        Semantic().build(Nothing(["a", "b"]))


def test_a_kind_without_name_is_refused():
    class Nameless(DocidBuilder):
        def build(self, documents, seed=42):
            raise NotImplementedError

    with pytest.raises(TypeError, match="kind"):
        Nameless()


# --- kinds by name -------------------------------------------------------------------------------


def table_of(kind: str) -> DocidTable:
    return DocidTable.from_codes(
        np.array([[0], [1]]), num_codes=2, keys="ab", kind=kind, parameters={}, corpus_hash=""
    )


def test_kinds_are_found_by_the_name_in_the_table():
    assert registry.kind_of(table_of("title")) is Title
    assert registry.kind_of(table_of("another project's")) is DocidBuilder
    assert DocidBuilder.text_tokens(table_of("x"), ByteTokenizer()).tolist() == [0, 1, -1, -1]


def test_a_registered_kind_spells_its_docids_its_way(monkeypatch):
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))

    @registry.register_kind
    class Letters(DocidBuilder):
        kind = "letters"

        def build(self, documents, seed=42):
            raise NotImplementedError

        @classmethod
        def spell(cls, table, tokenizer, vocab_size):
            tokens_Nx2 = np.array([[ord("a") + 3, 1], [ord("b") + 3, 1]])
            return Spelled(tokens_Nx2, vocab_size, True)

    spelled = text_space.spell(table_of("letters"), ByteTokenizer())
    assert spelled.tokens.tolist() == [[100, 1], [101, 1]]
    assert registry.register_kind(Letters) is Letters  # again
    monkeypatch.setattr(Letters, "kind", "atomic")
    with pytest.raises(ValueError, match=r"'atomic', which is .*atomic\.Atomic; expected another"):
        registry.register_kind(Letters)
