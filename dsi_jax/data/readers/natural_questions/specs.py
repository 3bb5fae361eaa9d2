"""The corpora that are called Natural Questions, with the counts that were published for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dsi_jax.data.corpora.corpus import Corpus

TRAIN, VALIDATION = 307_373, 7_830  # pairs of question and page in the two splits
_RECIPE = 1  # counted up when `records` or `build` make something else of the same data


@dataclasses.dataclass(frozen=True)
class Published:
    """Counts that a paper gives.

    Attributes:
      source: where.
      documents: documents, those of the validation pairs included.
      rounded_to: the unit that `documents` is rounded to; 1 where it is exact.
      unseen_documents: documents without a training query; None where it is not given.
      unseen_queries: validation queries of such documents; likewise.
    """

    source: str
    documents: int
    rounded_to: int = 1
    unseen_documents: int | None = None
    unseen_queries: int | None = None


@dataclasses.dataclass(frozen=True)
class NQSpec:
    """A corpus made of Natural Questions.

    Attributes:
      name: the corpus's name.
      train: training pairs; documents of all pairs are indexed, these queries are trained on.
      validation: validation pairs, the corpus's split "dev".
      sampled: True: both are drawn from the training split. False: the data's own splits, which
        must have these sizes.
      unique_by: what makes two pages one document: "text", the first 4,000 characters, or
        "title".
      published: counts to compare with.
      sha256: `stored.content_hash` of the corpus, where it is known.
    """

    name: str
    train: int
    validation: int
    sampled: bool
    unique_by: str
    published: Published | None = None
    sha256: str | None = None

    def recipe(self) -> dict[str, Any]:
        """What the content depends on, as plain JSON."""
        return {
            "recipe": _RECIPE,
            "train": self.train,
            "validation": self.validation,
            "sampled": self.sampled,
            "unique_by": self.unique_by,
        }


def _dsi(documents: int) -> Published:
    return Published("Tay et al. 2022 (DSI), table 4", documents, rounded_to=1_000)


# The unseen ones as in arXiv:2610.08716, section 4.
_NCI = Published("Wang et al. 2022 (NCI)", 109_739, unseen_documents=1_713, unseen_queries=1_755)
SPECS = {
    spec.name: spec
    for spec in (
        NQSpec("nq1k", 800, 200, sampled=True, unique_by="text"),
        NQSpec("nq10k", 8_000, 2_000, sampled=True, unique_by="text", published=_dsi(10_000)),
        NQSpec("nq100k", 80_000, 20_000, sampled=True, unique_by="text", published=_dsi(86_000)),
        NQSpec("nq320k", TRAIN, VALIDATION, False, unique_by="text", published=_dsi(228_000)),
        NQSpec("nq320k_title", TRAIN, VALIDATION, False, unique_by="title", published=_NCI),
    )
}


def discrepancies(spec: NQSpec, corpus: Corpus) -> list[str]:
    """Where the corpus's counts are not the published ones, for a person to read."""
    if spec.published is None:
        return []
    expected = spec.published
    unit = expected.rounded_to
    found = {
        "documents": len(corpus),
        "unseen_documents": int(np.sum(~corpus.documents_with_training_query())),
        "unseen_queries": int(np.sum(~corpus.seen("dev"))),
    }
    lines = []
    for name, count in found.items():
        published = getattr(expected, name)
        tolerance = unit / 2 if name == "documents" and unit > 1 else 0
        if published is not None and abs(count - published) > tolerance:
            about = f" (rounded to {unit:,})" if tolerance else ""
            lines.append(
                f"corpus '{spec.name}' has {count:,} {name.replace('_', ' ')}; "
                f"{expected.source} has {published:,}{about}"
            )
    return lines
