"""What a compiled program needs of a device, as text and as JSON."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from dsi_jax.jobs.precompile.collectives import Collective, find, merged
from dsi_jax.jobs.precompile.topologies import Topology
from dsi_jax.utils.units import bytes_text, seconds_text

_ROW = "  {:14s} {}"
_SHAPES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device while a program runs.

    Attributes:
      arguments: parameters, state and batch.
      outputs: what it returns.
      in_place: outputs that take the place of arguments.
      temporaries: everything between.
    """

    arguments: int
    outputs: int
    in_place: int
    temporaries: int

    @property
    def total(self) -> int:
        """Bytes needed at once."""
        return self.arguments + self.outputs - self.in_place + self.temporaries


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """One program on one device.

    Attributes:
      name: what it computes.
      compile_seconds: it took the compiler.
      memory: bytes; None where the compiler gave up.
      flops: floating-point operations.
      bytes_accessed: bytes read and written.
      estimate_seconds: the compiler's own estimate of the time; None where it has none.
      collectives: equal ones merged, the heaviest first.
      problem: why it was not compiled.
    """

    name: str
    compile_seconds: float
    memory: Memory | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    estimate_seconds: float | None = None
    collectives: tuple[Collective, ...] = ()
    problem: str | None = None

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in all collectives."""
        return sum(c.all_sent_bytes for c in self.collectives)

    def fits(self, memory_bytes: int) -> bool:
        """Whether a device of so much memory can run it."""
        return self.memory is not None and self.memory.total <= memory_bytes


@dataclasses.dataclass(frozen=True)
class Report:
    """The programs of a run on a machine.

    Attributes:
      topology: the machine.
      mesh: size of each axis.
      lines: what is compiled, for a person to read.
      programs: a report each.
    """

    topology: Topology
    mesh: Mapping[str, int]
    lines: tuple[str, ...]
    programs: tuple[ProgramReport, ...]

    @property
    def fits(self) -> bool:
        """Whether every program fits a device."""
        memory = self.topology.chip.memory_bytes
        return all(program.fits(memory) for program in self.programs)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        memory = self.topology.chip.memory_bytes
        programs = [
            dataclasses.asdict(program)
            | {
                "fits": program.fits(memory),
                "sent_bytes": program.sent_bytes,
                "collectives": [
                    dataclasses.asdict(c) | {"sent_bytes": c.sent_bytes}
                    for c in program.collectives
                ],
            }
            for program in self.programs
        ]
        return {
            "topology": self.topology.name,
            "devices": self.topology.num_devices,
            "memory_bytes": memory,
            "simulated": self.topology.is_simulated,
            "mesh": dict(self.mesh),
            "lines": list(self.lines),
            "programs": programs,
        }

    def __str__(self) -> str:
        topology = self.topology
        memory = topology.chip.memory_bytes
        lines = [*self.lines, f"machine      {topology.name}: {topology.num_devices} devices"]
        lines[-1] += f" of {bytes_text(memory)}"
        if topology.is_simulated:
            lines += [
                "             simulated by CPU devices: temporaries are approximate, FLOPs, bytes",
                "             and collectives are those before a GPU's compiler has optimised them",
            ]
        for program in self.programs:
            lines += ["", *_program_lines(program, memory)]
        return "\n".join(lines)


def compile_and_report(name: str, lowered: jax.stages.Lowered) -> ProgramReport:
    """Compiles a program and says what it needs.

    Args:
      name: what it computes.
      lowered: the program.

    Returns:
      The report; one with a `problem` where it does not fit the memory.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason.
    """
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return ProgramReport(name, time.monotonic() - start, problem=_out_of_memory(str(error)))
    seconds = time.monotonic() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    estimate = cost.get("optimal_seconds", -1.0)
    return ProgramReport(
        name,
        compile_seconds=seconds,
        memory=Memory(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            in_place=memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
        ),
        flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
        # libtpu gives a negative number where it has no model of the chip.
        estimate_seconds=estimate if estimate > 0 else None,
        collectives=tuple(merged(find(compiled.as_text()))),
    )


def _out_of_memory(message: str) -> str:
    """The compiler's sentence that says how much was needed."""
    found = re.search(r"(Ran out of memory|Used [\d.]+\w+ of [\d.]+\w+)[^\n]*", message)
    return found[0] if found else message.splitlines()[0]


def _program_lines(program: ProgramReport, memory_bytes: int) -> list[str]:
    head = f"{program.name} (compiled in {seconds_text(program.compile_seconds)}; a device)"
    if program.memory is None:
        return [head, _ROW.format("does not fit", program.problem)]
    memory = program.memory
    share = memory.total / memory_bytes
    verdict = "fits" if program.fits(memory_bytes) else "DOES NOT FIT"
    rows = [
        ("arguments", bytes_text(memory.arguments)),
        ("outputs", f"{bytes_text(memory.outputs)}, {bytes_text(memory.in_place)} in place"),
        ("temporaries", bytes_text(memory.temporaries)),
        ("in all", f"{bytes_text(memory.total)}, {share:.0%} of the memory: {verdict}"),
        ("FLOPs", "unknown" if program.flops is None else f"{program.flops:.4g}"),
        ("accessed", bytes_text(program.bytes_accessed or 0)),
        (
            "estimate",
            "none for this chip"
            if program.estimate_seconds is None
            else f"{seconds_text(program.estimate_seconds)} (the compiler's, not measured)",
        ),
        ("sent", bytes_text(program.sent_bytes)),
    ]
    for kind in dict.fromkeys(c.kind for c in program.collectives):
        same = [c for c in program.collectives if c.kind == kind]
        rows.append(("", f"{kind}: {sum(c.times for c in same)}, {_sent(same)}"))
    if program.collectives:
        heaviest = program.collectives[0]
        shapes = ", ".join(heaviest.shapes[:_SHAPES_SHOWN])
        if len(heaviest.shapes) > _SHAPES_SHOWN:
            shapes += f" and {len(heaviest.shapes) - _SHAPES_SHOWN} more"
        rows.append(
            (
                "heaviest",
                f"{heaviest.kind} of {shapes}, {heaviest.times} times, {_sent([heaviest])}",
            )
        )
    return [head, *(_ROW.format(*row) for row in rows)]


def _sent(found: Iterable[Collective]) -> str:
    return bytes_text(sum(c.all_sent_bytes for c in found))
