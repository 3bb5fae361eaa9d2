"""Whether a run that is killed again and again ends with the parameters of one that never was.

    python -m benchmarks.faults --kills 25 --processes 1 2

Real runs of the train command, of one process and of two over gloo, get SIGKILL at random moments,
half of the time only once a checkpoint is being written. What was finished before the kill must be
what the next run goes on from. Runs of several processes lose all of them, within a tenth of a
second; to lose one alone is their end too, but only after the others' time-out.
"""

import argparse
import dataclasses
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import timing
from benchmarks.local_runs import ONE, SECONDS, SEVERAL, Corpus, Hosts
from dsi_jax.training import checkpoints

STEPS, PERIOD = 120, 4  # of a run, and of its checkpoints
FARTHEST = 16  # steps from where a run goes on to where it is killed
_RESUMED = re.compile(r"resumed from step ([\d,]+)")
_LOGGED = re.compile(r"^step +([\d,]+)/", re.MULTILINE)
_FINISHED = re.compile(r"checkpoint_(\d+)")


@dataclasses.dataclass(frozen=True)
class Kill:
    """One SIGKILL and what it met.

    Attributes:
      while_saving: a checkpoint was unfinished when the processes were dead.
      finished: step of the last finished checkpoint; 0 if there was none.
      logged: the last step that was printed.
    """

    while_saving: bool
    finished: int
    logged: int


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each number of processes; the status is 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", choices=[1, *SEVERAL], default=[1, 2])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(argv)
    if options.kills < 1:
        parser.error(f"--kills is {options.kills}, expected at least 1")
    status = 0
    for count in options.processes:
        with tempfile.TemporaryDirectory() as directory:
            corpus = Corpus.write(Path(directory), "texts").longer(STEPS, PERIOD)
            found = kill_again_and_again(
                corpus, ONE if count == 1 else SEVERAL[count], options.kills, options.seed
            )
        status = 1 if found["problems"] else status
        timing.emit(kind="check", name="faults", processes=count, seed=options.seed, **found)
    return status


def kill_again_and_again(corpus: Corpus, hosts: Hosts, kills: int, seed: int) -> dict:
    """Kills runs, one MODEL_DIR after the other, and compares each with one that never was.

    Args:
      corpus: makes the runs.
      hosts: processes of each.
      kills: how many in all; what runs are then unfinished are finished.
      seed: of the moments.

    Returns:
      Fields of a line: how many kills of each sort, the most steps that one cost, `problems`.
    """
    draw = random.Random(seed)
    expected = checkpoints.load_params(corpus.train("whole", hosts) / f"checkpoint_{STEPS}")
    met: list[Kill] = []
    problems: list[str] = []
    runs = 0
    while len(met) < kills:
        runs += 1
        model_dir = corpus.directory / f"killed_{runs}"
        while (before := _finished(model_dir)) < STEPS:
            with corpus.start(model_dir.name, hosts) as processes:
                if len(met) < kills and (kill := _kill(processes, model_dir, before, draw)):
                    met.append(kill)
                else:  # there are enough, or it was through before
                    processes.wait()
                printed = processes.logs[0].read_text()
            resumed = _last(_RESUMED, printed)
            if resumed != before and _last(_LOGGED, printed):
                problems.append(f"{model_dir.name}: went on from {resumed}, not from {before}")
                before = STEPS
                break
        problems += _differences(model_dir, expected)
    return {
        "kills": len(met),
        "while_saving": sum(kill.while_saving for kill in met),
        "before_the_first_checkpoint": sum(not kill.finished for kill in met),
        "runs": runs,
        "steps": STEPS,
        "checkpoint_period": PERIOD,
        "most_steps_lost": max(kill.logged - kill.finished for kill in met),
        "problems": problems,
    }


def _kill(processes, model_dir: Path, before: int, draw: random.Random) -> Kill | None:
    """Kills all at a moment after a random step; None if the run was through before."""
    target = min(before + draw.randint(1, FARTHEST), STEPS - 1)
    at_a_save = draw.random() < 0.5
    end = time.monotonic() + SECONDS
    while processes.running and time.monotonic() < end:
        reached = _last(_LOGGED, processes.logs[0].read_text()) >= target
        if reached and (not at_a_save or _unfinished(model_dir)):
            break
        time.sleep(0.002)
    if not processes.running:
        return None
    for process in draw.sample(processes.processes, len(processes.processes)):
        time.sleep(draw.random() * 0.05)
        process.kill()
    processes.kill()
    return Kill(
        while_saving=_unfinished(model_dir),
        finished=_finished(model_dir),
        logged=_last(_LOGGED, processes.logs[0].read_text()),
    )


def _differences(model_dir: Path, expected) -> list[str]:
    """A line for each array that is not, bit for bit, that of the run that was never killed."""
    found = checkpoints.load_params(model_dir / f"checkpoint_{STEPS}")
    return [
        f"{model_dir.name}: {jax.tree_util.keystr(path)} differs"
        for (path, ours), theirs in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
        )
        if not np.array_equal(ours, theirs)
    ]


def _finished(model_dir: Path) -> int:
    """The last checkpoint that has its final name; it is whole, or a problem is found later."""
    names = [path.name for path in model_dir.glob("checkpoint_*")]
    return max((int(m[1]) for name in names if (m := _FINISHED.fullmatch(name))), default=0)


def _unfinished(model_dir: Path) -> bool:
    return any(model_dir.glob("checkpoint_*.orbax-checkpoint-tmp*"))


def _last(pattern: re.Pattern, printed: str) -> int:
    """The number of its last match; 0 without one."""
    found = pattern.findall(printed)
    return int(found[-1].replace(",", "")) if found else 0


if __name__ == "__main__":
    sys.exit(main())
