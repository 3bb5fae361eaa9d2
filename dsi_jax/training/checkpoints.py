"""Checkpoints: MODEL_DIR/checkpoint_<step>/, written in the background, read only if whole.

A checkpoint is a directory of Orbax items: `params`; `opt_state` (the optimizer's state, the step
and the random key); `data` (the input pipeline's position); `metadata` (JSON). It is written under
a temporary name and renamed at the end, so that a killed process leaves no half checkpoint under a
final name. Its last file, `files.json`, lists every other file with size and CRC-32: a
checkpoint that does not match its list is passed over.
"""

import base64
import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from dsi_jax.storage.model_dir import checkpoint_name, step_of
from dsi_jax.training.state import TrainState

FORMAT_VERSION = 1

_ITEMS = ("params", "opt_state", "data", "metadata")
_MANIFEST = "files.json"
# What a killed process may leave: a save of Orbax's, or a deletion of ours.
_LEFTOVER = re.compile(r"(orbax-checkpoint-tmp.*|deleting)")
_READ_BYTES = 1 << 24


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      state: the train state, on its devices.
      data: the input pipeline's state.
      metadata: as it was saved.
      step: updates made.
    """

    state: TrainState
    data: bytes
    metadata: dict[str, Any]
    step: int


class Checkpointer:
    """Saves and restores the train states of one MODEL_DIR.

    All processes of a run call the same methods in the same order.
    """

    def __init__(self, model_dir: epath.PathLike, *, keep: int = 3) -> None:
        """Opens MODEL_DIR; nothing is written before the first save.

        Args:
          model_dir: the directory; also gs://.
          keep: how many of the latest checkpoints stay.

        Raises:
          ValueError: keep is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint")
        self._model_dir = _absolute(model_dir)
        self._keep = keep
        self._passed_over: set[int] = set()
        self._own_step: int | None = None
        self._pending: int | None = None
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
        )

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: bytes,
        metadata: Mapping[str, Any],
    ) -> None:
        """Starts to save; returns as soon as the state's arrays may be donated.

        Waits for the save before, if that is still running, and raises its error. A second save
        of the same step does nothing. Checkpoints that are not this run's past (of this step or a
        later one, or passed over as damaged by `restore_latest`) are set aside under the name
        checkpoint_<step>.aside.

        Args:
          step: updates made; equal to `state.step`, given apart so that nothing waits for it.
          state: the state; its arrays are global.
          data: the input pipeline's state, the same on all processes.
          metadata: JSON-able: model, tokenizer, table hash.

        Raises:
          OSError: MODEL_DIR cannot be written, or the save before failed; both name the path.
          ValueError: an array is not global.
        """
        if step == self._own_step:
            return
        self.wait()
        _check_global(state)
        directory = self._directory(step)
        record = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "metrics": {},  # a part of the format that nothing fills
            "metadata": dict(metadata),
        }
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(_without_params(state)),
            data=ocp.args.JsonSave({"base64": base64.b64encode(data).decode()}),
            metadata=ocp.args.JsonSave(record),
        )
        self._pending = self._own_step = step
        with self._naming_failures():
            if jax.process_index() == 0:
                self._make_room(step)
            self._orbax.save(directory, args=args)

    def wait(self) -> None:
        """Waits for the running save, then deletes checkpoints beyond those to keep.

        Raises:
          OSError: the save failed; the checkpoints before it are untouched.
        """
        with self._naming_failures():
            self._orbax.wait_until_finished()
        if self._pending is not None and jax.process_index() == 0:
            self._prune()
        self._pending = None

    def check_for_errors(self) -> None:
        """Raises if a save in the background has failed; does not wait.

        Raises:
          OSError: the save failed.
        """
        with self._naming_failures():
            self._orbax.check_for_errors()

    def close(self) -> None:
        """Waits for the running save and frees the threads.

        Raises:
          OSError: the save failed.
        """
        self.wait()
        self._orbax.close()

    def restore_latest(
        self, shapes: TrainState, *, expected: Mapping[str, Any] | None = None
    ) -> Restored | None:
        """Reads the newest whole checkpoint.

        Unfinished and damaged checkpoints are passed over with a warning that names directory and
        reason.

        Args:
          shapes: TrainState of ShapeDtypeStructs with shardings (`state.state_shapes`); any mesh.
          expected: entries that the metadata must have, for example the table's hash; they are
            compared in this order, of a dict only the entries that are given.

        Returns:
          The checkpoint, or None if MODEL_DIR has none.

        Raises:
          ValueError: every checkpoint is damaged; or the checkpoint is of another table, model
            or optimizer than asked for, naming both.
        """
        steps = _steps(self._model_dir)
        reasons = []
        for step in reversed(steps):
            directory = self._directory(step)
            reason = _damage_of_expected(directory, expected or {})
            if reason is None:
                return self._read(step, shapes)
            self._passed_over.add(step)
            reasons.append(f"{directory}: {reason}")
            warnings.warn(f"checkpoint passed over: {reasons[-1]}", stacklevel=2)
        if steps:
            raise ValueError(
                f"{self._model_dir} has no whole checkpoint ({'; '.join(reasons)}); "
                "repair one, or remove them all to start anew"
            )
        return None

    def restore(
        self,
        step: int,
        shapes: TrainState,
        *,
        expected: Mapping[str, Any] | None = None,
    ) -> Restored:
        """Reads the checkpoint of one step.

        Args:
          step: which.
          shapes: TrainState of ShapeDtypeStructs with shardings.
          expected: entries that the metadata must have, as for `restore_latest`.

        Returns:
          The checkpoint.

        Raises:
          ValueError: it is missing or damaged, or of another table, model or optimizer.
        """
        directory = self._directory(step)
        if reason := _damage_of_expected(directory, expected or {}):
            raise ValueError(f"checkpoint {directory} is not whole: {reason}")
        return self._read(step, shapes)

    def steps(self) -> list[int]:
        """Steps of the checkpoints in MODEL_DIR, ascending, damaged ones included."""
        return _steps(self._model_dir)

    def _directory(self, step: int) -> epath.Path:
        return self._model_dir / checkpoint_name(step)

    def _read(self, step: int, shapes: TrainState) -> Restored:
        directory = self._directory(step)
        params = _read_sharded(directory / "params", shapes.params)
        rest = _read_sharded(directory / "opt_state", _without_params(shapes))
        data = json.loads((directory / "data" / "metadata").read_text())
        self._own_step = step
        return Restored(
            state=TrainState(params=params, **rest),
            data=base64.b64decode(data["base64"]),
            metadata=load_metadata(directory),
            step=step,
        )

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Turns whatever made a save fail into an OSError that names the checkpoint."""
        try:
            yield
        except Exception as error:
            directory = self._directory(self._pending)
            # It never came to be: the next save may use its step again.
            self._pending = self._own_step = None
            raise OSError(f"saving checkpoint {directory} failed: {error}") from error

    def _make_room(self, step: int) -> None:
        """Removes what killed processes left, and sets aside what is not this run's past."""
        self._model_dir.mkdir(parents=True, exist_ok=True)
        for path in list(self._model_dir.iterdir()):
            name, _, ending = path.name.partition(".")
            if step_of(name) is not None and _LEFTOVER.fullmatch(ending):
                path.rmtree()
        for other in _steps(self._model_dir):
            if other >= step or other in self._passed_over:
                path = self._directory(other)
                aside = path.with_name(f"{path.name}.aside")
                if aside.exists():
                    aside.rmtree()
                path.rename(aside)
                warnings.warn(f"checkpoint {path} set aside as {aside.name}", stacklevel=3)
        self._passed_over.clear()

    def _seal(self) -> None:
        """Writes the list of files into the finished, not yet renamed checkpoint."""
        name = checkpoint_name(self._pending)
        paths = [
            path
            for path in self._model_dir.iterdir()
            if path.name == name or path.name.startswith(f"{name}.orbax-checkpoint-tmp")
        ]
        if len(paths) != 1:
            raise OSError(f"expected one directory of {name} in {self._model_dir}, found {paths}")
        sums = _file_sums(paths[0], _files(paths[0], _ITEMS))
        (paths[0] / _MANIFEST).write_text(json.dumps(sums, indent=1, sort_keys=True))

    def _prune(self) -> None:
        steps = _steps(self._model_dir)
        for step in steps[: -self._keep]:
            # Renamed first: a process killed now leaves nothing that looks like a checkpoint.
            doomed = self._directory(step).with_name(f"{checkpoint_name(step)}.deleting")
            self._directory(step).rename(doomed)
            doomed.rmtree()


