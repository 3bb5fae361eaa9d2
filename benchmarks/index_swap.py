"""A table of which a thousandth has changed: time to rebuild its trie and to swap it in.

    python -m benchmarks.index_swap --cores 0 --documents 1000000

`rebuild` makes the trie of the other table, like the first one's and sort included; `swap` puts it
on the device. A search
that was compiled with the first trie must then find the new documents and compile nothing.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import index_build, made_docids, timing
from dsi_jax.decoding import trie as trie_lib
from dsi_jax.docids.table import FIRST_CODE

CHANGED = 0.001


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape; the status is 1 if anything was compiled."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    compiled = 0
    for shape in options.shapes:
        changed = int(options.documents * CHANGED)
        codes = made_docids.made_codes(
            options.documents + changed, options.codes, options.length, shape
        )
        before, after = codes[changed:], codes[: options.documents]
        old = index_build.build(before, options.codes)
        new = index_build.build(after, options.codes, like=old)
        compilations = check(old, new, codes[:changed])
        compiled += compilations
        calls = {
            "rebuild": lambda after=after, old=old: index_build.build(
                after, options.codes, like=old
            ),
            "swap": lambda new=new: jax.block_until_ready(jax.device_put(new)),
        }
        timings = timing.measure(calls, rounds=options.rounds)
        timing.emit(
            kind="measurement",
            name="index_swap",
            documents=options.documents,
            changed=changed,
            shape=shape,
            codes=options.codes,
            length=options.length,
            cores=cores,
            compilations=compilations,
            **timing.line(timings, dict),
        )
    return min(compiled, 1)


def check(old: trie_lib.Trie, new: trie_lib.Trie, added_AxL: np.ndarray) -> int:
    """How often the look-up is compiled for the new trie, after the old one.

    Raises:
      SystemExit: if the old trie has the new documents, or the new one has not.
    """
    lookup = jax.jit(trie_lib.lookup)
    docids = jnp.asarray(added_AxL + FIRST_CODE)
    if (np.asarray(lookup(jax.device_put(old), docids)) >= 0).any():
        raise SystemExit("the old trie holds documents that were added later")
    compiled = lookup._cache_size()  # `jit` shares it among all shapes of docids
    if (np.asarray(lookup(jax.device_put(new), docids)) < 0).any():
        raise SystemExit("the new trie lacks documents that were added")
    return lookup._cache_size() - compiled


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--documents", type=int, default=1_000_000)
    add("--shapes", nargs="+", default=list(made_docids.SHAPES), choices=made_docids.SHAPES)
    add("--codes", type=int, default=2048, help="of a level")
    add("--length", type=int, default=8)
    add("--rounds", type=int, default=11)
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
