"""Our T5 training step against that of Hugging Face's PyTorch T5, on the same weights and batch.

    python -m benchmarks.train_step --cores 0-1
    python -m benchmarks.train_step --model t5_base --batch 128 --dtype bfloat16   # on a GPU

Both start from one file of random weights, without dropout (theirs and ours draw unlike masks),
with AdamW. First the losses of three steps must agree: the update is compared as well as the
gradient. Then three contenders take turns: `torch`, `text` (ours with T5's own vocabulary, the same
computation) and `compact` (ours with a vocabulary of docids alone, which is how dsi_jax trains:
the same docids, a head of 12 instead of 32,128 tokens). Prints one JSON line.

On a GPU both frameworks use it, with matrix products in full float32 or, asked for, in bfloat16.
Needs the extra `parity`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from benchmarks import timing
from benchmarks.made_texts import text_batch
from dsi_jax.convert import docid_vocabulary, hf_t5
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.models import t5_sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right
from dsi_jax.models.t5 import T5Config
from dsi_jax.training import partitioning
from dsi_jax.training.optimizers import AdamW
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import init_state, shardings_of, state_shapes
from dsi_jax.training.step import make_train_step

COMPARED_STEPS = 3
DOCUMENTS = 100_000
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
IGNORED = -100  # a target that PyTorch's loss leaves out
# Of the first loss, and of those after an update: Adam turns rounding of the smallest gradients
# into whole steps of their weights.
TOLERANCES = {"float32": (1e-5, 1e-3), "bfloat16": (1e-2, 3e-2)}

Step = Callable[[], float]  # makes a step, waits for it and returns its loss


def random_batch(
    rng: np.random.Generator, batch: int, source: int, vocab: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Random texts and naive docids of 100,000 documents, in the compact space.

    Args:
      rng: draws both.
      batch: B.
      source: S; texts have 1 to S tokens.
      vocab: text tokens.

    Returns:
      (batch as `DSIModel` reads it, the docid table's vocabulary as text tokens int [V]).
    """
    table = NaiveString().build(DocumentColumns([f"document {row}" for row in range(DOCUMENTS)]))
    tokens_BxS = rng.integers(2, vocab, (batch, source), dtype=np.int32)
    tokens_BxS *= np.arange(source) < rng.integers(1, source + 1, (batch, 1))
    targets_BxL = table.docids(rng.integers(0, DOCUMENTS, batch))
    # Pad and end keep their tokens; which ones stand for the digits makes no difference.
    as_text_V = np.concatenate([[0, 1], rng.choice(vocab - 2, table.vocab_size - 2, False) + 2])
    return _with_targets(text_batch(tokens_BxS), targets_BxL), as_text_V


def in_text_space(batch: dict[str, Any], as_text_V: np.ndarray) -> dict[str, Any]:
    """The same batch with docids spelt in text tokens."""
    targets_BxL = as_text_V[batch["decoder"]["targets"]].astype(np.int32)
    return _with_targets({"text": batch["text"]}, targets_BxL)


def our_step(config: DSIConfig, params: Any, batch: dict[str, Any], precision: str) -> Step:
    """Our step on the first device, from these parameters."""
    model, choice = DSIModel(config), AdamW(Schedule("constant", LEARNING_RATE))
    optimizer = choice.build(1)
    mesh = partitioning.make_mesh(partitioning.MeshConfig(data=1), jax.devices()[:1])
    shardings = shardings_of(state_shapes(model, optimizer, batch, mesh))
    step = make_train_step(
        model,
        optimizer,
        shardings,
        mesh=mesh,
        learning_rate=choice.learning_rate.build(1),
    )
    state = init_state(model, optimizer, batch, 0, mesh)
    state = state.replace(params=jax.device_put(params, shardings.params))
    batch = partitioning.shard_batch(batch, mesh)

    def run() -> float:
        nonlocal state
        with jax.default_matmul_precision(precision):
            state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"].total / metrics["loss"].count)

    return run


