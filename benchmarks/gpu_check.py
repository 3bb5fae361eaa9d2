"""Checks and measures the core on an accelerator; prints one JSON line each.

    python -m benchmarks.gpu_check                 # everything, at full size
    python -m benchmarks.gpu_check train           # or decode
    python -m benchmarks.gpu_check --small         # minutes on a CPU

It needs jax, flax, optax, orbax, numpy, pyarrow, sentencepiece and pillow, and for the image DSI
transformers with its Flax CLIP: neither tensorflow nor seqio, gin or a network. Run it from the
root of a checkout. The exit status is 0 if every check passed. What `train` runs is in
`gpu_training`, what `decode` runs in `gpu_decoding`.

Checks run first, in a process whose XLA_FLAGS have --xla_gpu_deterministic_ops=true: without that
flag a GPU adds up the gradients of embeddings in any order, and two runs differ in their last bits
(a training that must resume bit for bit needs the flag as well). Measurements run in a second
process, without it, because it costs speed. Leave JAX_PLATFORMS unset on an accelerator: the CPU
backend is what results are compared with.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from benchmarks import gpu_decoding, gpu_setting, gpu_training, timing
from benchmarks.gpu_setting import SMALL, Setting

SUBJECTS = {"train": gpu_training, "decode": gpu_decoding}
PARTS = ("checks", "measurements")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

Run = Callable[[], dict[str, Any] | Iterator[dict[str, Any]]]


def runs_of(part: str, subject: str, setting: Setting) -> dict[str, Run]:
    """What a part has to run, by name; nothing runs yet.

    Args:
      part: one of PARTS. A check gives the fields of its line, a measurement those of several.
      subject: one of SUBJECTS, or "all".
      setting: the sizes.
    """
    subjects = SUBJECTS if subject == "all" else {subject: SUBJECTS[subject]}
    runs: dict[str, Run] = {}
    for module in subjects.values():
        runs |= module.checks(setting) if part == "checks" else module.measurements(setting)
    return runs if part == "checks" else runs | {"memory": measure_memory}


def measure_memory() -> Iterator[dict[str, Any]]:
    """The most memory that this part of the program has held on the device."""
    memory = gpu_setting.device().memory_stats() or {}
    yield {
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "limit_bytes": memory.get("bytes_limit"),
        "note": None if memory else "this backend keeps no statistics",
    }


def run_part(part: str, subject: str, setting: Setting, only: Sequence[str]) -> int:
    """Runs the checks or the measurements; what fails is a line, and the rest goes on.

    Args:
      part: one of PARTS.
      subject: one of SUBJECTS, or "all".
      setting: the sizes.
      only: names to run; all if empty.

    Returns:
      The exit status: 1 if anything failed.
    """
    timing.emit(kind="about", part=part, subject=subject, **_about())
    failed = False
    kind = part.removesuffix("s")
    for name, run in runs_of(part, subject, setting).items():
        if only and name not in only:
            continue
        began = time.perf_counter()
        try:
            for fields in [run()] if part == "checks" else run():
                failed |= fields.get("passed") is False
                now = time.perf_counter()
                timing.emit(kind=kind, name=name, **fields, seconds=now - began)
                began = now
        except Exception as error:
            failed = True
            message = f"{type(error).__name__}: {error}"[:500]
            timing.emit(kind=kind, name=name, passed=False, error=message)
    return int(failed)


def _about() -> dict[str, Any]:
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "backend": jax.default_backend(),
        "device": gpu_setting.device().device_kind,
        "devices": len(jax.devices()),
        "cores": timing.pin(None),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "backend_version": gpu_setting.device().client.platform_version,
    }


def run_all(parts: Sequence[str], arguments: Sequence[str]) -> int:
    """Runs each part in a process of its own, passes its lines on, and sums up.

    Args:
      parts: of PARTS.
      arguments: of the command line, handed to each.

    Returns:
      The exit status: 1 if anything failed.
    """
    passed, failed, unreliable, measured = 0, [], 0, 0
    for part in parts:
        environment = dict(os.environ)
        if part == "checks":
            flags = environment.get("XLA_FLAGS", "")
            environment["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
        command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments, "--part", part]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            for text in process.stdout:
                print(text, end="", flush=True)
                if not text.startswith("{"):
                    continue
                fields = json.loads(text)
                if fields.get("passed") is False:
                    failed.append(fields["name"])
                elif fields["kind"] == "check":
                    passed += 1
                elif fields["kind"] == "measurement":
                    measured += 1
                    unreliable += bool(fields.get("unreliable"))
        if process.returncode not in (0, 1):
            failed.append(f"{part}: exit status {process.returncode}")
    timing.emit(
        kind="summary",
        checks_passed=passed,
        failed=failed,
        measurements=measured,
        measurements_unreliable=unreliable,
    )
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", nargs="?", choices=("all", *SUBJECTS), default="all")
    parser.add_argument("--small", action="store_true", help="sizes for minutes on a CPU")
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of lines")
    parser.add_argument("--cores", help="bind to these, e.g. 0-3,8")
    parser.add_argument(
        "--peak_tflops",
        nargs="+",
        type=_peak,
        metavar="DTYPE=TFLOPS",
        help="of the device, e.g. bfloat16=989 float32=495",
    )
    parser.add_argument(
        "--bandwidth_gbs", type=float, help="of the device's memory, in 1e9 bytes/s, e.g. 4800"
    )
    parser.add_argument("--models", nargs="+", help="names in dsi_jax.models.t5_sizes")
    parser.add_argument("--clip", choices=gpu_setting.CLIPS, help="towers of the image DSI")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtypes", nargs="+", choices=dtypes)
    parser.add_argument("--decode_dtype", choices=dtypes)
    parser.add_argument("--jump_docids", nargs="+", type=_docids, metavar="LxV")
    for name in ("query_batches", "beam_sizes", "scaled_beams", "jump_batches"):
        parser.add_argument(f"--{name}", nargs="+", type=int)
    for name in (
        "layers",
        "vocab",
        "batch",
        "check_batch",
        "source",
        "documents",
        "atomic_documents",
        "scaled_batch",
        "jump_documents",
        "rounds",
        "steps_a_round",
    ):
        parser.add_argument(f"--{name}", type=int)
    return parser


def _peak(text: str) -> tuple[str, float]:
    dtype, value = text.split("=")
    return dtype, float(value)


def _docids(text: str) -> tuple[int, int]:
    length, codes = map(int, text.split("x"))
    return length, codes


def _setting(args: argparse.Namespace) -> Setting:
    given = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(Setting)
        if (value := getattr(args, field.name)) is not None
    }
    return dataclasses.replace(SMALL if args.small else Setting(), **given)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        setting = _setting(args)
    except ValueError as error:
        parser.error(str(error))
    names = {part: runs_of(part, args.subject, setting).keys() for part in PARTS}
    parts = PARTS if args.part == "all" else (args.part,)
    wanted = [part for part in parts if not args.only or names[part] & set(args.only)]
    if not wanted or set(args.only).difference(*names.values()):
        expected = ", ".join(name for part in parts for name in names[part])
        parser.error(f"--only {' '.join(args.only)}: expected some of {expected}")
    if args.part == "all":
        return run_all(wanted, arguments)
    timing.pin(args.cores)
    return run_part(args.part, args.subject, setting, args.only)


if __name__ == "__main__":
    sys.exit(main())
