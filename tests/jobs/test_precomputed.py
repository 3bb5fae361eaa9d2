"""Embeddings as files: `infer --mode=embed` writes them, kinds that cluster documents read them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsi_jax import build_docids, infer
from dsi_jax.data.readers import load
from dsi_jax.docids.embedders.precomputed import Precomputed, keys_path, write_keys
from dsi_jax.docids.embedders.text import TfidfSvd
from dsi_jax.docids.table import DocidTable
from tests.fixtures.small_corpus import write_corpus

ROOT = Path(__file__).parents[2]
SEMANTIC = ("--gin_file=docids/semantic.gin", "--gin.semantic.Semantic.clusters=3",
            "--gin.semantic.Semantic.leaf_size=4")  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("precomputed") / "corpus_of_precomputed")


def embed(corpus, path, *options) -> int:
    arguments = [f"--gin.CORPUS={corpus}", f"--gin.EMBED_OUTPUT={path}", *options]
    return infer.main(["--mode=embed", "--gin_file=runs/embed.gin", *arguments])


def docids(corpus, model_dir, *options) -> DocidTable:
    arguments = [f"--gin.CORPUS={corpus}", f"--gin.MODEL_DIR={model_dir}", *options]
    assert build_docids.main(["--gin_file=experiments/own_text.gin", *SEMANTIC, *arguments]) == 0
    return DocidTable.load(model_dir / "docids")


def test_docids_of_a_file_are_those_of_its_embedder(corpus, tmp_path, capsys):
    path = tmp_path / "vectors.npy"
    assert embed(corpus, path) == 0
    documents = load.load_corpus(str(corpus))
    expected = TfidfSvd().embed(documents.document_texts())
    np.testing.assert_array_equal(np.load(path), expected)
    assert keys_path(path).read_text().splitlines() == list(documents.keys)
    assert not list(tmp_path.glob("*.partial"))
    options = ["--gin_file=embeddings/precomputed.gin", f"--gin.EMBEDDINGS={path}"]
    table = docids(corpus, tmp_path / "of_file", *options)
    np.testing.assert_array_equal(table.tokens, docids(corpus, tmp_path / "of_texts").tokens)
    assert table.parameters["embedder"]["name"] == "precomputed"
    # Another file is another table.
    np.save(path, expected[::-1])
    arguments = [f"--gin.CORPUS={corpus}", f"--gin.MODEL_DIR={tmp_path / 'of_file'}", *options]
    assert build_docids.main(["--gin_file=experiments/own_text.gin", *SEMANTIC, *arguments]) == 2
    assert "was built with embedder" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_found_by_their_keys(dtype, tmp_path):
    path = tmp_path / "vectors.npy"
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(dtype)
    np.save(path, vectors)
    in_order = Precomputed(str(path)).vectors(["v", "w", "x", "y", "z"])
    assert isinstance(in_order, np.memmap)  # nothing is read before it is needed
    np.testing.assert_array_equal(in_order, vectors)
    write_keys(path, ["a", "b", "ü", "d", "e"])
    found = Precomputed(str(path)).vectors(["d", "a", "ü"])
    np.testing.assert_array_equal(found, vectors[[3, 0, 2]])
    assert isinstance(Precomputed(str(path)).vectors(["a", "b", "ü", "d", "e"]), np.memmap)
    keys_path(path).write_text("a\nb\nü\nd\ne", encoding="utf-8")  # no line break at the end
    np.testing.assert_array_equal(Precomputed(str(path)).vectors(["e", "a"]), vectors[[4, 0]])
    with pytest.raises(ValueError, match=r"lacks 2 of the corpus's documents, .* 'f'"):
        Precomputed(str(path)).vectors(["a", "f", "g"])


def test_one_error_names_what_is_wrong(tmp_path):
    path = tmp_path / "vectors.npy"
    reader = Precomputed(str(path))
    with pytest.raises(FileNotFoundError, match=r"vectors\.npy does not exist"):
        reader.describe()
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"not a complete \.npy file"):
        reader.vectors(["a"])
    for bad, message in (
        (np.zeros(3, np.float32), r"shape \(3,\); expected a vector a document"),
        (np.zeros((3, 2), np.int64), "holds int64; expected float16 or float32"),
        (np.zeros((3, 2), np.float32), "holds 3 vectors, the corpus 1 documents"),
    ):
        np.save(path, bad)
        with pytest.raises(ValueError, match=message):
            reader.vectors(["a"])
    write_keys(path, ["a", "b"])
    with pytest.raises(ValueError, match="names 2 documents; expected the 3 of"):
        reader.vectors(["a"])
    write_keys(path, ["a", "b", "a"])
    with pytest.raises(ValueError, match="names the document 'a' twice"):
        reader.vectors(["a"])
    with pytest.raises(ValueError, match="has a line break"):
        write_keys(path, ["a\nb"])


def test_bad_input_is_refused_before_anything_is_embedded(corpus, tmp_path, capsys):
    assert embed(corpus, tmp_path / "vectors.npz") == 2
    assert "expected a name that ends in .npy" in capsys.readouterr().err
    gin_file = "--gin_file=runs/embed.gin"
    assert infer.main(["--mode=embed", gin_file, f"--gin.EMBED_OUTPUT={tmp_path / 'v.npy'}"]) == 2
    assert "neither CORPUS nor IMAGES" in capsys.readouterr().err
    assert embed(corpus, tmp_path / "v.npy", "--dry_run") == 0
    assert not list(tmp_path.iterdir())


EMBEDDER = """
import dataclasses
import zlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Checksums:
    one_by_one = True

    def embed(self, texts, seed=42):
        print("embeds", len(texts))
        return np.array([[zlib.crc32(t.encode()) % 1000, len(t)] for t in texts], np.float32)

    def describe(self):
        return {"name": "checksums"}
"""


@pytest.mark.devices
def test_two_hosts_share_the_documents(corpus, tmp_path):
    (tmp_path / "checksums_of_test.py").write_text(EMBEDDER)
    (tmp_path / "own.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "import checksums_of_test\n"
        "from dsi_jax.jobs import embed\n"
        "EMBEDDER = @checksums_of_test.Checksums()\n"
        "embed.embed.rows_a_part = 7\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def start(name: str, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dsi_jax.infer", "--mode=embed"]
        command += ["--gin_file=runs/embed.gin", "--gin_file=own.gin", f"--gin.CORPUS={corpus}"]
        command += [f"--gin.EMBED_OUTPUT={name}", *flags]
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)

    several = ["--multiprocess_gpu", f"--coordinator_address=localhost:{port}", "--process_count=2"]
    both = [start("two.npy", *several, f"--process_index={index}") for index in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    documents = load.load_corpus(str(corpus))
    counts = [
        sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("embeds"))
        for text in printed
    ]
    assert sum(counts) == len(documents) and min(counts) > 0.4 * len(documents)
    sys.path.insert(0, str(tmp_path))
    try:
        from checksums_of_test import Checksums
    finally:
        sys.path.remove(str(tmp_path))
    expected = Checksums().embed(documents.document_texts())
    np.testing.assert_array_equal(np.load(tmp_path / "two.npy"), expected)
    assert keys_path(tmp_path / "two.npy").read_text().splitlines() == list(documents.keys)
