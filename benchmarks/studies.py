"""Studies of many small runs, each from one command: ablations, report, forgetting, kinds.

    python -m benchmarks.studies ablations   --corpus DIR --out runs/ablations
    python -m benchmarks.studies report      --corpus DIR --out runs/report
    python -m benchmarks.studies forgetting  --corpus DIR --out runs/forgetting
    python -m benchmarks.studies kinds       --corpus DIR --out runs/kinds
    python -m benchmarks.studies image_kinds --images DIR --captions FILE --out runs/image_kinds

CORPUS is a directory in BEIR layout, IMAGES one of pictures. Every run is `dsi-jax train` with gin
files that ship, in a process of its own, bound to one core; `--jobs` run at once. A run whose
report is there is not repeated, so an interrupted study goes on with the same command. A JSON line
a run is printed, then a table; plots (extra `plots`) lie in the output directory.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import study_plots
from dsi_jax.data.readers import load

KINDS = ("atomic", "naive", "semantic")
# Every kind with its shape for some hundred to some thousand documents, where there is a choice.
EVERY_KIND = {
    "atomic": (),
    "naive": (),
    "semantic": (),
    "pq": ("quantized.ProductQuantized.levels=3", "quantized.ProductQuantized.codes=32"),
    "rq": ("quantized.ResidualQuantized.levels=3", "quantized.ResidualQuantized.codes=32"),
    "rqvae": ("learned.RQVAE.levels=3", "learned.RQVAE.codes=32"),
    "irgen": ("learned.IRGen.levels=3", "learned.IRGen.codes=32"),
    "title": (),
    "random": ("random_control.Random.clusters=32",),
}
FORMS = ("first", "set", "inverted")
STRATEGIES = ("inputs2targets", "bidirectional", "targets2inputs", "span_corruption", "none")
# The paper's buffer of 5,000 in a corpus of 228,000 documents, scaled to 1,000.
SCALED_BUFFER = 22


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a study.

    Attributes:
      study: its study.
      name: of its directory.
      options: arguments of `dsi-jax train`, but for MODEL_DIR.
      labels: what tells it from the others.
    """

    study: str
    name: str
    options: tuple[str, ...]
    labels: dict[str, Any]

    def directory(self, out: Path) -> Path:
        """MODEL_DIR."""
        return out / self.name


def ablations(corpus: Path, vocabulary: Path, seeds: int, steps: int) -> list[Run]:
    """Strategy x form x docid kind; every run is decoded with the trie and without it.

    With several seeds, one factor at a time is repeated; the full cross is run with the first. A
    dual encoder of the same model, trained on the same questions, stands beside each seed.
    """
    cross = [(s, f, k) for s in STRATEGIES for f in FORMS for k in KINDS]
    cross = [(s, f, k) for s, f, k in cross if s != "none" or f == "first"]
    alone = [(s, f, k) for s, f, k in cross if s == "inputs2targets" or f == "first"]
    cells = [(cell, seed) for seed in range(seeds) for cell in alone]
    cells += [(cell, 0) for cell in cross if cell not in alone]
    dual_encoders = [
        Run(
            "ablations",
            f"dual_encoder-{seed}",
            (
                "--gin_file=experiments/own_text_dual.gin",
                *_common(corpus, steps, seed),
                f"--gin.VOCABULARY={vocabulary}",
                "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'documents': 64}",
                "--gin.BATCH_SIZE=64",
                "--gin.CHUNK_RATIO=0",
                f"--gin.EVAL_PERIOD={steps}",
            ),
            {"strategy": "dual encoder", "form": "first", "docids": "none", "seed": seed},
        )
        for seed in range(seeds)
    ]
    return dual_encoders + [
        Run(
            "ablations",
            f"{strategy}-{form}-{kind}-{seed}",
            (
                *_index(kind),
                *_common(corpus, steps, seed),
                f"--gin.VOCABULARY={vocabulary}",
                "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}",
                "--gin.BATCH_SIZE=32",
                "--gin.CHUNK_RATIO=0",
                "--gin.DOCID_SPACE=text",
                f"--gin.DOCUMENT_FORM={form}",
                *_strategy(strategy),
                f"--gin.EVAL_PERIOD={steps}",
            ),
            {"strategy": strategy, "form": form, "docids": kind, "seed": seed},
        )
        for (strategy, form, kind), seed in cells
    ]


