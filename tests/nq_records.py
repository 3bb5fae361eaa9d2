"""Hand-made records of Natural Questions, as TFDS's builder generates and as it reads them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

FILLER = " ".join(f"w{i}" for i in range(2_000))  # 8,889 characters, more than are kept


def record(
    id: str,
    question: str,
    html: str,
    title: str = "",
    answered: bool = True,
) -> dict[str, Any]:
    """A record as the builder generates it.

    Args:
      id: the example's id.
      question: the question.
      html: the page as white-space separated tokens; those in <> are HTML tokens.
      title: the field `title`.
      answered: whether the annotator marked a long answer.
    """
    span = (0, 3) if answered else (-1, -1)
    long_answer = {
        "start_token": span[0],
        "end_token": span[1],
        "start_byte": span[0],
        "end_byte": span[1],
    }
    return {
        "id": id,
        "document": {
            "title": title,
            "url": f"//en.wikipedia.org/{id}",
            "html": "<html>" * 1_000,
            "tokens": [
                {"token": word, "is_html": bool(re.fullmatch(r"<[^>]+>", word))}
                for word in html.split()
            ],
        },
        "question": {"text": question, "tokens": question.split()},
        "annotations": [
            {"id": f"1{id}", "long_answer": long_answer, "short_answers": [], "yes_no_answer": -1}
        ],
    }


def published(generated: dict[str, Any]) -> str:
    """The same record as a line of the files that Natural Questions is published in."""
    document, question = generated["document"], generated["question"]
    line = {
        "example_id": int(generated["id"]),
        "document_title": document["title"],
        "document_url": document["url"],
        "document_html": document["html"],
        "document_tokens": [
            {"token": t["token"], "html_token": t["is_html"], "start_byte": 0, "end_byte": 0}
            for t in document["tokens"]
        ],
        "question_text": question["text"],
        "question_tokens": question["tokens"],
        "annotations": [
            a | {"annotation_id": int(a["id"]), "yes_no_answer": "NONE"}
            for a in generated["annotations"]
        ],
    }
    return json.dumps(line)


def as_read(generated: dict[str, Any]) -> dict[str, Any]:
    """The same record as `tfds.as_numpy` gives it, of the features that are read."""
    tokens = generated["document"]["tokens"]
    return {
        "id": generated["id"].encode(),
        "document": {
            "title": generated["document"]["title"].encode(),
            "tokens": {
                "token": np.array([t["token"].encode() for t in tokens], object),
                "is_html": np.array([t["is_html"] for t in tokens], bool),
            },
        },
        "question": {"text": generated["question"]["text"].encode()},
    }


def page(heading: str, body: str, filler: str = FILLER) -> str:
    """A page with a heading, a box before its first paragraph, and two closing lists."""
    return (
        f"{heading} - Wikipedia <H1> {heading} </H1> Jump to : navigation <Table> box </Table> "
        f"<P> {body} </P> <P> {filler} </P> <Ul> <Li> seen </Li> </Ul> "
        "<Ul> <Li> links </Li> </Ul> categories"
    )
