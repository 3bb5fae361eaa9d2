"""`dsi-jax precompile`, in a process of its own: its devices are chosen before JAX starts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"  # compile soon, run never
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=500
    )


def test_a_run_is_compiled_for_gpus_that_are_not_here(tmp_path):
    done = run(
        "-m",
        "dsi_jax.precompile",
        "--gin_file=experiments/demo_text.gin",
        "--gin_file=models/t5_tiny.gin",
        "--gin_file=meshes/fsdp.gin",
        "--gin.TOPOLOGY=h100:4",
        "--gin.NUM_DOCUMENTS=100",
        "--gin.BATCH_SIZE=8",
        "--gin.BEAM_SIZE=4",
        f"--gin.MODEL_DIR={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "precompile").glob("*.json")
    text = json.dumps(json.loads(path.read_text()))
    assert "all-reduce" in text or "reduce-scatter" in text  # of gradients
    assert "all-gather" in text  # of parameters
    assert "search, trie" in text


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`: libtpu's compiler"
)
@pytest.mark.parametrize(
    ("experiment", "models", "topology", "searches"),
    [
        ("demo_text", ["t5_tiny"], "v5p:2x2x1", ["search, trie", "search, free"]),
        ("demo_image", ["t5_tiny", "clip_tiny"], "v6e:2x2", []),
    ],
)
def test_a_run_is_compiled_for_tpus_that_are_not_here(
    experiment, models, topology, searches, tmp_path
):
    done = run(
        "-m",
        "dsi_jax.precompile",
        f"--gin_file=experiments/{experiment}.gin",
        *(f"--gin_file=models/{model}.gin" for model in models),
        "--gin_file=docids/naive.gin",
        "--gin_file=meshes/fsdp.gin",
        f"--gin.TOPOLOGY={topology}",
        "--gin.NUM_DOCUMENTS=100",
        "--gin.BATCH_SIZE=8",
        "--gin.BEAM_SIZE=4",
        "--gin.SCAN_LAYERS=True",
        *([] if searches else ["--gin.train_config.TrainConfig.evaluation=None"]),
        f"--gin.MODEL_DIR={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "precompile").glob("*.json")
    report = json.loads(path.read_text())
    assert not report["simulated"]
    names = [program["name"].split(":")[0] for program in report["programs"]]
    assert names == ["training step", *searches]
    for program in report["programs"]:
        assert program["fits"] and program["estimate_seconds"] > 0
        kinds = {collective["kind"] for collective in program["collectives"]}
        assert "all-gather" in kinds or "all-reduce" in kinds


def test_importing_a_run_starts_no_backend():
    """Which devices there are is said later: by precompile, or by the hosts of a pod."""
    code = (
        "import dsi_jax.jobs.precompile.job, dsi_jax.jobs.trainer\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
