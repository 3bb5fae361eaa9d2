"""Devices that are described and not attached: TPU slices, and GPUs simulated by CPU devices."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

_GIB = 1 << 30
# Without these libtpu asks a TPU's metadata server, for minutes, or complains, and lets one process
# at a time load it: a machine's TPU is for one, its compiler is for all.
_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
}
_EXAMPLES = "'v5p:4x4x4', 'v6e:16x16*2' (two slices) or 'h100:8'"


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
      memory_bytes: of one device.
      dimensions: of a TPU slice's torus; 0 for a GPU.
      options: of `get_topology_desc`, so that a device is what JAX shows as one on that machine.
    """

    memory_bytes: int
    dimensions: int = 0
    options: tuple[tuple[str, str], ...] = ()


# Both cores of a v4 chip are one device.
CHIPS = {
    "v4": Chip(32 * _GIB, dimensions=3, options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(16 * _GIB, dimensions=2),
    "v5p": Chip(95 * _GIB, dimensions=3),
    "v6e": Chip(32 * _GIB, dimensions=2),
    "a100": Chip(80 * _GIB),
    "h100": Chip(80 * _GIB),
    "h200": Chip(141 * _GIB),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine by its name.

    Attributes:
      name: chip, shape of a slice and, with several slices, their number: "v5e:4x4*2". For GPUs
        the number of devices: "h100:16".
      kind: key of `CHIPS`.
      shape: of a slice, or (number of GPUs,).
      num_slices: TPU slices, joined by the data-centre network.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        """What a device is."""
        return CHIPS[self.kind]

    @property
    def is_simulated(self) -> bool:
        """Whether CPU devices stand in, compiled by XLA's CPU compiler."""
        return self.chip.dimensions == 0

    @property
    def num_devices(self) -> int:
        """Devices of all slices."""
        return math.prod(self.shape) * self.num_slices


def parse(name: str) -> Topology:
    """The topology of a name such as 'v5p:4x4x4'.

    Raises:
      ValueError: it is none; an example is given.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", name)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"TOPOLOGY is {name!r}; expected one of {', '.join(CHIPS)} with its shape, "
            f"for example {_EXAMPLES}"
        )
    shape = tuple(map(int, match[2].split("x")))
    topology = Topology(name, match[1], shape, int(match[3] or 1))
    dimensions = topology.chip.dimensions or 1
    if len(shape) != dimensions or topology.num_devices < 1:
        raise ValueError(
            f"TOPOLOGY is {name!r}; expected {dimensions} positive numbers after {match[1]}:, "
            f"for example {_EXAMPLES}"
        )
    if topology.is_simulated and topology.num_slices > 1:
        raise ValueError(f"TOPOLOGY is {name!r}; GPUs have no slices: give their whole number")
    return topology


def devices(topology: Topology) -> Sequence[jax.Device]:
    """Its devices, for a mesh to compile for.

    JAX must not have been used before in this process: it is told to stay on the CPU and, for
    GPUs, to make so many CPU devices.

    Raises:
      ValueError: the compiler does not know such a slice, or libtpu is not installed.
      RuntimeError: JAX was used before.
    """
    jax.config.update("jax_platforms", "cpu")
    if topology.is_simulated:
        jax.config.update("jax_num_cpu_devices", topology.num_devices)
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"TOPOLOGY {topology.name!r} needs the TPU compiler: pip install 'dsi-jax[tpu]'"
        )
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    shape = "x".join(map(str, topology.shape))
    try:
        description = topologies.get_topology_desc(
            f"{topology.kind}:{shape}",
            platform="tpu",
            num_slices=topology.num_slices,
            **dict(topology.chip.options),
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"TOPOLOGY is {topology.name!r}: {error}") from error
    return description.devices
