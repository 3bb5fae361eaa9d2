"""The layout of MODEL_DIR: no other module spells the names inside it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

TOKENIZER = "tokenizer.json"  # also looked for where VOCABULARY names a directory

_CHECKPOINT = "checkpoint_"


def model_directory(text: str | Path) -> Path:
    """MODEL_DIR as an absolute path; `~` is the home directory.

    Raises:
      ValueError: it is empty, or the address of an object store.
    """
    if not str(text):
        raise ValueError("MODEL_DIR is empty; expected a directory")
    if "://" in str(text):
        raise ValueError(
            f"MODEL_DIR is {str(text)!r}; expected a directory of this machine, or a mounted one: "
            "object stores are not supported yet for a run's own files"
        )
    return Path(text).expanduser().absolute()


def checkpoint_name(step: int) -> str:
    """Returns the name of a step's checkpoint."""
    return f"{_CHECKPOINT}{step}"


def step_of(name: str) -> int | None:
    """Returns the step of a checkpoint's name; None if it is no checkpoint's.

    Example:
      >>> step_of("checkpoint_200"), step_of("checkpoint_200.aside"), step_of("train")
      (200, None, None)
    """
    match = re.fullmatch(rf"{_CHECKPOINT}(\d+)", name)
    return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """The files and directories of a run; none of them need exist.

    Attributes:
      path: MODEL_DIR, see `model_directory`.
    """

    path: Path

    # ---- what a run is

    @property
    def config(self) -> Path:
        """The run's whole configuration, as gin."""
        return self.path / "config.gin"

    @property
    def model_info(self) -> Path:
        """A table of the parameters."""
        return self.path / "model-info.txt"

    @property
    def tokenizer(self) -> Path:
        """The vocabulary that was trained on the run's corpus."""
        return self.path / TOKENIZER

    @property
    def documents(self) -> Path:
        """Keys, titles and texts of the documents."""
        return self.path / "documents.arrow"

    @property
    def docids(self) -> Path:
        """The docid table."""
        return self.path / "docids"

    @property
    def lexical_index(self) -> Path:
        """The fitted weights of words in documents, of a run with a lexical head."""
        return self.path / "lexical_index.npz"

    @property
    def text_docids(self) -> Path:
        """The docid table in tokens of the text vocabulary."""
        return self.path / "docids_text"

    @property
    def docids_plot(self) -> Path:
        """A picture of the docid table's health."""
        return self.path / "docids_report.png"

    @property
    def embeddings(self) -> Path:
        """The directory of the documents' embeddings by a trained model."""
        return self.path / "embeddings"

    def docid_tables(
        self, given: str | Path | None = None, recorded: str | Path | None = None
    ) -> list[Path]:
        """Returns the places where a checkpoint's docid table may lie, in the order to try them.

        Args:
          given: the place that a person names.
          recorded: the place that the checkpoint names, which may have moved since.
        """
        places = (given, self.docids, self.text_docids, recorded)
        return [Path(place) for place in places if place is not None]

    # ---- checkpoints

    def checkpoint(self, step: int) -> Path:
        """Returns the checkpoint of a step."""
        return self.path / checkpoint_name(step)

    def checkpoints(self) -> list[Path]:
        """Returns the checkpoints that lie there, whole or not, the newest first."""
        if not self.path.is_dir():
            return []
        steps = (step_of(child.name) for child in self.path.iterdir())
        return [self.checkpoint(s) for s in sorted(s for s in steps if s is not None)[::-1]]

    # ---- what a run measures

    @property
    def train(self) -> Path:
        """The training loss and its like, step by step."""
        return self.path / "train"

    @property
    def training_eval(self) -> Path:
        """The validation loss; a directory a task."""
        return self.path / "training_eval"

    @property
    def inference_eval(self) -> Path:
        """Rankings and their metrics, under the run's constraint."""
        return self.path / "inference_eval"

    @property
    def inference_eval_free(self) -> Path:
        """Rankings and their metrics without a constraint."""
        return self.path / "inference_eval_free"

    @property
    def eval(self) -> Path:
        """What the `eval` command writes, apart from the training run's own rankings."""
        return self.path / "eval"

    @property
    def report_text(self) -> Path:
        """The report at the end of a run, to be read."""
        return self.path / "report.txt"

    @property
    def report(self) -> Path:
        """The same as JSON; a run that has one is finished."""
        return self.path / "report.json"

    @property
    def contact_sheet(self) -> Path:
        """A picture of searches among images."""
        return self.path / "contact_sheet.png"

    @property
    def precompile(self) -> Path:
        """The reports of the `precompile` command."""
        return self.path / "precompile"

    # ---- runs within a run

    @property
    def baseline(self) -> ModelDir:
        """The baseline, a run of its own."""
        return ModelDir(self.path / "baseline")

    @property
    def zero_shot(self) -> ModelDir:
        """The baseline's pretrained encoders as they came, before any training."""
        return ModelDir(self.path / "zero_shot")
