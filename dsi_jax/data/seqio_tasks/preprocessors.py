"""Preprocessors of tasks; TensorFlow operations only, so that iterators can be saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import seqio
import tensorflow as tf

from dsi_jax.data.corpora.splits import CHUNK_WORDS
from dsi_jax.data.seqio_tasks import features

# Fields of whole documents, of which a part becomes `inputs`, another one in each pass.
DOCUMENT = "document"  # a few words, as a query would have
WHOLE = "whole_document"  # a chunk as long as the model reads
# Fields of images: the path of a file, the captions of which one is drawn each pass, the class.
IMAGE_FILE = "image_file"
CHOICES = "caption_choices"
CLASS = "class"
_READ_LENGTH = 32  # where a task is read without lengths, as evaluations of text tasks are


def examples(
    dataset: tf.data.Dataset,
    inputs: str = "inputs",
    row: str = "row",
    is_indexing: bool = False,
    corpus_hash: str | None = None,
) -> tf.data.Dataset:
    """Renames the fields of a foreign dataset to the features of a task.

    Args:
      dataset: elements with a string field and an integer field, scalars or [1].
      inputs: name of the text field.
      row: name of the field that holds the document's row.
      is_indexing: True if the text is the document itself, False if it is a query.
      corpus_hash: `Corpus.hash` of the documents that the rows number. Where it is given,
        a docid table of another corpus is refused, from a cache of the task too.

    Returns:
      elements with `inputs` string [1], `targets` int32 [1], `is_indexing` int32 [1]
      and every other field as it was.
    """
    carried = {} if corpus_hash is None else {features.CORPUS_HASH: tf.constant([corpus_hash])}

    def convert(element: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rest = {name: value for name, value in element.items() if name not in (inputs, row)}
        return (
            rest
            | carried
            | {
                features.INPUTS: tf.reshape(element[inputs], [1]),
                features.TARGETS: tf.reshape(tf.cast(element[row], tf.int32), [1]),
                features.IS_INDEXING: tf.constant([int(is_indexing)], tf.int32),
            }
        )

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def chunk_documents(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None
) -> tf.data.Dataset:
    """Takes a random run of the words of a `document` or a `whole_document`, new each pass.

    Of a `document` it is as long as a query (`corpora.CHUNK_WORDS`); of a `whole_document`, as
    many words as the model reads tokens. Datasets without such a field pass unchanged. Give the
    pipeline a seed: seqio then seeds the chunks too.

    Args:
      dataset: elements with the field as string [1].
      sequence_length: `inputs` is S, the tokens that the model reads.
    """
    if DOCUMENT in dataset.element_spec:
        return _chunk(dataset, DOCUMENT, CHUNK_WORDS)
    if WHOLE in dataset.element_spec:
        read = (sequence_length or {}).get(features.INPUTS, _READ_LENGTH)
        return _chunk(dataset, WHOLE, (read, read))
    return dataset


def read_images(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Replaces the path `image_file`, string [1], by the file's content, `image`, string [1].

    What has no image gets an empty `image`, and what has no text empty `inputs`.
    """

    def read(element: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if IMAGE_FILE in element:
            element |= {features.IMAGE: tf.io.read_file(element.pop(IMAGE_FILE)[0])[tf.newaxis]}
        nothing = tf.zeros([0], tf.string)
        has_text = features.INPUTS in element or CHOICES in element
        element.setdefault(features.IMAGE, nothing)
        return element if has_text else element | {features.INPUTS: nothing}

    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)


def choose_caption(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Draws `inputs` from `caption_choices`, another one each pass; else nothing changes."""
    if CHOICES not in dataset.element_spec:
        return dataset
    return _choose(dataset, CHOICES, features.INPUTS, lambda captions: captions)


def choose_row(
    dataset: tf.data.Dataset, rows_of_class: tf.RaggedTensor | None = None
) -> tf.data.Dataset:
    """Draws `targets` among the rows of an example's `class`, another one each pass.

    Args:
      dataset: elements with the field as int32 [1]; others pass unchanged.
      rows_of_class: int32 [classes, (rows)].
    """
    if CLASS not in dataset.element_spec:
        return dataset
    return _choose(dataset, CLASS, features.TARGETS, lambda number: rows_of_class[number[0]])


def _choose(
    dataset: tf.data.Dataset,
    field: str,
    feature: str,
    choices_of: Callable[[tf.Tensor], tf.Tensor],
) -> tf.data.Dataset:
    @seqio.map_over_dataset(num_seeds=1)
    def choose(element: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        choices = choices_of(element.pop(field))
        index = tf.random.stateless_uniform([], seed, maxval=tf.size(choices), dtype=tf.int32)
        return element | {feature: choices[index][tf.newaxis]}

    return choose(dataset)


def _chunk(dataset: tf.data.Dataset, field: str, num_words: tuple[int, int]) -> tf.data.Dataset:
    """Replaces `field` by `inputs`: between `num_words` of its words, fewer if it has no more."""
    shortest, longest = num_words

    @seqio.map_over_dataset(num_seeds=1)
    def chunk(element: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        words = tf.strings.split(element.pop(field)[0])
        count = tf.size(words)
        draws = tf.random.stateless_uniform([2], seed)
        length = shortest + tf.cast(draws[0] * (longest - shortest + 1), tf.int32)
        length = tf.minimum(length, count)
        start = tf.cast(draws[1] * tf.cast(count - length + 1, tf.float32), tf.int32)
        # A float32 draw near 1 may round up to the bound.
        start = tf.minimum(start, count - length)
        text = tf.strings.reduce_join(words[start : start + length], separator=" ")
        return element | {features.INPUTS: text[tf.newaxis]}

    return chunk(dataset)