def report(corpus: Path, vocabulary: Path, seeds: int, steps: int) -> list[Run]:
    """1,000 documents and their questions, to convergence, with each docid kind."""
    del vocabulary
    return [
        Run(
            "report",
            f"{kind}-{seed}",
            (
                *_index(kind),
                *_common(f"{corpus}#1000", steps, seed),
                "--gin.VOCABULARY_SIZE=4000",
                "--gin.BATCH_SIZE=64",
                "--gin.CHUNK_RATIO=0",
                f"--gin.EVAL_PERIOD={steps // 20}",
            ),
            {"docids": kind, "seed": seed},
        )
        for seed in range(seeds)
        for kind in KINDS
    ]


def forgetting(corpus: Path, vocabulary: Path, seeds: int, steps: int) -> list[Run]:
    """A shuffle buffer against a full shuffle, documents without training questions last."""
    del vocabulary
    return [
        Run(
            "forgetting",
            f"{name}-{seed}",
            (
                *_index("atomic"),
                *_common(f"{corpus}#1000", steps, seed),
                "--gin.VOCABULARY_SIZE=4000",
                "--gin.BATCH_SIZE=32",
                "--gin.INDEXING_RATIO=2",
                "--gin.CHUNK_RATIO=4",
                "--gin.LEARNING_RATE_FACTORS=constant * linear_warmup",
                f"--gin.SHUFFLE_BUFFER_SIZE={buffer}",
                "--gin.EVAL_PERIOD=10",
            ),
            {"shuffle": name, "buffer": buffer, "seed": seed},
        )
        for seed in range(seeds)
        for name, buffer in (("full", None), ("buffer", SCALED_BUFFER))
    ]


def kinds(corpus: Path, vocabulary: Path, seeds: int, steps: int) -> list[Run]:
    """Every docid kind, end to end, by the recipe of own_text.gin."""
    del vocabulary
    return [
        Run(
            "kinds",
            f"{kind}-{seed}",
            (
                *_index(kind),
                *_common(corpus, steps, seed),
                *(f"--gin.{binding}" for binding in bindings),
                "--gin.CHUNK_RATIO=2",
                f"--gin.EVAL_PERIOD={steps}",
            ),
            {"docids": kind, "seed": seed},
        )
        for seed in range(seeds)
        for kind, bindings in EVERY_KIND.items()
    ]


def image_kinds(images: Path, captions: Path, seeds: int, steps: int) -> list[Run]:
    """Every docid kind that pictures can have, by the recipe of own_images.gin.

    Codes are those of the training captions (TF-IDF and SVD); pictures have no titles.
    """
    return [
        Run(
            "image_kinds",
            f"{kind}-{seed}",
            (
                "--gin_file=experiments/own_images.gin",
                f"--gin_file=docids/{kind}.gin",
                f"--gin.IMAGES={images}",
                f"--gin.CAPTIONS={captions}",
                *_steps(steps, seed),
                *(f"--gin.{binding}" for binding in bindings),
                "--gin.BASELINE=None",
                f"--gin.EVAL_PERIOD={steps}",
            ),
            {"docids": kind, "seed": seed},
        )
        for seed in range(seeds)
        for kind, bindings in EVERY_KIND.items()
        if kind != "title"
    ]


STUDIES = {
    "ablations": (ablations, 1400),
    "report": (report, 3000),
    "forgetting": (forgetting, 800),
    "kinds": (kinds, 3000),
    "image_kinds": (image_kinds, 1200),
}


def _index(kind: str) -> tuple[str, ...]:
    return ("--gin_file=experiments/own_text.gin", f"--gin_file=docids/{kind}.gin")


def _common(corpus: Path | str, steps: int, seed: int) -> tuple[str, ...]:
    return (f"--gin.CORPUS={corpus}", *_steps(steps, seed))


def _steps(steps: int, seed: int) -> tuple[str, ...]:
    return (
        f"--gin.TRAIN_STEPS={steps}",
        f"--gin.RANDOM_SEED={seed}",
        "--gin.BEAM_SIZE=10",
        "--gin.WARMUP_STEPS=100",
        f"--gin.CHECKPOINT_PERIOD={steps}",
        "--gin.CHECKPOINTS_KEPT=1",
    )


