"""The table of TPU slices: the count on paper, and how its lines are told."""

import pytest

from benchmarks import tpu_table


def mesh(**axes: int) -> dict[str, int]:
    return {"replica": 1, "data": 1, "fsdp": 1, "model": 1} | axes


def test_bytes_on_paper():
    assert tpu_table.paper_bytes(800, mesh()) == 0
    # Gathered twice, and gradients summed into parts: 7/8 of all, three times.
    assert tpu_table.paper_bytes(800, mesh(fsdp=8)) == 3 * 700
    # The gradients of a device's 100 bytes, summed over four copies in a ring.
    assert tpu_table.paper_bytes(800, mesh(fsdp=8, data=4)) == 3 * 700 + 2 * 3 / 4 * 100
    assert tpu_table.paper_bytes(800, mesh(data=2, replica=2)) == 2 * 3 / 4 * 800
    assert tpu_table.paper_bytes(800, mesh(fsdp=8, model=2)) == 3 * 350
    few, many = (tpu_table.paper_bytes(800, mesh(fsdp=8, data=copies)) for copies in (1, 10**6))
    assert many < few + 2 * 100  # whatever the number of devices


def test_every_run_names_its_mesh_and_divides_its_batch():
    for run in tpu_table.RUNS.values():
        for topology in run.topologies:
            arguments = run.arguments(topology, "somewhere")
            assert f"--gin.TOPOLOGY={topology}" in arguments
            (batch,) = (a for a in arguments if a.startswith("--gin.BATCH_SIZE="))
            devices = tpu_table.topologies.parse(topology).num_devices
            assert int(batch.partition("=")[2]) % devices == 0
            own = run.fsdp is None and any("_xl_" in f or "_xxl_" in f for f in run.files)
            assert own or "--gin_file=meshes/fsdp.gin" in arguments


def program(name: str, **changes) -> dict:
    return {
        "name": name,
        "fits": True,
        "problem": None,
        "flops": 2e12,
        "estimate_seconds": 0.5,
        "sent_bytes": 2048,
        "total_bytes": 1 << 30,
    } | changes


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({}, "1 GiB, 50% | 2e+12 | 500 ms | 2 KiB | 3 KiB | 1 GiB, 50% | 4 KiB |"),
        ({"fits": False, "total_bytes": 4 << 30}, "| 4 GiB, 200%, does not fit |"),
        (
            {"total_bytes": None, "flops": None, "estimate_seconds": None, "problem": "9G of 2G"},
            "does not fit: 9G of 2G | - | - | - | 3 KiB",
        ),
    ],
)
def test_a_line_of_the_table(step, expected):
    line = {
        "run": "xl",
        "topology": "v5p:2x2x2",
        "devices": 8,
        "memory_bytes": 2 << 30,
        "mesh": mesh(fsdp=8),
        "paper_bytes": 3072,
        "scanned": False,
        "programs": [
            program("training step", **step),
            program("search, trie: 64 queries", sent_bytes=4096),
            program("search, free: 64 queries"),
        ],
    }
    head, rule, row = tpu_table.table([line]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row.startswith("| T5 xl | `v5p:2x2x2` | fsdp 8 | ") and expected in row
    row = tpu_table.table([line | {"scanned": True}]).splitlines()[-1]
    assert "2e+12" not in row and "500 ms" not in row  # they are of one layer
