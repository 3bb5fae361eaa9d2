"""How the processes of a run find each other: by flags, or by what SLURM, Kubernetes or a TPU says.

On a TPU slice JAX reads the slice's metadata itself. Under SLURM JAX would give each process the
GPU of its number even where a process has a whole node, and on Kubernetes it asks the cluster's
API, which needs a package and a permission; neither says whom it waits for. Those two are therefore
read here, from the variables alone.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import re
import threading
from collections.abc import Mapping

from dsi_jax.cli import terminal

_MARGIN = 60  # seconds by which JAX's own patience is longer than ours
_SLURM_PORTS = (61440, 4096)  # first and number: another port for each job on a shared node
_TPU_CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of one run.

    Attributes:
      coordinator: address of the first process, HOST:PORT; None: JAX finds it.
      count: processes; None: JAX finds it.
      index: this one's; None: JAX finds it.
      local_devices: the accelerators of this machine that are this process's; None: all.
      source: who said so, for messages.
    """

    coordinator: str | None
    count: int | None
    index: int | None
    local_devices: tuple[int, ...] | None
    source: str

    def __str__(self) -> str:
        if self.count is None:
            return f"the hosts that {self.source} names"
        return f"process {self.index} of {self.count}, first at {self.coordinator} ({self.source})"


def find(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    asked: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Hosts | None:
    """The processes of this run; None where it has one.

    Args:
      coordinator: flag `--coordinator_address`.
      count: flag `--process_count`.
      index: flag `--process_index`.
      asked: flag `--multiprocess_gpu`: there must be several.
      environment: variables of the process.

    Raises:
      ValueError: the flags or variables do not go together, or `asked` and nothing says which.
    """
    flags = {
        "coordinator_address": coordinator,
        "process_count": count,
        "process_index": index,
    }
    given = [name for name, value in flags.items() if value is not None]
    if given:
        missing = [f"--{name}" for name, value in flags.items() if value is None]
        if missing:
            raise ValueError(f"--{given[0]} is given and {' and '.join(missing)} is not")
        return _checked(Hosts(coordinator, count, index, None, "flags"))
    found = _slurm(environment) or _kubernetes(environment) or _tpu(environment)
    if found is None and asked:
        raise ValueError(
            "--multiprocess_gpu: expected --coordinator_address, --process_count and "
            "--process_index, or the variables of SLURM or Kubernetes"
        )
    return None if found is None else _checked(found)


def join(hosts: Hosts, timeout: int) -> None:
    """Waits until all processes are there; before anything else is asked of JAX.

    Where some do not come the process ends with a line that says how many were expected and where.
    JAX itself would wait as long and then abort, without a word on what it waited for.
    """
    import jax  # after the decision, so that a wrong flag is answered at once

    arguments = {}
    if hosts.count is not None:
        arguments = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.count,
            "process_id": hosts.index,
            "local_device_ids": hosts.local_devices,
            "cluster_detection_method": "deactivate",
        }
    message = f"{hosts}: not all processes came within {timeout} s (--initialization_timeout)"
    watchdog = threading.Timer(timeout, terminal.end_process, [message])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout + _MARGIN)
    finally:
        watchdog.cancel()


def _checked(hosts: Hosts) -> Hosts:
    if hosts.count is None:
        return hosts
    if not 0 <= hosts.index < hosts.count:
        raise ValueError(
            f"process index {hosts.index} ({hosts.source}) is not among {hosts.count} processes"
        )
    if not re.fullmatch(r".+:\d+", hosts.coordinator):
        raise ValueError(
            f"the coordinator's address is {hosts.coordinator!r} ({hosts.source}); expected "
            "HOST:PORT"
        )
    return hosts


def _slurm(environment: Mapping[str, str]) -> Hosts | None:
    """A step of several tasks; where a node has several, each takes the GPU of its number."""
    count = int(environment.get("SLURM_NTASKS", 1))
    if count < 2 or "SLURM_PROCID" not in environment or "SLURM_STEP_NODELIST" not in environment:
        return None
    first, ports = _SLURM_PORTS
    port = first + int(environment.get("SLURM_JOB_ID", 0)) % ports
    node = _first_node(environment["SLURM_STEP_NODELIST"])
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", count)))
    own = None if nodes == count else (int(environment["SLURM_LOCALID"]),)
    coordinator = environment.get("JAX_COORDINATOR_ADDRESS", f"{node}:{port}")
    return Hosts(coordinator, count, int(environment["SLURM_PROCID"]), own, "SLURM")


def _first_node(nodes: str) -> str:
    """The first of SLURM's compressed list: "gpu[003-005,9],x1" -> "gpu003"."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if not match:
        raise ValueError(f"SLURM_STEP_NODELIST is {nodes!r}; expected a list of nodes")
    return match[1] + (match[2] or "") + (match[3] or "")


def _kubernetes(environment: Mapping[str, str]) -> Hosts | None:
    """Pods of an indexed job, told by the manifest of launch/kubernetes.sh."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_COUNT", "JOB_COMPLETION_INDEX")
    if not all(name in environment for name in names):
        return None
    coordinator, count, index = (environment[name] for name in names)
    if int(count) == 1:
        return None
    return Hosts(coordinator, int(count), int(index), None, "Kubernetes")


def _tpu(environment: Mapping[str, str]) -> Hosts | None:
    """A host of a TPU slice of several; one host alone needs no coordinator."""
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return None
    if importlib.util.find_spec("libtpu") is None or not any(map(glob.glob, _TPU_CHIPS)):
        return None
    return Hosts(None, None, None, None, "the TPU's metadata")
