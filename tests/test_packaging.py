"""The package installs as a wheel and from an unzipped sdist, with gin files and tasks."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.installed import ROOT, build_wheel, copy_checkout, install, python

PROGRAM = """
import dsi_jax, dsi_jax.tasks, pathlib
from dsi_jax.cli import gin_utils
home = pathlib.Path(dsi_jax.__file__).resolve().parent
arguments = gin_utils.GinArguments(["experiments/demo_text.gin"], ["MODEL_DIR=x"])
gin_utils.parse(arguments)
print(home)
print(gin_utils.query_macro("CORPUS"))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the files that git knows, links kept: builds leave files beside setup.py."""
    return copy_checkout(tmp_path_factory.mktemp("checkout") / "dsi_jax")


def check_installed(target: Path, elsewhere: Path) -> None:
    # -P: the working directory must not stand in for the installed package.
    home, corpus = python("-P", "-c", PROGRAM, cwd=elsewhere, site=target).split()
    assert Path(home) == target / "dsi_jax"
    assert corpus == "demo_text"
    shipped = {str(p.relative_to(ROOT / "gin")) for p in (ROOT / "gin").rglob("*.gin")}
    installed = {
        str(p.relative_to(target / "dsi_jax/gin")) for p in (target / "dsi_jax/gin").rglob("*.gin")
    }
    assert installed == shipped
    assert (target / "dsi_jax/tasks/demo.py").is_file()


def test_wheel(checkout, tmp_path):
    wheel = build_wheel(checkout, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not [name for name in names if name.startswith(("tests", "tasks", "gin", "benchmarks"))]
    check_installed(tmp_path / "site", tmp_path)


def test_unzipped_sdist(checkout, tmp_path):
    python("setup.py", "-q", "sdist", "-d", str(tmp_path), cwd=checkout)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unzipped", filter="data")
    (source,) = (tmp_path / "unzipped").iterdir()
    for name in (
        "LICENSE",
        "README.md",
        "gin/local_tiny.gin",
        "tests/conftest.py",
        "docs/running.md",
    ):
        assert (source / name).exists(), name
    install(tmp_path / "site", source)
    check_installed(tmp_path / "site", tmp_path)


def test_checkout_runs_from_its_root_and_from_its_packages_directory():
    assert python("-m", "dsi_jax.main", "--run_mode=train", "--help", cwd=ROOT).startswith("usage:")
    assert "usage:" in python(str(ROOT / "dsi_jax" / "train.py"), "--help", cwd=ROOT.parent)
