"""Builds and installs packages in directories of their own, as a user would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_checkout(destination: Path) -> Path:
    """A copy of the checkout, links kept: builds leave files beside setup.py."""
    ignore = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", ".venv")
    return Path(shutil.copytree(ROOT, destination, symlinks=True, ignore=ignore))


def build_wheel(source: Path, destination: Path) -> Path:
    """The wheel of a package, built with what is installed here."""
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    python(*build, "-w", str(destination), str(source), cwd=destination)
    (wheel,) = destination.glob("*.whl")
    return wheel


def install(site: Path, *packages: Path) -> None:
    """Installs wheels or source directories into `site`, without what they depend on."""
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    python(*command, "--target", str(site), *map(str, packages), cwd=site.parent)


def python(*command: str, cwd: Path, site: Path | None = None) -> str:
    """Standard output of Python with this command line; `site` alone is added to its path."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment(site),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def environment(site: Path | None) -> dict[str, str]:
    """The environment of a process that finds packages in `site` first."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | ({} if site is None else {"PYTHONPATH": str(site)})
