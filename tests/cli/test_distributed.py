"""How processes find each other, and what they say when one never comes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dsi_jax.cli import distributed

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[003-005,009]",
    "SLURM_STEP_NUM_NODES": "4",
}
KUBERNETES = {
    "JAX_COORDINATOR_ADDRESS": "dsi-hosts-0-0.dsi:12321",
    "JAX_PROCESS_COUNT": "2",
    "JOB_COMPLETION_INDEX": "1",
}


def find(environment=None, *flags, asked=False):
    return distributed.find(
        *flags, asked=asked, environment=environment or {"JAX_PLATFORMS": "cpu"}
    )


def test_flags_win_over_variables():
    found = find(SLURM, "first:1", 2, 1)
    assert found == distributed.Hosts("first:1", 2, 1, None, "flags")


def test_one_process_joins_nobody():
    assert find() is None
    assert find(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find(KUBERNETES | {"JAX_PROCESS_COUNT": "1"}) is None
    # A batch script of a job of four tasks, outside of srun.
    assert find({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}) is None


def test_slurm_with_one_process_a_node():
    assert find(SLURM) == distributed.Hosts("gpu003:61443", 4, 2, None, "SLURM")


def test_slurm_with_one_process_a_gpu():
    found = find(SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"})
    assert found.local_devices == (1,)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a1,b[2-3]", "a1"),
        ("gpu[003-005,9],x1", "gpu003"),
        ("gpu[3,007-015]", "gpu3"),
        ("rack[1-2].example,x", "rack1.example"),
    ],
)
def test_first_node_of_slurms_lists(nodes, first):
    assert find(SLURM | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{first}:61443"


def test_kubernetes():
    assert find(KUBERNETES) == distributed.Hosts(
        "dsi-hosts-0-0.dsi:12321", 2, 1, None, "Kubernetes"
    )


@pytest.mark.parametrize(
    ("flags", "asked", "message"),
    [
        (("first:1", 2, None), False, "--coordinator_address is given and --process_index is not"),
        (("first:1", 2, 2), False, r"process index 2 \(flags\) is not among 2"),
        (("first", 2, 1), False, "address is 'first' .*expected HOST:PORT"),
        ((), True, "--multiprocess_gpu: expected --coordinator_address"),
    ],
)
def test_what_does_not_go_together_is_named(flags, asked, message):
    with pytest.raises(ValueError, match=message):
        find(None, *flags, asked=asked)


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_never_comes_is_a_named_time_out(index):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "dsi_jax.train", "--gin_file=local_tiny.gin"]
    command += [f"--coordinator_address={address}", "--process_count=2", f"--process_index={index}"]
    result = subprocess.run(
        [*command, "--initialization_timeout=2", "--gin.MODEL_DIR=unused"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    expected = f"dsi-jax: error: process {index} of 2, first at {address} (flags): not all "
    assert expected + "processes came within 2 s (--initialization_timeout)" in result.stderr
