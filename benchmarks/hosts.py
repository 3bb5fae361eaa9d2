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
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks import timing
from benchmarks.local_runs import KINDS, ONE, SAVED, SEVERAL, STEPS, Corpus

TOLERANCE = 1e-5  # relative; batches differ by a hundred times as much and more


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
            reference = Trained(corpus.train("1", ONE))
            for count in options.processes:
                runs = {
                    f"{count}": corpus.train(f"{count}", SEVERAL[count]),
                    f"{count}, then 1": corpus.train(f"{count}_1", ONE, after=f"{count}"),
                    f"1, then {count}": corpus.train(f"1_{count}", SEVERAL[count], after="1"),
                }
                for name, model_dir in runs.items():
                    trained = Trained(model_dir)
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


if __name__ == "__main__":
    sys.exit(main())