def _strategy(name: str) -> tuple[str, ...]:
    if name == "none":
        return ("--gin.INDEXING_RATIO=0",)
    return (f"--gin.INDEXING_STRATEGY={name}",)


def asked_twice(corpus: Path, out: Path, num_unseen: int = 150) -> Path:
    """A corpus of the documents with two questions or more, so that many are *seen*.

    Added are `num_unseen` documents whose only question is held out. Held-out questions of all
    splits become test.

    Returns:
      The directory, in BEIR layout.
    """
    directory = out / "asked_twice"
    if directory.exists():
        return directory
    whole = load.load_corpus(str(corpus))
    count = np.zeros(len(whole), int)
    for queries in whole.queries.values():
        np.add.at(count, np.concatenate(queries.relevant), 1)
    held_out = [q for split, q in whole.queries.items() if split != "train"]
    unseen = [r[0] for q in held_out for r in q.relevant if count[r[0]] == 1][:num_unseen]
    kept = set(np.flatnonzero(count >= 2)) | set(unseen)
    scratch = directory.with_name("asked_twice.partial")
    (scratch / "qrels").mkdir(parents=True, exist_ok=True)
    documents = [
        {"_id": whole.keys[row], "title": whole.titles[row], "text": whole.texts[row]}
        for row in sorted(kept)
    ]
    pairs: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for split, queries in whole.queries.items():
        for name, text, rows in zip(queries.ids, queries.texts, queries.relevant, strict=True):
            if rows[0] in kept:
                part = "train" if split == "train" else "test"
                pairs[part].append((name, text, whole.keys[rows[0]]))
    lines = [{"_id": name, "text": text} for part in pairs.values() for name, text, _ in part]
    for name, records in (("corpus", documents), ("queries", lines)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (scratch / f"{name}.jsonl").write_text(text)
    for part, rows in pairs.items():
        text = "".join(f"{name}\t{key}\t1\n" for name, _, key in rows)
        (scratch / "qrels" / f"{part}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{text}")
    scratch.rename(directory)
    return directory


def shared_vocabulary(corpus: Path, out: Path, size: int = 1000) -> Path:
    """A vocabulary that all runs of a study share, trained once."""
    options = ("--gin_file=experiments/own_text.gin", f"--gin.VOCABULARY_SIZE={size}")
    where = (f"--gin.CORPUS={corpus}", f"--gin.MODEL_DIR={out / 'vocabulary'}")
    _command("docids", *options, *where)
    return out / "vocabulary" / "tokenizer.json"


def run_all(runs: Iterable[Run], out: Path, jobs: int) -> list[dict[str, Any]]:
    """Runs what has not been run; prints and returns a result a run."""
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    available = sorted(os.sched_getaffinity(0))
    for job in range(jobs):
        cores.put(available[job % len(available)])

    def execute(run: Run) -> dict[str, Any]:
        directory = run.directory(out)
        if not (directory / "report.json").exists():
            core = cores.get()
            try:
                _command("train", *run.options, f"--gin.MODEL_DIR={directory}", core=core)
            finally:
                cores.put(core)
        result = {"study": run.study} | run.labels | results(directory)
        print(json.dumps(result), flush=True)
        return result

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(execute, runs))


