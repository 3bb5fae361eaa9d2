"""Files and directories that appear under their names only once they are complete."""

import errno
import json
import os
import re
import threading
from pathlib import Path

import pytest

from dsi_jax.utils import atomic_files

PACKAGE = Path(atomic_files.__file__).parents[1]


class KilledError(BaseException):
    """Stands for whatever ends a write in the middle, an interrupt included."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_text_bytes_and_json_are_written_in_utf_8(tmp_path):
    atomic_files.write_text(tmp_path / "text", "Bäume\n")
    atomic_files.write_bytes(tmp_path / "bytes", b"\0\1")
    atomic_files.write_bytes(tmp_path / "fast", b"\2", durable=False)
    atomic_files.write_json(tmp_path / "json", {"a": [1]}, indent=1)
    assert (tmp_path / "text").read_bytes() == "Bäume\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\0\1"
    assert (tmp_path / "fast").read_bytes() == b"\2"
    assert (tmp_path / "json").read_text() == '{\n "a": [\n  1\n ]\n}\n'
    assert names(tmp_path) == ["bytes", "fast", "json", "text"]


@pytest.mark.parametrize("error", [OSError("disk full"), KilledError()])
@pytest.mark.parametrize("before", [None, "whole"])
def test_a_failure_while_writing_leaves_what_there_was(tmp_path, error, before):
    path = tmp_path / "report.json"
    if before:
        path.write_text(before)
    with pytest.raises(type(error)), atomic_files.replacing(path) as temporary:
        temporary.write_text("hal")
        assert temporary.parent == tmp_path
        raise error
    assert names(tmp_path) == (["report.json"] if before else [])
    assert not before or path.read_text() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_what_there_was(tmp_path, monkeypatch, step):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "disk full")

    path = tmp_path / "report.json"
    path.write_text("whole")
    monkeypatch.setattr(atomic_files.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_files.write_json(path, {"new": 1})
    assert names(tmp_path) == ["report.json"]
    assert path.read_text() == "whole"


def test_what_is_no_json_leaves_what_there_was(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{}")
    with pytest.raises(TypeError):
        atomic_files.write_json(path, {"new": object()})
    assert names(tmp_path) == ["report.json"]
    assert path.read_text() == "{}"


def test_file_and_directory_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def path_of(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix or "directory"

    monkeypatch.setattr(os, "fsync", lambda d: done.append(path_of(d)) or fsync(d))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("replace") or replace(a, b))
    atomic_files.write_text(tmp_path / "file", "text")
    assert done == [".partial", "replace", "directory"]
    done.clear()
    atomic_files.write_bytes(tmp_path / "file", b"text", durable=False)
    assert done == ["replace"]


def test_a_directory_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "not of a directory")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    atomic_files.write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_long_names_have_temporary_names_too(tmp_path):
    path = tmp_path / ("ä" * 120)  # 240 bytes of the 255 that a name may have
    atomic_files.write_text(path, "text")
    assert path.read_text() == "text"


def test_concurrent_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    barrier = threading.Barrier(8)

    def write(value):
        barrier.wait()
        for _ in range(20):
            atomic_files.write_text(path, str(value) * 10_000)
            assert set(path.read_text()) <= set("01234567")

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["file"]
    text = path.read_text()
    assert text == text[0] * 10_000


def test_writers_do_not_share_a_temporary_name(tmp_path):
    path = tmp_path / "file"
    with atomic_files.replacing(path) as first, atomic_files.replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file"]


def fill(directory: Path, text: str) -> None:
    (directory / "inner").mkdir()
    (directory / "inner" / "file").write_text(text)


def test_a_directory_appears_whole(tmp_path):
    path = tmp_path / "made" / "table"
    with atomic_files.replacing_directory(path) as new:
        fill(new, "a")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "a"
    assert names(tmp_path / "made") == ["table"]


def test_an_empty_directory_is_filled(tmp_path):
    path = tmp_path / "table"
    path.mkdir()
    with atomic_files.replacing_directory(path) as new:
        fill(new, "a")
    assert (path / "inner" / "file").read_text() == "a"


def test_a_directory_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "table"
    path.mkdir()
    fill(path, "old")
    (path / "more").write_text("old")
    with pytest.raises(OSError, match="table"), atomic_files.replacing_directory(path) as new:
        fill(new, "new")
    assert (path / "inner" / "file").read_text() == "old"
    with atomic_files.replacing_directory(path, overwrite=True) as new:
        fill(new, "new")
    assert (path / "inner" / "file").read_text() == "new"
    assert names(path) == ["inner"]
    assert names(tmp_path) == ["table"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_the_directory(tmp_path, overwrite):
    path = tmp_path / "table"
    path.mkdir()
    fill(path, "old")
    with (
        pytest.raises(KilledError),
        atomic_files.replacing_directory(path, overwrite=overwrite) as new,
    ):
        fill(new, "half")
        raise KilledError
    assert (path / "inner" / "file").read_text() == "old"
    assert names(tmp_path) == ["table"]


def test_a_failure_between_the_two_moves_brings_the_directory_back(tmp_path, monkeypatch):
    path = tmp_path / "table"
    path.mkdir()
    fill(path, "old")
    rename = Path.rename

    def fail_to_come(self, target):
        if self.name == "new":
            raise OSError(errno.EIO, "gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_come)
    with (
        pytest.raises(OSError, match="gone"),
        atomic_files.replacing_directory(path, overwrite=True) as new,
    ):
        fill(new, "new")
    assert (path / "inner" / "file").read_text() == "old"
    assert names(tmp_path) == ["table"]


def test_no_other_module_renames_or_writes_in_place():
    """The directories of checkpoints are renamed by Orbax's protocol."""
    own = re.compile(r"\.rename\(|os\.(replace|rename)\(|\.write_(text|bytes)\(|mkdtemp")
    allowed = {"utils/atomic_files.py", "training/checkpoints.py"}
    found = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() not in allowed
        for line in path.read_text("utf-8").splitlines()
        if own.search(line) and "atomic_files." not in line and ">>>" not in line
    }
    assert not found


def test_json_of_a_run_is_read_as_it_was_written(tmp_path):
    value = {"texts": ["ü", "\u2028"], "number": 0.1}
    atomic_files.write_json(tmp_path / "report.json", value)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == value