def check_writable(model_dir: epath.PathLike) -> None:
    """Creates MODEL_DIR where it is missing, and a file in it for a moment.

    Args:
      model_dir: the directory.

    Raises:
      OSError: it cannot be written, naming it.
    """
    model_dir = _absolute(model_dir)
    probe = model_dir / f".writable-{jax.process_index()}"
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(f"MODEL_DIR {model_dir} cannot be written: {error}") from error


def latest_checkpoint(model_dir: epath.PathLike) -> epath.Path:
    """The newest whole checkpoint of a MODEL_DIR, without the model; for search and evaluation.

    Args:
      model_dir: the directory, or one of its checkpoints, which is then returned.

    Returns:
      The directory of the checkpoint. Damaged ones are passed over with a warning.

    Raises:
      ValueError: there is none.
    """
    model_dir = _absolute(model_dir)
    if step_of(model_dir.name) is not None and (model_dir / "metadata").exists():
        return model_dir
    reasons = []
    for step in reversed(_steps(model_dir)):
        directory = model_dir / checkpoint_name(step)
        reason = _damage(directory, ("params", "metadata"))
        if reason is None:
            return directory
        reasons.append(f"{directory}: {reason}")
        warnings.warn(f"checkpoint passed over: {reasons[-1]}", stacklevel=2)
    raise ValueError(
        f"{model_dir} has no whole checkpoint: {'; '.join(reasons) or 'no checkpoint_<step> in it'}"
    )


