"""Finds a corpus of Natural Questions where it was built before, or builds it from TFDS."""

from __future__ import annotations

import functools
import itertools
import logging
import operator
from collections.abc import Iterator
from pathlib import Path

from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.readers import corpus_store, tfds_data
from dsi_jax.data.readers.natural_questions import build, specs
from dsi_jax.data.readers.natural_questions import records as records_lib
from dsi_jax.storage import string_columns

logger = logging.getLogger(__name__)

_NAME, _CONFIG, _SIZE = "natural_questions", "default", "42 GiB"
_RECORDS = "records.arrow"
_ROWS_PER_BATCH = 4_096  # 32 MB of text: all that is in memory of the records
_LOG_EVERY = 20_000


def load(spec: specs.NQSpec, seed: int = 42) -> corpus_lib.Corpus:
    """Opens the corpus in `tfds_data.cache_dir()`, where the first call builds it.

    The first corpus reads all of TFDS `natural_questions` once and keeps what any of them needs of
    it, 3 GB; the others are made from that in minutes. Warns where counts differ from those
    published.

    Args:
      spec: which corpus.
      seed: not used: named corpora are the same for every seed.

    Raises:
      FileNotFoundError: if neither the corpus nor TFDS data is there; the message says what to run.
      ValueError: if the data is incomplete or bad, or what was built is damaged or of another
        specification.
    """
    del seed
    cache = tfds_data.cache_dir() / _NAME
    directory = cache / spec.name
    origin = spec.recipe()
    if not corpus_store.exists(directory):
        try:
            corpus = build.build(spec, _records(cache))
        except ValueError as error:
            hint = f"({cache / _RECORDS} was read; remove it to read TFDS anew)"
            raise ValueError(f"{error} {hint}") from error
        _check_hash(spec, corpus_store.content_hash(corpus), "the data gives it")
        logger.info("%s: %d documents; writing %s", spec.name, len(corpus), directory)
        corpus_store.save(corpus, directory, origin)
    corpus, manifest = corpus_store.load(directory)
    if manifest["origin"] != origin:
        raise ValueError(
            f"{directory} was built as {manifest['origin']}; expected {origin}: remove the "
            "directory to build it anew"
        )
    _check_hash(spec, manifest["sha256"], f"{directory} has")
    for line in specs.discrepancies(spec, corpus):
        logger.warning("%s", line)
    return corpus


CORPORA = {name: functools.partial(load, spec) for name, spec in specs.SPECS.items()}


def _check_hash(spec: specs.NQSpec, found: str, where: str) -> None:
    if spec.sha256 not in (None, found):
        raise ValueError(
            f"corpus '{spec.name}': {where} the SHA-256 {found}; expected {spec.sha256}"
        )


def _records(cache: Path) -> records_lib.Records:
    """All records; read from TFDS unless they were before."""
    path = cache / _RECORDS
    if not path.exists():
        directory = tfds_data.find(_NAME, _CONFIG, size=_SIZE)
        logger.info("reading %s, all of it, once; writing %s", directory, path)
        names = records_lib.COLUMNS
        streams = itertools.tee(_read(directory), len(names))
        string_columns.write_columns(
            path,
            {
                name: map(operator.attrgetter(name), stream)
                for name, stream in zip(names, streams, strict=True)
            },
            rows_per_batch=_ROWS_PER_BATCH,
        )
    return records_lib.Records(*string_columns.open_columns(path, records_lib.COLUMNS))


def _read(directory: str) -> Iterator[records_lib.Record]:
    for split in records_lib.SPLITS:
        examples = tfds_data.examples(directory, split, records_lib.FEATURES)
        for count, example in enumerate(examples, start=1):
            yield records_lib.read(example, split)
            if count % _LOG_EVERY == 0:
                logger.info("  %s: %d records", split, count)
