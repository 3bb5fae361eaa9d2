"""What runs need of TPU slices, by libtpu's own compiler: a table for docs/pods.md.

The slices need not be here.

    pip install 'dsi-jax[tpu]'
    python -m benchmarks.tpu_table                                    # all; hours on two cores
    python -m benchmarks.tpu_table --runs images_l14 --topologies v5e:4x8
    python -m benchmarks.tpu_table --table                            # of what is in --results

Each line is one `dsi-jax precompile`: a run's training step and, of some, its searches with and
without the trie, on one topology. A loop over levels counts once in a search's FLOPs and estimates,
and the two searches have other loops: what the trie takes is told by `benchmarks.tpu_constraint`,
level by level. What a training step sends is compared with a count on paper.
With f devices of the axis fsdp, d copies of those and P bytes of parameters that a device of the
axis model computes with, a device's ring sends (f - 1) / f P to gather the parameters, once for the
forward and once for the backward pass, as much to sum the gradients into their parts, and
2 (d - 1) / d P / f to sum those over the copies. Nothing in it grows with the number of devices.
Parameters count 4 bytes; gathered in bfloat16, half. Activations over the axis model are left out.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsi_jax.jobs.precompile import topologies
from dsi_jax.utils.units import bytes_text, seconds_text

RESULTS = Path(__file__).parent / "results" / "tpu_table.jsonl"
NUM_DOCUMENTS = 100_000


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to compile.

    Attributes:
      title: for the table.
      files: gin files.
      topologies: where it is compiled.
      per_device: examples of each device in a batch.
      least_batch: examples of a batch at least.
      fsdp: devices among which meshes/fsdp.gin splits the parameters, copied as often as there are
        devices; None: the mesh of the experiment.
      searches: whether its searches are compiled, too.
      scan: whether layers are scanned, which compiles sooner; FLOPs and estimates then count one
        layer and are not told.
    """

    title: str
    files: tuple[str, ...]
    topologies: tuple[str, ...]
    per_device: int = 16
    least_batch: int = 0
    fsdp: int | None = 16
    searches: bool = True
    scan: bool = True

    def arguments(self, topology: str, model_dir: str) -> list[str]:
        """Of `dsi-jax precompile`."""
        devices = topologies.parse(topology).num_devices
        macros = {
            "TOPOLOGY": topology,
            "NUM_DOCUMENTS": NUM_DOCUMENTS,
            "MODEL_DIR": model_dir,
            "BATCH_SIZE": max(self.per_device * devices, self.least_batch),
            "DTYPE": "bfloat16",
            "SCAN_LAYERS": self.scan,
            "BEAM_SIZE": 20,
        }
        if any(file.startswith("experiments/nq") for file in self.files):
            macros["INITIAL_CHECKPOINT_PATH"] = "unread"
        if not self.searches:
            macros["train_config.TrainConfig.evaluation"] = None
        files = self.files
        if self.fsdp is not None:
            files += ("meshes/fsdp.gin",)
            macros |= {"MESH_DATA": -1, "MESH_FSDP": self.fsdp}
        return [
            *(f"--gin_file={file}" for file in files),
            *(f"--gin.{name}={value}" for name, value in macros.items()),
        ]


