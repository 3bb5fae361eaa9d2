"""Small real runs of the train command, of one process or of several over gloo, on CPUs."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tests.fixtures.small_corpus import write_corpus
from tests.fixtures.small_images import write_pictures

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVED = 8, 4
BEAMS = 10
SECONDS = 600  # after which processes that wait for each other for ever are ended
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if metadata.version("jaxlib").startswith("0.10."):  # XLA ends a process over a flag unknown to it
    QUICK_COMPILATION += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
KINDS = ("texts", "images")
GIN = """
from __gin__ import dynamic_registration

from dsi_jax.models.encoders import clip_config
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
                "--gin.config.Evaluation.batch_size=8",  # leaves an uneven last batch
                "--gin.config.Evaluation.unconstrained=False",
            ),
        )

    def longer(self, steps: int, checkpoint_period: int) -> "Corpus":
        """The same with other numbers of steps, and nothing evaluated."""
        more = (
            f"--gin.TRAIN_STEPS={steps}",
            f"--gin.CHECKPOINT_PERIOD={checkpoint_period}",
            "--gin.train_config.TrainConfig.evaluation=None",
        )
        return dataclasses.replace(self, arguments=(*self.arguments, *more))

    def train(self, name: str, hosts: Hosts, *, after: str | None = None) -> Path:
        """Trains and returns MODEL_DIR `name`; with `after` it goes on from step SAVED of that run.

        Raises:
          RuntimeError: one of the processes failed, or they did not end; with what it printed.
        """
        model_dir = self.directory / name
        if after is not None:
            shutil.copytree(self.directory / after, model_dir)
            shutil.rmtree(model_dir / f"checkpoint_{STEPS}")
            for logged in ("train", "training_eval", "inference_eval"):
                shutil.rmtree(model_dir / logged, ignore_errors=True)
        with self.start(name, hosts) as processes:
            processes.wait()
        return model_dir

    def start(self, name: str, hosts: Hosts, *more: str) -> "Processes":
        """Starts to train MODEL_DIR `name`, or to go on with it; `more` are arguments."""
        model_dir = self.directory / name
        return Processes.start(
            hosts, self.directory, [*self.arguments, *more, f"--gin.MODEL_DIR={model_dir}"]
        )


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run, and what each prints; killed where the context ends."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    @classmethod
    def start(cls, hosts: Hosts, directory: Path, arguments: Sequence[str]) -> "Processes":
        """Starts the train command as so many processes, with files of theirs in `directory`."""
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
        return cls(processes, logs)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Sends SIGKILL to those that still run."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    @property
    def running(self) -> bool:
        """Whether all of them still run."""
        return all(process.poll() is None for process in self.processes)

    def wait(self) -> None:
        """Waits until all have ended well.

        Raises:
          RuntimeError: one of them failed, or they did not end; with the end of what it printed.
        """
        end = time.monotonic() + SECONDS
        while any(process.poll() is None for process in self.processes):
            if any(process.poll() for process in self.processes) or time.monotonic() > end:
                break
            time.sleep(0.1)
        for index, process in enumerate(self.processes):
            if process.poll() != 0:
                printed = self.logs[index].read_text()[-4000:]
                raise RuntimeError(f"process {index} of {len(self.processes)} failed: {printed}")
