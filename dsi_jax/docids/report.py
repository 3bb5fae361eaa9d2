"""The health of a docid table, before any training."""

import dataclasses

import numpy as np

from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN, DocidTable


@dataclasses.dataclass(frozen=True)
class LevelHealth:
    """One level of a table.

    Attributes:
      documents: docids that reach the level, their end token included.
      tokens: distinct tokens used.
      entropy: of the level's token over those documents, in bits.
      nodes: distinct prefixes that end here, which is the trie's nodes of this level.
      branching: nodes for each node of the level before that has a child; 1 means that the level
        decides nothing.
    """

    documents: int
    tokens: int
    entropy: float
    nodes: int
    branching: float


def health(table: DocidTable) -> tuple[LevelHealth, ...]:
    """Measures every level of a table; sorts it, as `DocidTable.rows_of` does."""
    levels = []
    # Whether a row in lexicographic order starts a new prefix, at the level before this one.
    starts_N = np.arange(table.num_documents) == 0
    for level in range(table.length):
        tokens_N = table.tokens[table.order, level]
        reaches_N = tokens_N != PAD_TOKEN
        counts_V = np.bincount(tokens_N[reaches_N])
        counts = counts_V[counts_V > 0]
        shares = counts / counts.sum()
        parents = _count_groups(starts_N, reaches_N)
        starts_N[1:] |= tokens_N[1:] != tokens_N[:-1]
        nodes = int((starts_N & reaches_N).sum())
        levels.append(
            LevelHealth(
                documents=int(reaches_N.sum()),
                tokens=len(counts),
                entropy=float((shares * np.log2(1 / shares)).sum()),
                nodes=nodes,
                branching=nodes / parents,
            )
        )
    return tuple(levels)


def report(table: DocidTable) -> str:
    """The health of a table as text: its size, its lengths, and a line a level."""
    if table.variable_length:
        ends_N = (table.tokens == END_TOKEN).argmax(axis=1)
        counts = np.bincount(ends_N)
        lengths = ", ".join(f"{length}: {n:,}" for length, n in enumerate(counts) if n)
    else:
        lengths = f"{table.length}: {table.num_documents:,}"
    lines = [
        f"{table.kind} docids {table.hash[:12]}: {table.num_documents:,} documents, "
        f"length {table.length}, vocabulary {table.vocab_size:,}",
        f"parameters: {table.parameters}",
        f"documents by number of codes: {lengths}",
        "level  documents      tokens  entropy (bits)       nodes  branching",
    ]
    for number, level in enumerate(health(table), start=1):
        lines.append(
            f"{number:5}  {level.documents:9,}  {level.tokens:10,}  {level.entropy:14.2f}  "
            f"{level.nodes:10,}  {level.branching:9.2f}"
        )
    return "\n".join(lines)


def _count_groups(starts_N: np.ndarray, member_N: np.ndarray) -> int:
    """How many of the groups that begin at `starts` have a member."""
    return len(np.unique(np.cumsum(starts_N)[member_N]))
