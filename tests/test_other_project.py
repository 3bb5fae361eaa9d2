"""Another project (tests/other_project) beside dsi_jax, both installed, away from the checkout."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.installed import ROOT, build_wheel, copy_checkout, environment, install, python

PROJECT = ROOT / "tests" / "other_project"
GUIDE = ROOT / "docs" / "other_projects.md"


class Installed:
    """A directory with the wheel of dsi_jax and the other project, and one to work in."""

    def __init__(self, base: Path) -> None:
        wheel = build_wheel(copy_checkout(base / "dsi_jax"), base)
        source = shutil.copytree(PROJECT, base / "project")
        self.site, self.directory = base / "site", base / "work"
        install(self.site, wheel, source)
        self.directory.mkdir()
        for file in (*PROJECT.glob("*.gin"), PROJECT / "my_corpus.py"):
            shutil.copy(file, self.directory)

    def run(self, *arguments: str) -> str:
        """Standard output of the installed command `dsi-jax`."""
        done = subprocess.run(
            [self.site / "bin" / "dsi-jax", *arguments],
            cwd=self.directory,
            env=environment(self.site) | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def trained(installed) -> str:
    """What the other project's own run printed."""
    return installed.run("train", "--gin_file=haiku.gin", "--gin.MODEL_DIR=runs/haiku")


def test_packages_come_from_where_they_are_installed(installed):
    program = "import dsi_jax, haiku_search; print(dsi_jax.__file__, haiku_search.__file__)"
    found = python("-c", program, cwd=installed.directory, site=installed.site).split()
    assert found == [
        str(installed.site / name / "__init__.py") for name in ("dsi_jax", "haiku_search")
    ]


def test_its_own_metric_and_docids_are_reported(installed, trained):
    model_dir = installed.directory / "runs/haiku"
    figures = json.loads((model_dir / "report.json").read_text())["test"]["haiku_memories_test"]
    assert figures["queries"] == 40
    assert figures["queries/unseen"] == 8
    # Chance is 1 in 40 poems, and 1 in 4 seasons.
    assert figures["hits@1"] > 0.5
    assert figures["hits@1"] <= figures["season@1"] <= 1
    assert f"DSI season@1: {figures['season@1']:.4g}" in (model_dir / "report.txt").read_text()
    assert re.search(r"haiku_memories_test  hits@1 .* season@1 0\.\d", trained)
    lines = (model_dir / "inference_eval/haiku_memories_test-metrics.jsonl").read_text()
    assert json.loads(lines.splitlines()[-1])["season@1"] == figures["season@1"]
    table = json.loads((model_dir / "docids/metadata.json").read_text())
    assert (table["kind"], table["shape"]) == ("season", [40, 2])
    assert "memorised (document -> its docid): Hits@1 100.0" in trained
    assert trained.count("\n? ") == 5


def test_its_own_evaluation_repeats_the_figures(installed, trained):
    installed.run("eval", "--gin_file=haiku_eval.gin", "--gin.MODEL_DIR=runs/haiku")
    first, again = (
        (installed.directory / "runs/haiku" / folder / "haiku_memories_test-metrics.jsonl")
        .read_text()
        .splitlines()[-1]
        for folder in ("inference_eval", "eval")
    )
    assert json.loads(again) == pytest.approx(json.loads(first))


def test_its_documents_are_found_and_shown(installed, trained):
    out = installed.run("search", "runs/haiku", "daughter counting fireflies", "-k", "1")
    assert "fireflies-tonight" in out
    assert "my daughter counts up to ten" in out


def test_queries_of_a_file_are_ranked_without_the_project(installed, trained):
    (installed.directory / "queries.txt").write_text(
        "frogs clearing their throats\nradiator knocking\n"
    )
    infer = ("infer", "--gin_file=runs/infer.gin", "--gin.MODEL_DIR=runs/haiku")
    installed.run(*infer, "--gin.QUERIES=queries.txt", "--gin.INFER_OUTPUT_DIR=out")
    lines = (installed.directory / "out/queries.jsonl").read_text().splitlines()
    found = [json.loads(line)["hits"][0]["key"] for line in lines]
    assert found == ["first-rain", "radiator-knocks"]


def test_template_of_a_corpus_is_imported_from_the_working_directory(installed):
    plan = installed.run("train", "--gin_file=my_corpus.gin", "--gin.MODEL_DIR=x", "--dry_run")
    assert re.search("corpus +my_corpus: 3 documents; queries: 2 train, 2 test", plan)
    assert not (installed.directory / "x").exists()


def test_the_guide_shows_the_tested_files():
    """Every file of the project stands in the guide, as it is."""
    # A paragraph that begins with the name of a file, then its content.
    block = r"(?<=\n\n)`([\w./]+\.\w+)`(?:[^\n]*\n)+?\n```\w*\n(.*?)^```"
    blocks = dict(re.findall(block, GUIDE.read_text(), re.M | re.S))
    files = {
        str(path.relative_to(PROJECT)): path.read_text()
        for path in PROJECT.rglob("*")
        if path.suffix in (".py", ".gin", ".toml")
    }
    for name, content in files.items():
        assert blocks.get(name) == content, name
    data = (PROJECT / "haiku_search/haiku.jsonl").read_text()
    assert data.startswith(blocks["haiku_search/haiku.jsonl"])
