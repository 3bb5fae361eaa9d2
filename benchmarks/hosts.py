"""Whether a training run of several processes is the run of one: real processes over gloo, on CPUs.

    python -m benchmarks.hosts --processes 2 4

A run of one process is the reference. For each number of processes a run begins anew, a single
process goes on from the middle of that run, and as many go on from the middle of the reference. All
must have the losses and gradient norms of the reference at every step, of indexing and of retrieval
examples apart, so that they see the same examples; and rank every query once, and alike.
"""

import argparse
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks import timing
from tests.small_corpus import write_corpus
from tests.small_images import write_pictures

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVED = 8, 4
BEAMS = 10
TOLERANCE = 1e-5  # relative; batches differ by a hundred times as much and more
SECONDS = 600  # after which processes that wait for each other for ever are ended
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
KINDS = ("texts", "images")
GIN = """
from __gin__ import dynamic_registration

from dsi_jax.models import clip_config
from dsi_jax.models import t5

MODEL = @t5.T5Config()
t5.T5Config:
  vocab_size = 8
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 16
  num_encoder_layers = 1
  num_decoder_layers = 1
  dropout_rate = 0.1
"""
GIN_OF_TOWERS = """
TEXT_ENCODER = @clip_config.ClipTextConfig()
IMAGE_ENCODER = @clip_config.ClipVisionConfig()
clip_config.ClipTextConfig:
  hidden_size = 16
  intermediate_size = 16
  num_hidden_layers = 1
  num_attention_heads = 2
  vocab_size = 8
clip_config.ClipVisionConfig:
  hidden_size = 16
  intermediate_size = 16
  num_hidden_layers = 1
  num_attention_heads = 2
  image_size = 16
  patch_size = 8
"""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Processes of a run, the simulated devices of each, and the mesh of all of them."""

    processes: int
    devices: int
    mesh: str


ONE = Hosts(1, 1, "one_device")
SEVERAL = {2: Hosts(2, 2, "fsdp"), 4: Hosts(4, 1, "mixed")}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each comparison; the status is 1 where a run is not that of one process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", choices=SEVERAL, default=[*SEVERAL])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args(argv)
    status = 0
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as directory:
            corpus = Corpus.write(Path(directory), kind)
            reference = corpus.train("1", ONE)
            for count in options.processes:
                runs = {
                    f"{count}": corpus.train(f"{count}", SEVERAL[count]),
                    f"{count}, then 1": corpus.train(f"{count}_1", ONE, after=f"{count}"),
                    f"1, then {count}": corpus.train(f"1_{count}", SEVERAL[count], after="1"),
                }
                for name, trained in runs.items():
                    found = problems(trained, reference)
                    status = 1 if found else status
                    timing.emit(
                        kind="check",
                        name="hosts",
                        corpus=kind,
                        processes=name,
                        steps=len(trained.steps()),
                        largest_loss_difference=largest_difference(trained, reference),
                        problems=found,
                    )
    return status


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A small corpus, what makes a run of it, and a directory for the runs."""

    directory: Path
    arguments: tuple[str, ...]

    @classmethod
    def write(cls, directory: Path, kind: str) -> "Corpus":
        """A corpus of one of KINDS in a directory that is empty."""
        towers = GIN_OF_TOWERS if kind == "images" else ""
        (directory / "tiny.gin").write_text(GIN + towers)
        if towers:
            pictures, captions = write_pictures(directory / "pictures")
            own = ("own_images", f"--gin.IMAGES={pictures}", f"--gin.CAPTIONS={captions}")
        else:
            own = ("own_text", f"--gin.CORPUS={write_corpus(directory / 'words')}")
        return cls(
            directory,
            (
                f"--gin_file=experiments/{own[0]}.gin",
                f"--gin_file={directory / 'tiny.gin'}",
                *own[1:],
                "--gin.VOCABULARY=bytes",
                "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}",
                f"--gin.TRAIN_STEPS={STEPS}",
                f"--gin.CHECKPOINT_PERIOD={SAVED}",
                f"--gin.EVAL_PERIOD={STEPS}",
                "--gin.EVAL_STEPS=1",
                "--gin.LOG_PERIOD=1",
                "--gin.BATCH_SIZE=16",
                "--gin.WARMUP_STEPS=2",
                f"--gin.BEAM_SIZE={BEAMS}",
                "--gin.BASELINE=None",
                "--gin.evaluator.Evaluation.batch_size=8",  # leaves an uneven last batch
                "--gin.evaluator.Evaluation.unconstrained=False",
            ),
        )

    def train(self, name: str, hosts: Hosts, *, after: str | None = None) -> "Trained":
        """Trains MODEL_DIR `name`; with `after` it goes on from step SAVED of that run."""
        model_dir = self.directory / name
        if after is not None:
            shutil.copytree(self.directory / after, model_dir)
            shutil.rmtree(model_dir / f"checkpoint_{STEPS}")
            for logged in ("train", "training_eval", "inference_eval"):
                shutil.rmtree(model_dir / logged, ignore_errors=True)
        _run(hosts, self.directory, [*self.arguments, f"--gin.MODEL_DIR={model_dir}"])
        return Trained(model_dir)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run left in its MODEL_DIR."""

    model_dir: Path

    def steps(self) -> dict[int, dict[str, float]]:
        """What was logged of each step that depends on its examples."""
        lines = map(json.loads, (self.model_dir / "train/metrics.jsonl").read_text().splitlines())
        return {
            line["step"]: {n: v for n, v in line.items() if _is_of_examples(n)} for line in lines
        }

    def figures(self) -> dict[str, dict[str, float]]:
        """The last evaluation of each target, and the held-out losses of each task."""
        paths = {path.name: path for path in self.model_dir.glob("inference_eval/*-metrics.jsonl")}
        held_out = self.model_dir.glob("training_eval/*/metrics.jsonl")
        paths |= {path.parent.name: path for path in held_out}
        found = {
            name: json.loads(path.read_text().splitlines()[-1]) for name, path in paths.items()
        }
        return {name: {n: v for n, v in f.items() if n != "time"} for name, f in found.items()}

    def rankings(self) -> dict[str, list[list[str]]]:
        """The lines of each target's last run file: query, "Q0", document and rank."""
        paths = self.model_dir.glob(f"inference_eval/*-{STEPS:06}.trec")
        return {
            path.name: [line.split()[:4] for line in path.read_text().splitlines()]
            for path in paths
        }


