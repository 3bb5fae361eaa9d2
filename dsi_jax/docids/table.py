"""The docid table: rows of a corpus <-> token sequences.

A table is built once (`atomic`, `naive`, `semantic`, ...), saved beside the model, and mapped into
memory by training, decoding and search. Tokens: 0 is padding, 1 ends a docid, codes start at 2.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsi_jax.docids import table_files
from dsi_jax.docids.sorting import lexicographic_order, packed

PAD_TOKEN = 0
END_TOKEN = 1
FIRST_CODE = 2

_CHUNK_ROWS = 1 << 20  # rows handled at a time: bounds the memory that a mapped table needs


@dataclasses.dataclass(frozen=True, eq=False)
class DocidTable:
    """The docids of one corpus.

    Attributes:
      tokens: [N, L], the smallest unsigned type that holds V - 1; 0 pads, 1 ends, codes from 2.
      keys: row -> document key; N of them.
      vocab_size: V, the number of tokens including pad and end.
      kind: the docid kind (atomic, naive, semantic, random, ...).
      parameters: what the kind was built with; plain JSON.
      corpus_hash: the content hash of the corpus whose rows these are.
      variable_length: True: every docid ends with token 1, then padding. False: all docids have L
        codes and no end token.
      tie_seed: None: docids are unique. Else documents may share a docid, and those that do rank
        in a random order of this seed wherever the docid is found.

    Example:
      >>> import numpy as np
      >>> table = DocidTable.from_codes(
      ...     np.array([[0, 1], [3, 0]]), np.array([2, 1]), num_codes=4, keys=["a", "b"],
      ...     kind="example", parameters={}, corpus_hash="")
      >>> table.docids([1, 0])
      array([[5, 1, 0],
             [2, 3, 1]], dtype=int32)
      >>> table.rows_of([[2, 3, 1], [2, 2, 1]])
      array([ 0, -1], dtype=int32)
    """

    tokens: np.ndarray
    keys: Sequence[str]
    vocab_size: int
    kind: str
    parameters: dict[str, Any]
    corpus_hash: str
    variable_length: bool
    tie_seed: int | None = None

    def __post_init__(self):
        _check_shape("docid tokens", self.tokens)
        if self.tokens.dtype != token_dtype(self.vocab_size):
            raise ValueError(
                f"docid tokens are {self.tokens.dtype}, expected {token_dtype(self.vocab_size)} "
                f"for a vocabulary of {self.vocab_size}"
            )
        if len(self.keys) != self.num_documents:
            raise ValueError(
                f"a docid table of {self.num_documents} rows has {len(self.keys)} document keys"
            )
        if self.num_documents > np.iinfo(np.int32).max:
            raise ValueError(f"{self.num_documents} documents: rows are int32, at most 2**31 - 1")

    @classmethod
    def from_codes(
        cls,
        codes_NxL: np.ndarray,
        lengths_N: np.ndarray | None = None,
        *,
        num_codes: int,
        keys: Sequence[str],
        kind: str,
        parameters: dict[str, Any],
        corpus_hash: str,
        tie_seed: int | None = None,
    ) -> "DocidTable":
        """Makes a table from codes 0..num_codes-1, adding the end token where lengths differ.

        Args:
          codes_NxL: integers [N, L]; what lies beyond a docid's length is not used.
          lengths_N: integers [N] from 1 to L, the number of codes of each docid; None: all have L.
          num_codes: the size of the alphabet; V = num_codes + 2.
          keys: the documents' names.
          kind: the docid kind.
          parameters: what the kind was built with.
          corpus_hash: the corpus's content hash.
          tie_seed: see the class.

        Raises:
          ValueError: if there is no code, or one is outside the alphabet, or a length is not of
            these codes.
        """
        _check_shape("docid codes", codes_NxL)
        num_documents, length = codes_NxL.shape
        variable = lengths_N is not None and _lengths_differ(lengths_N, num_documents, length)
        used_NxL = np.arange(length) < lengths_N[:, None] if variable else True
        _check_codes(codes_NxL, used_NxL, num_codes)
        vocab_size = num_codes + FIRST_CODE
        tokens = np.zeros((num_documents, length + variable), token_dtype(vocab_size))
        tokens[:, :length] = codes_NxL  # fits where it is used: codes are smaller than tokens
        tokens[:, :length] += FIRST_CODE
        if variable:
            tokens[:, :length] *= used_NxL  # pads
            tokens[np.arange(num_documents), lengths_N] = END_TOKEN
        return cls(
            tokens=tokens,
            keys=keys,
            vocab_size=vocab_size,
            kind=kind,
            parameters=parameters,
            corpus_hash=corpus_hash,
            variable_length=variable,
            tie_seed=tie_seed,
        )

    @property
    def num_documents(self) -> int:
        """N."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """L, with the end token where docids have one."""
        return self.tokens.shape[1]

    @functools.cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """The number of distinct tokens at each level, the end token included, padding not."""
        seen_LxV = np.zeros((self.length, self.vocab_size), bool)
        for chunk in self._chunks():
            for level, used_V in enumerate(seen_LxV):
                used_V[chunk[:, level]] = True
        return tuple(int(n) for n in seen_LxV[:, END_TOKEN:].sum(axis=1))

    @functools.cached_property
    def hash(self) -> str:
        """The SHA-256 of the content, in hexadecimal; read from the metadata of a loaded table."""
        return self._content_hash()

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Rows in lexicographic order of their docids, ties in their random order; int32 [N]."""
        if self.tie_seed is None:
            return lexicographic_order(self.tokens, self.vocab_size).astype(np.int32)
        shuffled = np.random.default_rng(self.tie_seed).permutation(self.num_documents)
        by_docid = lexicographic_order(self.tokens[shuffled], self.vocab_size)
        return shuffled[by_docid].astype(np.int32)

    def docids(self, rows: np.ndarray | Sequence[int] | int) -> np.ndarray:
        """The docids of rows.

        Args:
          rows: integers of any shape [...], each in [0, N).

        Returns:
          int32 [..., L].

        Raises:
          ValueError: if a row is outside the table.
        """
        rows = np.asarray(rows)
        outside = (rows < 0) | (rows >= self.num_documents)
        if outside.any():
            raise ValueError(
                f"row {rows[outside].flat[0]} is outside the docid table of "
                f"{self.num_documents} documents"
            )
        return self.tokens[rows].astype(np.int32)

    def rows_of(self, tokens: np.ndarray | Sequence) -> np.ndarray:
        """The rows of docids; the inverse of `docids`.

        The first call sorts the table: O(N log N) time and a sorted copy in memory.

        Args:
          tokens: integers [..., L].

        Returns:
          int32 [...]; of documents that share a docid, the one that ranks first; -1 where no
          document has the docid.

        Raises:
          ValueError: if the last dimension is not L.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim == 0 or tokens.shape[-1] != self.length:
            raise ValueError(
                f"docids of shape {tokens.shape} were looked up in a table of length "
                f"{self.length}: expected [..., {self.length}]"
            )
        # A token that does not fit the table's type must not wrap around into one that does.
        possible = ((tokens >= 0) & (tokens < self.vocab_size)).all(axis=-1)
        wanted = packed(np.where(possible[..., None], tokens, 0).astype(self.tokens.dtype))
        places = np.minimum(np.searchsorted(self._sorted_docids, wanted), self.num_documents - 1)
        found = possible & (self._sorted_docids[places] == wanted)
        return np.where(found, self.order[places], np.int32(-1))

    def validate(self) -> None:
        """Reads the whole table and checks every docid.

        Raises:
          ValueError: if two documents share a docid and ties are not declared, a token is outside
            the vocabulary, or a docid is not codes (then the end token and padding, where lengths
            vary).
        """
        for chunk_index, chunk in enumerate(self._chunks()):
            if self.variable_length:
                ends = chunk == END_TOKEN
                after = (np.cumsum(ends, axis=1) - ends) > 0
                malformed = (ends.sum(axis=1) != 1) | ends[:, 0]
                malformed |= ((chunk == PAD_TOKEN) != after).any(axis=1)
                form = "at least one code, then the end token 1, then padding 0"
            else:
                malformed = (chunk < FIRST_CODE).any(axis=1)
                form = "codes only"
            malformed |= (chunk >= self.vocab_size).any(axis=1)
            if malformed.any():
                row = chunk_index * _CHUNK_ROWS + int(malformed.argmax())
                raise ValueError(
                    f"the docid of row {row} (key {self.keys[row]!r}) is "
                    f"{self.tokens[row].tolist()}, expected {form}, below {self.vocab_size}"
                )
        if self.tie_seed is not None:
            return
        equal = self._sorted_docids[1:] == self._sorted_docids[:-1]
        if equal.any():
            first, second = (int(row) for row in self.order[equal.argmax() :][:2])
            raise ValueError(
                f"rows {first} and {second} (keys {self.keys[first]!r} and {self.keys[second]!r}) "
                f"share the docid {self.tokens[first].tolist()}; docids must be unique"
            )

    def save(self, directory: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes the table as a directory, which appears only once it is complete.

        Args:
          directory: where; saving a table again where it already lies does nothing.
          overwrite: whether another table that lies there may be replaced. A checkpoint of that
            table could then no longer be used.

        Raises:
          FileExistsError: if something else lies there.
        """
        directory = Path(directory)
        if directory.exists() and any(directory.iterdir()):
            existing = table_files.stored_hash(directory)
            if existing == self.hash:
                return
            if existing is None or not overwrite:
                other = "files that are no docid table" if existing is None else f"table {existing}"
                raise FileExistsError(
                    f"{directory} already holds {other}; table {self.hash} was not written"
                )
        metadata = self._identity() | {"level_sizes": self.level_sizes, "hash": self.hash}
        table_files.write(directory, self.tokens, self.keys, metadata, overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "DocidTable":
        """Maps a saved table into memory; checks its form, and reads neither tokens nor keys.

        `verify` checks the content, at the cost of reading it.

        Raises:
          FileNotFoundError: if there is no table, or a file of it is missing.
          ValueError: if a file is damaged or of another format.
        """
        tokens, keys, metadata = table_files.open_files(Path(directory))
        table = cls(
            tokens=tokens,
            keys=keys,
            vocab_size=metadata["vocab_size"],
            kind=metadata["kind"],
            parameters=metadata["parameters"],
            corpus_hash=metadata["corpus_hash"],
            variable_length=metadata["variable_length"],
            tie_seed=metadata.get("tie_seed"),
        )
        # These two would read all of the table: they come from the metadata instead.
        vars(table).update(hash=metadata["hash"], level_sizes=tuple(metadata["level_sizes"]))
        return table

    def verify(self) -> None:
        """Reads the whole table and checks that its content has its hash.

        Raises:
          ValueError: if the content differs from what was saved.
        """
        actual = self._content_hash()
        if actual != self.hash:
            raise ValueError(f"the docid table's content has the hash {actual}, not {self.hash}")

    @functools.cached_property
    def _sorted_docids(self) -> np.ndarray:
        return packed(self.tokens)[self.order]

    def _chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.num_documents, _CHUNK_ROWS):
            yield self.tokens[start : start + _CHUNK_ROWS]

    def _identity(self) -> dict[str, Any]:
        """All of the table but its arrays, as plain JSON."""
        fields = {
            "kind": self.kind,
            "parameters": self.parameters,
            "shape": list(self.tokens.shape),
            "dtype": self.tokens.dtype.name,
            "vocab_size": self.vocab_size,
            "variable_length": self.variable_length,
            "corpus_hash": self.corpus_hash,
        }
        # Tables without ties do not speak of them: they keep the hash they always had.
        ties = {} if self.tie_seed is None else {"tie_seed": self.tie_seed}
        return table_files.with_format(fields | ties)

    def _content_hash(self) -> str:
        return table_files.content_hash(self._identity(), self._chunks(), self.keys)