def load_metadata(directory: epath.PathLike) -> dict[str, Any]:
    """The metadata of a checkpoint, as it was saved.

    Args:
      directory: MODEL_DIR/checkpoint_<step>.

    Returns:
      What was given to `Checkpointer.save`.

    Raises:
      ValueError: there is no checkpoint, it is damaged, or a later version wrote it.
    """
    return _read_record(_absolute(directory))["metadata"]


def fingerprint(directory: epath.PathLike) -> str:
    """A text that tells the content of one whole checkpoint from that of any other.

    Args:
      directory: MODEL_DIR/checkpoint_<step>.
    """
    return hashlib.sha256((_absolute(directory) / _MANIFEST).read_bytes()).hexdigest()


def load_params(directory: epath.PathLike, *, check: bool = True) -> Any:
    """The parameters of a checkpoint alone, as NumPy arrays; needs neither model nor mesh.

    Args:
      directory: MODEL_DIR/checkpoint_<step>.
      check: False for what `latest_checkpoint` has just returned: its files were read once.

    Returns:
      Nested dict of NumPy arrays, in the dtypes in which they were saved.

    Raises:
      ValueError: there is no checkpoint, or its parameters are damaged.
    """
    directory = _absolute(directory)
    if check and (reason := _damage(directory, ("params",))):
        raise ValueError(f"checkpoint {directory} is not whole: {reason}")
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(directory / "params").tree
    to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    return handler.restore(directory / "params", args=ocp.args.PyTreeRestore(restore_args=to_numpy))


def _absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root: Orbax takes no other, and says so only when it writes."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _without_params(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "rng": state.rng}


def _steps(model_dir: epath.Path) -> list[int]:
    if not model_dir.exists():
        return []
    steps = (step_of(path.name) for path in model_dir.iterdir())
    return sorted(step for step in steps if step is not None)


def _read_record(directory: epath.Path) -> dict[str, Any]:
    path = directory / "metadata" / "metadata"
    try:
        record = json.loads(path.read_text())
        version = record["format_version"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory} is no checkpoint: {path} cannot be read: {error}") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {directory} has format version {version}, expected at most "
            f"{FORMAT_VERSION}: a later dsi_jax wrote it"
        )
    return record


def _check_expected(
    directory: epath.Path, metadata: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    for name, value in expected.items():
        differing = _differences(name, metadata.get(name), value)
        if differing:
            raise ValueError(f"checkpoint {directory} was saved with {'; '.join(differing)}")


def _differences(name: str, saved: Any, expected: Any) -> list[str]:
    """A text for each leaf of `expected` that `saved` has not."""
    if isinstance(saved, Mapping) and isinstance(expected, Mapping):
        return [
            text
            for key, value in expected.items()
            for text in _differences(f"{name}.{key}", saved.get(key), value)
        ]
    return [] if saved == expected else [f"{name} {saved!r}, this run expects {expected!r}"]


def _check_global(state: TrainState) -> None:
    """A process-local array would leave all processes waiting for each other."""
    if jax.process_count() == 1:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.is_fully_addressable:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} lies on this process alone, expected a global "
                "array"
            )


