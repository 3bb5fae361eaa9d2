"""Timing that the benchmarks share: pinned, warmed up, taking turns, and silent about noise.

Contenders take turns within every round, so that a slow spell of the machine falls on all of them
and not on one. A timing whose tenth-slowest round is far from its median says more about the
machine than about the program: no figure is made of it.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

LARGEST_SPREAD = 1.3  # p90 / p50 from which on a timing is unreliable
FEWEST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Timing:
    """Percentiles of durations, in seconds.

    Attributes:
      p10: a tenth of the rounds were at least as fast.
      p50: the median, of which every figure is made.
      p90: a tenth of the rounds were at least as slow.
      rounds: how many there were.
    """

    p10: float
    p50: float
    p90: float
    rounds: int

    @classmethod
    def of(cls, durations: Sequence[float]) -> "Timing":
        """The timing of these durations.

        Raises:
          ValueError: there are fewer than FEWEST_ROUNDS.
        """
        if len(durations) < FEWEST_ROUNDS:
            raise ValueError(f"{len(durations)} rounds; expected at least {FEWEST_ROUNDS}")
        p10, p50, p90 = (float(value) for value in np.percentile(durations, (10, 50, 90)))
        return cls(p10, p50, p90, len(durations))

    @property
    def unreliable(self) -> bool:
        """Whether the rounds differ too much for a figure."""
        return self.p90 > LARGEST_SPREAD * self.p50

    def fields(self, prefix: str = "") -> dict[str, Any]:
        """The percentiles as fields of a line, their names after `prefix`."""
        return {f"{prefix}p10_s": self.p10, f"{prefix}p50_s": self.p50, f"{prefix}p90_s": self.p90}


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    per_call: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times contenders in turns; each round starts with another of them.

    Args:
      calls: name -> a call that returns once its work is done (the device's, too).
      rounds: timed calls of each.
      warmup: calls of each before, which compile and fill caches.
      per_call: units of work in a call, by which its duration is divided.
      clock: gives seconds.

    Returns:
      name -> the timing of one unit of work.

    Raises:
      ValueError: there are fewer than FEWEST_ROUNDS rounds.
    """
    if rounds < FEWEST_ROUNDS:
        raise ValueError(f"rounds is {rounds}; expected at least {FEWEST_ROUNDS}")
    for call in calls.values():
        for _ in range(warmup):
            call()
    names = list(calls)
    durations: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            calls[name]()
            durations[name].append((clock() - start) / per_call)
    return {name: Timing.of(values) for name, values in durations.items()}


def line(timings: Mapping[str, Timing], figures: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a measurement: percentiles always, figures only of reliable timings.

    Args:
      timings: by contender; the sole one may be called "".
      figures: makes what is derived from the medians, ratios for one; not called if a timing is
        unreliable.

    Returns:
      The percentiles, `rounds`, `load` and `unreliable`, and the figures unless that is True.
    """
    fields: dict[str, Any] = {}
    for name, timing in timings.items():
        fields |= timing.fields(f"{name}_" if name else "")
    unreliable = any(timing.unreliable for timing in timings.values())
    fields |= {
        "rounds": min(timing.rounds for timing in timings.values()),
        "load": load(),
        "unreliable": unreliable,
    }
    return fields if unreliable else fields | dict(figures())


def pin(cores: str | None) -> int:
    """Binds the process to cores; to be called before anything starts threads of its own.

    Args:
      cores: "0-3,8", or None to leave the process where it may run.

    Returns:
      The number of cores that it may run on.

    Raises:
      ValueError: the text is no list of cores, or the system has no such cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        if cores is not None:
            raise ValueError("cores were given, but this system cannot bind a process to cores")
        return os.cpu_count() or 1
    if cores is not None:
        try:
            os.sched_setaffinity(0, _parse_cores(cores))
        except (ValueError, OSError) as error:
            raise ValueError(f"cores is {cores!r}, expected e.g. '0-3,8': {error}") from error
    return len(os.sched_getaffinity(0))


def load() -> float | None:
    """The machine's load over the last minute: processes that run or wait to; None if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def emit(**fields: Any) -> None:
    """Prints one JSON line at once, floats with six significant digits."""
    print(json.dumps(_plain(fields), allow_nan=False), flush=True)


def _parse_cores(cores: str) -> set[int]:
    found: set[int] = set()
    for part in cores.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _plain(value: Any) -> Any:
    """What `json` can write; a number that is none (nan, inf) becomes its name."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if math.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value
