"""The health of a docid table, before any training."""

import dataclasses
from typing import Any

import numpy as np

from dsi_jax.docids.health.oracle_recall import OracleRecall
from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN, DocidTable


@dataclasses.dataclass(frozen=True)
class LevelHealth:
    """One level of a table.

    Attributes:
      documents: docids that reach the level, their end token included.
      tokens: distinct tokens used.
      entropy: of the level's token over those documents, in bits.
      perplexity: 2 ** entropy: as many tokens, used alike, would say as much.
      nodes: distinct prefixes that end here, which is the trie's nodes of this level.
      branching: nodes for each node of the level before that has a child; 1 means that the level
        decides nothing, 0 that no docid reaches it.
    """

    documents: int
    tokens: int
    entropy: float
    nodes: int
    branching: float

    @property
    def perplexity(self) -> float:
        return 2**self.entropy


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
                branching=nodes / parents if parents else 0.0,
            )
        )
    return tuple(levels)


def report(table: DocidTable, oracle: OracleRecall | None = None) -> str:
    """The health of a table as text: its size, lengths and collisions, and a line a level.

    Args:
      table: the docids.
      oracle: their oracle recall, where there are embeddings to measure it with.
    """
    lengths = ", ".join(f"{length}: {n:,}" for length, n in enumerate(code_lengths(table)) if n)
    lines = [
        f"{table.kind} docids {table.hash[:12]}: {table.num_documents:,} documents, "
        f"length {table.length}, vocabulary {table.vocab_size:,}",
        f"parameters: {_abridged(table.parameters)}",
        f"documents by number of codes: {lengths}",
    ]
    if "collided" in table.parameters:
        rule = table.parameters.get("collisions", "suffix")
        lines.append(
            f"collisions: {table.parameters['collided']:,} documents beyond the first with the "
            f"same codes; rule: {rule}"
        )
    header = "level  documents      tokens  entropy (bits)  perplexity       nodes  branching"
    lines.append(header if oracle is None else f"{header}  recall")
    for number, level in enumerate(health(table), start=1):
        line = (
            f"{number:5}  {level.documents:9,}  {level.tokens:10,}  {level.entropy:14.2f}  "
            f"{level.perplexity:10,.1f}  {level.nodes:10,}  {level.branching:9.2f}"
        )
        lines.append(line if oracle is None else f"{line}  {oracle.by_depth[number - 1]:6.3f}")
    if oracle is not None:
        lines.append(
            f"oracle recall@{oracle.k} of {oracle.documents:,} documents: {oracle.by_prefix:.3f} "
            f"by prefix, {oracle.by_codes:.3f} by codes; chance {oracle.chance:.4f}"
        )
    return "\n".join(lines)


def code_lengths(table: DocidTable) -> np.ndarray:
    """How many documents have 0, 1, ... codes, the end token not counted."""
    if not table.variable_length:
        return np.bincount([table.length], [table.num_documents]).astype(int)
    return np.bincount((np.asarray(table.tokens) == END_TOKEN).argmax(axis=1))


def _abridged(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: f"{len(value):,} values" if isinstance(value, list) else value
        for name, value in parameters.items()
    }


def _count_groups(starts_N: np.ndarray, member_N: np.ndarray) -> int:
    """How many of the groups that begin at `starts` have a member."""
    groups = np.cumsum(starts_N)[member_N]  # ascending
    return int((np.diff(groups, prepend=0) > 0).sum())  # the first group is 1