def torch_step(directory: str, batch: dict[str, Any], dtype: str, compiled: bool) -> Step:
    """PyTorch's step, as fast as its own options make it: a fused AdamW, autocast to bfloat16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("highest")
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory).to(device).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        fused=True,
    )
    decoder = batch["decoder"]
    labels_BxL = np.where(decoder["weights"] > 0, decoder["targets"], IGNORED)
    inputs = {
        name: torch.tensor(value, device=device).long()
        for name, value in {
            "input_ids": batch["text"]["tokens"],
            "attention_mask": batch["text"]["mask"],
            "labels": labels_BxL,
        }.items()
    }
    call = torch.compile(model) if compiled else model

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = call(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return run


def assert_equal_losses(ours: Step, theirs: Step, dtype: str) -> list[list[float]]:
    """Makes the first steps of both.

    Returns:
      Their losses, (ours, theirs) a step.

    Raises:
      AssertionError: they differ by more than rounding; what follows would compare unlike things.
    """
    losses = [[ours(), theirs()] for _ in range(COMPARED_STEPS)]
    for index, (our_loss, their_loss) in enumerate(losses):
        tolerance = TOLERANCES[dtype][index > 0]
        if not abs(our_loss - their_loss) <= tolerance * abs(their_loss):
            raise AssertionError(f"losses (ours, PyTorch's) by step: {losses}")
    return losses


def compare(args: argparse.Namespace, cores: int) -> dict[str, Any]:
    """Builds the contenders, compares their losses, times them; the fields of the line."""
    t5: T5Config = getattr(t5_sizes, args.model)(dropout_rate=0.0, dtype=args.dtype)
    compact_batch, as_text_V = random_batch(
        np.random.default_rng(0), args.batch, args.source, t5.vocab_size
    )
    batch = in_text_space(compact_batch, as_text_V)
    length = batch["decoder"]["targets"].shape[1]
    text = DSIConfig(t5, t5.vocab_size, length, docid_space="text")
    compact = DSIConfig(t5, len(as_text_V), length)
    params = _random_params(text, batch)
    with tempfile.TemporaryDirectory() as directory:
        hf_t5.save_t5(directory, t5, params)
        torch.set_num_threads(cores)
        theirs = torch_step(directory, batch, args.dtype, args.torch_compile)
    precision = "highest" if args.dtype == "float32" else "default"
    steps = {
        "torch": theirs,
        "text": our_step(text, params, batch, precision),
        "compact": our_step(
            compact, docid_vocabulary.initialize(params, as_text_V), compact_batch, precision
        ),
    }
    losses = assert_equal_losses(steps["text"], steps["torch"], args.dtype)
    timings = timing.measure(steps, rounds=args.rounds)

    def figures() -> dict[str, Any]:
        return {
            **{f"{name}_examples_per_s": args.batch / timings[name].p50 for name in steps},
            "text_over_torch": timings["torch"].p50 / timings["text"].p50,
            "compact_over_torch": timings["torch"].p50 / timings["compact"].p50,
        }

    return {
        "model": args.model,
        "dtype": args.dtype,
        "batch": args.batch,
        "source_length": args.source,
        "docid_length": length,
        "losses": losses,
        "torch_compile": args.torch_compile,
        **timing.line(timings, figures),
    }


def _with_targets(batch: dict[str, Any], targets_BxL: np.ndarray) -> dict[str, Any]:
    return batch | {
        "decoder": {
            "inputs": np.asarray(shift_right(targets_BxL)),
            "targets": targets_BxL,
            "weights": (targets_BxL != 0).astype(np.float32),
        },
        "is_indexing": np.zeros(len(targets_BxL), np.int32),
    }


def _random_params(config: DSIConfig, batch: dict[str, Any]) -> Any:
    optimizer = AdamW(Schedule("constant", LEARNING_RATE)).build(1)
    mesh = partitioning.make_mesh(partitioning.MeshConfig(data=1), jax.devices()[:1])
    return jax.device_get(init_state(DSIModel(config), optimizer, batch, 0, mesh).params)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="t5_small", help="a name in dsi_jax.models.t5_sizes")
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--source", type=int, default=32, help="tokens of a text")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--torch_compile", action="store_true", help="compile PyTorch's model")
    parser.add_argument("--cores", help="bind to these, e.g. 0-3,8")
    args = parser.parse_args()
    cores = timing.pin(args.cores)
    # Or jax takes most of a GPU's memory before PyTorch asks for any.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    about = {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "versions": {
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    timing.emit(
        kind="measurement", name="train_step_against_torch", **about, **compare(args, cores)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
