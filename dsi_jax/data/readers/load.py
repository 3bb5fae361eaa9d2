"""Loads a corpus of texts or images by its name or path."""

from __future__ import annotations

from pathlib import Path

from dsi_jax.data.corpora import registry, splits, subsets
from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.corpora.corpus import Corpus
from dsi_jax.data.corpora.image_corpus import PROTOCOLS, ImageCorpus
from dsi_jax.data.readers import beir, demo_image, demo_text, image_directory, squad, tfds_images
from dsi_jax.data.readers.natural_questions import load as natural_questions
from dsi_jax.inputs.streams import IMAGE, MODALITIES, TEXT

_BUILT_IN = {
    TEXT: {"demo_text": demo_text.load} | natural_questions.CORPORA,
    IMAGE: {"demo_image": demo_image.load} | tfds_images.CORPORA,
}


def load_corpus(
    spec: str | Path,
    seed: int = 42,
    complete: bool = True,
    *,
    modality: str | None = None,
    captions: str | Path | None = None,
    protocol: str | None = None,
    skip: bool = False,
) -> AnyCorpus:
    """Loads a registered corpus, a BEIR directory, a SQuAD v1.1 file or a directory of images.

    Args:
      spec: the name of a registered corpus ("demo_text", "coco_captions"), the path of a directory
        with corpus.jsonl, queries.jsonl and qrels/*.tsv, the path of a JSON file, or a directory
        of images. "#1000" behind a corpus of texts takes 1,000 of its documents
        (`subsets.subset`).
      seed: decides every random split and sample.
      complete: complete the splits where the data has only some (`complete_splits`).
      modality: "text" or "image"; None: that of the registered corpus, and "text" for a path.
      captions: the file of captions of a directory of images, in one of the forms of
        `readers.captions`.
      protocol: what looks for images, one of `PROTOCOLS`; None: the registered corpus's own
        choice, and for a directory the one that suits it (`image_directory.load`).
      skip: whether images and captions that cannot be used are counted and left out; errors
        otherwise.

    Raises:
      FileNotFoundError: a file or a data set is absent.
      ValueError: there is no such corpus, its data is malformed, or an option does not suit it.
    """
    modality = modality or modality_of(spec)
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}; expected one of {MODALITIES} or None")
    if modality == IMAGE:
        return _load_images(spec, seed, captions, protocol, skip)
    for name, value in {"captions": captions, "protocol": protocol}.items():
        if value is not None:
            raise ValueError(
                f"{name} is '{value}'; the documents of '{spec}' are texts, expected None, or "
                f"modality='{IMAGE}'"
            )
    corpus = _load_texts(str(spec), seed)
    return splits.complete_splits(corpus, seed) if complete else corpus


def modality_of(spec: str | Path) -> str:
    """Returns the modality of the registered corpus of that name; "text" if there is none."""
    registered = _find(spec)
    return TEXT if registered is None else registered.modality


def _load_texts(spec: str, seed: int) -> Corpus:
    registered = _find(spec)
    if registered is not None:
        if registered.modality != TEXT:
            raise ValueError(
                f"the documents of the corpus '{spec}' are {registered.modality}s; expected texts"
            )
        return registered.load(seed)
    path = Path(spec).expanduser()
    if path.is_dir():
        return beir.load(path)
    if path.is_file():
        return squad.load(path, seed)
    part = subsets.split_spec(spec)
    if part is not None:
        base, count = part
        return subsets.subset(_load_texts(base, seed), count)
    raise ValueError(
        f"no corpus '{spec}': expected an existing directory in BEIR layout, a SQuAD JSON file, "
        f"or {_registered_names()}"
    )


def _load_images(
    spec: str | Path, seed: int, captions: str | Path | None, protocol: str | None, skip: bool
) -> ImageCorpus:
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"protocol is '{protocol}'; expected one of {PROTOCOLS}")
    registered = _find(spec)
    if registered is not None and registered.modality == IMAGE:
        if captions is not None:
            raise ValueError(
                f"captions are '{captions}'; the image corpus '{spec}' comes with its own, "
                "expected none"
            )
        return registered.load(seed=seed, protocol=protocol, skip=skip)
    directory = Path(spec).expanduser()
    if not directory.is_dir():
        found = "a file" if directory.is_file() else "neither a name nor a directory"
        if registered is not None:
            found = f"the name of a corpus of {registered.modality}s"
        raise ValueError(
            f"no image corpus '{spec}', which is {found}: expected a directory of images or "
            f"{_registered_names()}"
        )
    return image_directory.load(directory, seed, captions=captions, protocol=protocol, skip=skip)


def _find(spec: str | Path) -> registry.Registered | None:
    """Returns the registered corpus of that name; the built-in ones are registered by then."""
    for modality, corpora in _BUILT_IN.items():
        for name, fn in corpora.items():
            registry.register_corpus(name, fn, modality)
    return registry.find(spec)


def _registered_names() -> str:
    texts, images = registry.names(TEXT), registry.names(IMAGE)
    return f"one of the registered names: of texts {texts}, of images {images}"
