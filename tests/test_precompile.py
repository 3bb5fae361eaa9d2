"""`dsi-jax precompile`, in a process of its own: its devices are chosen before JAX starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
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


def test_importing_a_run_starts_no_backend():
    """Which devices there are is said later: by precompile, or by the hosts of a pod."""
    code = (
        "import dsi_jax.precompiler, dsi_jax.trainer\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