def _command(mode: str, *arguments: str, core: int | None = None) -> None:
    """A `dsi-jax` command in a process of its own.

    Raises:
      RuntimeError: it failed; with the end of what it said.
    """
    bind = None if core is None else lambda: os.sched_setaffinity(0, {core})
    command = [sys.executable, "-m", "dsi_jax.main", f"--run_mode={mode}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bind)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def results(directory: Path) -> dict[str, Any]:
    """Figures of a finished run, in percent; a dual encoder has fewer, pictures have `views`."""
    summary = json.loads((directory / "report.json").read_text())
    found: dict[str, Any] = {"train_seconds": round(summary["train_seconds"], 1)}
    (name,) = (name for name in summary["test"] if name.endswith("_retrieval_test"))
    views = [figures for test, figures in summary["test"].items() if test != name]
    free = _last(directory / "inference_eval_free" / f"{name}-metrics.jsonl")
    for constraint, figures in (
        ("trie", summary["test"][name]),
        ("free", free),
        ("bm25", summary.get("bm25", {})),
        *(("views", figures) for figures in views),
    ):
        for metric in ("hits@1", "hits@10"):
            for group in ("", "/seen", "/unseen"):
                if metric + group in figures:
                    found[f"{constraint}_{metric}{group}"] = _percent(figures[metric + group])
    if free:
        found["invalid"] = _percent(free["invalid_rate"])
    for indexing in (directory / "inference_eval").glob("*_indexing_train-metrics.jsonl"):
        found["memorised"] = _percent(_last(indexing)["hits@1"])
    return found


def _last(path: Path) -> dict[str, float]:
    """The last line of a metrics file; empty where there is none."""
    return json.loads(path.read_text().splitlines()[-1]) if path.exists() else {}


def _percent(value: float) -> float:
    return round(100 * value, 1)


def table(found: Sequence[dict[str, Any]], labels: Sequence[str], columns: Sequence[str]) -> str:
    """Mean and, over several seeds, standard deviation of the columns, as Markdown."""
    groups = collections.defaultdict(list)
    for result in found:
        groups[tuple(str(result[label]) for label in labels)].append(result)
    lines = [f"| {' | '.join([*labels, 'seeds', *columns])} |"]
    lines.append("|" + "---|" * (len(labels) + len(columns) + 1))
    for key, members in groups.items():
        cells = [*key, str(len(members))]
        for column in columns:
            values = [member[column] for member in members if column in member]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_GROUPED = [f"{c}_{m}{g}" for c in ("trie", "free") for m in ("hits@1", "hits@10")
            for g in ("/seen", "/unseen")]  # fmt: skip
TABLES = {
    "ablations": (("strategy", "form", "docids"), ("memorised", *_GROUPED, "invalid")),
    "report": (("docids",), ("memorised", "trie_hits@1", "trie_hits@10", *_GROUPED[:4],
                             "bm25_hits@1", "bm25_hits@10", "train_seconds")),
    "forgetting": (("shuffle",), ("memorised", "trie_hits@1", "trie_hits@10", *_GROUPED[:4])),
    "kinds": (("docids",), ("memorised", "trie_hits@1", "trie_hits@10", *_GROUPED[:4], "invalid",
                            "bm25_hits@1", "bm25_hits@10", "train_seconds")),
    "image_kinds": (("docids",), ("memorised", "trie_hits@1", "trie_hits@10", "views_hits@1",
                                  "views_hits@10", "invalid", "bm25_hits@1", "bm25_hits@10",
                                  "train_seconds")),
}  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--corpus", type=Path, help="a directory in BEIR layout")
    parser.add_argument("--images", type=Path, help="a directory of pictures, for image_kinds")
    parser.add_argument("--captions", type=Path, help="of the pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one core")
    parser.add_argument("--most", type=int, help="at most so many runs, the most telling first")
    arguments = parser.parse_args()
    runs_of, steps = STUDIES[arguments.study]
    needed = ("images", "captions") if arguments.study == "image_kinds" else ("corpus",)
    given = [getattr(arguments, name) for name in needed]
    if None in given:
        parser.error(f"{arguments.study} needs {' and '.join(f'--{name}' for name in needed)}")
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    # Of texts: the corpus and a vocabulary; of pictures: these and their captions.
    first, *rest = (path.absolute() for path in given)
    second = rest[0] if rest else None
    if arguments.study == "ablations":
        first = asked_twice(first, out)
        second = shared_vocabulary(first, out)
    runs = runs_of(first, second, arguments.seeds, arguments.steps or steps)
    runs = runs[: arguments.most]
    found = run_all(runs, out, arguments.jobs)
    print(table(found, *TABLES[arguments.study]))
    if arguments.study in ("report", "forgetting"):
        directories = {
            run.name if arguments.seeds > 1 else run.name.removesuffix("-0"): run.directory(out)
            for run in runs
        }
        print(study_plots.curves(arguments.study, directories, out / f"{arguments.study}.png"))


if __name__ == "__main__":
    main()
