"""Golden files: what must not drift unseen, written anew by one command."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "goldens"
COMMAND = "UPDATE_GOLDENS=1 python -m pytest tests -k golden"


def check_golden(name: str, text: str) -> None:
    """Compares a text with the golden file `name`, or writes that where UPDATE_GOLDENS is set."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text)
    golden = path.read_text() if path.exists() else ""
    ours, theirs = text.splitlines(), golden.splitlines()
    changed = [f"- {line}" for line in theirs if line not in set(ours)]
    changed += [f"+ {line}" for line in ours if line not in set(theirs)]
    assert text == golden, "\n".join(
        [f"tests/goldens/{name} differs; after a change that is meant: {COMMAND}", *changed[:20]]
    )