def problems(trained: Trained, reference: Trained) -> list[str]:
    """In what a run, or its second half, is not the reference; nothing if it is the same run."""
    found = []
    steps, expected = trained.steps(), reference.steps()
    if [*steps] not in ([*range(1, STEPS + 1)], [*range(SAVED + 1, STEPS + 1)]):
        found.append(f"steps {[*steps]} were logged")
    found += [
        f"step {step}: {name} is {value}, expected {expected[step].get(name)}"
        for step, metrics in steps.items()
        for name, value in metrics.items()
        if not _is_close(value, expected[step].get(name))
    ]
    ours, theirs = trained.figures(), reference.figures()
    found += [
        f"{target}: {name} is {ours.get(target, {}).get(name)}, expected {value}"
        for target, figures in theirs.items()
        for name, value in figures.items()
        if not _is_close(ours.get(target, {}).get(name), value)
    ]
    for target, lines in reference.rankings().items():
        ranked = trained.rankings().get(target, [])
        times = Counter(query for query, *_ in ranked)
        if times != Counter(query for query, *_ in lines):
            found.append(f"{target}: queries are not ranked as often as by one process")
        if len(times) != theirs[target.replace(f"{STEPS:06}.trec", "metrics.jsonl")]["queries"]:
            found.append(f"{target}: {len(times)} queries are ranked")
        if ranked != lines:
            found.append(f"{target}: another ranking")
    return found


def largest_difference(trained: Trained, reference: Trained) -> float:
    """Of the losses, relative to those of the reference."""
    expected = reference.steps()
    return max(
        abs(metrics["loss"] / expected[step]["loss"] - 1)
        for step, metrics in trained.steps().items()
    )


def _is_of_examples(name: str) -> bool:
    return name.startswith("loss") or name == "grad_norm"


def _is_close(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return False
    return abs(value - expected) <= TOLERANCE * max(abs(expected), 1e-2)


def _run(hosts: Hosts, directory: Path, arguments: Sequence[str]) -> None:
    """Runs the train command as so many processes.

    Raises:
      RuntimeError: one of them failed, or they did not end; with the end of what it printed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(hosts.devices),
        "XLA_FLAGS": QUICK_COMPILATION,
        "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "dsi_jax.train", *arguments]
    command.append(f"--gin_file=meshes/{hosts.mesh}.gin")
    processes, logs = [], []
    for index in range(hosts.processes):
        flags = [f"--coordinator_address={address}", f"--process_index={index}"]
        flags.append(f"--process_count={hosts.processes}")
        logs.append(directory / f"process_{index}.log")
        with logs[-1].open("w") as log:
            line = [*command, *(flags if hosts.processes > 1 else ())]
            processes.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
    end = time.monotonic() + SECONDS
    try:
        while any(process.poll() is None for process in processes):
            failed = [i for i, process in enumerate(processes) if process.poll()]
            if failed or time.monotonic() > end:
                break
            time.sleep(0.1)
        failed = [i for i, process in enumerate(processes) if process.poll() != 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failed:
        printed = logs[failed[0]].read_text()[-4000:]
        raise RuntimeError(f"process {failed[0]} of {hosts.processes} failed: {printed}")


if __name__ == "__main__":
    sys.exit(main())