def _check_shape(what: str, array_NxL: np.ndarray) -> None:
    if array_NxL.ndim != 2 or 0 in array_NxL.shape:
        raise ValueError(
            f"{what} have the shape {array_NxL.shape}, expected [documents, length] with at least "
            "one of each"
        )


def _lengths_differ(lengths_N: np.ndarray, num_documents: int, longest: int) -> bool:
    """Whether a docid is shorter than `longest`; checks that the lengths are possible."""
    if lengths_N.shape != (num_documents,):
        raise ValueError(
            f"lengths of docids have the shape {lengths_N.shape}, expected ({num_documents},)"
        )
    low, high = lengths_N.min(), lengths_N.max()
    if low < 1 or high > longest:
        raise ValueError(f"lengths of docids range from {low} to {high}, expected 1 to {longest}")
    return bool(low < longest)


def _check_codes(codes_NxL: np.ndarray, used_NxL: np.ndarray | bool, num_codes: int) -> None:
    """Checks that the codes that are used are in the alphabet."""
    first = codes_NxL[0, 0]  # is used: each docid has a code
    low = codes_NxL.min(where=used_NxL, initial=first)
    high = codes_NxL.max(where=used_NxL, initial=first)
    if low < 0 or high >= num_codes:
        raise ValueError(f"codes range from {low} to {high}, expected 0 to {num_codes - 1}")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every token of a vocabulary."""
    return np.min_scalar_type(vocab_size - 1)