SLICES = ("v5e:4x4", "v4:4x4x4", "v6e:16x16", "v5p:8x8x8")
TEXT = ("experiments/demo_text.gin", "models/t5_1_1_base.gin", "docids/naive.gin")
IMAGES = ("experiments/demo_image.gin", "models/t5_1_1_base.gin", "docids/naive.gin")
RUNS = {
    "text": Run("T5 base", TEXT, SLICES),
    "images": Run("CLIP B/32, T5 base", (*IMAGES, "models/clip_b32.gin"), SLICES),
    "text_unscanned": Run("T5 base, not scanned", TEXT, ("v5p:2x2x4",), searches=False, scan=False),
    "images_unscanned": Run(
        "CLIP B/32, T5 base, not scanned",
        (*IMAGES, "models/clip_b32.gin"),
        ("v5p:2x2x4",),
        searches=False,
        scan=False,
    ),
    "images_l14": Run(
        "CLIP L/14, T5 base", (*IMAGES, "models/clip_l14.gin"), ("v5e:4x8",), searches=False
    ),
    "xl": Run(
        "T5 xl",
        ("experiments/nq/nq100k_xl_naive.gin",),
        ("v5e:4x8", "v5p:2x2x4"),
        per_device=1,
        least_batch=128,
        fsdp=None,
        searches=False,
    ),
    "xxl": Run(
        "T5 xxl",
        ("experiments/nq/nq100k_xxl_naive.gin",),
        ("v5e:16x16", "v5p:4x4x4"),
        per_device=1,
        least_batch=128,
        fsdp=None,
        searches=False,
    ),
    "weak_scaling": Run(
        "T5 base",
        TEXT,
        ("v5p:2x2x2", "v5p:2x4x4", "v5p:4x4x8", "v5p:8x8x8"),
        fsdp=8,
        searches=False,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles what is not in the results yet, then prints their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--topologies", nargs="+", help="default: those of each run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="compile nothing")
    options = parser.parse_args(argv)
    lines = read(options.results)
    done = {(line["run"], line["topology"]) for line in lines}
    for name in options.runs:
        for topology in options.topologies or RUNS[name].topologies:
            if options.table or (name, topology) in done:
                continue
            line = {"run": name} | compiled(RUNS[name], topology)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with options.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
    order = [*RUNS]
    print(table(sorted(lines, key=lambda line: (order.index(line["run"]), line["devices"]))))
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, which need not be there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compiled(run: Run, topology: str) -> dict[str, Any]:
    """One line: what the run's programs need of each device of the topology.

    Raises:
      RuntimeError: it could not be compiled; with the end of what was printed.
    """
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "dsi_jax.precompile", *run.arguments(topology, directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reports = [*Path(directory).glob("precompile/*.json")]
        if not reports:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
        report = json.loads(reports[0].read_text())
    (parameters,) = (re.search(r"([\d,]+) parameters", line) for line in report["lines"][:1])
    num_parameters = int(parameters[1].replace(",", ""))
    programs = report["programs"]
    return {
        "topology": topology,
        "devices": report["devices"],
        "memory_bytes": report["memory_bytes"],
        "mesh": report["mesh"],
        "parameters": num_parameters,
        "scanned": run.scan,
        "paper_bytes": paper_bytes(4 * num_parameters, report["mesh"]),
        "programs": [summary(program) for program in programs],
    }


def paper_bytes(parameter_bytes: int, mesh: dict[str, int]) -> float:
    """What a device sends in a training step by the count at the head of this file."""
    split, copies = mesh["fsdp"], mesh["data"] * mesh["replica"]
    gathered = (split - 1) / split
    own_bytes = parameter_bytes / mesh["model"]
    return own_bytes * (3 * gathered + 2 * (copies - 1) / copies / split)


def summary(program: dict[str, Any]) -> dict[str, Any]:
    """Of a program's report what the table needs."""
    memory = program["memory"]
    kinds: dict[str, float] = {}
    for found in program["collectives"]:
        sent = found["sent_bytes"] * found["times"]
        kinds[found["kind"]] = kinds.get(found["kind"], 0) + sent
    gathers = [c["result_bytes"] for c in program["collectives"] if c["kind"] == "all-gather"]
    kept = ("name", "fits", "problem", "flops", "bytes_accessed", "estimate_seconds", "sent_bytes")
    return {name: program[name] for name in kept} | {
        "memory": memory,
        "total_bytes": memory
        and memory["arguments"] + memory["outputs"] - memory["in_place"] + memory["temporaries"],
        "sent_by_kind": kinds,
        "largest_gathered_bytes": max(gathers, default=0),
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The results as a table in Markdown, a line a run and topology."""
    head = (
        "| run | slice | mesh | training step: bytes, of the memory | FLOPs | estimate | sent "
        "| on paper | search with the trie: bytes, of the memory | sent |"
    )
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *map(_row, lines)])


def _row(line: dict[str, Any]) -> str:
    step, *searches = line["programs"]
    trie = next((s for s in searches if s["name"].startswith("search, trie:")), None)
    memory, scanned = line["memory_bytes"], line["scanned"]
    cells = [
        RUNS[line["run"]].title,
        f"`{line['topology']}`",
        " ".join(f"{axis} {size}" for axis, size in line["mesh"].items() if size > 1),
        _memory(step, memory),
        "-" if scanned or not step["flops"] else f"{step['flops']:.3g}",
        "-" if scanned else _estimate(step),
        _sent(step),
        bytes_text(line["paper_bytes"]),
        _memory(trie, memory),
        _sent(trie),
    ]
    return f"| {' | '.join(cells)} |"


def _memory(program: dict[str, Any] | None, memory_bytes: int) -> str:
    if program is None:
        return "-"
    if program["total_bytes"] is None:
        return f"does not fit: {program['problem']}"
    total = program["total_bytes"]
    verdict = "" if program["fits"] else ", does not fit"
    return f"{bytes_text(total)}, {total / memory_bytes:.0%}{verdict}"


def _estimate(step: dict[str, Any]) -> str:
    seconds = step["estimate_seconds"]
    return seconds_text(seconds) if seconds else "-"


def _sent(program: dict[str, Any] | None) -> str:
    if program is None or program["total_bytes"] is None:
        return "-"
    return bytes_text(program["sent_bytes"])


if __name__ == "__main__":
    sys.exit(main())
