"""Meshes, rules and shardings."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dsi_jax.training.partitioning import MeshConfig, make_mesh

ROOT = Path(__file__).parents[2]
DEVICES = ROOT / "tests" / "devices"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), (1, 8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1), (1, 2, 4, 1)),
        (MeshConfig(model=4), (1, 2, 1, 4)),
        (MeshConfig(replica=2, data=2, fsdp=2, model=1), (2, 2, 2, 1)),
    ],
)
def test_sizes_of_a_mesh(config, expected):
    assert tuple(config.sizes(8).values()) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=-1, fsdp=-1), r"2 axes of -1, expected at most one"),
        (MeshConfig(data=0), r"mesh axis data is 0, expected at least 1, or -1"),
        (MeshConfig(model=-2), r"mesh axis model is -2"),
        (MeshConfig(data=2, model=2), r"has 4 places, expected as many as devices: 8"),
        (MeshConfig(data=16), r"has 16 places"),
        (MeshConfig(model=3), r"8 devices are not a multiple of 3"),
    ],
)
def test_errors_of_a_mesh(config, message):
    with pytest.raises(ValueError, match=message):
        config.sizes(8)


def test_slices_must_be_replicas():
    class Device:
        platform, process_index = "tpu", 0

        def __init__(self, index: int) -> None:
            self.id, self.slice_index = index, index // 2

    devices = [Device(index) for index in range(4)]
    with pytest.raises(ValueError, match="replica is 1, expected a multiple of the 2 slices"):
        make_mesh(MeshConfig(), devices)


def test_a_mesh_leaves_shardings_to_the_compiler():
    # Explicit axes, JAX's default, break the Flax towers of transformers.
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.devices
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "only"),
    [
        ("eight_devices", ""),
        ("eight_devices_dense", ""),
        ("eight_devices_decoding", ""),
        ("eight_devices_meshes", "not images"),
        ("eight_devices_meshes", "images"),
    ],
)
def test_eight_simulated_devices(file, only):
    """The number of devices is fixed before the first import of jax, so in another process."""
    env = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(DEVICES / f"{file}.py"), "-k", only],
        env=os.environ | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.devices
@pytest.mark.slow
def test_two_processes(tmp_path):
    """Each loads its half of the batch; both save, pass damage over, and continue alike."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = str(ROOT)
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(DEVICES / "two_processes.py"),
                str(index),
                str(port),
                str(tmp_path),
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert (first["part"], second["part"]) == ([0, 2], [1, 2])
    assert first["losses"] == second["losses"] == first["again"] == second["again"]
    assert first["restored"] == second["restored"] == 2
    for report in (first, second):
        assert "checkpoint_4" in report["warnings"][0]
        assert "expected a global array" in report["refused"]
        assert report["lead_says"] == [True, False]
