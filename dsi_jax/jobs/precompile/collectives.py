"""The collectives of a compiled program, read from its HLO text.

Bytes are those that a device sends if each collective runs as a ring (Patarasuk and Yuan, 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations"), which no algorithm
undercuts by much: what is counted here can be compared with a count on paper.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation)=%?([\w.-]+)")
_CALLED_LISTS = re.compile(r"\b(?:called_computations|branch_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_BOUND = re.compile(r"ROOT .* compare\([^)]*?%?([\w.-]+)\), direction=LT")
_FUSED_SCATTER = "all-reduce-scatter"
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_LISTED_GROUPS = re.compile(r"\breplica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"\breplica_groups=\[(\d+),(\d+)\]<=")
_MESH_GROUPS = re.compile(r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a program.

    Attributes:
      kind: one of `KINDS`.
      shapes: types of what a device ends up with, e.g. "bf16[512,2048]"; of what goes in where a
        TPU's fusion scatters it.
      result_bytes: bytes of that.
      group_size: devices that take part together.
      times: how often it runs, loops counted.
    """

    kind: str
    shapes: tuple[str, ...]
    result_bytes: int
    group_size: int
    times: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends each time, in a ring."""
        others = (self.group_size - 1) / self.group_size
        if self.kind == "all-reduce":
            return 2 * others * self.result_bytes
        if self.kind == "reduce-scatter":
            return (self.group_size - 1) * self.result_bytes
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.result_bytes
        return others * self.result_bytes

    @property
    def all_sent_bytes(self) -> float:
        """Bytes that a device sends in all of its runs."""
        return self.times * self.sent_bytes


def find(hlo_text: str) -> list[Collective]:
    """The collectives of a compiled program that involve more than one device.

    A loop's are counted as often as it runs, if that is a constant, else once. What TPU compilers
    split into several fusions, to overlap it with computation, is counted once.

    Args:
      hlo_text: `jax.stages.Compiled.as_text()`.

    Returns:
      One entry an instruction, in the order of the text.
    """
    computations, entry = _computations(hlo_text)
    times = _times(computations, entry)
    found, seen = [], set()
    for name, lines in computations.items():
        for line in lines:
            if times[name] == 0 or not (match := _COLLECTIVE.search(line)):
                continue
            channel = _CHANNEL.search(line)
            # What TPU compilers fuse may share a channel with others.
            identity = (match["kind"], channel[1], match["type"]) if channel else line
            if identity in seen:
                continue
            seen.add(identity)
            collective = _collective(match, line, times[name])
            if name.startswith(_FUSED_SCATTER):
                collective = _scattered(collective)
            if collective.group_size > 1:
                found.append(collective)
    return found


def merged(found: Iterable[Collective]) -> list[Collective]:
    """Equal ones as one that runs as often as all of them, the heaviest first."""
    times: collections.Counter[Collective] = collections.Counter()
    for collective in found:
        times[dataclasses.replace(collective, times=1)] += collective.times
    together = [dataclasses.replace(c, times=count) for c, count in times.items()]
    return sorted(together, key=lambda c: -c.all_sent_bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _times(computations: dict[str, list[str]], entry: str) -> collections.Counter[str]:
    """How often each computation runs; callees are printed before their callers."""
    times = collections.Counter({entry: 1})
    for name in reversed(computations):
        for line in computations[name]:
            called = _CALLED.findall(line)
            for names in _CALLED_LISTS.findall(line):
                called += [callee.strip().removeprefix("%") for callee in names.split(",")]
            trips = _trips(line, computations) if " while(" in line else 1
            for callee in called:
                times[callee] += times[name] * trips
    return times


def _trips(loop: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: by the compiler's count, or, on TPUs, by the bound of its counter.

    The loops of JAX's scans count from 0.
    """
    if known := _TRIPS.search(loop):
        return int(known[1])
    condition = computations.get(_CONDITION.search(loop)[1], [])
    for bound in filter(None, map(_BOUND.search, condition)):
        constant = re.compile(rf"%?{re.escape(bound[1])} = s32\[\]\S* constant\((\d+)\)")
        for found in filter(None, map(constant.search, condition)):
            return int(found[1])
    return 1


def _collective(match: re.Match[str], line: str, times: int) -> Collective:
    kind = match["kind"]
    arrays = [
        (f"{dtype}[{dims}]", _bytes(dtype, dims)) for dtype, dims in _ARRAY.findall(match["type"])
    ]
    if match["start"] and kind != "all-reduce":  # (operands, results, ...)
        arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[1:2]
    shapes, sizes = zip(*arrays, strict=True)
    return Collective(kind, shapes, sum(sizes), _group_size(line, kind), times)


def _scattered(reduction: Collective) -> Collective:
    """The reduce-scatter that a TPU makes of an all-reduce fused with the slices of its results."""
    part = reduction.result_bytes // reduction.group_size
    return dataclasses.replace(reduction, kind="reduce-scatter", result_bytes=part)


def _bytes(dtype: str, dims: str) -> int:
    bits = _BITS.search(dtype)
    size = int(bits[0]) if bits else 8  # pred
    return math.ceil(size / 8 * math.prod(int(dim) for dim in dims.split(",") if dim))


def _group_size(line: str, kind: str) -> int:
    """Devices of a group; a permutation has pairs instead, and none of it is local."""
    if kind == "collective-permute":
        return 2
    if groups := _IOTA_GROUPS.search(line):
        return int(groups[2])
    if groups := _LISTED_GROUPS.search(line):
        return len(groups[1].split(","))
    if groups := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", groups[2]))
    shown = re.search(r"\breplica_groups=.{0,80}", line)
    raise ValueError(f"cannot read the groups of a collective: {shown[0] if shown else line[:300]}")
