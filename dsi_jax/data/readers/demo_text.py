"""demo_text: the documentation strings of the installed Python standard library.

Real text that is on every machine. A document is the body of a docstring, without
its summary and without the name of what it documents; its queries are the summary
and the qualified name split into words. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import collections
import logging
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsi_jax.data.corpora import corpus as corpus_lib

logger = logging.getLogger(__name__)

# A fixed list, so that the corpus depends on the version of Python alone: modules
# that every build installs, that distributions do not patch and that stay beyond
# Python 3.12. A package stands for all of its modules.
MODULES = """
__future__ _collections_abc _markupbase _pydecimal _pyio _strptime _threading_local
_weakrefset abc argparse ast asyncio base64 bdb bisect bz2 calendar cmd code codecs codeop
collections colorsys compileall concurrent configparser contextlib contextvars copy copyreg
cProfile csv ctypes dataclasses datetime dbm decimal difflib dis doctest email encodings enum
filecmp fileinput fnmatch fractions ftplib functools genericpath getopt getpass gettext glob
graphlib gzip hashlib heapq hmac html http imaplib importlib inspect io ipaddress json
keyword linecache locale logging lzma mailbox mimetypes modulefinder multiprocessing netrc
ntpath numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform
plistlib poplib posixpath pprint profile pstats pty py_compile pyclbr pydoc queue quopri
random re reprlib rlcompleter runpy sched secrets selectors shelve shlex shutil smtplib
socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable
tabnanny tarfile tempfile textwrap threading timeit token tokenize tomllib trace traceback
tracemalloc tty types typing unittest urllib uuid wave weakref webbrowser wsgiref xml xmlrpc
zipapp zipfile zipimport zoneinfo
"""

_MIN_WORDS = 5  # in a body; less is "Return None." and the like
_TEST_DIRECTORIES = frozenset({"test", "tests"})
# Shares of the documents whose two queries are both held out (their held-out
# queries are unseen) and of those with one query held out (mostly seen).
_UNSEEN, _SEEN = 0.1, 0.2


def load(seed: int) -> corpus_lib.Corpus:
    """Builds the corpus from the sources of this interpreter's standard library.

    Args:
      seed: decides which queries are held out, half of them as dev, half as test.

    Raises:
      ValueError: if the source of a module of the list is not installed.
    """
    row_of_body: dict[str, int] = {}
    keys: list[str] = []
    relevant: dict[str, dict[int, float]] = {}
    queries_of_row: list[list[str]] = []
    times_defined: collections.Counter[str] = collections.Counter()
    for name, docstring in _docstrings(Path(sysconfig.get_path("stdlib"))):
        summary, _, body = docstring.partition("\n\n")
        body = " ".join(body.split())
        if len(body.split()) < _MIN_WORDS:
            continue
        # Inherited copies of one docstring are one document with several queries.
        row = row_of_body.setdefault(body, len(row_of_body))
        if row == len(keys):
            times_defined[name] += 1  # a property and its setter, one function a platform
            keys.append(name if times_defined[name] == 1 else f"{name}:{times_defined[name]}")
            queries_of_row.append([])
        for query in (" ".join(summary.split()), " ".join(_words(name))):
            relevant.setdefault(query, {})[row] = 1.0
            queries_of_row[row].append(query)

    splits = _hold_out(list(relevant), queries_of_row, np.random.default_rng(seed))
    queries = {}
    for split in corpus_lib.SPLITS:
        texts = {f"q{i}": query for i, query in enumerate(relevant) if splits[query] == split}
        queries[split] = corpus_lib.make_query_set(
            texts, {query_id: relevant[text] for query_id, text in texts.items()}
        )
    corpus = corpus_lib.Corpus("demo_text", keys, [""] * len(keys), list(row_of_body), queries)
    logger.info("demo_text: %d documents, sha256 %s", len(corpus), corpus.hash)
    return corpus


def _hold_out(
    queries: list[str], queries_of_row: list[list[str]], rng: np.random.Generator
) -> dict[str, str]:
    """Query -> split, so that held-out queries are of seen and of unseen documents."""
    held_out: set[str] = set()
    for own, draw in zip(queries_of_row, rng.random(len(queries_of_row)), strict=True):
        if draw < _UNSEEN:
            held_out.update(own)
        elif draw < _UNSEEN + _SEEN:
            held_out.add(own[rng.integers(len(own))])
    # In the order of the corpus: the order of a set of strings differs between runs.
    ordered = [query for query in queries if query in held_out]
    is_test = rng.random(len(ordered)) < 0.5
    split_of = dict.fromkeys(queries, "train")
    split_of.update((q, "test" if t else "dev") for q, t in zip(ordered, is_test, strict=True))
    return split_of


def _docstrings(library: Path) -> Iterator[tuple[str, str]]:
    """Yields (qualified name, docstring) of every module, class and function."""
    for module in MODULES.split():
        for file in _sources(library, module):
            parts = file.relative_to(library).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield from _docstrings_below(ast.parse(file.read_bytes(), str(file)), name)


def _sources(library: Path, module: str) -> list[Path]:
    file = library / f"{module}.py"
    if file.is_file():
        return [file]
    files = sorted((library / module).rglob("*.py"))
    if not files:
        raise ValueError(
            f"demo_text needs the source of the standard module '{module}'; expected {file} or "
            f"{library / module}/*.py"
        )
    return [f for f in files if _TEST_DIRECTORIES.isdisjoint(f.relative_to(library).parts)]


def _docstrings_below(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield name, docstring
    for child in ast.iter_child_nodes(node):
        child_name = getattr(child, "name", None)
        is_scope = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _docstrings_below(child, f"{name}.{child_name}" if is_scope else name)


def _words(name: str) -> list[str]:
    """ "http.client.HTTPResponse.read_into" -> http client http response read into."""
    parts = re.split(r"[._]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", name)
    return [part.lower() for part in parts if part]