def _read_sharded(directory: epath.Path, shapes: Any) -> Any:
    """Reads an item onto its devices, after comparing it with what is asked for."""
    wanted = {
        jax.tree_util.keystr(path, simple=True, separator="."): (leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    saved = {
        leaf.name: (tuple(leaf.shape), np.dtype(leaf.dtype))
        for leaf in jax.tree.leaves(ocp.PyTreeCheckpointHandler().metadata(directory).tree)
    }
    for name in sorted(wanted.keys() | saved.keys()):
        if wanted.get(name) != saved.get(name):
            raise ValueError(
                f"checkpoint item {directory} has {name} {_describe(saved.get(name))}, "
                f"expected {_describe(wanted.get(name))}: another model or optimizer saved it"
            )
    tree = ocp.StandardCheckpointHandler().restore(directory, args=ocp.args.StandardRestore(shapes))
    # Orbax leaves a shape where it finds no array.
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not isinstance(leaf, jax.Array) or (leaf.shape, leaf.dtype) != wanted[name]:
            raise ValueError(
                f"checkpoint item {directory}: {name} was read as {leaf}, "
                f"expected an array {_describe(wanted[name])}"
            )
    return tree


def _describe(array: tuple[Any, Any] | None) -> str:
    return "nothing" if array is None else f"{np.dtype(array[1]).name}{list(array[0])}"


def _damage_of_expected(directory: epath.Path, expected: Mapping[str, Any]) -> str | None:
    """Why a checkpoint cannot be trusted, or None; raises if it is not the expected one.

    The metadata is compared first, before all the other files are read to check them.
    """
    reason = _damage_anywhere(directory, ("metadata",))
    if reason is None:
        _check_expected(directory, load_metadata(directory), expected)
        reason = _damage_anywhere(directory, ("params", "opt_state", "data"))
    return reason


def _damage_anywhere(directory: epath.Path, items: Iterable[str]) -> str | None:
    """As `_damage`, each process checking its share of the files; all get the same answer."""
    reason = _damage(directory, items, jax.process_index(), jax.process_count())
    if jax.process_count() > 1:
        damaged = multihost_utils.process_allgather(np.array(reason is not None))
        if damaged.any() and reason is None:
            reason = f"process {int(np.argmax(damaged))} found it damaged"
    return reason


def _damage(
    directory: epath.Path, items: Iterable[str], share: int = 0, num_shares: int = 1
) -> str | None:
    """Why a checkpoint's items cannot be trusted, or None."""
    manifest = directory / _MANIFEST
    try:
        listed = json.loads(manifest.read_text())
    except FileNotFoundError:
        return f"{_MANIFEST} is missing, it was never finished"
    except (OSError, ValueError) as error:
        return f"{_MANIFEST} cannot be read: {error}"
    wanted = sorted(name for name in listed if name.split("/")[0] in items)
    missing = sorted(set(wanted) - set(_files(directory, items)))
    if missing:
        return f"{missing[0]} is missing"
    try:
        sums = _file_sums(directory, wanted[share::num_shares])
    except OSError as error:
        return f"a file cannot be read: {error}"
    for name, (size, crc) in sums.items():
        if size != listed[name][0]:
            return f"{name} has {size} bytes, expected {listed[name][0]}"
        if crc != listed[name][1]:
            return f"{name} has checksum {crc}, expected {listed[name][1]}"
    return None


def _files(directory: epath.Path, items: Iterable[str]) -> list[str]:
    waiting = [directory / item for item in items]
    found = []
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            waiting += path.iterdir()
        elif path.exists():
            found.append(path.relative_to(directory).as_posix())
    return sorted(found)


def _file_sums(directory: epath.Path, names: Iterable[str]) -> dict[str, list[int]]:
    """(bytes, CRC-32) of each file; several at once, as zlib lets other threads run."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=8) as pool:
        sums = pool.map(lambda name: _file_sum(directory / name), names)
        return dict(zip(names, sums, strict=True))


def _file_sum(path: epath.Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return [size, crc]
