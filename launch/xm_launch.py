"""Launches a run with XManager: in Docker on this machine, on Vertex AI or on Kubernetes.

    pip install xmanager
    xmanager launch launch/xm_launch.py -- --executor=vertex --accelerator=a100=8 -- \
      train --gin_file=experiments/demo_text.gin --gin.MODEL_DIR=/gcs/BUCKET/demo

What follows the second `--` are the arguments of `dsi-jax`. Each `--sweep=MACRO=a,b` makes several
runs, one for each value, MODEL_DIR extended by it. docs/launch.md goes through it.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

_EXECUTORS = ("local", "vertex", "kubernetes")
_EXECUTOR = flags.DEFINE_enum("executor", "local", _EXECUTORS, "Where to run.")
_ACCELERATOR = flags.DEFINE_string(
    "accelerator", None, "A resource of XManager and how many, e.g. a100=8, tpu_v5e=2x4."
)
_CPUS = flags.DEFINE_integer("cpus", 12, "Cores of the machine.")
_RAM_GIB = flags.DEFINE_integer("ram_gib", 80, "Memory of the machine.")
_IMAGE = flags.DEFINE_string("image", None, "Built image; default: launch/Dockerfile is built.")
_PUSH = flags.DEFINE_string("push_image_tag", None, "Registry name of the image that is built.")
_SWEEP = flags.DEFINE_multi_string("sweep", [], "MACRO=value,value: one run for each value.")
_TITLE = flags.DEFINE_string("title", "dsi", "Name of the experiment.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be launched and stop.")

_MODEL_DIR = "--gin.MODEL_DIR="
_ROOT = Path(__file__).resolve().parents[1]


def runs(arguments: Sequence[str], sweeps: Sequence[str]) -> list[list[str]]:
    """The arguments of each run.

    Args:
      arguments: of `dsi-jax`, common to all.
      sweeps: "MACRO=value,value" texts; all combinations are run.

    Raises:
      ValueError: a sweep is no such text, or there is no MODEL_DIR to extend.
    """
    choices = []
    for text in sweeps:
        macro, equals, values = text.partition("=")
        if not equals or not macro or not values:
            raise ValueError(f"--sweep={text}: expected MACRO=value,value")
        choices.append([(macro, value) for value in values.split(",")])
    found = []
    for combination in itertools.product(*choices):
        suffix = "".join(f"_{macro}_{value}" for macro, value in combination)
        run = [
            argument + suffix if argument.startswith(_MODEL_DIR) else argument
            for argument in arguments
        ]
        if suffix and run == list(arguments):
            raise ValueError(f"--sweep needs {_MODEL_DIR}DIR among the arguments")
        found.append(run + [f"--gin.{macro}={value}" for macro, value in combination])
    return found


def _requirements(xm: Any) -> Any:
    resources = {"cpu": _CPUS.value, "ram": _RAM_GIB.value * xm.GiB}
    if _ACCELERATOR.value:
        kind, _, count = _ACCELERATOR.value.partition("=")
        resources[kind] = int(count) if count.isdigit() else count or 1
    return xm.JobRequirements(**resources)


def launch(all_arguments: Sequence[Sequence[str]]) -> None:
    """Builds the image, where none is given, and starts a job for each list of arguments."""
    from xmanager import xm, xm_local

    executors = {
        "local": xm_local.Local,
        "vertex": xm_local.Vertex,
        "kubernetes": xm_local.Kubernetes,
    }
    make_executor = executors[_EXECUTOR.value]
    spec = make_executor.Spec()
    if _EXECUTOR.value != "local":
        spec = make_executor.Spec(push_image_tag=_PUSH.value)
    program = xm.Dockerfile(path=str(_ROOT), dockerfile=str(_ROOT / "launch" / "Dockerfile"))
    if _IMAGE.value:
        program = xm.Container(image_path=_IMAGE.value)
    with xm_local.create_experiment(experiment_title=_TITLE.value) as experiment:
        (executable,) = experiment.package([xm.Packageable(program, spec)])
        for arguments in all_arguments:
            executor = make_executor(requirements=_requirements(xm))
            experiment.add(xm.Job(executable, executor, args=list(arguments)))


def main(argv: Sequence[str]) -> None:
    """Launches, or prints what would be launched."""
    if len(argv) < 2:
        raise app.UsageError("expected the arguments of dsi-jax after --")
    all_arguments = runs(argv[1:], _SWEEP.value)
    if not _DRY_RUN.value:
        launch(all_arguments)
        return
    image = _IMAGE.value or "built from launch/Dockerfile"
    print(f"{_EXECUTOR.value}, {_ACCELERATOR.value or 'no accelerator'}, image {image}")
    for arguments in all_arguments:
        print(" ".join(["dsi-jax", *arguments]))


if __name__ == "__main__":
    app.run(main)
